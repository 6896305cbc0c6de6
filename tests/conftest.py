"""Settings every test needs, and a service on loopback for the tests that call one.

Two threads on busy cores stall small models, and no test may reach a hub.
"""

import gc
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import settings

from tests.commands import Commands

settings.register_profile("busy", deadline=None)  # a core that others use makes an example slow, not wrong
settings.load_profile("busy")
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True, scope="session")
def no_native_bf16():
    """`model.dtype=auto` is fp32 in a test's own process on every machine; a test of bf16 says so."""
    from sft.model import dtype

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dtype, "native_bf16", lambda: False)
        yield


_frozen = 0  # modules that were imported when the collector was last told to pass over what there is


@pytest.fixture(autouse=True)
def modules_are_no_garbage() -> None:
    """The garbage collector passes over imported modules: torch's objects take it 0.4 s, once for every Trainer."""
    global _frozen
    if len(sys.modules) > _frozen + 200:
        _frozen = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def command() -> Iterator[Commands]:
    """`command("train", "model=tiny", ..., cwd=, env=)`: a command of sft in its own process, see tests/commands.py."""
    commands = Commands()
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def assert_near() -> Callable[..., None]:
    """Compares two results of one computation whose sums are taken in another order, on any processor.

    `assert_near(got, want, roundings=64, name="")`: each element may differ by so many roundings of the largest value
    (one rounding: the dtype's eps). Sums of n products in another order differ by a few sqrt(n) of them, and a bound
    that is relative to the element itself, or absolute, would hold on some machines only.
    """
    import torch

    def check(got: torch.Tensor, want: torch.Tensor, roundings: float = 64, name: str = "") -> None:
        assert got.shape == want.shape and got.dtype is want.dtype, (name, got.shape, want.shape, got.dtype, want.dtype)
        allowed = roundings * torch.finfo(want.dtype).eps * float(want.detach().abs().max())
        torch.testing.assert_close(got, want, rtol=0, atol=allowed, msg=lambda text: f"{name} {text}")

    return check


class Loopback:
    """An HTTP server on 127.0.0.1 that speaks OpenAI's chat completions and Gemini's generateContent.

    Attributes:
        keys: what is accepted; empty: anything.
        models: what there is; empty: any.
        calls: prompts as they came; `answered`: those that a whole answer was sent for.
        bodies: the calls' bodies, with their headers under "headers" and their path under "path".
        say: prompt -> the judge's text.
        faults: what happens to the next calls in place of an answer, one a call; see `_fault`.
        before_answer: called with the call's number before it is answered; False: the connection is cut.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.models: set[str] = set()
        self.calls: list[str] = []
        self.answered: list[str] = []
        self.bodies: list[dict] = []
        self.say: Callable[[str], str] = lambda prompt: '{"reason": "it says so", "score": 8}'
        self.faults: list[Any] = []
        self.before_answer: Callable[[int], bool] = lambda number: True
        self._lock = threading.Lock()
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None: ...

            def do_GET(self) -> None:
                loopback._look_up(self)

            def do_POST(self) -> None:
                loopback._answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _look_up(self, request: BaseHTTPRequestHandler) -> None:
        if self._refused(request):
            return
        name = request.path.rpartition("/models")[2].lstrip("/")
        if name and self.models and name not in self.models:
            _send(request, 404, {"error": {"message": f"models/{name} is not found"}})
            return
        _send(request, 200, {"name": f"models/{name}", "data": [{"id": m} for m in sorted(self.models)]})

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        gemini = request.path.endswith(":generateContent")
        prompt = body["contents"][0]["parts"][0]["text"] if gemini else body["messages"][0]["content"]
        with self._lock:
            self.calls.append(prompt)
            self.bodies.append({**body, "headers": dict(request.headers), "path": request.path})
            number, fault = len(self.calls), self.faults.pop(0) if self.faults else None
        if self._refused(request):
            return
        if not self.before_answer(number):
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        text = fault["text"] if isinstance(fault, dict) and "text" in fault else self.say(prompt)
        if fault is not None and not (isinstance(fault, dict) and "text" in fault):
            _fault(request, fault)
            return
        part = {"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        _send(request, 200, {"candidates": [part]} if gemini else {"choices": [choice]})
        with self._lock:
            self.answered.append(prompt)

    def _refused(self, request: BaseHTTPRequestHandler) -> bool:
        gemini = request.headers.get("x-goog-api-key")
        given = gemini or (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not self.keys or given in self.keys:
            return False
        if gemini:  # as Gemini does it: not 401, and the service may repeat the key
            message = f"API key not valid: {given}. Please pass a valid API key."
            details = [{"reason": "API_KEY_INVALID"}]
            _send(request, 400, {"error": {"code": 400, "message": message, "details": details}})
        else:
            _send(request, 401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        return True


def _fault(request: BaseHTTPRequestHandler, fault: Any) -> None:
    """`(status, headers)`, "cut" (nothing comes), "half" (half of an answer comes), "page" (a page of HTML), "empty"."""
    if isinstance(fault, tuple):
        status, headers = fault
        _send(request, status, {"error": {"message": "not now"}}, headers)
    elif fault == "page":
        _send(request, 200, "<html>a proxy's page</html>")
    elif fault == "empty":
        _send(request, 200, {})
    else:
        if fault == "half":
            request.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [{"mess')
        request.close_connection = True
        request.wfile.flush()
        request.connection.shutdown(socket.SHUT_RDWR)


def _send(request: BaseHTTPRequestHandler, status: int, body: Any, headers: dict | None = None) -> None:
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    try:
        request.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)
    except OSError:
        pass  # the caller is gone


@pytest.fixture
def service() -> Iterator[Loopback]:
    """A judge's service on loopback."""
    loopback = Loopback()
    yield loopback
    loopback.close()
