"""Compose ticket messages and their records from the phrasings, one seeded row after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from sft.config.errors import UserError
from sft.data.tickets import names
from sft.data.tickets.deck import Deck, chance
from sft.data.tickets.phrases import (
    CLOSINGS,
    DISTRACTORS,
    FITS,
    GREETINGS,
    ISSUES,
    OPENINGS,
    PRODUCTS,
    UNNAMED,
    URGENCIES,
    Phrases,
)
from sft.data.tickets.typos import misspell

PARTS = ("train", "known", "unseen")
SYSTEM = "Extract customer, product, issue and urgency as JSON."

# In twentieths of the rows: how often a message gives a field (a name before the rest, not after), or has noise.
NAMED, INTRODUCED, PRODUCT_GIVEN, URGENCY_GIVEN = 16, 8, 17, 15
DISTRACTED, MISSPELLED, LOWER_CASE, SURNAME = 6, 2, 2, 3

# Every fourth pair of product and phrasing is kept for evaluation.
HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class Tickets:
    """The rows of one part; every iteration gives the same ones."""

    part: Literal["train", "known", "unseen"]
    rows: int
    seed: int = 0
    system: str = SYSTEM
    varied: bool = False

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[dict]:
        writer = _Writer(Random(f"tickets {self.part} {self.seed}"), self.part, self.varied)
        opening = [{"role": "system", "content": self.system}] if self.system else []
        seen: set[str] = set()
        while len(seen) < self.rows:
            text, record = writer.ticket()
            if text not in seen:
                seen.add(text)
                turns = [{"role": "user", "content": text}, {"role": "assistant", "content": json.dumps(record)}]
                yield {"messages": opening + turns}


def generate(
    part: Literal["train", "known", "unseen"], rows: int, seed: int = 0, system: str = SYSTEM, varied: bool = False
) -> Tickets:
    """Return `rows` different conversations of one part; the same arguments give the same rows on every machine.

    The first rows of a longer request are those of a shorter one. Each is `{"messages": [system, user, assistant]}`,
    the assistant's content being the record as `json.dumps` writes it.

    Args:
        part: `train`, or `known` or `unseen` for evaluation.
        rows: how many.
        seed: another one gives other rows of the same part.
        system: content of the system message; empty for none.
        varied: training and `known` have three times as many phrasings; `unseen` is the same either way.

    Raises:
        UserError: an unknown part or a negative number of rows.
    """
    if part not in PARTS:
        raise UserError(f"tickets have no part {part!r}", where="generator.part", remedy=f"one of {', '.join(PARTS)}")
    if rows < 0:
        raise UserError(f"{rows} rows cannot be made", where="generator.rows", remedy="give 0 or more")
    return Tickets(part, rows, seed, system, varied)


class _Writer:
    """Draws tickets. Everything is drawn from shuffled decks, so that few rows show all variants."""

    def __init__(self, rng: Random, part: str, varied: bool) -> None:
        self.rng, self.part, self.varied = rng, part, varied
        self.named, self.product_given = chance(rng, NAMED), chance(rng, PRODUCT_GIVEN)
        self.distracted, self.misspelled = chance(rng, DISTRACTED), chance(rng, MISSPELLED)
        self.introduced = chance(rng, INTRODUCED)
        self.lower_case, self.surname = chance(rng, LOWER_CASE), chance(rng, SURNAME)
        self.openings = Deck(rng, self._phrases(OPENINGS))
        self.closings = Deck(rng, self._phrases(CLOSINGS))
        self.greetings = Deck(rng, self._phrases(GREETINGS))
        self.distractors = Deck(rng, self._phrases(DISTRACTORS))
        self.complaints = Deck(rng, self._complaints())
        self.urgency_given = chance(rng, URGENCY_GIVEN)
        self.urgencies = {level: Deck(rng, self._phrases(phrases)) for level, phrases in URGENCIES.items()}
        self.levels = Deck(rng, list(URGENCIES))
        trained = part == "train"
        self.first_names = Deck(rng, names.TRAIN_NAMES if trained else names.HELD_OUT_NAMES)
        self.surnames = Deck(rng, names.TRAIN_SURNAMES if trained else names.HELD_OUT_SURNAMES)

    def ticket(self) -> tuple[str, dict[str, str | None]]:
        """Draw one message and its record."""
        name = self._name() if self.named.draw() else None
        product, issue, complaint = self._complaint()
        urgency = self.levels.draw() if self.urgency_given.draw() else None
        sentences = [complaint]
        if urgency:
            sentences.insert(self.rng.choice((0, 1, 1)), self.urgencies[urgency].draw())
        if self.distracted.draw():
            sentences.insert(self.rng.randrange(len(sentences) + 1), self._distractor(product))
        if self.misspelled.draw():
            spoiled = self.rng.randrange(len(sentences))
            sentences[spoiled] = misspell(self.rng, sentences[spoiled])
        text = self._frame(name, self._punctuate(sentences))
        return text, {"customer": name, "product": product, "issue": issue, "urgency": urgency}

    def _phrases(self, phrases: Phrases) -> tuple[str, ...]:
        if self.part == "unseen":
            return phrases.unseen
        return phrases.known + (phrases.further if self.varied else ())

    def _complaints(self) -> list[tuple[str | None, int]]:
        """Each phrasing by issue and number; those without an issue twice, to be a sixth of all."""
        times = {issue: 1 if issue else 2 for issue in ISSUES}
        return [(i, n) for i in ISSUES for n in range(len(self._phrases(ISSUES[i]))) for _ in range(times[i])]

    def _complaint(self) -> tuple[str | None, str | None, str]:
        """Draw product, issue and a sentence for both; the pair must be one that the part may use."""
        issue, number = self.complaints.draw()
        products, unnamed = FITS.get(issue, tuple(PRODUCTS)), self._phrases(UNNAMED)
        allowed = [
            place
            for place in range(len(products) + len(unnamed))
            if self.part == "unseen" or (self.part == "known") == _held_out(place, issue, number)
        ]
        given = self.product_given.draw()
        place = self.rng.choice([place for place in allowed if (place < len(products)) == given])
        product = products[place] if given else None
        called = self.rng.choice(self._phrases(PRODUCTS[product])) if product else unnamed[place - len(products)]
        return product, issue, self._phrases(ISSUES[issue])[number].format(p=called)

    def _name(self) -> str:
        first = self.first_names.draw()
        return f"{first} {self.surnames.draw()}" if self.surname.draw() else first

    def _distractor(self, product: str | None) -> str:
        """Draw an irrelevant sentence: another person, another product, a number."""
        other = self.rng.choice([p for p in PRODUCTS if p != product])
        number = self.rng.randrange(1000, 100000)
        return self.distractors.draw().format(other=self.first_names.draw(), q=other, n=number)

    def _punctuate(self, sentences: list[str]) -> str:
        """Join sentences: some typed without capitals, some with exclamation marks."""
        lower = self.lower_case.draw()
        ends = [self.rng.choice((".", ".", ".", "!")) for _ in sentences]
        return " ".join((s if lower else s[0].upper() + s[1:]) + end for s, end in zip(sentences, ends, strict=True))

    def _frame(self, name: str | None, body: str) -> str:
        """Put the writer's name before or after the body, or greet without one."""
        if name is None:
            return f"{self.greetings.draw()} {body}".strip()
        if self.introduced.draw():
            return f"{self.openings.draw().format(name=name)} {body}"
        return f"{body}\n{self.closings.draw().format(name=name)}"


def _held_out(place: int, issue: str | None, number: int) -> bool:
    """Whether a pair is held out: by the number of the known phrasing and the place of what it is said about.

    Places count the products that the issue fits and then the unnamed words; four or more of each leave every phrasing
    pairs on both sides.
    """
    return (place + list(ISSUES).index(issue) + number) % HELD_OUT_EVERY == 0
