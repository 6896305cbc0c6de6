"""Chat: prompts reach the model unchanged, with the training's system prompt, and nothing is written."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch

from sft.chat import _question
from sft.config.errors import UserError
from sft.inference.chat_session import open_chat_session
from sft.inference.stream import Stream
from sft.inference.terminal import Terminal, without_control_characters

SYSTEM = "Extract customer, product, issue and urgency as JSON."
ASKED = '-x "Is it broken", and why? It\'s = dead; 100% of ${it}, {really}\\ [now]!'


@pytest.fixture(scope="module")
def loaded(trained):
    """A function that opens a talk with the trained run."""
    from sft.api import compose
    from sft.config.compose import plain

    def start(*overrides: str):
        return open_chat_session(plain(compose(f"run={trained()}", "max_new_tokens=12", *overrides, command="chat")))

    return start


@pytest.fixture
def prompts(monkeypatch):
    """What the model is given, as text."""
    from sft.inference import chat_session

    seen: list[str] = []
    answer = chat_session.answer_prompts

    def noting(model, tokenizer, texts, **settings):
        seen.extend(texts)
        return answer(model, tokenizer, texts, **settings)

    monkeypatch.setattr(chat_session, "answer_prompts", noting)
    return seen


def test_the_prompt_is_rendered_as_in_training(loaded, prompts, trained):
    loaded().ask("My phone is broken")
    row = json.loads((trained() / "preview.jsonl").read_text().splitlines()[0])["text"]
    head = row[: row.index(SYSTEM) + len(SYSTEM)]
    (prompt,) = prompts
    assert prompt.startswith(head) and "My phone is broken" in prompt
    assert row[row.index("assistant") :].startswith(prompt[prompt.rindex("assistant") :])


def test_prompts_with_any_punctuation_reach_the_model(loaded, prompts, settings, trained):
    config = settings("chat", f"run={trained()}", f"prompt={ASKED}")
    assert config["prompt"] == ASKED
    loaded().ask(config["prompt"])
    assert ASKED in prompts[0]


@pytest.mark.parametrize(("given", "wanted"), [(["system=Be brief, = kind"], "Be brief, = kind"), (["system="], None)])
def test_the_system_prompt_can_be_changed_or_removed(loaded, given, wanted):
    assert loaded(*given).system == wanted
    assert loaded().system == SYSTEM


def test_a_conversation_has_a_history(loaded, prompts):
    chat_session = loaded()
    first = chat_session.ask("one")
    chat_session.ask("two")
    assert prompts[1].startswith(prompts[0]) and first in prompts[1]
    assert [message["role"] for message in chat_session.messages] == ["user", "assistant"] * 2
    chat_session.again()
    assert prompts[2] == prompts[1] and len(chat_session.messages) == 4
    chat_session.reset()
    chat_session.ask("one")
    assert prompts[3] == prompts[0]


def test_pieces_join_to_the_answer_and_greedy_is_the_default(loaded):
    chat_session, pieces = loaded(), []
    answer = chat_session.ask("hello", pieces.append)
    assert "".join(pieces) == answer != "" and len(pieces) > 1
    assert loaded().ask("hello") == answer
    sampled = loaded("temperature=2.0", "seed=1")
    drawn = sampled.ask("hello")
    assert sampled.again() != drawn != answer
    assert loaded("temperature=2.0", "seed=1").ask("hello") == drawn


def test_settings_out_of_range_are_reported(loaded):
    with pytest.raises(UserError, match=r"(?s)max_new_tokens.*top_p"):
        loaded("max_new_tokens=0", "top_p=2.0")


def test_an_interrupted_answer_is_forgotten(loaded):
    chat_session = loaded()

    def stop(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat_session.ask("hello", stop)
    assert chat_session.messages == [] and chat_session.ask("hello")


class Letters:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], **_) -> str:
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("  hé y ", ["h", "é", " y"]),  # white space at the ends and half a character wait
        ("ab<end>cd", ["a", "b"]),  # a stop of several tokens
        ("a<e b", ["a", "<e", " b"]),  # what only began like one
    ],
)
def test_a_stream_yields_only_complete_text(text, pieces):
    shown: list[str] = []
    stream = Stream(Letters(), shown.append, ["<end>"])
    stream.put(torch.tensor([[1, 2, 3]]))
    for byte in text.encode():
        stream.put(torch.tensor([byte]))
    stream.finish(text.partition("<end>")[0].strip())
    assert shown == pieces


def chat(chat_session, *lines: str) -> str:
    out: list[str] = []
    given = iter(lines)

    def read(prompt: str) -> str:
        line = next(given, None)
        if line is None:
            raise EOFError
        return line

    Terminal(chat_session, read, out.append).run()
    return "".join(out)


def test_the_commands_of_the_terminal(loaded, tmp_path):
    chat_session = loaded()
    file = tmp_path / "said.jsonl"
    text = chat(
        chat_session, "hello", "/save " + str(file), "/system Be kind", "/save", "/nothing", "/regenerate", "/help"
    )
    first = json.loads(file.read_text())["messages"]
    assert [(m["role"], m["content"]) for m in first[:2]] == [("system", SYSTEM), ("user", "hello")]
    assert chat_session.system == "Be kind"
    assert all(
        without_control_characters(said) in text for said in (first[2]["content"], chat_session.messages[1]["content"])
    )
    for said in ("system: Be kind", "no file is named", "there is no command /nothing", "/regenerate    answer"):
        assert said in text
    assert "(forgotten)" in chat(chat_session, "/reset", "/exit", "never asked") and chat_session.messages == []
    assert "nothing has been asked yet" in chat(chat_session, "/regenerate")


def test_an_answer_cannot_send_control_sequences_to_the_terminal():
    assert without_control_characters("a\x1b]0;title\x07\x1b[2Jb\u202ec\r\n\té") == "a]0;title[2Jbc\n\té"


def test_piped_standard_input_is_the_prompt(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"  Wie geht's?\n")))
    assert _question(None) == "Wie geht's?"
    assert _question("said") == "said"
    with pytest.raises(UserError, match="nothing to answer"):
        _question(None)  # it is read empty
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert _question(None) is None


def test_the_command_prints_only_the_answer_and_writes_nothing(loaded, trained, tmp_path, command):
    done = command("chat", f"run={trained()}", "max_new_tokens=12", f"prompt={ASKED}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == loaded().ask(ASKED) + "\n"
    assert "Loading weights" not in done.stderr
    assert list(tmp_path.iterdir()) == []
