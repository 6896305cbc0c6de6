"""The preview shows exactly what is trained, hides nothing, and contains nothing that a page or a terminal would
execute."""

from __future__ import annotations

import html
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sft.data.pipeline import prepare
from sft.data.preview import preview_rows, show, to_html, to_jsonl, token_texts, trained_pieces, visible


class Letters:
    """A byte-level tokenizer: one token a byte of UTF-8, so that a letter may need several."""

    def decode(self, ids) -> str:
        return bytes(ids).decode("utf-8", "replace")


class Stripping(Letters):
    """One that strips the space before the first word, as SentencePiece's do."""

    def decode(self, ids) -> str:
        return super().decode(ids).removeprefix(" ")


class ByteEncoder:
    """Encodes a conversation as the bytes of its turns; answers are trained."""

    fingerprint = "bytes"

    def encode(self, conversations):
        rows = []
        for conversation in conversations:
            ids, labels = [], []
            for message in conversation["messages"]:
                part = list(f"{message['content']}\n".encode())
                ids += part
                labels += part if message["role"] == "assistant" else [-100] * len(part)
            rows.append({"rows": [{"input_ids": ids, "labels": labels}], "problem": None})
        return rows

    def check(self, conversations):
        return {}


@given(st.text(max_size=40), st.data(), st.sampled_from([Letters(), Stripping()]))
def test_trained_pieces_join_to_the_trained_tokens(text, data, tokenizer):
    ids = list(text.encode("utf-8", "surrogatepass"))
    labels = [token if data.draw(st.booleans()) else -100 for token in ids]
    pieces = trained_pieces(ids, labels, tokenizer)
    assert "".join(pieces) == tokenizer.decode([token for token in labels if token != -100])
    spans = re.findall("x+", "".join("." if label == -100 else "x" for label in labels))
    assert len(pieces) == len(spans)


def test_each_trained_piece_is_a_span():
    ids = list(b"ask yes ask no")
    labels = [token if 4 <= i < 8 or i >= 12 else -100 for i, token in enumerate(ids)]
    assert trained_pieces(ids, labels, Letters()) == ["yes ", "no"]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_token_texts_join_to_the_text_and_split_no_character(text):
    found = token_texts(list(text.encode()), Letters())
    assert "".join(piece for piece, _ in found) == text
    assert [first for _, first in found] == sorted({first for _, first in found})


def test_every_character_is_visible():
    assert visible("a\tb\nc\x1b[31m\x00\u202e\u200b") == "a→\tb↵\nc␛[31m␀⟨U+202E⟩⟨U+200B⟩"
    assert visible("ordinary words, 日本語 é") == "ordinary words, 日本語 é"


@pytest.fixture
def rows(settings, write, chat):
    """Makes prepared rows of two sources."""

    def make(answer: str = "é <b>yes</b>\x1b", **options):
        sources = {
            "many": {"path": write("many.jsonl", [chat(f"q{i} & <script>", answer) for i in range(20)])},
            "few": {"path": write("few.jsonl", [chat("only", "one")])},
        }
        return prepare(settings(sources, **options), ByteEncoder(), seed=0).train

    return make


def test_sources_alternate_and_lines_have_the_trained_text(rows):
    previews = preview_rows(rows(), Letters(), 5)
    lines = [json.loads(line) for line in to_jsonl(previews).splitlines()]
    assert [line["source"] for line in lines] == ["many", "few", "many", "many", "many"]
    for line in lines:
        assert sorted(line) == ["input_ids", "labels", "row", "source", "text", "trained_text"]
        assert line["text"] == bytes(line["input_ids"]).decode()
        trained = bytes(token for token in line["labels"] if token != -100).decode()
        assert (
            trained == "".join(line["trained_text"]) == ("one\n" if line["source"] == "few" else "é <b>yes</b>\x1b\n")
        )
    assert len(preview_rows(rows(), Letters(), 1000)) == 21


def test_packs_are_shown_document_by_document(rows):
    packed = rows(packing=True, max_length=64)
    previews = preview_rows(packed, Letters(), 100)
    assert len(previews) == 21
    assert {preview.pack for preview in previews} == set(range(len(packed)))
    assert all(json.loads(line)["pack"] is not None for line in to_jsonl(previews).splitlines())
    for preview in previews:
        row = packed[preview.pack]
        assert preview.row in row["row"] and preview.source in row["source"]


def test_the_page_is_escaped_and_marks_what_is_trained(rows):
    page = to_html(preview_rows(rows(), Letters(), 3), title="<run>")
    assert "<script>" not in page and "<b>" not in page and "\x1b" not in page and "<title>&lt;run&gt;</title>" in page
    trained = re.findall(r'<span class="t">(.*?)</span>', page.split("</p>", 1)[1], re.DOTALL)
    assert html.unescape("".join(trained)) == "é <b>yes</b>␛↵\none↵\né <b>yes</b>␛↵\n"


def test_the_terminal_shows_no_control_character_of_the_rows(rows):
    text = io.StringIO()
    show(
        preview_rows(rows(), Letters(), 2), Console(file=text, width=100, force_terminal=True, color_system="truecolor")
    )
    said = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
    assert "␛" in said and "\x1b" not in said and "many.jsonl row" in said
    assert text.getvalue().count("\x1b[30;42m") > 0
