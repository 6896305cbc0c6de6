"""Searching with Optuna: space, study, pruning, and the start by Hydra."""
