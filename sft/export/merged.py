"""A run's adapter and its base as one model, with all that serving it takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.export.merge import Merged, merge
from sft.export.serving import modelfile, serving_notes
from sft.model.save import decode_greedily
from sft.model.spec import Model
from sft.run.directory import RunDirectory
from sft.run.info import TrainingInfo
from sft.run.jsonable import dumps
from sft.run.metrics import Metrics
from sft.template.bound import BoundTemplate
from sft.training.outputs import write_card

log = logging.getLogger(__name__)

PROMPTS, LONGEST = 4, 128  # rows of the run, and tokens of each, that adapter and merged model are compared on


def write_merged(
    adapter: Path,
    spec: Model,
    info: TrainingInfo,
    tokenizer: Any,
    bound: BoundTemplate,
    output: Path,
    config: Mapping[str, Any],
    metrics: Metrics,
    run: RunDirectory | None = None,
) -> Merged:
    """Merge an adapter into the base's weights in full precision; the directory appears whole or not at all.

    Args:
        adapter: its directory.
        spec: the base.
        info: of the training; a copy goes beside the weights.
        tokenizer, bound: of the training.
        output: where the model goes.
        config: the run's, for the model card.
        metrics: the run's figures, for the model card.
        run: the adapter's, which has rows to compare on; None for one that was trained elsewhere.

    Raises:
        UserError: the adapter belongs to another base, or the logits differ by more than rounding.
    """
    if info.dtype in ("bfloat16", "float16", "float32") and spec.dtype == "auto":
        spec = replace(spec, dtype=info.dtype)  # type: ignore[arg-type]

    def complete(model: Any, directory: Path) -> None:
        decode_greedily(model, tokenizer, info.stop_tokens)
        whole = asdict(info) | {"extra": {**info.extra, "merged_from": str(adapter)}}
        (directory / "training_info.json").write_text(dumps(whole) + "\n", encoding="utf-8")
        (directory / "Modelfile").write_text(modelfile(info, bound), encoding="utf-8")
        (directory / "SERVING.md").write_text(serving_notes(info), encoding="utf-8")
        write_card(config, info, metrics, directory, whole=True)

    rows = [row["input_ids"][:LONGEST] for row in (run.read_jsonl("preview.jsonl") if run else [])[:PROMPTS]]
    found = merge(
        spec,
        adapter,
        output,
        tokenizer=tokenizer,
        chat_template=bound.text,
        prompts=rows or None,
        complete=complete,
    )
    log.info(
        "merged: the logits differ from the adapter's by at most %.1e of its effect, %.1e as the weights are rounded",
        found.difference,
        found.rounding,
    )
    return found


def refuse_to_overwrite(output: Path, base: str, overwrite: bool) -> None:
    """Refuse an output directory that has something else in it, or a merged model that is to stay.

    Raises:
        UserError: saying which.
    """
    if output.is_file():
        raise UserError("is a file", where=f"output={output}", remedy="name a directory")
    if not output.is_dir() or not any(output.iterdir()):
        return
    ours = (output / "config.json").is_file() and (output / "training_info.json").is_file()
    if not ours or output.resolve() == Path(base).resolve():
        raise UserError(
            "holds something else than a merged model, which would be lost",
            where=f"output={output}",
            remedy="name a directory that does not exist yet",
        )
    if not overwrite:
        raise UserError(
            "the run is merged already", where=str(output), remedy="overwrite=true to do it anew, or another output=DIR"
        )
