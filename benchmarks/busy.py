"""A busy machine: processes that compute beside what is measured.

python benchmarks/busy.py THREADS    # one such process, until it is ended
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy(processes: int, threads: int = 1) -> Iterator[None]:
    """For the time of the block, so many processes multiply matrices, each with so many threads."""
    running = [
        subprocess.Popen([sys.executable, __file__, str(threads)], stdout=subprocess.PIPE) for _ in range(processes)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline() != b"computing\n":
                raise RuntimeError("a process of the busy machine did not start")
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def compute(threads: int) -> None:
    """Multiply matrices that fit into a core's own cache, for ever."""
    import torch

    torch.set_num_threads(threads)
    a = torch.rand(256, 256)
    print("computing", flush=True)
    while True:
        a @ a


if __name__ == "__main__":
    compute(int(sys.argv[1]))
