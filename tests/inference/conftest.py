"""One small run for all tests of commands on a finished run, and the commands' functions in this process."""

from tests.runs import run_in, settings, trained

__all__ = ["run_in", "settings", "trained"]
