"""Seconds from sending a message to the first piece of its answer, through the HTTP server of the chat's page.

    python benchmarks/webui.py [--rounds 9] [model=… | run=DIR]

The page is served on loopback as by sft.webui, with its model loaded; each round sends another message in a new
conversation. The last line has the medians.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import time

from gradio_client import Client

from sft.api import compose
from sft.config.compose import plain
from sft.inference.web.access import Access
from sft.inference.web.gradio_setup import prepare_gradio
from sft.inference.web.server import running_server

TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("overrides", nargs="*", default=["model=smollm2_offline"])
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    prepare_gradio()
    settings = plain(compose(*arguments.overrides, f"port={port}", command="webui"))
    with running_server(settings, [], Access.of(settings)) as (address,):
        first, whole = zip(*[measure(address, number) for number in range(arguments.rounds)], strict=True)
    print(
        f"first piece: first round {first[0]:.2f} s, median {statistics.median(first):.2f} s, longest {max(first):.2f} s"
    )
    print(f"{TOKENS} tokens: median {statistics.median(whole):.2f} s")


def measure(address: str, number: int) -> tuple[float, float]:
    """Seconds to the first piece and to the end of one answer."""
    tab = Client(address, verbose=False, analytics_enabled=False)
    model = next(each for each in tab.config["components"] if each["props"].get("elem_id") == "model")["props"]["value"]
    question = f"My order number {number} has not arrived, and the shop does not answer. What can I do about it?"
    start = time.perf_counter()
    job = tab.submit(question, model, "Answer briefly.", False, 0.0, 1.0, 0, 1.0, TOKENS, 0, api_name="/send")
    first = next(time.perf_counter() - start for step in job if len(step[1]) == 2)
    job.result()
    return first, time.perf_counter() - start


if __name__ == "__main__":
    main()
