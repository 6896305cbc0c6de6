"""Models from the packaged groups."""

from tests.models import built, compose

__all__ = ["built", "compose"]
