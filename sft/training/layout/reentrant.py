"""Whether several forward passes of a model may run at the same time: one whose state changes in forward mixes them up."""

from __future__ import annotations

from typing import Any

# transformers' rotary embeddings that recompute their frequencies by the longest document of a call
DYNAMIC_ROPE_TYPES = {"dynamic", "longrope"}

ModuleState = dict[tuple[str, str], tuple[Any, int]]


def module_state(model: Any) -> ModuleState:
    """The attributes of each module besides its weights: {(module, attribute): (the object, writes to it)}.

    References to the objects are kept, so that none can be freed and its address reused.
    """
    found: ModuleState = {}
    for name, module in model.named_modules():
        for attribute, value in [*module.__dict__.items(), *module._buffers.items()]:
            found[name, attribute] = (value, getattr(value, "_version", 0))
    return found


def changed_attribute(before: ModuleState, after: ModuleState) -> str | None:
    """The first attribute that has changed, for messages; None if none has."""
    for place, (value, writes) in after.items():
        if place not in before or before[place][0] is not value or before[place][1] != writes:
            return ".".join(place)
    return None


def has_dynamic_rope(model: Any) -> bool:
    """Whether the rotary frequencies depend on the call."""
    kinds = (getattr(module, "rope_type", None) for module in model.modules())
    used = {kind for each in kinds for kind in (each.values() if isinstance(each, dict) else [each])}
    return bool(used & DYNAMIC_ROPE_TYPES)
