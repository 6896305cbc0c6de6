"""From a stream of rows to flat columns of tokens: converted and encoded in chunks, in one process or several."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing import current_process
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sft.config.errors import UserError
from sft.data.documents import IGNORE
from sft.data.formats.errors import RowError
from sft.data.report.notes import Notes, collected
from sft.system.processes import usable_cores

if TYPE_CHECKING:
    from concurrent.futures import Future

    from sft.data.formats.converter import Converter
    from sft.data.labels.encoder import Encoder
    from sft.data.labels.labelling import Row as LabelledRow
    from sft.data.readers.rows import Where

CHUNK = 250  # conversations encoded at once
AHEAD = 3  # chunks queued per process
PROCESSES = 8  # the most that are used unless `num_proc` says more
ROWS_FOR_PROCESSES = 3000  # with fewer rows, encoding is done before other processes have started

COLUMNS = {  # of an encoded source, with their types
    "input_ids": np.int32,
    "trained": np.uint8,
    "length": np.int64,
    "trained_count": np.int64,
    "digest": np.uint64,
    "conversation": np.int64,
    "row": np.int64,
    "file": np.int32,
}


class Failure(NamedTuple):
    """A row that gave no training row: its place in the chunk, the reason by kind and in full, whether it is broken."""

    place: int
    kind: str
    reason: str
    broken: bool


@dataclass(frozen=True)
class Chunk:
    """Encoded conversations: the columns of COLUMNS, `conversation` counted from the chunk's first row.

    The places of failures and notes are also counted from the chunk's first row.
    """

    columns: dict[str, np.ndarray]
    failures: list[Failure]
    notes: Notes


class RowEncoder:
    """Turns rows of a source into conversations, then into tokens and labels.

    Args:
        converter: turns rows into conversations; None where they are conversations, or the RowError why not.
        encoder: turns conversations into tokens and labels.
        as_text: render conversations with messages to text, which is trained whole.
    """

    def __init__(self, converter: Converter | None, encoder: Encoder, as_text: bool = False) -> None:
        self.converter, self.encoder, self.as_text = converter, encoder, as_text

    def __call__(self, items: Sequence[Any]) -> Chunk:
        """Encode one chunk of rows."""
        failures, conversations, places, notes = [], [], [], Notes()
        with collected() as found:
            for index, item in enumerate(items):
                found.clear()
                try:
                    conversations.append(self.conversation(item))
                except RowError as error:
                    failures.append(Failure(index, error.kind, error.reason, error.broken))
                    continue
                places.append(index)
                for kind, detail in found:
                    notes.add(kind, detail, index)
        rows: list[tuple[LabelledRow, int]] = []
        for index, one in zip(places, self.encoder.encode(conversations), strict=True):
            for kind, detail in one.get("notes", ()):
                notes.add(kind, detail, index)
            if one["problem"] is None:
                rows += [(row, index) for row in one["rows"]]
            else:  # a problem with rows is not an error: they are fully masked, so that nothing is lost without them
                failures.append(Failure(index, _kind(one["problem"]), one["problem"], not one["rows"]))
        return Chunk(_columns(rows), sorted(failures), notes)

    def conversation(self, item: Any) -> dict[str, Any]:
        """The conversation that a row holds. Raises RowError where it holds none."""
        if isinstance(item, RowError):
            raise item
        conversation = item if self.converter is None else self.converter.to_conversation(item)
        if self.as_text and "messages" in conversation:
            from sft.template.rendering.render import RenderError

            try:
                return {"text": self.encoder.as_text(conversation)}
            except RenderError as error:
                raise RowError("cannot be rendered", f": {error}") from None
        return conversation


def encode_rows(
    rows: Iterable[tuple[Where, Any]], row_encoder: RowEncoder, processes: int | None
) -> Iterator[tuple[list[Where], Chunk]]:
    """Encode rows chunk by chunk, in order; each chunk with its rows' places.

    Args:
        rows: places and rows, read as they are needed.
        row_encoder: converts and encodes them.
        processes: how many; None chooses by the number of rows, 0 and 1 stay in this process.
    """
    rows = iter(rows)
    head = list(islice(rows, ROWS_FOR_PROCESSES))
    if processes is None:
        processes = min(PROCESSES, usable_cores()) if len(head) == ROWS_FOR_PROCESSES else 1
    chunks = _chunks(chained(head, rows))
    if processes <= 1 or current_process().daemon:
        for places, items in chunks:
            yield places, row_encoder(items)
        return
    yield from _in_processes(chunks, row_encoder, processes)


def _in_processes(
    chunks: Iterator[tuple[list[Where], list[Any]]], row_encoder: RowEncoder, processes: int
) -> Iterator[tuple[list[Where], Chunk]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    forks = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    executor = ProcessPoolExecutor(processes, context, _start, (row_encoder, os.getpid()))
    waiting: deque[tuple[list[Where], Future[Chunk]]] = deque()
    try:
        for places, items in chunks:
            waiting.append((places, executor.submit(_one_chunk, items)))
            if len(waiting) >= AHEAD * processes:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process that tokenizes rows was killed, perhaps because memory ran out",
            where="dataset.num_proc",
            remedy="dataset.num_proc=1",
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_work: RowEncoder | None = None  # a worker process's own


def _start(row_encoder: RowEncoder, parent: int) -> None:
    global _work
    _work = row_encoder
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a process
    gc.freeze()  # objects inherited from the parent are never garbage


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed parent cannot tell its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _one_chunk(items: list[Any]) -> Chunk:
    assert _work is not None
    return _work(items)


def _columns(rows: Sequence[tuple[LabelledRow, int]]) -> dict[str, np.ndarray]:
    """The columns of rows, each given with the place of its conversation in the chunk."""
    ids = [np.array(row["input_ids"], np.int32) for row, _ in rows]
    lengths = np.array([len(each) for each in ids], np.int64)
    starts = np.cumsum(lengths) - lengths
    labels = [np.array(row["labels"], np.int64) for row, _ in rows]
    trained = np.concatenate(labels) != IGNORE if rows else np.empty(0, bool)
    trained[starts[lengths > 0]] = False  # a document's first token has no context to be predicted from
    sums = np.concatenate([[0], np.cumsum(trained)])
    columns = {
        "input_ids": np.concatenate(ids) if rows else [],
        "trained": trained,
        "length": lengths,
        "trained_count": sums[starts + lengths] - sums[starts] if rows else [],
        "digest": [digest_of(each) for each in ids],
        "conversation": [place for _, place in rows],
    }
    return {name: np.asarray(values, COLUMNS[name]) for name, values in columns.items()}


def digest_of(input_ids: np.ndarray) -> int:
    """A 64-bit hash of token ids: documents with equal ones are equal, but for a chance of 1 in 10^19 a pair."""
    data = np.ascontiguousarray(input_ids, dtype="<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _chunks(rows: Iterator[tuple[Where, Any]]) -> Iterator[tuple[list[Where], list[Any]]]:
    while chunk := list(islice(rows, CHUNK)):
        yield [where for where, _ in chunk], [item for _, item in chunk]


def chained(head: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    """The items of both; those of `head` are let go when they have been taken."""
    yield from head
    head.clear()
    yield from rest


def _kind(problem: str) -> str:
    """A problem without its details, to count by."""
    return problem.split(": ")[0][:100]
