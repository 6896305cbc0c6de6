"""How the tokens of an answer are chosen. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sft.config.errors import UserError, out_of_range, raise_all


@dataclass(frozen=True)
class Sampling:
    """How long an answer may be and how its tokens are drawn.

    Args:
        max_new_tokens: longest answer in tokens; less where the model's positions end earlier.
        temperature: 0 for the likeliest token each time (greedy); above it tokens are drawn at random.
        top_p: share of the probability drawn from.
        top_k: number of tokens drawn from, 0 for all.
        repetition_penalty: above 1 makes tokens that were seen less likely.
        seed: of the draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def faults(self, where: str = "") -> list[UserError]:
        """An error for each value out of range.

        Args:
            where: the prefix of the fields' names in the config ("evaluation.").
        """
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 changes nothing"),
        }
        return out_of_range(self, rules, where)

    @classmethod
    def of(cls, settings: Any) -> Sampling:
        """From the keys of a config, with defaults for missing ones.

        Raises:
            UserError: all values out of range at once.
        """
        names = [field.name for field in fields(cls)]
        made = cls(**{name: settings[name] for name in names if settings.get(name) is not None})
        raise_all(made.faults())
        return made
