"""What no config may contain, wherever it comes from: secrets, code outside of `_target_`, path traversal.

A config is written into the run directory, sent to the tracker and shared with the run, so a secret in it is refused
rather than redacted: a redacted config could not be run again. Hydra's own node can name code too: its logging nodes
are passed to `logging.config.dictConfig`, which imports and calls whatever they name.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from sft.config.errors import UserError
from sft.safety.secrets import holds_secret, is_secret_key, is_secret_variable

LONGEST_NAME = 100
_HANDLERS = {"logging.StreamHandler", "logging.FileHandler", "logging.NullHandler"}
_FORMATTERS = {"logging.Formatter", "colorlog.ColoredFormatter"}
_STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
# Variables that only affect speed or verbosity; others decide which code programs run and which hosts they contact.
_HARMLESS = re.compile(
    r"(OMP|MKL|KMP|GOMP|OPENBLAS|NUMEXPR)_\w+|CUDA_(VISIBLE_DEVICES|LAUNCH_BLOCKING|DEVICE_ORDER)|CUBLAS_WORKSPACE_CONFIG"
    r"|PYTORCH_(CUDA_)?ALLOC_CONF|TOKENIZERS_PARALLELISM|RAYON_NUM_THREADS|NCCL_(DEBUG|IB_DISABLE|P2P_DISABLE|SOCKET_IFNAME)"
    r"|(HF_HUB|HF_DATASETS|TRANSFORMERS)_(OFFLINE|VERBOSITY)|HF_HUB_DISABLE_\w+|WANDB_(MODE|SILENT|NOTES|TAGS)|TZ|LANG|LC_\w+"
)
_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?(\w+)")  # checked in Hydra's node, which is resolved later
_BY_ANOTHER = re.compile(r"\$\{\s*oc\.env\s*:[^}]*\$\{")
_OWN_DIRECTORY = "${hydra.runtime.output_dir}/"
# Prompts are free text, and are not written into a run directory.
_FREE_TEXT = {"prompt", "system"}


def unsafe(config: Mapping[str, Any], hydra: Mapping[str, Any]) -> Iterator[UserError]:
    """Every error of this kind in a composed config.

    Args:
        config: resolved, plain containers.
        hydra: Hydra's own node, its interpolations unresolved or not.
    """
    yield from _secrets(config, "")
    yield from _secrets({key: value for key, value in hydra.items() if key not in ("overrides", "runtime")}, "hydra")
    yield from _names(config)
    yield from _allowed(config.get("allow_targets"))
    yield from _imports(config)
    for key in ("job_logging", "hydra_logging"):
        yield from _logging(hydra.get(key), f"hydra.{key}")
    yield from _variables(hydra)
    yield from _subdirectories(hydra)
    yield from _directories(hydra)


def check_name(name: object, where: str) -> UserError | None:
    """The error for a name that is used for files or directories, or None.

    A name may contain `/` (nested folders), but no path traversal and no invisible characters.
    """
    if not isinstance(name, str):
        return None
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in name):
        return UserError("a name has no control or invisible characters", where=where, remedy=f"{where}=NAME")
    if len(name) > LONGEST_NAME:
        return UserError(
            f"a name has at most {LONGEST_NAME} characters, this one {len(name):,}",
            where=where,
            remedy=f"a shorter {where}",
        )
    path = PurePath(name)
    if not name.strip() or path.is_absolute() or name.startswith("~") or "\\" in name or ".." in path.parts:
        return UserError(
            f"{name!r} is not a valid name: it would lead out of its directory",
            where=where,
            remedy=f"{where}=NAME, and hydra.run.dir=DIR for another place",
        )
    return None


def _directories(hydra: Mapping[str, Any]) -> Iterator[UserError]:
    """Errors for the directories of runs, which are printed one per line and parsed by other programs."""
    for node in ("run", "sweep"):
        path = (hydra.get(node) or {}).get("dir")
        where = f"hydra.{node}.dir"
        if not isinstance(path, str):
            continue
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in path):
            yield UserError("a directory's name has no control characters", where=where, remedy=f"{where}=DIR")
        elif any(len(part.encode()) > 255 for part in path.split("/")):
            yield UserError("a name has at most 255 bytes", where=where, remedy=f"a shorter {where}")


def _names(config: Mapping[str, Any]) -> Iterator[UserError]:
    dataset = config.get("dataset")
    sources = [
        (f"dataset.{group}", name)
        for group in ("sources", "eval_sources")
        if isinstance(dataset, dict) and isinstance(dataset.get(group), dict)
        for name in dataset[group]
    ]
    for where, name in [("name", config.get("name")), *sources]:
        if error := check_name(name, where):
            yield error
    hub = config.get("hub")
    push = hub.get("push") if isinstance(hub, dict) else None
    if isinstance(push, str) and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", push, re.ASCII):
        yield UserError(
            f"{push!r} is not a repository of the hub",
            where="hub.push",
            remedy="hub.push=ORG/NAME, in letters, digits, '.', '_' and '-'",
        )


def _secrets(node: Any, where: str) -> Iterator[UserError]:
    """Errors for values that are secrets, by their key, their form, or by being the value of a secret variable."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            full = f"{where}.{key}" if where else str(key)
            if full in _FREE_TEXT:
                continue
            if found := holds_secret(str(key)):
                yield _secret(f"a key below {where or 'the top'}", found)
            elif is_secret_key(full) and value not in (None, "") and not isinstance(value, bool | Mapping):
                yield _secret(full, "is a secret by its name")
            else:
                yield from _secrets(value, full)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _secrets(value, f"{where}[{index}]")
    elif isinstance(node, str | int) and not isinstance(node, bool):
        asked = [name for name in _ENVIRONMENT.findall(str(node)) if is_secret_variable(name)]
        if _BY_ANOTHER.search(str(node)):
            yield UserError(
                "reads an environment variable that another value names, so it cannot be checked for being a secret",
                where=where,
                remedy="${oc.env:NAME}",
            )
        elif found := f"reads the environment variable {asked[0]}" if asked else holds_secret(str(node)):
            yield _secret(where, found)


def _secret(where: str, what: str) -> UserError:
    return UserError(
        f"{what}, and a config is written into the run directory",
        where=where,
        remedy="leave it out: secrets are read only from the environment or .env (HF_TOKEN, WANDB_API_KEY, ...)",
    )


def _allowed(targets: Any) -> Iterator[UserError]:
    """Errors for `allow_targets`, which is for the user's own classes: built-in functions would make a config a
    program."""
    listed = targets if isinstance(targets, list) else []
    if targets is not None and (listed is not targets or not all(isinstance(target, str) for target in listed)):
        yield UserError(
            f"{targets!r} is not a list of names",
            where="allow_targets",
            remedy="allow_targets=[my_module.MyCallback]",
        )
    for target in listed:
        if isinstance(target, str) and target.partition(".")[0] in sys.stdlib_module_names:
            yield UserError(
                f"{target} is part of Python, and no config may call it",
                where="allow_targets",
                remedy="name a class or function of your own instead",
            )


def _imports(config: Mapping[str, Any]) -> Iterator[UserError]:
    """Errors for keys that make a library import the module they name."""
    lora = config.get("lora")
    core = lora.get("megatron_core") if isinstance(lora, dict) else None
    if core not in (None, "megatron.core"):
        yield UserError(
            f"{core!r} would be imported, and is not Megatron", where="lora.megatron_core", remedy="megatron.core"
        )


def _logging(node: Any, where: str) -> Iterator[UserError]:
    """Errors for logging nodes: `dictConfig` calls what `()` and `class` name, and imports what `ext://` names."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            full = f"{where}.{key}"
            kind = where.split(".")[2] if where.count(".") >= 2 else ""
            known = _HANDLERS if kind == "handlers" else _FORMATTERS
            if key == "()" or (key == "class" and kind in ("handlers", "formatters", "filters")):
                if value not in known:
                    yield UserError(
                        f"{value} is not on the list of what logging may build, and was not run",
                        where=full,
                        remedy="one of " + ", ".join(sorted(known)),
                    )
            elif key == "filename" and not _is_inside(value):
                yield UserError(
                    f"{value} is written outside of the run directory",
                    where=full,
                    remedy=f"leave it out: sft writes train.log; or {_OWN_DIRECTORY}NAME",
                )
            else:
                yield from _logging(value, full)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _logging(value, f"{where}[{index}]")
    elif isinstance(node, str) and ("ext://" in node or "cfg://" in node) and node not in _STREAMS:
        yield UserError(f"{node} would be imported", where=where, remedy="one of " + ", ".join(sorted(_STREAMS)))
    elif isinstance(node, str) and "${" in node and where.endswith((".class", ".()")):
        yield UserError("an interpolation cannot name what logging builds", where=where)


def _is_inside(filename: Any) -> bool:
    """Whether a log file is in the run directory."""
    if not isinstance(filename, str) or not filename.startswith(_OWN_DIRECTORY):
        return False
    rest = filename.removeprefix(_OWN_DIRECTORY).replace("${hydra.job.name}", "name")
    return "${" not in rest and not os.path.isabs(rest) and ".." not in PurePath(rest).parts


def _variables(hydra: Mapping[str, Any]) -> Iterator[UserError]:
    """Errors for `hydra.job.env_set`, which is recorded with the rest of Hydra's node."""
    job = hydra.get("job")
    given = job.get("env_set") if isinstance(job, Mapping) else None
    for name in given if isinstance(given, Mapping) else {}:
        if is_secret_variable(str(name)):
            yield _secret(f"hydra.job.env_set.{name}", "is a secret by its name")
        elif not _HARMLESS.fullmatch(str(name)):
            yield UserError(
                "may decide which code programs run, or which hosts they contact",
                where=f"hydra.job.env_set.{name}",
                remedy=f"set it when starting the command: {name}=... python -m sft.train ...",
            )


def _subdirectories(hydra: Mapping[str, Any]) -> Iterator[UserError]:
    """Errors for subdirectories that are not below the run's or the sweep's directory."""
    sweep = hydra.get("sweep")
    places = {"hydra.output_subdir": hydra.get("output_subdir")}
    places["hydra.sweep.subdir"] = sweep.get("subdir") if isinstance(sweep, Mapping) else None
    for where, value in places.items():
        if isinstance(value, str) and (os.path.isabs(value) or ".." in PurePath(value).parts or "\0" in value):
            yield UserError(f"{value!r} leads out of its directory", where=where, remedy=f"{where}=NAME")
