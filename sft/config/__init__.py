"""Find conf/, compose a run's config, check it, and build objects from it: the only place that instantiates."""

from sft.config.build import build
from sft.config.errors import UserError, UserErrors

__all__ = ["UserError", "UserErrors", "build"]
