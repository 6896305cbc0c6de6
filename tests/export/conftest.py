"""Models from the packaged groups, and finished runs."""

from tests.models import built, compose
from tests.runs import run_in, settings, trained

__all__ = ["built", "compose", "run_in", "settings", "trained"]
