"""Masking by configured token sequences: what follows a response template is trained, up to the next instruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sft.config.errors import UserError

Variants = tuple[tuple[int, ...], ...]


class Markers:
    """Finds answers by token sequences.

    Args:
        tokenizer: turns templates given as text into ids.
        response_template: text or ids that an answer follows.
        instruction_template: text or ids of the header of the next question, which ends an answer. Without it only
            the last response template of a row counts, since nothing else separates answers from questions.

    Raises:
        UserError: no response template, or an empty one.
    """

    def __init__(
        self,
        tokenizer: Any,
        response_template: str | Sequence[int] | None,
        instruction_template: str | Sequence[int] | None = None,
    ) -> None:
        if not response_template:
            raise UserError(
                "masking=response_template needs the text that an answer follows",
                where="dataset.response_template",
                remedy="dataset.response_template='### Response:'",
            )
        self.given = {"response_template": response_template, "instruction_template": instruction_template}
        self.response = variants(tokenizer, response_template)
        self.instruction = variants(tokenizer, instruction_template) if instruction_template else []

    def spans(self, input_ids: Sequence[int], elsewhere: Callable[[int], bool] | None = None) -> list[tuple[int, int]]:
        """(first, after the last) token positions of each answer; empty where the row has no match.

        Args:
            elsewhere: whether a position belongs to another speaker; a match that ends there is not an answer.
        """
        starts = [end for _, end in first_found(input_ids, self.response) if not (elsewhere and elsewhere(end - 1))]
        if not self.instruction:
            return [(starts[-1], len(input_ids))] if starts and starts[-1] < len(input_ids) else []
        stops = [begin for begin, _ in first_found(input_ids, self.instruction)]
        out: list[tuple[int, int]] = []
        for start in starts:
            if out and start < out[-1][1]:
                continue  # the response template occurs inside the previous answer
            end = next((stop for stop in stops if stop >= start), len(input_ids))
            if start < end:
                out.append((start, end))
        return out


def variants(tokenizer: Any, template: str | Sequence[int]) -> list[Variants]:
    """The token sequences that a text may become in a row: its context can change its first and last tokens.

    Tokenizers that merge or mark the start of a text give different sequences for a text alone, after a newline and
    after a space.

    Returns:
        Groups of sequences to search for, one group after the other: the text with the whitespace at its end first.
    """
    if not isinstance(template, str):
        return [(tuple(template),)]
    groups = []
    written = template.replace("\\n", "\n")  # a newline as typed on a command line
    for text in dict.fromkeys((template, written, template.rstrip())):
        found: list[tuple[int, ...]] = []
        bare = text.lstrip()
        for form in (text, bare, "\n" + bare, " " + bare):
            for lead in ("", "\n", "x"):
                whole = tokenizer.encode(lead + form, add_special_tokens=False)
                before = tokenizer.encode(lead, add_special_tokens=False) if lead else []
                if whole[: len(before)] == before and len(whole) > len(before):
                    found.append(tuple(whole[len(before) :]))
        # the longest first, so that of two matches at one place the complete text is taken
        groups.append(tuple(sorted(dict.fromkeys(found), key=len, reverse=True)))
    return groups


def first_found(input_ids: Sequence[int], groups: Sequence[Variants]) -> list[tuple[int, int]]:
    """The places of the first group of sequences that occurs in the row."""
    return next((found for group in groups if (found := find_all(input_ids, group))), [])


def find_all(input_ids: Sequence[int], sequences: Variants) -> list[tuple[int, int]]:
    """(start, end) of each place where one of the sequences stands, from left to right, without overlap."""
    firsts = {sequence[0] for sequence in sequences if sequence}
    ids, out, at = tuple(input_ids), [], 0
    while at < len(ids):
        if ids[at] in firsts:
            match = next((s for s in sequences if s and ids[at : at + len(s)] == s), None)
            if match is not None:
                out.append((at, at + len(match)))
                at += len(match)
                continue
        at += 1
    return out
