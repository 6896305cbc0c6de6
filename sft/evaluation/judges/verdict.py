"""A judge's verdict: the form that is asked for, and how it is read out of what came."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sft.config.text import shortened

HIGHEST = 10  # judges give whole numbers from 0 to this; a share between 0 and 1 is what is kept

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "score": {"type": "integer", "minimum": 0, "maximum": HIGHEST},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}


class Nonsense(Exception):
    """An answer that is no verdict; another attempt may give one."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer.

    Attributes:
        score: between 0 and 1; None where no verdict could be had.
        reason: the judge's, or why there is none.
    """

    score: float | None
    reason: str

    @property
    def had(self) -> bool:
        """Whether there is a score."""
        return self.score is not None


def read_verdict(text: str) -> Verdict:
    """Read `{"reason": ..., "score": 0 to 10}`.

    Raises:
        Nonsense: no JSON object, other keys, or a score that is none.
    """
    value = read_object(text)
    score, reason = value.get("score"), value.get("reason")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise Nonsense(f"the judge's answer has no score: {_start(text)}")
    if not 0 <= score <= HIGHEST:  # NaN included
        raise Nonsense(f"the judge's score {score} is not between 0 and {HIGHEST}")
    if not isinstance(reason, str):
        raise Nonsense(f"the judge's answer has no reason: {_start(text)}")
    return Verdict(score / HIGHEST, reason.strip())


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, which a model may have put into a code fence or words.

    Raises:
        Nonsense: there is none.
    """
    start = text.find("{")
    try:
        value = json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Nonsense(f"the judge's answer is no JSON object: {_start(text)}")
    return value


def _start(text: str) -> str:
    return repr(shortened(" ".join(text.split()), 80))
