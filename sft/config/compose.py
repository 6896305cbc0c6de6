"""Compose a run's config from groups and overrides, and collect all errors instead of stopping at the first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sft.config.checks.check import check
from sft.config.checks.owners import OWNED
from sft.config.checks.requirements import missing
from sft.config.command_line.sweeps import expand_sweep
from sft.config.composed import Composed, apply, resolved
from sft.config.errors import UserError, raise_all
from sft.config.groups import sort_overrides
from sft.config.paths import conf_dir, user_conf_dirs
from sft.config.resolvers import register
from sft.safety.configs import unsafe
from sft.safety.expansion import endless
from sft.safety.secrets import redact_command
from sft.safety.yaml_files import check_yaml

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl


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
    """Errors in the YAML files of the user's own directories, which Hydra would read unchecked."""
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
    groups, values, errors = sort_overrides(loader, overrides, command)
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


def _load(loader: ConfigLoaderImpl, name: str, overrides: list[str], multirun: bool) -> DictConfig:
    """What Hydra composes of the primary config and these overrides. Raises UserError where it fails."""
    from hydra.types import RunMode

    try:
        return loader.load_configuration(name, overrides, RunMode.MULTIRUN if multirun else RunMode.RUN)
    except OmegaConfBaseException:
        raise
    except RecursionError:
        raise _not_composed("the defaults of a YAML file lead back to itself", overrides) from None
    # errors that Hydra does not handle itself
    except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
        raise _not_composed(" ".join(str(error).split()) or type(error).__name__, overrides) from error


def _faults(
    config: dict[str, Any], hydra: dict[str, Any], command: str, explicit: list[str], predicts: bool
) -> list[UserError]:
    """The errors of a resolved config; a dangerous key is reported as dangerous only."""
    dangers = [error for error in unsafe(config, hydra) if error.where not in OWNED]
    told = {error.where for error in dangers}
    found = check(config, command, explicit=explicit, predicts=predicts)
    return [*_hydra_targets(hydra), *dangers, *(error for error in found if error.where not in told)]


def check_command(
    loader: ConfigLoaderImpl, name: str, overrides: list[str], command: str, multirun: bool, runs: bool = True
) -> list[str]:
    """Compose and check every job that a command line stands for, before any of them starts.

    Args:
        runs: whether they will be started, so that the machine must have what they need.

    Returns:
        The overrides with `++` where Hydra needs it.

    Raises:
        UserError: every distinct error of every job, once each.
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


def _not_composed(what: str, overrides: list[str]) -> UserError:
    return UserError(
        f"the config cannot be composed: {what}",
        where=" ".join(redact_command(overrides)),
        remedy="look at the `defaults` and `# @package` of your own YAML files, and at what these overrides name",
    )


def _refused_by_specs(config: dict[str, Any]) -> list[UserError]:
    """Errors that sft's own specs raise for their values (ranges, combinations); building them imports nothing
    heavy."""
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
    """Errors for Hydra's own nodes (launchers, sweepers, callbacks), which it builds at its start: same allow-list."""
    from sft.config.build import targets_of
    from sft.safety.targets import check_target

    return [error for key, target in targets_of(node, "hydra") if (error := check_target(target, key))]
