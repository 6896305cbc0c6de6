"""The page over HTTP, without a browser: the same answers as chat, access control, and what it writes."""

from __future__ import annotations

import html
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import pytest
from gradio_client import Client

from sft.api import compose
from sft.config.compose import plain
from sft.inference.chat_session import open_chat_session

ROOT = Path(__file__).parents[3]
SYSTEM = "Extract customer, product, issue and urgency as JSON."
HTML = "<img src=x onerror=alert(1)>\n    <script>alert(2)</script> **b** [l](javascript:alert(3))"
GREEDY = (0.0, 1.0, 0, 1.0, 12, 0)  # temperature, top_p, top_k, repetition_penalty, max_new_tokens, seed


def client(address: str) -> Client:
    """A tab."""
    return Client(address, verbose=False, analytics_enabled=False)


def texts(turns: list[dict]) -> list[tuple[str, str]]:
    """(role, text) of what the page shows, which takes HTML."""
    return [(turn["role"], html.unescape("".join(part["text"] for part in turn["content"]))) for turn in turns]


@pytest.fixture(scope="module")
def chat_session(trained):
    """What sft.chat says, for the same run."""

    def loaded(*overrides: str):
        return open_chat_session(plain(compose(f"run={trained()}", "max_new_tokens=12", *overrides, command="chat")))

    return loaded


@pytest.fixture(scope="module")
def run_name(trained):
    return trained().name


def test_answers_equal_those_of_chat_and_are_streamed(page, chat_session, run_name):
    tab, chat = client(page[0]), chat_session("max_new_tokens=200")
    long = (*GREEDY[:4], 200, 0)
    job = tab.submit(HTML, run_name, SYSTEM, False, *long, api_name="/send")
    box, said, base, note = job.result()
    first = chat.ask(HTML)
    assert texts(said) == [("user", HTML), ("assistant", first)] and (box, base, note) == ("", [], "")
    grown = [texts(step[1])[-1][1] for step in job.outputs() if len(step[1]) == 2]
    assert len(set(grown)) > 2 and all(later.startswith(sooner) for sooner, later in itertools.pairwise(grown))
    said = tab.predict("and now?", run_name, SYSTEM, False, *long, api_name="/send")[1]
    assert texts(said)[2:] == [("user", "and now?"), ("assistant", chat.ask("and now?"))]


def test_sampling_and_regeneration_equal_those_of_chat(page, chat_session, run_name):
    tab, chat = client(page[0]), chat_session("temperature=1.5", "top_k=50", "seed=3", "system=Be kind")
    drawn = (1.5, 1.0, 50, 1.0, 12, 3)
    said = tab.predict("hello", run_name, "Be kind", False, *drawn, api_name="/send")[1]
    assert texts(said)[1][1] == chat.ask("hello")
    said = tab.predict(run_name, "Be kind", False, *drawn, api_name="/regenerate")[0]
    assert texts(said) == [("user", "hello"), ("assistant", chat.again())]


def test_the_base_answers_beside_with_the_adapter_off(page, chat_session, run_name):
    tab, chat = client(page[0]), chat_session()
    _, said, base, _ = tab.predict("hello", run_name, SYSTEM, True, *GREEDY, api_name="/send")
    assert texts(said)[1][1] == chat.ask("hello")
    chat.reset()
    with chat.model.disable_adapter():
        assert texts(base) == [("user", "hello"), ("assistant", chat.ask("hello"))]
    assert texts(base) != texts(said)


def test_the_base_of_a_full_fine_tune_is_the_model_before_training(serve, trained, tmp_path):
    from sft.inference.model_source import find_model_source

    run = trained("lora=none")
    with serve(tmp_path, run=run) as address:
        _, said, base, note = client(address).predict("hi", run.name, SYSTEM, True, *GREEDY, api_name="/send")
    settings = plain(compose(f"run={run}", "max_new_tokens=12", command="chat"))
    chat = open_chat_session(settings)
    assert (texts(said)[1][1], note) == (chat.ask("hi"), "")
    chat.model = find_model_source(settings).base().load(chat.tokenizer)
    chat.reset()
    assert texts(base)[1][1] == chat.ask("hi") != texts(said)[1][1]


def test_tabs_have_their_own_conversations_and_clear_forgets_one(page, run_name):
    one, two = client(page[0]), client(page[0])
    jobs = [tab.submit(word, run_name, "", False, *GREEDY, api_name="/send") for tab, word in ((one, "a"), (two, "b"))]
    assert [texts(job.result()[1])[0][1] for job in jobs] == ["a", "b"]
    one.predict(api_name="/clear")
    assert one.predict(run_name, "", False, *GREEDY, api_name="/regenerate")[2] == "nothing has been asked yet"
    assert len(two.predict("c", run_name, "", False, *GREEDY, api_name="/send")[1]) == 4


def test_a_stopped_answer_is_kept_and_not_trained_on(page, run_name):
    tab = client(page[0])
    job = tab.submit("hello", run_name, "", False, 1.0, 1.0, 0, 1.0, 4000, 0, api_name="/send")
    for step in job:
        if len(step[1]) == 2:
            tab.predict(api_name="/stop")
            break
    said = texts(job.result(timeout=60)[1])
    assert len(said) == 2 and said[1][1].startswith(texts(step[1])[1][1])
    tab.predict("", run_name, api_name="/save")
    newest = max((page[1] / "said").iterdir(), key=lambda path: path.stat().st_mtime)
    assert json.loads(newest.read_text())["messages"][1] == {"role": "assistant", "content": said[1][1], "train": False}
    assert len(texts(tab.predict("again", run_name, "", False, *GREEDY, api_name="/send")[1])) == 4


@pytest.mark.slow
def test_a_saved_conversation_can_be_trained_on_and_reopened(serve, tmp_path, run_name, command):
    with serve(tmp_path) as address:
        tab = client(address)
        assert tab.predict(SYSTEM, run_name, api_name="/save")[0] == "nothing has been said yet"
        said, base = tab.predict(HTML, run_name, SYSTEM, True, *GREEDY, api_name="/send")[1:3]
        note, _ = tab.predict("another by now", run_name, api_name="/save")
        tab.predict("more", run_name, SYSTEM, False, *GREEDY, api_name="/send")
        assert tab.predict("another by now", run_name, api_name="/save")[0] == note  # the same file
        (file,) = (tmp_path / "said").iterdir()
        assert note == f"saved in {file}"
        row = json.loads(file.read_text())
        assert [message["role"] for message in row["messages"]] == ["system", *["user", "assistant"] * 2]
        assert row["messages"][:3] == [{"role": "system", "content": SYSTEM}] + [
            {"role": role, "content": text} for role, text in texts(said)
        ]
        assert "base_messages" not in row and base  # the base has not answered the second message
        other = client(address)
        loaded, _, system, note = other.predict(file.name, api_name="/open")
        assert [{"role": role, "content": text} for role, text in texts(loaded)] == row["messages"][1:]
        assert (system, note) == (SYSTEM, f"opened {file.name}")
        assert other.predict("../said/x.json", api_name="/open")[3].startswith("there is no such conversation")
    preview = ["model=tiny", "dataset=local", f"dataset.path={file.parent}", "dataset.eval_fraction=0"]
    done = command("preview", *preview, f"hydra.run.dir={tmp_path}/p")
    assert done.returncode == 0 and "more" in done.stdout, done.stderr


def test_mistakes_are_shown_on_the_page(page, run_name):
    tab = client(page[0])
    assert tab.predict("  ", run_name, "", False, *GREEDY, api_name="/send")[3] == "there is nothing to answer"
    box, said, _, note = tab.predict("hi", run_name, "", False, *GREEDY[:3], -1.0, *GREEDY[4:], api_name="/send")
    assert (box, said) == ("hi", []) and note.startswith("repetition_penalty: -1.0 is out of range")
    box, said, _, note = tab.predict("x " * 5000, run_name, "", False, *GREEDY, api_name="/send")
    assert (box, said) == ("x " * 5000, []) and "leave no room for an answer" in note
    assert tab.predict("hi", run_name, "", False, *GREEDY, api_name="/send")[3] == ""


def test_only_sibling_runs_can_be_selected_by_name(serve, trained, tmp_path):
    runs = tmp_path / "outputs"
    runs.mkdir()
    for name, run in {"a/one": trained(), "a/two": trained("lora.r=4")}.items():
        (runs / name).parent.mkdir(exist_ok=True)
        os.symlink(run, runs / name)
    with serve(tmp_path, run=runs / "a" / "one") as address:
        tab = client(address)
        facts, system, *_ = tab.predict("a/two", api_name="/pick")
        assert "LoRA r=4 · 4 steps · eval_loss " in facts and system == SYSTEM
        said = tab.predict("hello", "a/two", SYSTEM, False, *GREEDY, api_name="/send")[1]
        chat = open_chat_session(plain(compose(f"run={trained('lora.r=4')}", "max_new_tokens=12", command="chat")))
        assert texts(said)[1][1] == chat.ask("hello")
        for other in (str(trained()), "../outputs/a/two", "a"):
            assert tab.predict("hello", other, SYSTEM, False, *GREEDY, api_name="/send")[3].startswith(
                "there is no such"
            )


def test_a_password_is_required(serve, tmp_path, run_name):
    with serve(tmp_path, SFT_WEBUI_PASSWORD="sesame seeds", SFT_WEBUI_USER="ana") as address:
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            httpx.get(f"{address}/config").raise_for_status()
        for wrong in (("ana", "sesame"), ("sft", "sesame seeds")):
            with pytest.raises(Exception, match=r"(?i)credentials|auth|login"):
                Client(address, auth=wrong, verbose=False)
        tab = Client(address, auth=("ana", "sesame seeds"), verbose=False)
        assert len(tab.predict("hi", run_name, "", False, *GREEDY, api_name="/send")[1]) == 2


def test_the_page_fetches_nothing_external_and_answers_only_to_its_own_hosts(page):
    with urllib.request.urlopen(page[0]) as answer:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "script-src-attr 'none'" in policy
        assert "gradio" in answer.read().decode()
    for host, status in (("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost:99", 200)):
        assert httpx.get(page[0], headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["share=true"], {}, ["share=true: others could reach the page", "SFT_WEBUI_PASSWORD"]),
        (["host=0.0.0.0"], {}, ["host=0.0.0.0: others could reach the page", "SFT_WEBUI_PASSWORD"]),
        (["port=TAKEN"], {}, ["port=TAKEN: it is already in use"]),
        (["port=0"], {}, ["port: 0 is not a port"]),
        (["host=256.1.1.1"], {"SFT_WEBUI_PASSWORD": "sesame seeds"}, ["host=256.1.1.1: no such host"]),
        (["top_p=3"], {}, ["top_p: 3 is out of range"]),
        (["runs_dir=/nowhere"], {}, ["runs_dir=/nowhere: no such directory"]),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_loaded(arguments, environment, says, settings, trained):
    from sft.config.errors import UserError
    from sft.inference.web.access import Access
    from sft.inference.web.server import running_server

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        config = settings("webui", f"run={trained()}", *(each.replace("TAKEN", port) for each in arguments))
        with pytest.raises(UserError) as refused:
            access = Access.of(config, environment)
            access.check_free()
            with running_server(config, [], access):
                pass
    assert all(text.replace("TAKEN", port) in str(refused.value) for text in says), refused.value


def test_without_gradio_the_extra_to_install_is_named(monkeypatch):
    import importlib.util

    from sft.config.errors import UserError
    from sft.inference.web.gradio_setup import prepare_gradio

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sft\[webui\]'"):
        prepare_gradio()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_the_command_prints_its_address_and_exits_cleanly_on_a_signal(number, code, trained, free_port, tmp_path):
    address = f"http://127.0.0.1:{free_port()}"
    command_process = subprocess.Popen(
        [sys.executable, "-m", "sft.webui", f"run={trained()}", f"port={address.rpartition(':')[2]}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SFT_WEBUI_PASSWORD": "sesame seeds", "GRADIO_SHARE": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert command_process.stdout.readline() == f"{address}\n"
        assert httpx.get(address).status_code == 200
        command_process.send_signal(number)
        out, errors = command_process.communicate(timeout=20)
    finally:
        command_process.kill()
    assert (command_process.returncode, out) == (code, "")
    assert "the page is closed" in errors and "sesame" not in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
