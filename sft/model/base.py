"""The model that an adapter is on."""

from __future__ import annotations

from typing import Any


def base_of(model: Any) -> Any:
    """A peft model's base, its layers with the adapter in them; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
