"""Datasets of the hub, through the `datasets` library; its errors become one line with a remedy."""

from __future__ import annotations

import os
import re
from typing import Any

from sft.config.errors import UserError
from sft.data.readers.rows import Rows, Where
from sft.data.readers.tables import from_dataset
from sft.data.source import Source
from sft.hub.reach import cached_files_if_unreachable


def read_hub(source: Source, split: str | None, where: str) -> Rows:
    """The rows of a hub dataset, from its cache where it is complete, row by row with `streaming`.

    The token is the environment's `HF_TOKEN`. Raises UserError for a dataset that cannot be reached, opened or found.
    """
    data = load_hub(source, split or "train", where)
    label = f"{source.name}{f'/{source.subset}' if source.subset else ''}:{split or 'train'}"
    if not source.streaming:
        yield from from_dataset(data, label)
        return
    try:
        for number, row in enumerate(data, 1):
            yield Where(label, number), row
    except Exception as error:
        raise as_user_error(error, source, where) from error


def load_hub(source: Source, split: str, where: str) -> Any:
    """The `datasets.Dataset` (with streaming: IterableDataset) of a hub source."""
    from datasets import load_dataset

    if os.path.exists(str(source.name)):
        raise UserError(f"{source.name} is a path here", where=f"{where}.name", remedy=f"{where}.path={source.name}")
    try:
        with cached_files_if_unreachable(str(source.name)):
            return load_dataset(
                str(source.name),
                source.subset,
                split=split,
                revision=source.revision,
                streaming=source.streaming,
                token=os.environ.get("HF_TOKEN") or None,
            )
    except Exception as error:  # the library raises a dozen types, some of them plain ValueError
        raise as_user_error(error, source, where) from error


def as_user_error(error: Exception, source: Source, where: str) -> UserError:
    """A hub error in one line, with a remedy."""
    text = " ".join(str(error).split())
    name, kind = source.name, type(error).__name__
    key, remedy = f"{where}.name", None
    if "gated" in text.lower() or "authenticat" in text.lower() or "401" in text or "403" in text:
        what = f"{name} is gated"
        remedy = f"accept its terms at https://huggingface.co/datasets/{name}, then set HF_TOKEN"
    elif kind == "DatasetNotFoundError":
        what = f"the hub has no dataset {name}, or it is private"
        remedy = "check the id; for a private one set HF_TOKEN; for a local file use path"
    elif isinstance(error, (ConnectionError, TimeoutError)) or "offline" in kind.lower() or "offline" in text.lower():
        offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE")
        reason = "HF_HUB_OFFLINE is set and it is not cached" if offline else "no connection to the hub"
        what = f"{name} cannot be reached: {reason}"
        remedy = f"connect, or put its files here and use {where}.path=DIR"
    elif match := re.search(r"[Uu]nknown split \"?([\w.-]+)\"?\. Should be one of (\[.*?\])", text):
        key, what, remedy = f"{where}.split", f"{name} has no split {match[1]}", f"its splits: {match[2]}"
    elif "Bad split" in text:
        key, what, remedy = f"{where}.split", f"{name}: {text}", None
    elif "Config name is missing" in text or "BuilderConfig" in text:
        configs = re.search(r"\[.*?\]", text)
        key, what = f"{where}.subset", f"{name} has several configurations" if "missing" in text else f"{name}: {text}"
        remedy = f"subset: one of {configs[0]}" if configs else None
    elif "scripts are no longer supported" in text:
        what, remedy = (
            f"{name} is a loading script, which is not run",
            "use a revision with Parquet files: refs/convert/parquet",
        )
    else:
        what = f"{name} cannot be loaded: {kind}: {text[:300]}"
    return UserError(what, where=key, remedy=remedy)
