"""The page in a real browser: streamed answers, saving, no script execution, no other hosts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.browser
ENTER = "\ue007"
ANSWER = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
SYSTEM = "Extract customer, product, issue and urgency as JSON."
EVIL = (
    "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    "<svg onload=\"document.title='run'\"></svg><iframe srcdoc=\"<script>parent.document.title='run'</script>\"></iframe>"
    " [link](javascript:document.title='run') ![i](http://elsewhere.example/i.png) **bold** `code` $$x$$ <b>b</b>"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    """Debian's Chromium, headless; `make browser` installs it."""
    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary and driver, "make browser installs chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1440,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Tab:
    """What a person does on the page."""

    def __init__(self, browser, address: str, first: str = "#message textarea") -> None:
        self.browser = browser
        browser.get_log("performance")
        browser.get(address)
        self.until(lambda: self.find(first))

    def find(self, selector: str):
        return self.browser.find_elements("css selector", selector)

    def until(self, holds, seconds: float = 60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := holds():
                return found
            time.sleep(0.01)
        there = self.turns(), self.turns("base"), self.note()
        raise AssertionError(f"never came; there is {there}")

    def type(self, selector: str, text: str) -> None:
        """In place of what the field holds."""
        self.find(selector)[0].send_keys("\ue009a\ue000" + text)  # Ctrl-A, and the key let go

    def click(self, identifier: str) -> None:
        self.find(f"#{identifier}, #{identifier} button")[0].click()

    def turns(self, side: str = "chat") -> list[str]:
        """The texts of the conversation's turns, without characters that no browser shows."""
        script = "return [...document.querySelectorAll(arguments[0])].map(turn => turn.textContent)"
        texts = self.browser.execute_script(script, f"#{side} [data-testid=user], #{side} [data-testid=bot]")
        return [shown(text) for text in texts]

    def note(self) -> str:
        return self.find("#note textarea")[0].get_attribute("value")

    def requested(self) -> set[str]:
        """Hosts that something was fetched from."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in urls if urlsplit(url).scheme not in ("data", "blob")}

    def unchanged(self, seconds: float = 1.5) -> list[str]:
        """The turns, where they stay as they are for so long; else []."""
        before = self.turns()
        time.sleep(seconds)
        return before if self.turns() == before else []

    def assert_nothing_ran(self) -> None:
        """No script set the title, and in the turns there is no element that their texts would have made."""
        assert self.browser.title == "sft chat"
        made = ("img", "script", "iframe", "svg", "a", "b", "code", "strong")
        assert self.find(", ".join(f".md {tag}" for tag in made)) == []


def shown(text: str) -> str:
    """A text without the control characters that a model of random weights writes and no browser shows."""
    return "".join(each for each in text if each.isprintable())


def chat(run, *overrides: str):
    """What sft.chat would say."""
    from sft.api import compose
    from sft.config.compose import plain
    from sft.inference.chat_session import open_chat_session

    return open_chat_session(plain(compose(f"run={run}", *overrides, command="chat")))


def test_an_answer_is_streamed_and_saved(chromium, serve, trained, tmp_path):
    answer = shown(chat(trained(), "max_new_tokens=300").ask("Is my router broken?"))
    with serve(tmp_path, "max_new_tokens=300") as address:
        tab = Tab(chromium, address)
        assert tab.find("#system textarea")[0].get_attribute("value") == SYSTEM
        tab.type("#message textarea", "Is my router broken?" + ENTER)
        seen: list[str] = []

        def answered() -> bool:
            turns = tab.turns()
            if len(turns) == 2 and turns[1] not in seen:
                seen.append(turns[1])
            return turns == ["Is my router broken?", answer]

        tab.until(answered)
        assert len(set(seen)) >= 3 and all(answer.startswith(text) for text in seen), seen
        tab.click("save")
        tab.until(lambda: tab.note().startswith("saved in "))
        (file,) = (tmp_path / "said").iterdir()
        messages = json.loads(file.read_text())["messages"]
        assert messages[:2] == [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "Is my router broken?"},
        ]
        assert messages[2]["role"] == "assistant" and shown(messages[2]["content"]) == answer
        tab.click("clear")
        tab.until(lambda: tab.turns() == [])
        assert tab.find("#message textarea")[0].get_attribute("value") == ""
        assert tab.requested() == {urlsplit(address).netloc}


def test_stop_ends_an_answer_and_another_can_be_requested(chromium, serve, trained, tmp_path):
    with serve(tmp_path, "max_new_tokens=1500", "temperature=1.0") as address:
        tab = Tab(chromium, address)
        tab.type("#message textarea", "hello" + ENTER)
        tab.until(lambda: len(tab.turns()) == 2)
        tab.click("stop")
        stopped = tab.until(lambda: tab.unchanged())
        whole = shown(chat(trained(), "max_new_tokens=1500", "temperature=1.0").ask("hello"))
        assert whole.startswith(stopped[1]) and whole != stopped[1]
        tab.click("again")
        tab.until(
            lambda: len(turns := tab.turns()) == 2 and turns[1][:5] != stopped[1][:5]
        )  # read once: the page goes on
        tab.click("stop")


def test_nothing_typed_generated_or_opened_is_executed(chromium, serve, tmp_path):
    """The run is one that has learned to answer with HTML; its directory, a message and the system prompt are HTML too."""
    from sft.api import compose, train

    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": ANSWER}]
    rows.write_text((json.dumps({"messages": turns}) + "\n") * 8)
    data = ["dataset=local", f"dataset.path={rows}", "dataset.eval_fraction=0", "dataset.num_proc=0"]
    steps = ["trainer.max_steps=40", "trainer.per_device_train_batch_size=8", "trainer.learning_rate=1e-2"]
    learned = tmp_path / "learned"
    plainly = ["model=tiny", "lora=none", "model.dtype=float32", "callbacks=quiet", f"hydra.run.dir={learned}"]
    train(compose(*plainly, *data, *steps))
    run = tmp_path / "outputs" / "<img src=x onerror=document.title='run'>"
    run.parent.mkdir()
    run.symlink_to(learned)
    (tmp_path / "said").mkdir()
    said = [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]
    loaded = {"messages": [{"role": "system", "content": EVIL}, *said]}
    (tmp_path / "said" / "<b>evil<b>.json").write_text(json.dumps(loaded))
    with serve(tmp_path, "max_new_tokens=120", run=run) as address:
        tab = Tab(chromium, address)
        assert tab.find("#model input")[0].get_attribute("value") == run.name
        tab.type("#message textarea", "go" + ENTER)
        tab.until(lambda: tab.turns() == ["go", ANSWER])
        tab.type("#system textarea", EVIL)
        tab.type("#message textarea", EVIL + ENTER)
        tab.until(lambda: len(tab.turns()) == 4 and tab.unchanged())
        assert tab.turns()[:3] == ["go", ANSWER, EVIL]
        tab.assert_nothing_ran()
        tab.click("clear")
        tab.type("#saved input", "<b>evil<b>.json" + ENTER)
        tab.click("open")
        tab.until(lambda: tab.turns() == [EVIL, EVIL])
        assert tab.find("#system textarea")[0].get_attribute("value") == EVIL
        tab.type("#saved input", EVIL + ENTER)
        tab.click("open")
        tab.until(lambda: tab.note().startswith("there is no such conversation"))
        tab.assert_nothing_ran()
        assert tab.requested() == {urlsplit(address).netloc}


def test_the_base_answers_beside(chromium, serve, trained, tmp_path):
    chat_session = chat(trained(), "max_new_tokens=12")
    answer = shown(chat_session.ask("hello"))
    chat_session.reset()
    with chat_session.model.disable_adapter():
        base = shown(chat_session.ask("hello"))
    with serve(tmp_path) as address:
        tab = Tab(chromium, address)
        tab.find("#compare input")[0].click()
        tab.until(lambda: tab.find("#base"))
        tab.type("#message textarea", "hello")
        tab.click("send")
        tab.until(lambda: (tab.turns(), tab.turns("base")) == (["hello", answer], ["hello", base]))
        assert answer != base


def test_a_password_opens_the_page(chromium, serve, tmp_path):
    with serve(tmp_path, SFT_WEBUI_PASSWORD="sesame seeds") as address:
        tab = Tab(chromium, address, "input[type=password]")
        assert tab.find("#message") == []
        user, password = tab.find("input")
        user.send_keys("sft")
        password.send_keys("sesame seeds" + ENTER)
        tab.until(lambda: tab.find("#message textarea"))
        assert tab.requested() == {urlsplit(address).netloc}
