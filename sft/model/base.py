"""The model below an adapter."""

from __future__ import annotations

from typing import Any


def base_of(model: Any) -> Any:
    """A peft model's base, with the adapter's layers in it; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
