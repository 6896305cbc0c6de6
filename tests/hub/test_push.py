"""Pushing to the hub: the requests that a server receives."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sft.config.errors import UserError
from sft.hub.push import Push

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


class Hub(ThreadingHTTPServer):
    """As much of the hub as a push needs.

    Attributes:
        requests: (path, bearer token, body) of each.
        refuses: the status that every request is refused with, None to accept.
    """

    refuses: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str | None, bytes]] = []

    @property
    def files(self) -> dict[str, bytes]:
        """What the commit holds."""
        body = next(body for path, _, body in self.requests if "/commit/" in path)
        lines = [json.loads(line) for line in body.decode().splitlines()]
        return {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self._body()
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        url = f"http://127.0.0.1:{self.server.server_port}/org/name"
        if self.server.refuses:
            self._answer({"error": "no"}, self.server.refuses)
        elif self.path == "/api/repos/create":
            self._answer({"url": url, "name": "org/name"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            self._answer({"commitUrl": f"{url}/commit/1", "commitOid": "1", "success": True})
        else:
            self._answer({})

    def do_GET(self) -> None:
        found = {"id": "org/name", "sha": "0", "siblings": [], "private": True}
        self._answer(found, self.server.refuses or 200)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def weights(tmp_path) -> Path:
    directory = tmp_path / "adapter"
    directory.mkdir()
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    (directory / "README.md").write_text("---\nlibrary_name: peft\n---\n# demo\n")
    return directory


def test_a_directory_arrives_with_its_card(hub, weights):
    address = Push.of({"hub": {"push": "org/name"}}).send(weights)
    assert address.endswith("/org/name")
    created = next(json.loads(body) for path, _, body in hub.requests if path == "/api/repos/create")
    assert (created["organization"], created["name"], created["visibility"]) == ("org", "name", "private")
    assert hub.files == {path.name: path.read_bytes() for path in weights.iterdir()}
    assert {token for _, token, _ in hub.requests if token} == {f"Bearer {TOKEN}"}


def test_a_public_repository_is_asked_for(hub, weights):
    Push.of({"hub": {"push": "org/name", "private": False}}).send(weights)
    created = next(json.loads(body) for path, _, body in hub.requests if path == "/api/repos/create")
    assert created["visibility"] == "public"


@pytest.mark.parametrize(("status", "remedy"), [(401, "HF_TOKEN is not valid"), (403, "may not write")])
def test_a_refusal_says_what_to_do(hub, weights, status, remedy):
    hub.refuses = status
    with pytest.raises(UserError, match=remedy) as caught:
        Push.of({"hub": {"push": "org/name"}}).send(weights)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("node", "token", "says"),
    [
        ({"push": "name"}, TOKEN, "ORG/NAME"),
        ({"push": "org/na me"}, TOKEN, "ORG/NAME"),
        ({"push": "a/b"}, "", "HF_TOKEN"),
    ],
)
def test_what_cannot_be_pushed_is_refused_at_once(monkeypatch, node, token, says):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=says):
        Push.of({"hub": node})


def test_nothing_is_pushed_unasked():
    assert Push.of({}) is None and Push.of({"hub": {"push": None, "private": True}}) is None
