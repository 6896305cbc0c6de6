"""Compose ticket messages and their records from the phrasings, one seeded row after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from sft.config.errors import UserError
from sft.data.tickets import names
from sft.data.tickets.phrases import CLOSINGS, DISTRACTORS, FITS, GREETINGS, ISSUES, OPENINGS, PRODUCTS, URGENCIES
from sft.data.tickets.typos import misspell

PARTS = ("train", "known", "unseen")
SYSTEM = "Extract customer, product, issue and urgency as JSON."

# How often a message names its field, and how often it carries noise.
NAMED, PRODUCT_GIVEN, ISSUE_GIVEN, URGENCY_GIVEN = 0.8, 0.85, 0.9, 0.75
DISTRACTED, MISSPELLED, LOWER_CASE, SURNAME = 0.3, 0.15, 0.1, 0.2

# Every fourth pair of product and phrasing is kept for evaluation.
HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class Tickets:
    """The rows of one part: iterate as often as you like, every pass gives the same ones."""

    part: Literal["train", "known", "unseen"]
    rows: int
    seed: int = 0
    system: str = SYSTEM

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[dict]:
        rng = Random(f"tickets {self.part} {self.seed}")
        opening = [{"role": "system", "content": self.system}] if self.system else []
        seen: set[str] = set()
        while len(seen) < self.rows:
            text, record = _ticket(rng, self.part)
            if text not in seen:
                seen.add(text)
                turns = [{"role": "user", "content": text}, {"role": "assistant", "content": json.dumps(record)}]
                yield {"messages": opening + turns}


def generate(part: Literal["train", "known", "unseen"], rows: int, seed: int = 0, system: str = SYSTEM) -> Tickets:
    """Return `rows` different conversations of one part; the same arguments give the same rows on every machine.

    The first rows of a longer request are those of a shorter one. Each is `{"messages": [system, user, assistant]}`,
    the assistant's content being the record as `json.dumps` writes it.

    Args:
        part: `train`, or `known` or `unseen` for evaluation.
        rows: how many.
        seed: another one gives other rows of the same part.
        system: content of the system message; empty for none.

    Raises:
        UserError: an unknown part or a negative number of rows.
    """
    if part not in PARTS:
        raise UserError(f"tickets have no part {part!r}", where="generator.part", remedy=f"one of {', '.join(PARTS)}")
    if rows < 0:
        raise UserError(f"{rows} rows cannot be made", where="generator.rows", remedy="give 0 or more")
    return Tickets(part, rows, seed, system)


def _ticket(rng: Random, part: str) -> tuple[str, dict[str, str | None]]:
    """Draw one message and its record."""
    column = "unseen" if part == "unseen" else "known"
    name = _name(rng, part) if rng.random() < NAMED else None
    product, issue, complaint = _complaint(rng, part, column)
    urgency = rng.choice(list(URGENCIES)) if rng.random() < URGENCY_GIVEN else None
    sentences = [complaint]
    if urgency:
        sentences.insert(rng.choice((0, 1, 1)), rng.choice(getattr(URGENCIES[urgency], column)))
    if rng.random() < DISTRACTED:
        sentences.insert(rng.randrange(len(sentences) + 1), _distractor(rng, part, column, product))
    if rng.random() < MISSPELLED:
        spoiled = rng.randrange(len(sentences))
        sentences[spoiled] = misspell(rng, sentences[spoiled])
    body = _punctuate(rng, sentences)
    text = _frame(rng, column, name, body)
    return text, {"customer": name, "product": product, "issue": issue, "urgency": urgency}


def _complaint(rng: Random, part: str, column: str) -> tuple[str | None, str | None, str]:
    """Draw product, issue and a sentence for both, out of the pairs that the part may use."""
    while True:
        issue = rng.choice([issue for issue in ISSUES if issue]) if rng.random() < ISSUE_GIVEN else None
        products = FITS.get(issue, tuple(p for p in PRODUCTS if p))
        place = rng.randrange(len(products)) if rng.random() < PRODUCT_GIVEN else len(products)
        product = (*products, None)[place]
        phrasings = getattr(ISSUES[issue], column)
        number = rng.randrange(len(phrasings))
        if part == "unseen" or (part == "known") == _held_out(place, issue, number):
            called = rng.choice(getattr(PRODUCTS[product], column))
            return product, issue, phrasings[number].format(p=called)


def _held_out(place: int, issue: str | None, number: int) -> bool:
    """Whether a pair is kept from training: the place of a product among those that can have the issue, and the
    numbered known phrasing. Places run on, so that every phrasing has pairs on both sides."""
    return (place + list(ISSUES).index(issue) + number) % HELD_OUT_EVERY == 0


def _name(rng: Random, part: str) -> str:
    trained = part == "train"
    first = rng.choice(names.TRAIN_NAMES if trained else names.HELD_OUT_NAMES)
    if rng.random() >= SURNAME:
        return first
    return f"{first} {rng.choice(names.TRAIN_SURNAMES if trained else names.HELD_OUT_SURNAMES)}"


def _distractor(rng: Random, part: str, column: str, product: str | None) -> str:
    """Draw a sentence that decides nothing: another person, another product, a number."""
    sentence = rng.choice(getattr(DISTRACTORS, column))
    other = rng.choice([p for p in PRODUCTS if p and p != product])
    return sentence.format(other=_name(rng, part).split()[0], q=other, n=rng.randrange(1000, 100000))


def _punctuate(rng: Random, sentences: list[str]) -> str:
    """Join sentences: some typed without capitals, some with exclamation marks."""
    lower = rng.random() < LOWER_CASE
    ends = [rng.choice((".", ".", ".", "!")) for _ in sentences]
    return " ".join((s if lower else s[0].upper() + s[1:]) + end for s, end in zip(sentences, ends, strict=True))


def _frame(rng: Random, column: str, name: str | None, body: str) -> str:
    """Put the writer's name before or after the body, or greet without one."""
    if name is None:
        greeting = rng.choice(getattr(GREETINGS, column))
        return f"{greeting} {body}".strip()
    if rng.random() < 0.6:
        return f"{rng.choice(getattr(OPENINGS, column)).format(name=name)} {body}"
    return f"{body} {rng.choice(getattr(CLOSINGS, column)).format(name=name)}"
