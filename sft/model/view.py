"""A second model with its own modules that shares the weights."""

from __future__ import annotations

import copy
from typing import Any

_ORIGINAL = "_view_of"


def view_of(model: Any) -> Any:
    """A copy of a model's modules and settings that uses the original's tensors; no weights are copied.

    Changes to the modules of one (adapters, hooks, its attention) do not affect the other.
    """
    shared = [*model.parameters(), *model.buffers()]
    # bitsandbytes stores the quantization state beside the weight
    holders = [*model.modules(), *model.parameters()]
    shared += [state for holder in holders if (state := getattr(holder, "quant_state", None)) is not None]
    view = copy.deepcopy(model, {id(each): each for each in shared})
    view.__dict__[_ORIGINAL] = model  # not a submodule
    return view


def original_of(model: Any) -> Any:
    """The original of a view; any other model itself."""
    return model.__dict__.get(_ORIGINAL, model)
