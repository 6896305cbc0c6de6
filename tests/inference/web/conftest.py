"""The page served from this process, on a free port."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "a long password"


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port that nothing listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def serve(free_port, trained) -> Callable[..., Any]:
    """serve(DIR, *overrides) -> the page over the trained run, in a with-block; gives its address."""
    from sft.api import compose
    from sft.config.compose import plain

    @contextlib.contextmanager
    def start(directory: Path, *overrides: str, run: Path | None = None, **environment: str) -> Iterator[str]:
        from sft.inference.web.access import Access
        from sft.inference.web.gradio_setup import prepare_gradio
        from sft.inference.web.server import running_server

        prepare_gradio()
        given = [f"port={free_port()}", f"conversations={directory / 'said'}", "max_new_tokens=12", *overrides]
        settings = plain(compose(f"run={run or trained()}", *given, command="webui"))
        with running_server(settings, [], Access.of(settings, environment)) as (address,):
            yield address

    return start


@pytest.fixture(scope="module")
def page(serve, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """(address, directory): a page that several tests of a file use; saved conversations go to DIR/said."""
    directory = tmp_path_factory.mktemp("page")
    with serve(directory) as address:
        yield address, directory
