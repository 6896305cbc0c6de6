"""Serving the page until a signal ends it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sft.config.errors import Interrupted, UserError
from sft.inference.web.access import Access, in_use
from sft.system.signals import taken

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds that an answer in the making has to end, when the page does


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the block with their exit codes, 143 and 130."""

    def end(number: int, frame: Any) -> None:
        raise Interrupted(f"{signal.Signals(number).name}: the page is closed", 128 + number)

    with taken((signal.SIGTERM, signal.SIGINT), end):
        yield


@contextmanager
def served(settings: Mapping[str, Any], overrides: Sequence[str], access: Access) -> Iterator[list[str]]:
    """The page over what a resolved config names, for the time of the block; gives its addresses.

    The model is loaded before anything listens: what is wrong with it is told at once, and the first answer is quick.

    Args:
        settings: the config.
        overrides: of the command line, for further runs that are picked on the page.
        access: where and for whom.

    Raises:
        UserError: a model that cannot be loaded, or an address that cannot be listened on.
    """
    from sft.evaluation.sampling import Sampling
    from sft.inference.web.desk import Desk
    from sft.inference.web.page import build_page
    from sft.inference.web.saved import Saved
    from sft.inference.web.shelf import Shelf, in_four_bits

    Sampling.of(settings)
    if settings["load_in_4bit"]:
        settings = in_four_bits(settings)
    shelf = Shelf(settings, overrides)
    with shelf.lock:
        shelf.open(shelf.first)
    desk = Desk(shelf, Saved(settings["conversations"]))
    page = build_page(desk, settings)
    addresses = _launch(page, access)
    try:
        yield addresses
    finally:
        shelf.closed.set()
        desk.stop_all()
        _close(page)
        if shelf.lock.acquire(timeout=PATIENCE):
            shelf.close()
            shelf.lock.release()
        else:
            _leave_at_once()


def _close(page: Any) -> None:
    """Stop listening. Open tabs hold connections, which would be waited for; uvicorn logs each one that is cut."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    page.server.force_exit = True
    page.close(verbose=False)


def _leave_at_once() -> None:
    """End the process under an answer that does not end: torch in a long prompt hears nothing, and would crash Python."""
    error = sys.exc_info()[1]
    if isinstance(error, Interrupted):
        print(error, file=sys.stderr, flush=True)
        os._exit(error.code)


def _launch(page: Any, access: Access) -> list[str]:
    from starlette.middleware import Middleware

    from sft.inference.web.guard import Guard
    from sft.inference.web.page import looks

    guard = Middleware(Guard, own_name=access.host if access.password is None else None)
    try:
        page.queue(max_size=100).launch(
            server_name=access.host,
            server_port=access.port,
            share=access.share,
            auth=access.login,
            app_kwargs={"middleware": [guard]},
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            show_error=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            max_file_size="1kb",
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            **looks(),
        )
    except OSError:
        raise in_use(access.port) from None
    if access.share and page.share_url is None:
        _close(page)
        raise UserError(
            "no public link could be made: the tunnel's program could not be fetched or not connect",
            where="share=true",
            remedy="host=0.0.0.0 serves your network without one",
        )
    return [access.address, *([page.share_url] if access.share else [])]


def wait(say: Callable[[str], object], addresses: Sequence[str]) -> None:
    """Tell the addresses, one a line, and wait for a signal."""
    for address in addresses:
        say(address)
    threading.Event().wait()
