"""Whole runs for trackers to follow."""

from tests.runs import run_in

__all__ = ["run_in"]
