"""A conversation rendered to text, with which characters the model has to produce."""
