"""An encoder with words as tokens, so that pipelines are tested without a tokenizer, and files of rows."""

from __future__ import annotations

import json
import zlib

import pytest

from sft.config.errors import UserError
from sft.data.spec import Dataset

STOP = 1


class WordEncoder:
    """One token a word: a role's word, the content's words, STOP; assistant contents and their STOP are trained.

    Args:
        expand: a row for every assistant turn, as `history=expand` makes them.
        fingerprint: stands for the tokenizer and the options.
        disagree: makes `check` fail.
    """

    def __init__(self, expand: bool = False, fingerprint: str = "words", disagree: bool = False) -> None:
        self.expand, self.fingerprint, self.disagree = expand, fingerprint, disagree
        self.encoded: list[dict] = []
        self.checked: list[dict] = []

    @staticmethod
    def as_text(conversation: dict) -> str:
        return " / ".join(message["content"] for message in conversation["messages"])

    @staticmethod
    def ids(text: str) -> list[int]:
        return [2 + zlib.crc32(word.encode()) % 1_000_000 for word in text.split()]

    def row(self, messages: list[dict], train: list[bool]) -> dict:
        input_ids, labels = [], []
        for message, trained in zip(messages, train, strict=True):
            head, body = self.ids(message["role"]), [*self.ids(message["content"]), STOP]
            input_ids += head + body
            labels += [-100] * len(head) + (body if trained else [-100] * len(body))
        return {"input_ids": input_ids, "labels": labels, "text": "", "trained_text": []}

    def encode(self, conversations: list[dict]) -> list[dict]:
        self.encoded += conversations
        return [self.one(conversation) for conversation in conversations]

    def one(self, conversation: dict) -> dict:
        if any("unmatched" in message["content"] for message in conversation.get("messages", [])):
            messages = conversation["messages"]
            return {"rows": [self.row(messages, [False] * len(messages))], "problem": "no match, masked whole"}
        if "text" in conversation:
            ids = [*self.ids(conversation["text"]), STOP]
            return {"rows": [{"input_ids": ids, "labels": list(ids), "text": "", "trained_text": []}], "problem": None}
        messages = conversation["messages"]
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if any("unlabelled" in message["content"] for message in messages):
            return {"rows": [], "problem": "no mark: in message 1"}
        if not self.expand:
            return {"rows": [self.row(messages, [index in answers for index in range(len(messages))])], "problem": None}
        ends = [(messages[: answer + 1], answer) for answer in answers]
        return {"rows": [self.row(some, [i == last for i in range(len(some))]) for some, last in ends], "problem": None}

    def check(self, conversations: list[dict]) -> dict:
        self.checked += conversations
        if self.disagree:
            raise UserError("the two masks differ")
        return {}


@pytest.fixture(scope="session")
def word_encoder():
    """Makes a WordEncoder."""
    return WordEncoder


@pytest.fixture
def chat():
    """Makes a row of questions and answers by turns."""

    def make(*turns: str) -> dict:
        roles = ("user", "assistant")
        return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}

    return make


@pytest.fixture
def write(tmp_path):
    """Writes rows (strings as they are) into a JSONL file and gives its path."""

    def to_file(name: str, rows: list) -> str:
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    return to_file


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Makes a Dataset of named sources; tokens are kept below the test's own folder."""
    monkeypatch.setenv("SFT_CACHE", str(tmp_path / "sft-cache"))

    def make(sources: dict, **options) -> Dataset:
        return Dataset(sources=sources, **{"eval_fraction": 0, **options})

    return make
