"""What determines a run besides its config: library versions, rows, tokenizer, chat template. Compared before a run is
resumed or replayed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sft.config.errors import UserError, raise_all
from sft.run.environment import versions
from sft.training.resume.config_changes import flat

SHAPING = ("sft", "torch", "transformers", "peft", "accelerate")  # another version may compute different weights
_QUANTIZED = re.compile(r"bnb|8bit|paged|lion|ademamix")


def changed_versions(record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Libraries that affect the weights and whose version differs from run.json: {"versions.torch": (then, now)}.

    Args:
        record: the content of run.json.
        config: the resolved config; bitsandbytes counts where it is used.
    """
    then, now = record.get("versions") or {}, versions()
    optimizer = str((config.get("trainer") or {}).get("optim", ""))
    used = (*SHAPING, "bitsandbytes") if config.get("quant") or _QUANTIZED.search(optimizer) else SHAPING
    return {f"versions.{name}": (then[name], now[name]) for name in used if name in then and then[name] != now[name]}


def changed_inputs(record: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fingerprints that differ from run.json, dotted: {"data.sources.tickets": (then, now)}.

    Values known only on one side are not a difference: an older run.json has fewer. The digest of all rows is named
    only if no single source differs.

    Args:
        record: the content of run.json.
        facts: of this start, as `sft.training.resume.identity.input_facts` gives them.
    """
    found = {}
    for part in ("tokenizer", "template", "data"):
        then, now = flat({part: record.get(part)}), flat({part: facts.get(part)})
        shared = [key for key in then if then[key] is not None and now.get(key) is not None]
        # files may be rewritten without changing a row
        shared = [key for key in shared if not key.startswith("data.files.")]
        found.update({key: (then[key], now[key]) for key in shared if then[key] != now[key]})
    if any(key.startswith(("data.sources.", "data.eval_sources.")) for key in found):
        found.pop("data.rows", None)
    return found


def refuse(
    changed: Mapping[str, tuple[Any, Any]],
    allowed: Iterable[str],
    option: str,
    otherwise: str,
    fixed: Iterable[str] = (),
) -> list[str]:
    """Refuse every difference that is not allowed by name.

    Args:
        changed: dotted names with (then, now).
        allowed: names, or their prefixes ("versions" allows "versions.torch").
        option: the key that allows names ("allow_changes").
        otherwise: what the user can do instead, for data, tokenizer and template.
        fixed: names that cannot be allowed.

    Returns:
        The allowed differences, one line each.

    Raises:
        UserError: naming each difference that is not allowed.
    """
    fixed = tuple(fixed)
    allowed = tuple(name for name in allowed if name not in fixed)
    errors, passed = [], []
    for key, (then, now) in changed.items():
        if any(key == name or key.startswith(f"{name}.") for name in allowed):
            passed.append(f"{key}: the run was started with {then}, this is {now}")
            continue
        part = key.split(".")[0]
        if part == "versions":
            package = key.removeprefix("versions.")
            what = f"this run was started with {package} {then}, not {now}"
            remedy = f"pip install {package}=={then}, or '{option}=[{key}]'"
        else:
            what = f"{_NAMES[part]} not what the run was started with (fingerprint {str(then)[:12]} then, {str(now)[:12]} now)"
            remedy = otherwise if part in fixed else f"{otherwise}, or '{option}=[{part}]'"
        errors.append(UserError(what, where=key, remedy=remedy))
    raise_all(errors)
    return passed


_NAMES = {"data": "the rows are", "tokenizer": "the tokenizer is", "template": "the chat template is"}
