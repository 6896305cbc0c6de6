"""The run directory: what a run records about itself, and the only code that writes it."""
