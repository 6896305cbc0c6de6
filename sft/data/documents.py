"""Tokenized rows in flat arrays: a row is a view into its source's tokens, so drawing, cutting and packing copy nothing.

A document is one conversation, or one turn of it, as the model sees it. A row is what the trainer asks for by index:
one document, or a pack of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sft.data.batches.packing import Packs

IGNORE = -100  # the label of a token that is not trained, torch's ignore_index


class Tokens:
    """One source's tokens, documents end to end; arrays in memory or mapped from a cache file.

    Args:
        input_ids: int32 [tokens].
        trained: uint8 [tokens], 1 where the token is a label.
    """

    def __init__(self, input_ids: np.ndarray, trained: np.ndarray) -> None:
        self._files = _files_of(input_ids, trained)
        self.input_ids, self.trained = input_ids.view(np.ndarray), trained.view(np.ndarray)

    def __getstate__(self) -> dict[str, Any]:
        if self._files:  # a worker that is not forked maps the files again instead of receiving their contents
            return {"files": self._files}
        return {"files": None, "arrays": (self.input_ids, self.trained)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["files"]:
            arrays = [np.memmap(path, dtype=dtype, mode="r") for path, dtype in state["files"]]
        else:
            arrays = list(state["arrays"])
        self.__init__(*arrays)  # type: ignore[misc]


def _files_of(*arrays: np.ndarray) -> list[tuple[str, str]] | None:
    if not all(isinstance(array, np.memmap) and array.filename and Path(array.filename).exists() for array in arrays):
        return None
    return [(str(array.filename), array.dtype.str) for array in arrays]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Documents:
    """A table of documents, one numpy array a column, all [documents].

    Args:
        source: int32, index into the owner's list of sources.
        start: int64, where the document's tokens begin in its source's Tokens.
        length: int64, tokens.
        trained: int64, how many of them are labels.
        row: int64, number of the conversation in its file, counted from 1.
        file: int32, index into the source's list of files.
        conversation: int64, which of the source's conversations it was made of, ascending.
        digest: uint64, hash of the token ids; equal for equal documents.
    """

    source: np.ndarray
    start: np.ndarray
    length: np.ndarray
    trained: np.ndarray
    row: np.ndarray
    file: np.ndarray
    conversation: np.ndarray
    digest: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: np.ndarray) -> Documents:
        """The documents at `indices` (or where a mask is true), in that order."""
        return Documents(**{name: column[indices] for name, column in self.columns().items()})

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def with_columns(self, **columns: np.ndarray) -> Documents:
        """A copy with these columns replaced."""
        return replace(self, **columns)

    @staticmethod
    def concatenate(tables: Sequence[Documents]) -> Documents:
        """Tables one after another; their `source` indices must mean the same list."""
        names = Documents.__dataclass_fields__
        return Documents(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})


class Rows:
    """A dataset for transformers.Trainer: `len`, `rows[i]`, `select`. Cheap to pickle when its tokens are in files.

    `rows[i]` is a dict of lists: input_ids; labels (-100 where not trained, always at a document's first token, which
    nothing predicts); source (name) and row (number in its file), or lists of them with one entry a document when
    rows are packs; lengths, the tokens of each document in order.

    Args:
        names: the sources' names.
        files: for each source the names of its files.
        tokens: for each source its tokens.
        documents: the table that `documents.source` indexes `names` with.
        packs: which documents make a row; None: each is a row of its own.
    """

    column_names: ClassVar[list[str]] = ["input_ids", "labels", "source", "row", "lengths"]

    def __init__(
        self,
        names: Sequence[str],
        files: Sequence[Sequence[str]],
        tokens: Sequence[Tokens],
        documents: Documents,
        packs: Packs | None = None,
    ) -> None:
        self.names, self.files, self.tokens = list(names), [list(each) for each in files], list(tokens)
        self.documents, self.packs = documents, packs

    def __len__(self) -> int:
        return len(self.documents) if self.packs is None else len(self.packs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        members = self.members(index)
        parts = [self.document(member) for member in members]
        source, row = [part["source"] for part in parts], [part["row"] for part in parts]
        packed = self.packs is not None
        return {
            "input_ids": [token for part in parts for token in part["input_ids"]] if packed else parts[0]["input_ids"],
            "labels": [label for part in parts for label in part["labels"]] if packed else parts[0]["labels"],
            "source": source if packed else source[0],
            "row": row if packed else row[0],
            "lengths": [len(part["input_ids"]) for part in parts],
        }

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def members(self, index: int) -> list[int]:
        """Indices into `documents` of the row's documents."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        if self.packs is None:
            return [index]
        return self.packs.order[self.packs.offsets[index] : self.packs.offsets[index + 1]].tolist()

    def where(self, member: int) -> str:
        """Where a document comes from, as `file.jsonl row 3`."""
        documents = self.documents
        file = self.files[int(documents.source[member])][int(documents.file[member])]
        return f"{file} row {int(documents.row[member])}"

    def select(self, indices: Sequence[int] | np.ndarray | range) -> Rows:
        """The rows at `indices`, in that order; tokens are shared."""
        chosen = np.asarray(indices, dtype=np.int64)
        if self.packs is None:
            return Rows(self.names, self.files, self.tokens, self.documents.take(chosen))
        members = [self.packs.order[self.packs.offsets[i] : self.packs.offsets[i + 1]] for i in chosen]
        sizes = np.array([len(each) for each in members], np.int64)
        order = np.concatenate(members) if members else np.empty(0, np.int64)
        packs = Packs(order, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
        return Rows(self.names, self.files, self.tokens, self.documents, packs)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return self._per_row(self.documents.length)

    @property
    def trained(self) -> np.ndarray:
        """Labels of each row that are not -100, int64 [rows]."""
        return self._per_row(self.documents.trained)

    def to_dataset(self) -> Any:
        """The same rows as a `datasets.Dataset`, for trainers that ask for one (their position_ids included)."""
        from datasets import Dataset

        def rows() -> Iterator[dict[str, Any]]:
            for row in self:
                row["position_ids"] = [position for length in row["lengths"] for position in range(length)]
                yield row

        return Dataset.from_list(list(rows()))

    def document(self, member: int) -> dict[str, Any]:
        """One document by its index into `documents`: input_ids, labels, source, row."""
        documents = self.documents
        source, start = int(documents.source[member]), int(documents.start[member])
        stop = start + int(documents.length[member])
        input_ids = self.tokens[source].input_ids[start:stop]
        labels = np.where(self.tokens[source].trained[start:stop], input_ids, IGNORE)
        labels[:1] = IGNORE
        return {
            "input_ids": input_ids.tolist(),
            "labels": labels.tolist(),
            "source": self.names[source],
            "row": int(documents.row[member]),
        }

    def _per_row(self, column: np.ndarray) -> np.ndarray:
        if self.packs is None:
            return column
        sums = np.concatenate([[0], np.cumsum(column[self.packs.order])])
        return sums[self.packs.offsets[1:]] - sums[self.packs.offsets[:-1]]
