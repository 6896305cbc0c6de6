"""Rows longer than `max_length`: dropped, cut where a trained answer ends, or an error; and statistics of lengths."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sft.data.documents import Documents, Tokens
from sft.data.encode import digest_of
from sft.drawing.canvas import new_figure

BINS = 40  # of a source's histogram


@dataclass(frozen=True)
class Fitted:
    """A source's documents after fitting them to max_length.

    Args:
        documents: those that fit, cut ones with their new length.
        dropped: reason -> the documents that were dropped for it.
        truncated: the documents that were cut, as they were before.
    """

    documents: Documents
    dropped: dict[str, Documents] = field(default_factory=dict)
    truncated: Documents | None = None


def fit(documents: Documents, tokens: Tokens, max_length: int, cut_long: bool) -> Fitted:
    """Drop the documents over `max_length` tokens, or with `cut_long` cut those that keep a whole trained span."""
    long = documents.length > max_length
    if not long.any():
        return Fitted(documents)
    if not cut_long:
        return Fitted(documents.take(~long), {f"longer than max_length={max_length}": documents.take(long)})
    indices = np.flatnonzero(long)
    masks = [_mask(documents, tokens, index) for index in indices.tolist()]
    cuts = np.array([cut_at(mask, max_length) for mask in masks], np.int64)
    cut, lost = indices[cuts > 0], indices[cuts == 0]
    length, trained, digest = documents.length.copy(), documents.trained.copy(), documents.digest.copy()
    length[indices] = cuts
    trained[indices] = [int(mask[1:end].sum()) if end else 0 for mask, end in zip(masks, cuts, strict=True)]
    for index in cut:  # documents that are equal after the cut are duplicates
        start = int(documents.start[index])
        digest[index] = digest_of(tokens.input_ids[start : start + int(length[index])])
    kept = documents.with_columns(length=length, trained=trained, digest=digest).take(length > 0)
    reason = f"no whole answer within max_length={max_length}"
    dropped = {reason: documents.take(lost)} if len(lost) else {}
    return Fitted(kept, dropped, documents.take(cut))


def cut_at(trained: np.ndarray, max_length: int) -> int:
    """Where to cut a document of more than `max_length` tokens: after the last trained span that fits whole.

    So the stop token of every remaining answer is trained, and no answer is cut. Text that is trained as a whole has no
    answers and is cut at `max_length`. 0: no span fits, so nothing would be left to train.
    """
    inner = np.asarray(trained, dtype=bool)[1:]
    if inner.all():
        return max_length if max_length > 1 else 0
    ends = np.flatnonzero(inner[:-1] & ~inner[1:]) + 2  # exclusive; a span at the very end is beyond the cut
    fitting = ends[ends <= max_length]
    return int(fitting[-1]) if len(fitting) else 0


def statistics(lengths: np.ndarray) -> dict[str, Any]:
    """min, median, p95, max and mean of token counts, and a histogram of them.

    Its bins widen with length; `edges` has one more entry than `counts`, each bin from one edge to below the next.
    """
    if not len(lengths):
        return {"min": 0, "median": 0, "p95": 0, "max": 0, "mean": 0.0, "histogram": {"edges": [], "counts": []}}
    edges = np.unique(np.rint(np.geomspace(max(1, lengths.min()), lengths.max() + 1, BINS + 1)).astype(np.int64))
    counts, _ = np.histogram(lengths, bins=edges)
    return {
        "min": int(lengths.min()),
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
        "mean": round(float(lengths.mean()), 1),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def plot_lengths(report: Mapping[str, Any], path: Path) -> Path:
    """Draw the token lengths of every source in a data report, with max_length as a line, into a PNG file."""
    sources = {**report["sources"], **report.get("eval_sources", {})}
    facts = {"max_length": report["max_length"], "lengths": {name: each["length"] for name, each in sources.items()}}
    path.write_bytes(_picture(json.dumps(facts)))
    return path


@functools.lru_cache(maxsize=1)  # the jobs of a sweep have the same rows, and drawing is a large part of their overhead
def _picture(facts: str) -> bytes:
    from matplotlib.ticker import ScalarFormatter

    known = json.loads(facts)
    lengths, max_length = known["lengths"], known["max_length"]
    figure = new_figure((8, 1.2 + 1.6 * max(1, len(lengths))))
    axes = figure.subplots(max(1, len(lengths)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, length) in zip(axes, lengths.items(), strict=False):
        histogram = length["histogram"]
        if histogram["counts"]:
            axis.stairs(histogram["counts"], histogram["edges"], fill=True, alpha=0.6)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.axvline(max_length, color="tab:red", linewidth=1)
        axis.set_ylabel("rows")
        axis.set_title(f"{name}: median {length['median']}, 95% {length['p95']}, longest {length['max']}", fontsize=9)
    axes[-1].set_xlabel(f"tokens (red: max_length={max_length})")
    image = io.BytesIO()
    figure.savefig(image, dpi=100, format="png")
    return image.getvalue()


def _mask(documents: Documents, tokens: Tokens, index: int) -> np.ndarray:
    start = int(documents.start[index])
    return tokens.trained[start : start + int(documents.length[index])]
