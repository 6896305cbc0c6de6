"""Exporting a trained model: merging, reloading, and files for serving."""
