"""Rows as the model will see them: tokens in the terminal and as HTML with the trained ones marked, and as JSON
lines."""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.documents import IGNORE, Rows
from sft.drawing.page import page

if TYPE_CHECKING:
    from rich.console import Console

_CONTEXT = 1  # tokens decoded before a token, so that its leading space is kept
_LONGEST = 12  # tokens that one character may consist of


@dataclass(frozen=True)
class PreviewRow:
    """One document of the training rows.

    Args:
        source: the source's name.
        row: number of its conversation in its file, counted from 1.
        where: file and row as text.
        pack: number of the training row that contains it when rows are packs, else None.
        input_ids, labels: as trained; labels are -100 where not.
        text: the decoded tokens.
        trained_text: the decoded trained pieces; joined, they are the trained tokens decoded at once.
        pieces: (text, trained) of each token, or of several tokens that form one character.
    """

    source: str
    row: int
    where: str
    pack: int | None
    input_ids: list[int]
    labels: list[int]
    text: str
    trained_text: list[str]
    pieces: list[tuple[str, bool]]

    def as_json(self) -> dict[str, Any]:
        """The line of preview.jsonl."""
        names = ("source", "row", "input_ids", "labels", "text", "trained_text")
        line = {name: getattr(self, name) for name in names}
        return line if self.pack is None else {**line, "pack": self.pack}


def preview_rows(rows: Rows, tokenizer: Any, count: int) -> list[PreviewRow]:
    """The first `count` documents, alternating between sources; packs are shown one document at a time.

    Args:
        rows: as `prepare` gives them.
        tokenizer: of transformers.
        count: how many documents; fewer where there are not as many.
    """
    return [_preview_row(rows, tokenizer, pack, index) for pack, index in _in_turns(rows, count)]


def to_jsonl(previews: Iterable[PreviewRow]) -> str:
    """The text of preview.jsonl."""
    return "".join(json.dumps(row.as_json()) + "\n" for row in previews)


def to_html(previews: Sequence[PreviewRow], title: str = "preview", account: Sequence[str] = ()) -> str:
    """The text of preview.html: one page, no scripts, nothing loaded from elsewhere.

    Args:
        account: the account of the sources, shown above the rows (see sft.data.report.account).
    """
    told = "".join(f"{html.escape(visible(line))}\n" for line in account)
    told = f"<pre>{told}</pre>\n" if told else ""
    body = "\n".join(_html_row(row) for row in previews)
    legend = (
        '<p class="legend"><span class="t">trained tokens</span> <span class="c">context only</span> '
        "· every box is one token · ↵ → ␀ stand for control characters</p>\n"
    )
    return page(title, _STYLE, f"{legend}{told}{body}\n")


def show(previews: Iterable[PreviewRow], console: Console) -> None:
    """Print rows as coloured tokens: trained ones green, the others dim, neighbours in different shades."""
    from rich.text import Text

    for row in previews:
        line = Text()
        for number, (piece, trained) in enumerate(row.pieces):
            shade = ("black on green", "black on bright_green") if trained else ("dim", "dim reverse")
            line.append(visible(piece), style=shade[number % 2])
        console.rule(Text(_heading(row)), align="left")
        console.print(line, soft_wrap=False)


def visible(text: str) -> str:
    """The text with control and invisible characters made visible: a line break as ↵ and a break, others as symbols."""
    return text if text.isprintable() else "".join(_visible(character) for character in text)


def trained_pieces(input_ids: Sequence[int], labels: Sequence[int], tokenizer: Any) -> list[str]:
    """The texts of the trained spans, cut from the text of all trained tokens so that joined they equal it."""
    spans: list[list[int]] = []
    for before, (token, label) in zip([IGNORE, *labels], zip(input_ids, labels, strict=True), strict=False):
        if label != IGNORE:
            if before == IGNORE:
                spans.append([])
            spans[-1].append(token)
    whole = tokenizer.decode([token for span in spans for token in span])
    pieces, so_far, begin = [], [], 0
    for span in spans[:-1]:
        so_far += span
        end = max(begin, _common(tokenizer.decode(so_far), whole))
        pieces.append(whole[begin:end])
        begin = end
    return [*pieces, whole[begin:]] if spans else []


def _common(start: str, whole: str) -> int:
    """The length of the common prefix of two texts."""
    if whole.startswith(start):
        return len(start)
    return next(i for i, pair in enumerate(zip(start, [*whole, None], strict=False)) if pair[0] != pair[1])


def _in_turns(rows: Rows, count: int) -> Iterator[tuple[int | None, int]]:
    """(pack, document) of the first documents of each source, alternating between sources."""
    packs = rows.packs
    order = np.arange(len(rows)) if packs is None else packs.order
    source = rows.documents.source[order]
    queues = [np.flatnonzero(source == each)[:count].tolist() for each in np.unique(source)]
    places = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    for place in places[:count]:
        pack = None if packs is None else int(np.searchsorted(packs.offsets, place, side="right")) - 1
        yield pack, int(order[place])


def _preview_row(rows: Rows, tokenizer: Any, pack: int | None, member: int) -> PreviewRow:
    document = rows.document(member)
    input_ids, labels = document["input_ids"], document["labels"]
    return PreviewRow(
        source=document["source"],
        row=document["row"],
        where=rows.where(member),
        pack=pack,
        input_ids=input_ids,
        labels=labels,
        text=tokenizer.decode(input_ids),
        trained_text=trained_pieces(input_ids, labels, tokenizer),
        pieces=[(text, labels[first] != IGNORE) for text, first in token_texts(input_ids, tokenizer)],
    )


def token_texts(input_ids: Sequence[int], tokenizer: Any) -> list[tuple[str, int]]:
    """(text, index of its first token) of each token; tokens that form one character together are one text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)

    def decode(ids: Sequence[int]) -> str:
        if backend is not None:  # a tenth of the time
            return backend.decode(list(ids), skip_special_tokens=False)
        return tokenizer.decode(ids)

    texts, first = [], 0
    while first < len(input_ids):
        context = input_ids[max(0, first - _CONTEXT) : first]
        known, last = decode(context), first + 1
        text = decode([*context, *input_ids[first:last]])
        while text.endswith("\N{REPLACEMENT CHARACTER}") and last < min(len(input_ids), first + _LONGEST):
            last += 1
            text = decode([*context, *input_ids[first:last]])
        piece = text[len(known) :] if text.startswith(known) else decode(input_ids[first:last])
        texts.append((piece, first))
        first = last
    return texts


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "↵\n"
    if character == "\t":
        return "→\t"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"⟨U+{code:04X}⟩"
    return character


def _heading(row: PreviewRow) -> str:
    trained = sum(label != IGNORE for label in row.labels)
    pack = "" if row.pack is None else f" · pack {row.pack}"
    return f"{visible(row.source)} · {visible(row.where)}{pack} · {len(row.input_ids)} tokens, {trained} trained"


def _html_row(row: PreviewRow) -> str:
    tokens = "".join(
        f'<span class="{"t" if trained else "c"}">{html.escape(visible(piece))}</span>' for piece, trained in row.pieces
    )
    return f"<h2>{html.escape(_heading(row))}</h2>\n<pre>{tokens}</pre>"


_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222;background:#fff}"
    "h2{font-size:1em;margin:1.5em 0 .3em}pre,.legend span{font:13px/1.7 ui-monospace,monospace}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}"
    ".t{background:#bfe8bf;border-right:1px solid #6fb36f}.c{background:#f3f3f3;color:#555;border-right:1px solid #ccc}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}"
    ".t{background:#24542a;border-color:#4c8a52}.c{background:#262626;color:#aaa;border-color:#444}}"
)
