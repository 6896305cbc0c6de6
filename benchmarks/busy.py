"""Simulate a busy machine: processes that compute alongside the measurement.

python benchmarks/busy.py THREADS    # one such process, until it is stopped
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy(processes: int, threads: int = 1) -> Iterator[None]:
    """Within the block, multiply matrices in this many processes, each with this many threads."""
    running = [
        subprocess.Popen([sys.executable, __file__, str(threads)], stdout=subprocess.PIPE) for _ in range(processes)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline() != b"computing\n":
                raise RuntimeError("a load process did not start")
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def compute(threads: int) -> None:
    """Multiply matrices that fit into a core's own cache, forever."""
    import torch

    torch.set_num_threads(threads)
    a = torch.rand(256, 256)
    print("computing", flush=True)
    while True:
        a @ a


if __name__ == "__main__":
    compute(int(sys.argv[1]))
