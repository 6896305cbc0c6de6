"""One small run for all tests of what is done with a finished run, and the doors' functions in this process."""

from tests.runs import run_in, settings, trained

__all__ = ["run_in", "settings", "trained"]
