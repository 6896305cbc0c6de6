"""What a mistyped or foreign name was meant to be; nothing where that is unclear, since a wrong hint is worse than
none.

Three sources, in this order: the table of what settings are called elsewhere (`meanings.yaml`), the same name in
another node of the config (`save_steps` is `trainer.save_steps`), and typos of the names that are valid in its
place.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.config.source_code.signature import read_signature

MEANINGS = Path(__file__).with_name("meanings.yaml")
_SHORTEST_PREFIX = 5


def nearest(name: str, valid: Iterable[str], beginnings: bool = True) -> str | None:
    """The valid name of which this one is a typo; None where there is none, or where several are equally near.

    Args:
        beginnings: whether a prefix of a longer name counts too (`lr_schedule` for `lr_scheduler_type`).
    """
    valid = list(dict.fromkeys(valid))
    plain = _plain(name)
    same = [each for each in valid if _plain(each) == plain]
    if same:
        return same[0] if len(same) == 1 else None
    ranked = sorted((distance, each) for each in valid if (distance := _distance(plain, _plain(each))) <= _most(plain))
    if ranked:
        best = [each for distance, each in ranked if distance == ranked[0][0]]
        return best[0] if len(best) == 1 else None
    longer = [
        each for each in valid if beginnings and len(plain) >= _SHORTEST_PREFIX and _plain(each).startswith(plain)
    ]
    return longer[0] if len(longer) == 1 else None


def suggestion(key: str, valid: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The remedy for an unknown key ("did you mean lora.r?"); None where nothing is clear.

    Args:
        key: as typed, from the top of the config.
        valid: names that are valid beside its last part.
        config: resolved, plain; its nodes' targets tell what else there is.
    """
    prefix, _, last = key.rpartition(".")
    if meant := _meant(key, config):
        return meant
    near = nearest(last, valid)
    if near:
        return f"did you mean {prefix}.{near}?" if prefix else f"did you mean {near}?"
    elsewhere = list(dict.fromkeys(full for full in _keys(config) if full.rpartition(".")[2] == last and full != key))
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]}?"
    foreign = nearest(last, _meanings(), beginnings=False)  # `rnak` is a typo of `rank`, which is called `r` here
    return _meant(foreign, config) if foreign else None


@functools.cache
def _meanings() -> dict[str, str]:
    import yaml

    return {str(name): str(text) for name, text in yaml.safe_load(MEANINGS.read_text(encoding="utf-8")).items()}


def _meant(key: str, config: Mapping[str, Any]) -> str | None:
    """What the table has for a key, by all of it or by its last part."""
    table = _meanings()
    text = table.get(key) or table.get(key.rpartition(".")[2])
    if text is None or text == key:
        return None
    if re.fullmatch(r"[\w.]+", text):
        top = text.partition(".")[0]
        return f"did you mean {text}?" if top in config else None
    return text


def _keys(config: Mapping[str, Any]) -> Iterator[str]:
    """Every key that the config's nodes have or could have, from the top."""
    for top, node in config.items():
        yield str(top)
        if not isinstance(node, Mapping):
            continue
        target = node.get("_target_")
        signature = read_signature(target) if isinstance(target, str) else None
        for name in signature.parameters if signature else node:
            yield f"{top}.{name}"


def _plain(name: str) -> str:
    """The name in lower case with `_` for `-`."""
    return re.sub(r"[^a-z0-9]", "", name.lower()) or name


def _most(name: str) -> int:
    """The number of typos that a name of this length may have."""
    return 0 if len(name) < 4 else 1 if len(name) < 8 else 2


def _distance(one: str, other: str) -> int:
    """Edits between two names; a pair of swapped letters is one (optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
