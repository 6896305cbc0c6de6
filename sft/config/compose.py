"""Compose a run's config from groups and overrides, and collect every fault on the way instead of the first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sft.config import schema
from sft.config.checks.check import check
from sft.config.checks.owners import OWNED
from sft.config.checks.requirements import missing
from sft.config.checks.suggest import nearest
from sft.config.command_line.overrides import parse_overrides
from sft.config.command_line.sweeps import expand_sweep
from sft.config.composed import Composed, apply, resolved
from sft.config.errors import UserError, raise_all
from sft.config.paths import conf_dir, user_conf_dirs
from sft.config.resolvers import register
from sft.safety.configs import LONGEST_NAME, unsafe
from sft.safety.expansion import endless
from sft.safety.secrets import redact_command
from sft.safety.yaml_files import check_yaml

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.types import Override

OPTIONAL = ("quant", "lora", "callbacks", "judge", "sweep", "hub", "estimate")  # a config may be without these


def config_loader() -> ConfigLoaderImpl:
    """Hydra's loader over the user's conf/ and the packaged one."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.utils import setup_globals

    raise_all(_unreadable_configs())
    setup_globals()
    register()
    return ConfigLoaderImpl(create_config_search_path(str(conf_dir())))


def _unreadable_configs() -> list[UserError]:
    """What is wrong with the YAML files of the user's own directories, which Hydra would read as they are."""
    found = []
    for directory in user_conf_dirs():
        found += [check_yaml(path) for path in _files(directory) if path.suffix in (".yaml", ".yml")]
    return [error for error in found if error]


def _files(directory: str | Path) -> Iterator[Path]:
    """All files below a directory, also behind links to directories, which Hydra follows; each directory once."""
    seen: set[str] = set()
    for folder, below, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in sorted(names))


def compose_job(
    loader: ConfigLoaderImpl,
    name: str,
    overrides: list[str],
    command: str,
    multirun: bool = False,
    overlay: DictConfig | None = None,
    predicts: bool = False,
) -> Composed:
    """Compose one job (no sweeps in its overrides) and check it.

    Args:
        name: the primary config ("train", or a registered base).
        command: whose keys it must have ("train", "preview").
        overlay: keys laid over what the groups give, below the overrides.
        predicts: whether a Python caller may give a `compute_metrics`.
    """
    groups, values, errors = _sorted(loader, overrides, command)
    config = _load(loader, name, [group.input_line or "" for group in groups], multirun)
    with open_dict(config):
        if overlay is not None:
            config.merge_with(overlay)
        config.hydra.overrides.task = [o for o in overrides if not o.lstrip("+~").startswith("hydra.")]
    composed = Composed(config, errors)
    for override in values:
        apply(composed, override)
    if bomb := endless(OmegaConf.to_container(config, resolve=False)):  # type: ignore[arg-type]
        composed.errors.append(bomb)
        return composed
    found = resolved(composed)
    composed.hydra = found.pop("hydra", {})
    composed.plain = found
    explicit = [key.removeprefix("trainer.") for o in values if (key := o.key_or_group).startswith("trainer.")]
    composed.errors += _faults(found, composed.hydra, command, explicit, predicts)
    if not composed.errors:
        composed.errors += _refused_by_specs(found)
    return composed


def _sorted(
    loader: ConfigLoaderImpl, overrides: list[str], command: str
) -> tuple[list[Override], list[Override], list[UserError]]:
    """The overrides that Hydra composes with, those of single values, and what is wrong with the former."""
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


def _load(loader: ConfigLoaderImpl, name: str, overrides: list[str], multirun: bool) -> DictConfig:
    """What Hydra composes of the primary config and these overrides. Raises UserError where it fails."""
    from hydra.types import RunMode

    try:
        return loader.load_configuration(name, overrides, RunMode.MULTIRUN if multirun else RunMode.RUN)
    except OmegaConfBaseException:
        raise
    except RecursionError:
        raise _not_composed("the defaults of a YAML file lead back to itself", overrides) from None
    except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:  # what Hydra does not foresee
        raise _not_composed(" ".join(str(error).split()) or type(error).__name__, overrides) from error


def _faults(
    config: dict[str, Any], hydra: dict[str, Any], command: str, explicit: list[str], predicts: bool
) -> list[UserError]:
    """What is wrong with a resolved config; a key that is dangerous is told as that alone."""
    dangers = [error for error in unsafe(config, hydra) if error.where not in OWNED]
    told = {error.where for error in dangers}
    found = check(config, command, explicit=explicit, predicts=predicts)
    return [*_hydra_targets(hydra), *dangers, *(error for error in found if error.where not in told)]


def check_command(
    loader: ConfigLoaderImpl, name: str, overrides: list[str], command: str, multirun: bool, runs: bool = True
) -> list[str]:
    """Compose and check every job that a command line stands for, before any of them starts.

    Args:
        runs: whether they are to start, and the machine must have what they need.

    Returns:
        The overrides with `++` where Hydra needs it.

    Raises:
        UserError: every distinct fault of every job, once each.
    """
    errors: dict[str, UserError] = {}
    added: set[str] = set()
    for job in expand_sweep(overrides, loader) if multirun else [overrides]:
        composed = compose_job(loader, name, job, command, multirun)
        added |= composed.added
        errors.update({str(error): error for error in composed.errors})
        if runs and composed.plain is not None:
            errors.update({str(error): error for error in missing(composed.plain, composed.hydra, command)})
    raise_all(list(errors.values()))
    return [f"++{o}" if o.partition("=")[0] in added else o for o in overrides]


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain containers, every interpolation resolved, Hydra's own node left out."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    found = OmegaConf.to_container(own, resolve=True)
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]


def _is_group(loader: ConfigLoaderImpl, override: Override) -> bool:
    key = (override.key_or_group or "").split("@")[0]
    return "." not in key and len(key) <= LONGEST_NAME and loader.repository.group_exists(key)


def _needed(loader: ConfigLoaderImpl, override: Override, command: str) -> UserError | None:
    """The error for `~key` where a run cannot do without the key."""
    key = (override.key_or_group or "").split("@")[0]
    top, _, rest = key.partition(".")
    types = {field.name: str(field.type) for field in fields(schema.COMMANDS[command])}
    section = hasattr(schema, types.get(top, ""))  # its keys are read as they stand
    options = loader.repository.get_group_options(top) if not rest and loader.repository.group_exists(top) else []
    if key.endswith("_target_") or (section if rest else top in types and top not in OPTIONAL):
        off = f"{top}=none" if "none" in options else f"another value: {key}=..."
        return UserError("cannot be taken away: nothing can be built without it", where=f"~{key}", remedy=off)
    return None


def _not_composed(what: str, overrides: list[str]) -> UserError:
    return UserError(
        f"the config cannot be composed: {what}",
        where=" ".join(redact_command(overrides)),
        remedy="look at the `defaults` and `# @package` of your own YAML files, and at what these overrides name",
    )


def _unknown_option(loader: ConfigLoaderImpl, override: Override) -> UserError | None:
    """The error for a group's option that does not exist, with the nearest that does."""
    group, value = override.key_or_group, override.value()
    if override.is_delete() and not isinstance(value, str | None):
        return UserError(f"cannot be taken away: {value!r} is no option", where=group, remedy=f"~{group}")
    if override.is_delete():
        return None
    options = loader.repository.get_group_options(group)
    if value is None:
        off = f"{group}=none" if "none" in options else "leave it out"
        return UserError("null is no option", where=group, remedy=f"{off}. There are: {', '.join(options)}")
    for name in value if isinstance(value, list) else [value]:
        stem = str(name).removesuffix(".yaml")
        if stem not in options and not loader.repository.config_exists(f"{group}/{stem}"):
            near = nearest(stem, options)
            shown = ", ".join(options)
            return UserError(
                f"there is no option {stem!r}",
                where=group,
                remedy=f"did you mean {group}={near}? " * bool(near) + f"There are: {shown}",
            )
    return None


def _refused_by_specs(config: dict[str, Any]) -> list[UserError]:
    """What sft's own specs say of their values (ranges, what goes with what); building them imports nothing heavy."""
    from sft.config.build import build

    errors: list[UserError] = []
    for key in ("model", "dataset", "template", "evaluation", "judge"):
        node = config.get(key)
        if isinstance(node, dict) and str(node.get("_target_", "")).startswith("sft.") and ".spec." in node["_target_"]:
            try:
                build({**node, "_recursive_": key != "dataset"}, where=key, allowed=config.get("allow_targets") or [])
            except UserError as error:
                errors.append(error)
    return errors


def _hydra_targets(node: dict[str, Any]) -> list[UserError]:
    """Hydra builds its own nodes (launchers, sweepers, callbacks) while it starts: the allow-list holds there as well."""
    from sft.config.build import targets_of
    from sft.safety.targets import check_target

    return [error for key, target in targets_of(node, "hydra") if (error := check_target(target, key))]
