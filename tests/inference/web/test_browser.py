"""The page in a real browser: what is typed is answered piece by piece, saved, and never run; nothing else is fetched."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.browser
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

    def __init__(self, browser, address: str) -> None:
        self.browser, self.title = browser, "sft chat"
        browser.get_log("performance")
        browser.get(address)
        self.until(lambda: self.find("#message textarea"))

    def find(self, selector: str):
        return self.browser.find_elements("css selector", selector)

    def until(self, holds, seconds: float = 60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := holds():
                return found
            time.sleep(0.01)
        raise AssertionError(f"never came: {self.browser.find_element('css selector', 'body').text}")

    def type(self, selector: str, text: str) -> None:
        field = self.find(selector)[0]
        field.clear()
        field.send_keys(text)

    def click(self, identifier: str) -> None:
        self.find(f"#{identifier}, #{identifier} button")[0].click()

    def turns(self, side: str = "chat") -> list[str]:
        """The texts of the conversation's turns."""
        script = "return [...document.querySelectorAll(arguments[0])].map(turn => turn.textContent)"
        return self.browser.execute_script(script, f"#{side} [data-testid=user], #{side} [data-testid=bot]")

    def note(self) -> str:
        return self.find("#note textarea")[0].get_attribute("value")

    def requested(self) -> set[str]:
        """Hosts that something was fetched from."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in urls if urlsplit(url).scheme not in ("data", "blob")}

    def elements_made_of(self, side: str) -> int:
        """Elements inside the turns that only HTML or Markdown in them could have made."""
        return len(
            self.find(", ".join(f"#{side} .message {tag}" for tag in ("img", "script", "iframe", "a", "b", "code")))
        )

    def assert_nothing_ran(self) -> None:
        assert self.browser.title == self.title


def test_an_answer_streams_in_and_is_saved(chromium, serve, tmp_path):
    from sft.api import compose
    from sft.config.compose import plain
    from sft.inference.talk import open_talk

    with serve(tmp_path, "max_new_tokens=200") as address:
        tab = Tab(chromium, address)
        assert tab.find("#system textarea")[0].get_attribute("value") == SYSTEM
        tab.type("#message textarea", "Is my router broken?\ue007")  # ends with Enter
        lengths: list[int] = []

        def done():
            turns = tab.turns()
            if len(turns) == 2 and (not lengths or len(turns[1]) > lengths[-1]):
                lengths.append(len(turns[1]))
            return len(turns) == 2 and not tab.find("#note .generating") and time.monotonic() - changed() > 1.5

        last = [0, time.monotonic()]

        def changed() -> float:
            if len(lengths) != last[0]:
                last[:] = [len(lengths), time.monotonic()]
            return last[1]

        tab.until(done)
        assert len(lengths) > 3, lengths
        settings = plain(compose(*serve.of(tmp_path), "max_new_tokens=200", command="chat"))
        answer = open_talk(settings).ask("Is my router broken?")
        assert tab.turns() == ["Is my router broken?", answer]
        tab.click("save")
        tab.until(lambda: tab.note().startswith("saved in "))
        (file,) = (tmp_path / "said").iterdir()
        assert json.loads(file.read_text())["messages"] == [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "Is my router broken?"},
            {"role": "assistant", "content": answer},
        ]
        tab.click("clear")
        tab.until(lambda: tab.turns() == [])
        assert tab.requested() == {urlsplit(address).netloc}
