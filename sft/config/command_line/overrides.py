"""The command line before Hydra sees it: flags first, literal text quoted, MODEL_ID from the environment added."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sft.config.command_line.patterns import PATTERNS, with_patterns
from sft.config.command_line.quoting import quoted
from sft.config.errors import UserError, raise_all
from sft.config.paths import expanded
from sft.safety.secrets import redact_command

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.types import Override

# Values of these keys are taken literally, whatever they mean in Hydra's grammar.
LITERAL = re.compile(
    r"(\+{0,2})(prompt|system|run|resume|dir|output|input|(?:[\w.]+\.)?path|[\w.]+\.adapter|hydra\.run\.dir|hydra\.sweep\.dir)=(.*)",
    re.DOTALL,
)
# Keys whose values are names or directories: a directory is taken literally, whatever characters it has.
DIRECTORIES = re.compile(
    r"(\+{0,2})(resume|model\.name|model\.tokenizer\.name|judge\.model|judge\.cache|runs_dir|conversations"
    r"|evaluation\.include_path|tracker\.log_dir|trainer\.deepspeed)=(.*)",
    re.DOTALL,
)


@dataclass
class CommandLine:
    """A parsed command line.

    Attributes:
        flags: Hydra's own flags as given (`--cfg job`), `-m` and `--config-dir` taken out.
        overrides: what is left, ready for Hydra's parser.
        multirun: whether `-m` was given.
        shows: whether Hydra only shows something (`--help`, `--cfg`, ...) and runs no job.
        config_name: the primary config that `--config-name` asks for, None otherwise.
        config_dirs: what `--config-dir` names.
    """

    flags: list[str]
    overrides: list[str]
    multirun: bool
    shows: bool
    config_name: str | None
    config_dirs: list[str]


def parse_command_line(argv: list[str]) -> CommandLine:
    """Split a command line into flags and overrides; Hydra's own parser judges the flags."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    multirun = any(token in ("-m", "--multirun") for token in argv)
    argv = [token for token in argv if token not in ("-m", "--multirun")]
    known: argparse.Namespace = parser.parse_intermixed_args(argv)
    rest = list(known.overrides)
    flags: list[str] = []
    for token in argv:
        if token in rest:
            rest.remove(token)
        else:
            flags.append(token)
    flags, config_dirs = _take_option(flags, ("--config-dir", "-cd"))
    shows = bool(known.help or known.hydra_help or known.cfg or known.info or known.shell_completion)
    overrides = [quote_literal(token, multirun) for token in known.overrides]
    for token in overrides:
        if "=" not in token and not token.startswith("~"):
            raise UserError(
                f"{token!r} is neither a flag nor an override",
                remedy="write key=value, group=option, or --help for what there is",
            )
    return CommandLine(flags, overrides, multirun, shows, known.config_name, config_dirs)


def parse_overrides(overrides: list[str], loader: ConfigLoaderImpl | None = None) -> list[Override]:
    """Each override parsed by Hydra. Raises UserError naming one that its grammar does not accept."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser, parsed, errors = OverridesParser.create(config_loader=loader), [], []  # glob() asks it for the options
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except RecursionError:
            errors.append(UserError("nested too deeply", where=f"{override.partition('=')[0]}=..."))
        except OverrideParseException as error:
            what = str(error).split("\n")[0].replace(override, "...")
            remedy = "quote a value with special characters for Hydra and for the shell: \"key='a,b'\""
            errors.append(UserError(f"cannot be read: {what}", where=redact_command([override])[0], remedy=remedy))
    raise_all(errors)
    return parsed


def quote_literal(override: str, multirun: bool = False) -> str:
    """Quote the value of a key whose value is literal text, so that Hydra's grammar leaves it alone.

    Under `-m`, a list of existing files (`dataset.path=a.jsonl,b.jsonl`) and Hydra's own sweeps (`choice(a,b)`) stay sweeps.
    """
    if listed := re.fullmatch(r"runs=\[?([^\]'\"]*)\]?", override):
        return f"runs=[{','.join(quoted(run.strip()) for run in listed[1].split(','))}]"
    if pattern := PATTERNS.fullmatch(override):
        return with_patterns(override, *pattern.groups())
    if directory := DIRECTORIES.fullmatch(override):
        prefix, key, value = directory.groups()
        return f"{prefix}{key}={quoted(value)}" if _is_directory(value, multirun) else override
    match = LITERAL.fullmatch(override)
    if not match:
        return override
    prefix, key, value = match.groups()
    if multirun and key not in ("prompt", "system") and _is_sweep(value):
        return override
    if key not in ("prompt", "system") and (
        value in ("null", "???") or (value[:1] == "[" and value[-1:] == "]" and not Path(value).exists())
    ):
        return override
    return (
        f"{prefix}{key}={quoted(value)}"
        if "hydra." not in key
        else f"{prefix}{key}={_quoted_unless_interpolated(value)}"
    )


def _is_directory(value: str, multirun: bool) -> bool:
    """Whether a value is a path: it exists, or is written like one."""
    with contextlib.suppress(OSError, ValueError):  # not a possible file name
        if expanded(value).exists():
            return True
    return value.startswith(("/", "./", "../", "~")) and not (multirun and "," in value) and "${" not in value


def with_environment(overrides: list[str], environment: dict[str, str] | None = None) -> list[str]:
    """The overrides with `model.name` from MODEL_ID, unless the command line says something about the model."""
    model_id = (environment if environment is not None else dict(os.environ)).get("MODEL_ID")
    keys = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if not model_id or keys & {"model", "model.name", "run"}:
        return overrides
    return [f"model.name={quoted(model_id)}", *overrides]


def _quoted_unless_interpolated(value: str) -> str:
    return value if "${" in value else quoted(value)


def _is_sweep(value: str) -> bool:
    if re.match(r"(choice|range|glob|sort|shuffle|tag)\(", value):
        return True
    parts = value.split(",")
    return len(parts) > 1 and not Path(value).exists() and all(Path(part).exists() for part in parts)


def _take_option(flags: list[str], names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Flags without one option, and the values it was given, as `--x V` or `--x=V`."""
    left: list[str] = []
    values: list[str] = []
    index = 0
    while index < len(flags):
        name, equals, value = flags[index].partition("=")
        if name in names:
            if not equals:
                index += 1
                value = flags[index] if index < len(flags) else ""
            values.append(value)
        else:
            left.append(flags[index])
        index += 1
    return left, values


def swept_values(overrides: list[str]) -> dict[str, dict[str, str]]:
    """The swept keys (and groups) of a command line, in its order, each with {value as Hydra writes it: as typed}.

    Only plain lists (`1e-4,3e-4`) have known typed values; choice(), range() and the like have none.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep

    found: dict[str, dict[str, str]] = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        if not override.is_sweep_override():
            continue
        key, value = override.key_or_group, override.value()
        found[key] = {}
        if isinstance(value, ChoiceSweep) and value.simple_form:
            typed = (override.input_line or "").partition("=")[2].split(",")
            written = [override._get_value_element_as_str(element) for element in value.list]
            if len(typed) == len(written):  # no commas inside of values
                found[key] = {w: t.strip() for w, t in zip(written, typed, strict=True)}
    return found
