"""The processes that train one run together: what they tell each other, and how they come to the same decisions.

Every process composes for itself, reads its own clock and may meet an error that the others do not. So whatever is
decided is decided by rank 0 and told to the others, and whatever can fail ends with a word from each: then all go on,
or all raise the same error. They speak over gloo, beside whatever connects their GPUs, and may wait for each other for
as long as rank 0 prepares data: a process that is gone closes its connections, which the others notice at once.
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
PATIENCE = timedelta(days=7)  # data of any size may take so long; a process that ends is noticed without it


def machine() -> str:
    """This machine as its processes know it: host names are not unique, and a container has process ids of its own."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return "/".join(parts)


class Ranks:
    """This process alone: every answer is its own and nothing waits.

    Attributes:
        rank: of this process.
        count: processes in all.
        processes: of each rank its machine and process id; none are known where there is one.
    """

    rank, count = 0, 1
    processes: Sequence[tuple[str, int]] = ()

    @property
    def main(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def agree(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        return value

    def gather(self, value: Value) -> list[Value]:
        """Everyone's value, by rank."""
        return [value]

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over the ranks; whole ones stay exact up to 2**53."""
        return list(numbers)

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return number

    def sum_into(self, tensor: Any) -> Any:
        """A CPU tensor summed over the ranks, in place."""
        return tensor

    def wait(self) -> None:
        """Until all are here."""

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Every rank runs the block; where it fails on one, all raise that error.

        Nothing inside the block may wait for other ranks.
        """
        yield

    def decided(self, make: Callable[[], Value]) -> Value:
        """What `make` gives on rank 0, where alone it is called; its error is raised on all."""
        return make()

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """What `make` gives here: called on rank 0 first, then once on every other machine, then on the rest.

        So what one leaves in a cache the others find there.
        """
        return make()


class Group(Ranks):
    """The processes that torchrun started, connected.

    Args:
        timeout: seconds that a step's own communication may take (`trainer.ddp_timeout`).
    """

    def __init__(self, timeout: float) -> None:
        import torch
        import torch.distributed as dist

        self.rank, self.count = rank(), world_size()
        if not dist.is_initialized():
            backend = "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(local_rank())
                backend = "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        self.dist, self.torch = dist, torch
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.processes = self.gather((machine(), os.getpid()))

    def agree(self, value: Value) -> Value:
        """See Ranks."""
        box = [value if self.main else None]
        self.dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """See Ranks."""
        found: list[Any] = [None] * self.count
        self.dist.all_gather_object(found, value, group=self.group)
        return found

    def total(self, numbers: Sequence[float]) -> list[float]:
        """See Ranks."""
        return self.sum_into(self.torch.tensor(numbers, dtype=self.torch.float64)).tolist()

    def most(self, number: int) -> int:
        """See Ranks."""
        found = self.torch.tensor(number)
        self.dist.all_reduce(found, op=self.dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def sum_into(self, tensor: Any) -> Any:
        """See Ranks."""
        self.dist.all_reduce(tensor, group=self.group)
        return tensor

    def wait(self) -> None:
        """See Ranks."""
        self.total([0.0])

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """See Ranks."""
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            mine = error
        errors = self.gather(portable(mine))
        first = next((index for index, error in enumerate(errors) if error is not None), None)
        if first is None:
            return
        if first == self.rank and mine is not None:
            raise mine
        raise named(errors[first], first) from mine  # type: ignore[arg-type]

    def decided(self, make: Callable[[], Value]) -> Value:
        """See Ranks."""
        mine: Exception | None = None
        value: Any = None
        if self.main:
            try:
                value = make()
            except Exception as error:
                mine = error
        value, failed = self.agree((value, portable(mine)))
        if failed is not None:
            raise mine or failed
        return value

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """See Ranks."""
        mine = 0 if self.main else 1 if local_rank() == 0 else 2
        value: Any = None
        for turn in range(3):
            with self.agreeing():
                if turn == mine:
                    value = make()
        return value


_joined: Ranks | None = None


def joined(timeout: float = 1800) -> Ranks:
    """The processes of this run; the first call connects them, and later ones give the same.

    Args:
        timeout: `trainer.ddp_timeout`, in seconds.

    Raises:
        UserError: the environment names several processes and does not say which of a machine's this is.
    """
    global _joined
    if world_size() == 1:
        return Ranks()
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            f"WORLD_SIZE={world_size()} is in the environment, and LOCAL_RANK is not",
            where="the environment",
            remedy="start with torchrun --nproc-per-node=N -m sft.train ..., or unset WORLD_SIZE",
        )
    if _joined is None:
        _joined = Group(timeout)
    return _joined


def portable(error: Exception | None) -> Exception | None:
    """An error as it can be sent: one of ours as it is, any other by its name and its words."""
    from sft.config.errors import Interrupted, RunFailed

    if error is None or isinstance(error, UserError | RunFailed | Interrupted):
        return error
    if isinstance(error, MemoryError):
        return MemoryError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


def named(error: Exception, index: int) -> Exception:
    """An error that another rank met, with the rank's number where it is not rank 0's, which is like everyone's."""
    if index == 0:
        return error
    if isinstance(error, UserErrors):
        return UserErrors(named(each, index) for each in error.errors)  # type: ignore[misc]
    if isinstance(error, UserError):
        return type(error)(f"[rank {index}] {error.what}", where=error.where, remedy=error.remedy)
    return type(error)(f"[rank {index}] {error}") if isinstance(error, RuntimeError) else error
