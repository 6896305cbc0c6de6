"""The run directory: what a run records about itself, and the only place that writes it."""
