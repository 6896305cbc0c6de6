"""Another model over the same weights: modules of its own, tensors shared."""

from __future__ import annotations

import copy
from typing import Any

_ORIGINAL = "_view_of"


def view_of(model: Any) -> Any:
    """A copy of a model's modules and settings over the very tensors of the original; no weights are copied.

    What one of them has put into its modules (adapters, hooks, an attention of its own) the other does not see.
    """
    shared = [*model.parameters(), *model.buffers()]
    # bitsandbytes keeps what a quantized weight is unpacked with beside it
    holders = [*model.modules(), *model.parameters()]
    shared += [state for holder in holders if (state := getattr(holder, "quant_state", None)) is not None]
    view = copy.deepcopy(model, {id(each): each for each in shared})
    view.__dict__[_ORIGINAL] = model  # not a submodule
    return view


def original_of(model: Any) -> Any:
    """The model that a view is over; any other model itself."""
    return model.__dict__.get(_ORIGINAL, model)
