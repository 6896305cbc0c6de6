"""The layers that an adapter's config asks for, held against those of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sft.config.errors import UserError
from sft.model.adapters.matching import listed, matching, nothing_matches


def layer_faults(config: Any, model: Any, modules: list[str]) -> Iterator[UserError]:
    """Errors for layers that the model does not have, and for modules outside of the requested layers.

    Args:
        config: a peft.LoraConfig with its targets filled in.
        model: named in the errors.
        modules: the model's, by name.
    """
    asked = config.layers_to_transform
    if asked is None or isinstance(config.target_modules, str | None):
        return
    asked = [asked] if isinstance(asked, int) else list(asked)
    patterns = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in layer_lists(config)]
    for name, pattern in zip(layer_lists(config), patterns, strict=True):
        if not any(re.match(pattern, module) for module in modules):
            yield nothing_matches("layers_pattern", [name], _lists_of_layers(modules))
            return
    found: dict[str, set[int]] = {
        target: {
            int(match.group(1))
            for module in matching(modules, [target])
            for pattern in patterns or [r".*?\.[^.]*\.(\d+)\."]
            if (match := re.match(pattern, module))
        }
        for target in config.target_modules
    }
    there = sorted(set().union(*found.values()))
    if missing := [layer for layer in asked if layer not in there]:
        span = f"{there[0]} to {there[-1]}" if there else "not numbered"
        yield UserError(
            f"there is no layer {', '.join(map(str, missing))}: those of {type(model).__name__} are {span}",
            where="lora.layers_to_transform",
            remedy=f"lora.layers_to_transform=[{','.join(map(str, there[:4]))}]" if there else "leave it out",
        )
    elif outside := sorted(target for target, layers in found.items() if not layers & set(asked)):
        yield UserError(
            f"{', '.join(outside)} is not in layer {', '.join(map(str, asked))}",
            where="lora.target_modules",
            remedy=f"lora.layers_to_transform=[{','.join(map(str, sorted(found[outside[0]])[:4]))}], or without {outside[0]}",
        )


def layer_lists(config: Any) -> list[str]:
    """The names of lists of layers that `layers_pattern` gives, each a regular expression."""
    pattern = config.layers_pattern
    return [pattern] if isinstance(pattern, str) and pattern else listed(pattern)


def _lists_of_layers(modules: list[str]) -> set[str]:
    return {match.group(1) for name in modules if (match := re.search(r"([^.]+)\.\d+\.", name))}
