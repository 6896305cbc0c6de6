"""A search with Optuna: its space, its study, its pruning, and how Hydra starts it."""
