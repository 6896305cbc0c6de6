"""Which overrides of a command line choose options of config groups, and which of those cannot be meant."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

from sft.config import schema
from sft.config.checks.suggest import nearest
from sft.config.command_line.overrides import parse_overrides
from sft.config.errors import UserError
from sft.safety.configs import LONGEST_NAME

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.types import Override

OPTIONAL = ("quant", "lora", "callbacks", "judge", "sweep", "hub", "estimate")  # a config may be without these


def sort_overrides(
    loader: ConfigLoaderImpl, overrides: list[str], command: str
) -> tuple[list[Override], list[Override], list[UserError]]:
    """The overrides that Hydra composes with, those of single values, and the errors in the former.

    Args:
        command: whose keys the config must have ("train", "preview").
    """
    groups, values, errors = [], [], []
    for override in parse_overrides(overrides, loader):
        if override.is_delete() and (error := _needed(loader, override, command)):
            errors.append(error)
        elif _is_group(loader, override):
            error = _unknown_option(loader, override)
            errors.append(error) if error else groups.append(override)
        elif override.is_hydra_override():
            groups.append(override)
        else:
            values.append(override)
    return groups, values, errors


def _is_group(loader: ConfigLoaderImpl, override: Override) -> bool:
    key = (override.key_or_group or "").split("@")[0]
    return "." not in key and len(key) <= LONGEST_NAME and loader.repository.group_exists(key)


def _needed(loader: ConfigLoaderImpl, override: Override, command: str) -> UserError | None:
    """The error for `~key` where a run cannot do without the key."""
    key = (override.key_or_group or "").split("@")[0]
    top, _, rest = key.partition(".")
    types = {field.name: str(field.type) for field in fields(schema.COMMANDS[command])}
    section = is_dataclass(getattr(schema, types.get(top, ""), None))  # its keys are read without a `_target_`
    options = loader.repository.get_group_options(top) if not rest and loader.repository.group_exists(top) else []
    if key.endswith("_target_") or (section if rest else top in types and top not in OPTIONAL):
        off = f"{top}=none" if "none" in options else f"another value: {key}=..."
        return UserError("cannot be removed: nothing can be built without it", where=f"~{key}", remedy=off)
    return None


def _unknown_option(loader: ConfigLoaderImpl, override: Override) -> UserError | None:
    """The error for an unknown option of a group, naming the nearest one."""
    group, value = override.key_or_group, override.value()
    if override.is_delete() and not isinstance(value, str | None):
        return UserError(f"cannot be removed: {value!r} is not an option", where=group, remedy=f"~{group}")
    if override.is_delete():
        return None
    options = loader.repository.get_group_options(group)
    if value is None:
        off = f"{group}=none" if "none" in options else "leave it out"
        return UserError("null is not an option", where=group, remedy=f"{off}. There are: {', '.join(options)}")
    for name in value if isinstance(value, list) else [value]:
        stem = str(name).removesuffix(".yaml")
        if stem not in options and not loader.repository.config_exists(f"{group}/{stem}"):
            near = nearest(stem, options)
            shown = ", ".join(options)
            return UserError(
                f"there is not an option {stem!r}",
                where=group,
                remedy=f"did you mean {group}={near}? " * bool(near) + f"There are: {shown}",
            )
    return None
