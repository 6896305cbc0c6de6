"""Training callbacks, one per file. A config names them by `_target_`; importing this package loads nothing."""
