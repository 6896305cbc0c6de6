"""Callbacks of training, one file an idea. A config names them by `_target_`; importing this package loads nothing."""
