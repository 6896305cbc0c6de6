"""Drawing without replacement, so that few draws show all variants."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Deck(Generic[Item]):
    """Cards in random order; each comes once before any comes again.

    Args:
        rng: shuffles, whenever the deck is used up.
        cards: at least one.
    """

    def __init__(self, rng: Random, cards: Sequence[Item]) -> None:
        self._rng, self._cards = rng, list(cards)
        self._left: list[Item] = []

    def draw(self) -> Item:
        """Take the next card."""
        if not self._left:
            self._left = self._cards.copy()
            self._rng.shuffle(self._left)
        return self._left.pop()


def chance(rng: Random, twentieths: int) -> Deck[bool]:
    """A deck of twenty cards of which so many are true."""
    return Deck(rng, [True] * twentieths + [False] * (20 - twentieths))
