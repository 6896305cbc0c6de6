"""The config's snapshots in a run directory: config.resolved.yaml, and .hydra/ as Hydra itself would write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.run.directory import RunDirectory
from sft.safety.secrets import redact_tree


def write_snapshot(
    run: RunDirectory, config: Mapping[str, Any], unresolved: str, hydra: Mapping[str, Any] | None, anew: bool = False
) -> None:
    """Write the snapshots once: a resumed run keeps the first, except for a config with allowed changes.

    Args:
        config: the resolved config, plain containers.
        unresolved: the composed config as YAML, its interpolations kept.
        hydra: Hydra's own node, None where Hydra did not start the run; its `overrides.task` is the command line.
        anew: overwrite an existing config.resolved.yaml.
    """
    import yaml

    if anew or not run.config.is_file():
        run.write_text(
            run.config, yaml.safe_dump(_escaped(redact_tree(dict(config))), sort_keys=False, allow_unicode=True)
        )
    if (run.path / ".hydra" / "overrides.yaml").is_file():
        return
    overrides = list(((hydra or {}).get("overrides") or {}).get("task") or [])
    run.write_text(".hydra/overrides.yaml", yaml.safe_dump(overrides, allow_unicode=True))
    run.write_text(".hydra/config.yaml", unresolved)
    run.write_text(
        ".hydra/hydra.yaml", yaml.safe_dump({"hydra": dict(hydra or {})}, sort_keys=False, allow_unicode=True)
    )


def _escaped(value: Any) -> Any:
    """Escape literal `${` for OmegaConf, so that the snapshot composes to the same values."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
