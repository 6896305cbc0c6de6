"""Collectives among the processes of a distributed run, so that all come to the same decisions.

Every process composes its own config, reads its own clock and may meet an error that the others do not. So decisions
are made on rank 0 and broadcast, and everything that can fail ends with a collective: all continue, or all raise the
same error. The collectives use a gloo group beside the one for the GPUs, and may wait for as long as rank 0 prepares
data: a process that dies closes its connections, which the others notice at once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from sft.config.errors import UserError, UserErrors
from sft.config.rank import local_rank, rank, world_size

Value = TypeVar("Value")
TIMEOUT = timedelta(days=7)  # preparing data may take long; the death of a process is noticed without a timeout


def machine_id() -> str:
    """An id of this machine and its process namespace: host names are not unique, and containers have their own
    pids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return "/".join(parts)


class Ranks:
    """A single process: every collective returns its own value at once.

    Attributes:
        rank: of this process.
        world_size: the number of processes.
        processes: machine id and process id of each rank; empty in a single process.
    """

    rank, world_size = 0, 1
    processes: Sequence[tuple[str, int]] = ()

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which decides and writes."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.world_size > 1

    def broadcast(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        return value

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank."""
        return [value]

    def all_reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over the ranks; integers are exact up to 2**53."""
        return list(numbers)

    def all_reduce_max(self, number: int) -> int:
        """The maximum over the ranks."""
        return number

    def all_reduce_sum_(self, tensor: Any) -> Any:
        """A CPU tensor summed over the ranks, in place."""
        return tensor

    def barrier(self) -> None:
        """Wait until all ranks are here."""

    @contextmanager
    def raise_on_any_rank(self) -> Iterator[None]:
        """Run the block on every rank; if it fails on any, raise that error on all.

        The block must not contain collectives.
        """
        yield

    def run_on_main_and_broadcast(self, make: Callable[[], Value]) -> Value:
        """Call `make` on rank 0 only and broadcast its result; its error is raised on all ranks."""
        return make()

    def main_process_first(self, make: Callable[[], Value]) -> Value:
        """Call `make` on rank 0 first, then once on every other machine, then on the rest; return each rank's own
        result.

        So the others find in a cache what the first one has put there.
        """
        return make()


class ProcessGroup(Ranks):
    """The connected processes that torchrun started.

    Args:
        timeout: seconds for the collectives of training itself (`trainer.ddp_timeout`).
    """

    def __init__(self, timeout: float) -> None:
        import torch
        import torch.distributed as dist

        self.rank, self.world_size = rank(), world_size()
        if not dist.is_initialized():
            backend = "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(local_rank())
                backend = "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        self.dist, self.torch = dist, torch
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.processes = self.gather((machine_id(), os.getpid()))

    def broadcast(self, value: Value) -> Value:
        """See Ranks."""
        box = [value if self.is_main_process else None]
        self.dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """See Ranks."""
        found: list[Any] = [None] * self.world_size
        self.dist.all_gather_object(found, value, group=self.group)
        return found

    def all_reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """See Ranks."""
        return self.all_reduce_sum_(self.torch.tensor(numbers, dtype=self.torch.float64)).tolist()

    def all_reduce_max(self, number: int) -> int:
        """See Ranks."""
        found = self.torch.tensor(number)
        self.dist.all_reduce(found, op=self.dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def all_reduce_sum_(self, tensor: Any) -> Any:
        """See Ranks."""
        self.dist.all_reduce(tensor, group=self.group)
        return tensor

    def barrier(self) -> None:
        """See Ranks."""
        self.all_reduce_sum([0.0])

    @contextmanager
    def raise_on_any_rank(self) -> Iterator[None]:
        """See Ranks."""
        own_error: Exception | None = None
        try:
            yield
        except Exception as error:
            own_error = error
        errors = self.gather(picklable(own_error))
        first = next((index for index, error in enumerate(errors) if error is not None), None)
        if first is None:
            return
        if first == self.rank and own_error is not None:
            raise own_error
        raise with_rank(errors[first], first) from own_error  # type: ignore[arg-type]

    def run_on_main_and_broadcast(self, make: Callable[[], Value]) -> Value:
        """See Ranks."""
        own_error: Exception | None = None
        value: Any = None
        if self.is_main_process:
            try:
                value = make()
            except Exception as error:
                own_error = error
        value, failed = self.broadcast((value, picklable(own_error)))
        if failed is not None:
            raise own_error or failed
        return value

    def main_process_first(self, make: Callable[[], Value]) -> Value:
        """See Ranks."""
        own_turn = 0 if self.is_main_process else 1 if local_rank() == 0 else 2
        value: Any = None
        for turn in range(3):
            with self.raise_on_any_rank():
                if turn == own_turn:
                    value = make()
        return value


_process_group: Ranks | None = None


def process_group(timeout: float = 1800) -> Ranks:
    """The processes of this run; the first call connects them, later ones return the same object.

    Args:
        timeout: `trainer.ddp_timeout`, in seconds.

    Raises:
        UserError: WORLD_SIZE is set without LOCAL_RANK.
    """
    global _process_group
    if world_size() == 1:
        return Ranks()
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            f"WORLD_SIZE={world_size()} is set in the environment, but LOCAL_RANK is not",
            where="the environment",
            remedy="start with torchrun --nproc-per-node=N -m sft.train ..., or unset WORLD_SIZE",
        )
    if _process_group is None:
        _process_group = ProcessGroup(timeout)
    return _process_group


def picklable(error: Exception | None) -> Exception | None:
    """An error that can be pickled: one of ours as it is, any other as a RuntimeError with its name and message."""
    from sft.config.errors import Interrupted, RunFailed

    if error is None or isinstance(error, UserError | RunFailed | Interrupted):
        return error
    if isinstance(error, MemoryError):
        return MemoryError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


def with_rank(error: Exception, index: int) -> Exception:
    """Another rank's error with the rank in its message; an error of rank 0 is left as it is."""
    if index == 0:
        return error
    if isinstance(error, UserErrors):
        return UserErrors(with_rank(each, index) for each in error.errors)  # type: ignore[misc]
    if isinstance(error, UserError):
        return type(error)(f"[rank {index}] {error.what}", where=error.where, remedy=error.remedy)
    return type(error)(f"[rank {index}] {error}") if isinstance(error, RuntimeError) else error
