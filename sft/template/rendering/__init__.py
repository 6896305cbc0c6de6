"""Conversations rendered to text, with the characters that the model has to produce."""
