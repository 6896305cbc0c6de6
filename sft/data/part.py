"""One source in the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from sft.data.documents import Documents
from sft.data.load import Loaded
from sft.data.report.length import Fitted


@dataclass
class Part:
    """One source in the pipeline.

    Args:
        name: of the source.
        where: its key in the config.
        weight: as stated.
        loaded: its tokens and what failed.
        fitted: its documents within max_length.
        train, eval: which of them are trained and evaluated on.
        leaked: those left out of training because the evaluation has equal ones.
    """

    name: str
    where: str
    weight: float | None
    loaded: Loaded
    fitted: Fitted
    train: Documents
    eval: Documents
    leaked: Documents
