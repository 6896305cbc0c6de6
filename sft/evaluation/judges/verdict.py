"""A judge's verdict: the requested form, and how it is parsed from a reply."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sft.config.text import shortened

HIGHEST = 10  # judges give whole numbers from 0 to this; stored as a share between 0 and 1

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "score": {"type": "integer", "minimum": 0, "maximum": HIGHEST},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}


class InvalidVerdict(Exception):
    """An answer that is not a verdict; another attempt may give one."""


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one answer.

    Attributes:
        score: between 0 and 1; None where there is no verdict.
        reason: the judge's, or why there is no verdict.
    """

    score: float | None
    reason: str

    @property
    def is_scored(self) -> bool:
        """Whether there is a score."""
        return self.score is not None


def read_verdict(text: str) -> Verdict:
    """Read `{"reason": ..., "score": 0 to 10}`.

    Raises:
        InvalidVerdict: not a JSON object, other keys, or an invalid score.
    """
    value = read_object(text)
    score, reason = value.get("score"), value.get("reason")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise InvalidVerdict(f"the judge's answer has no score: {_start(text)}")
    if not 0 <= score <= HIGHEST:  # NaN included
        raise InvalidVerdict(f"the judge's score {score} is not between 0 and {HIGHEST}")
    if not isinstance(reason, str):
        raise InvalidVerdict(f"the judge's answer has no reason: {_start(text)}")
    return Verdict(score / HIGHEST, reason.strip())


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, which may be in a code fence or surrounded by words.

    Raises:
        InvalidVerdict: there is none.
    """
    start = text.find("{")
    try:
        value = json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidVerdict(f"the judge's answer is not a JSON object: {_start(text)}")
    return value


def _start(text: str) -> str:
    return repr(shortened(" ".join(text.split()), 80))
