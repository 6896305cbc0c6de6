"""The command line before Hydra sees it."""
