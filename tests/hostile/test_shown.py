"""Attacks on viewers: escapes for the terminal, scripts for the page, formulas for the spreadsheet. All are shown as
text."""

from __future__ import annotations

import html
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.config.entry.exit_codes import leave
from sft.config.errors import UserError
from sft.config.text import without_control_characters

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08"
REVERSED = "\u202egpj.exe\u2066"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"
HOSTILE = f"{ESCAPES}{REVERSED}{SCRIPT}"
TOKEN = "hf_" + "s3cr3tT0k3n" * 2
NO_ESCAPE, NO_SCRIPT, NO_FORMULA, NO_SECRET = (
    "no control sequence reaches the terminal",
    "it stands there as text and is not run",
    "it stands in the cell as text",
    "`***` stands in its place",
)


def left(error: BaseException) -> str:
    """What a command prints when it exits with an error."""
    printed, before = io.StringIO(), sys.stderr
    sys.stderr = printed
    try:
        with pytest.raises(SystemExit):
            leave(error, None)
    finally:
        sys.stderr = before
    return printed.getvalue()


def logged(place: Path) -> str:
    """What a message leaves on stderr and in train.log."""
    from sft.run.directory import RunDirectory
    from sft.run.log import RunLog

    printed, before = io.StringIO(), sys.stderr
    sys.stderr = printed
    try:
        with RunLog(RunDirectory(place)):
            logging.getLogger("sft").warning("a row says %s with %s", HOSTILE, TOKEN)
    finally:
        sys.stderr = before
    return printed.getvalue() + (place / "train.log").read_text(encoding="utf-8")


def preview_row():
    from sft.data.preview import PreviewRow

    return PreviewRow(
        HOSTILE, 1, HOSTILE, None, [1, 2], [-100, 2], HOSTILE, [HOSTILE], [(HOSTILE, False), (HOSTILE, True)]
    )


def page(place: Path) -> str:
    from sft.data.preview import to_html

    return to_html([preview_row()], HOSTILE)


def preview(place: Path) -> str:
    from rich.console import Console

    from sft.data.preview import show

    printed = io.StringIO()
    show([preview_row()], Console(file=printed, color_system=None, width=200))
    return printed.getvalue()


def answers():
    from sft.evaluation.answers import Answers, Scored
    from sft.evaluation.generate import Answer
    from sft.evaluation.questions import Question

    messages = [{"role": "user", "content": HOSTILE}]
    question = Question(source=HOSTILE, row=0, messages=messages, prompt=HOSTILE, reference=HOSTILE)
    answer = Answer(text=HOSTILE, tokens=1, stopped=True)
    return Answers([Scored(question, answer, {"exact_match": 0.0})])


def samples_page(place: Path) -> str:
    from sft.evaluation.samples import samples_html

    return samples_html(answers(), title=HOSTILE)


def samples(place: Path) -> str:
    from sft.evaluation.compare import sample_table

    return sample_table(answers())


def terminal_table(place: Path) -> str:
    from sft.sweep.text import print_table

    printed, before = io.StringIO(), sys.stdout
    sys.stdout = printed
    try:
        print_table([HOSTILE, "loss"], [[HOSTILE, "1.0"]])
    finally:
        sys.stdout = before
    return printed.getvalue()


def markdown_page(place: Path) -> str:
    from sft.sweep.text import markdown_table

    return markdown_table(["name"], [[HOSTILE]])


def spreadsheet(place: Path) -> str:
    from sft.sweep.leaderboard import _csv

    return _csv([{"=cmd()": "=HYPERLINK(1)", "b": "+1+1", "c": "-2+3", "d": "@SUM(A1)", "e": "-0.5", "f": "1e-4"}])


def card(place: Path) -> str:
    from sft.hub.card import Card
    from sft.run.info import TrainingInfo
    from sft.run.metrics import Metrics

    info = TrainingInfo(
        model_name=f"a`{HOSTILE}", model_path=HOSTILE, method="lora", dataset={"sources": {f"`{HOSTILE}": {"rows": 1}}}
    )
    return "".join(Card(name=HOSTILE, info=info, metrics=Metrics(status="finished")).text().split("```")[::2])


def chat(place: Path) -> str:
    from sft.inference.terminal import Terminal

    class ChatSession:
        def ask(self, line, show):
            show(HOSTILE)

    lines, said = iter(["hi", "/exit"]), []
    Terminal(ChatSession(), read=lambda prompt: next(lines), write=said.append).run()  # type: ignore[arg-type]
    return "".join(said)


# What is tried: (a function that gives what is shown, what becomes of it)
ATTACKS: dict[str, tuple[Callable[[Path], str], str]] = {
    "escapes in a row that an error quotes": (lambda place: left(UserError(HOSTILE, where=HOSTILE)), NO_ESCAPE),
    "escapes in a traceback": (lambda place: left(RuntimeError(HOSTILE)), NO_ESCAPE),
    "escapes in the log": (logged, NO_ESCAPE),
    "escapes in the preview": (preview, NO_ESCAPE),
    "escapes in a model's answer, in the chat": (chat, NO_ESCAPE),
    "escapes in a model's answer, in the evaluation": (samples, NO_ESCAPE),
    "escapes in a table's cells": (terminal_table, NO_ESCAPE),
    "a script in preview.html": (page, NO_SCRIPT),
    "a script in samples.html": (samples_page, NO_SCRIPT),
    "a script in leaderboard.md": (markdown_page, NO_SCRIPT),
    "a script in the model card": (card, NO_SCRIPT),
    "a formula in leaderboard.csv": (spreadsheet, NO_FORMULA),
    "a secret in an error": (lambda place: left(UserError(f"cannot reach {TOKEN}")), NO_SECRET),
    "a secret in a traceback": (lambda place: left(RuntimeError(f"401 for {TOKEN}")), NO_SECRET),
    "a secret in the log": (logged, NO_SECRET),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_text_is_shown_as_text(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    make, becomes = ATTACKS[name]
    shown = make(tmp_path)
    assert TOKEN not in shown
    if becomes == NO_ESCAPE:
        assert not set(shown) & set("\x1b\x07\x9b\x08\u202e\u2066")
        assert "gpj.exe" in shown or "owned" in shown
    elif becomes == NO_SCRIPT:
        assert "<script" not in shown and "<img" not in shown
        assert "alert(1)" in shown
    elif becomes == NO_SECRET:
        assert "***" in shown
    else:
        header, row = shown.splitlines()
        assert header.startswith("'=cmd()")
        assert row == "'=HYPERLINK(1),'+1+1,'-2+3,'@SUM(A1),-0.5,1e-4"


@given(st.text())
def test_cleaned_text_has_no_control_characters_and_keeps_the_rest(text):
    shown = without_control_characters(text)
    assert all(c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) for c in shown)
    assert without_control_characters(shown) == shown
    if text.isprintable() and text.isascii():
        assert shown == text


@given(st.text(max_size=60))
def test_any_text_is_escaped_in_a_page(text):
    from sft.data.preview import PreviewRow, to_html, visible

    row = PreviewRow("a", 1, "a", None, [1], [1], text, [text], [(text, True)])
    body = to_html([row], "t").partition("<pre>")[2].partition("</pre>")[0]
    inner = body.removeprefix('<span class="t">').removesuffix("</span>")
    assert "<" not in inner and html.unescape(inner) == visible(text)
