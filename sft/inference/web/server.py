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

PATIENCE = 5.0  # seconds for a running answer to end when the page is closed


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Within the block SIGTERM and SIGINT raise Interrupted with their exit codes, 143 and 130."""

    def end(number: int, frame: Any) -> None:
        raise Interrupted(f"{signal.Signals(number).name}: the page is closed", 128 + number)

    with taken((signal.SIGTERM, signal.SIGINT), end):
        yield


@contextmanager
def running_server(settings: Mapping[str, Any], overrides: Sequence[str], access: Access) -> Iterator[list[str]]:
    """Serve the page for a resolved config within the block; yields its addresses.

    The model is loaded before the server listens, so that its errors show at once and the first answer is fast.

    Args:
        settings: the config.
        overrides: of the command line, for other runs that are selected on the page.
        access: address and login.

    Raises:
        UserError: the model cannot be loaded, or the address cannot be used.
    """
    from sft.evaluation.sampling import Sampling
    from sft.inference.web.handlers import Handlers
    from sft.inference.web.model_pool import ModelPool, with_4bit_base
    from sft.inference.web.page import build_page
    from sft.inference.web.saved import SavedConversations

    Sampling.of(settings)
    if settings["load_in_4bit"]:
        settings = with_4bit_base(settings)
    pool = ModelPool(settings, overrides)
    with pool.lock:
        pool.open(pool.first)
    handlers = Handlers(pool, SavedConversations(settings["conversations"]))
    page = build_page(handlers, settings)
    addresses = _launch(page, access)
    try:
        yield addresses
    finally:
        pool.closed.set()
        handlers.stop_all()
        _close(page)
        if pool.lock.acquire(timeout=PATIENCE):
            pool.close()
            pool.lock.release()
        else:
            _exit_now()


def _close(page: Any) -> None:
    """Stop the server. Connections of open tabs are cut instead of awaited; uvicorn would log each of them."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    page.server.force_exit = True
    page.close(verbose=False)


def _exit_now() -> None:
    """Exit while an answer is still running: torch cannot be interrupted in a long prompt, and would crash Python."""
    error = sys.exc_info()[1]
    if isinstance(error, Interrupted):
        print(error, file=sys.stderr, flush=True)
        os._exit(error.code)


def _launch(page: Any, access: Access) -> list[str]:
    from starlette.middleware import Middleware

    from sft.inference.web.guard import Guard
    from sft.inference.web.page import theme_options

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
            **theme_options(),
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
    """Print the addresses, one per line, and wait for a signal."""
    for address in addresses:
        say(address)
    threading.Event().wait()
