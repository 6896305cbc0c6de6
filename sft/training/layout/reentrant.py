"""Whether several forward passes of a model may run at the same time: one whose state changes in forward mixes them up."""

from __future__ import annotations

from typing import Any

# transformers' rotary embeddings that set their frequencies anew by the longest document of a call
CHANGING_ROTATIONS = {"dynamic", "longrope"}

Notes = dict[tuple[str, str], tuple[Any, int]]


def notes_of(model: Any) -> Notes:
    """What each module holds beside its weights: {(module, attribute): (the object, writes to it)}.

    The objects themselves are held, so that none can be freed and another take its address.
    """
    found: Notes = {}
    for name, module in model.named_modules():
        for attribute, value in [*module.__dict__.items(), *module._buffers.items()]:
            found[name, attribute] = (value, getattr(value, "_version", 0))
    return found


def wrote_notes(before: Notes, after: Notes) -> str | None:
    """The first attribute that is not what it was, for messages; None where all are."""
    for place, (value, writes) in after.items():
        if place not in before or before[place][0] is not value or before[place][1] != writes:
            return ".".join(place)
    return None


def rotations_change(model: Any) -> bool:
    """Whether positions are rotated by frequencies that depend on the call."""
    kinds = (getattr(module, "rope_type", None) for module in model.modules())
    used = {kind for each in kinds for kind in (each.values() if isinstance(each, dict) else [each])}
    return bool(used & CHANGING_ROTATIONS)
