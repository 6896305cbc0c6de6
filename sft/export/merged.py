"""A run's adapter merged into its base, with everything that serving needs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.config.run_config import RunConfig
from sft.export.merge import MergeDeviation, merge
from sft.export.serving import modelfile, serving_notes
from sft.model.save import decode_greedily
from sft.model.spec import Model
from sft.run.directory import RunDirectory
from sft.run.info import TrainingInfo
from sft.run.metrics import Metrics
from sft.template.bound import BoundTemplate
from sft.training.outputs import write_card

log = logging.getLogger(__name__)

PROMPTS, LONGEST = 4, 128  # rows of the run, and tokens of each, on which adapter and merged model are compared


@dataclass(frozen=True)
class Provenance:
    """What is known of a training, and goes beside the weights that came of it.

    Args:
        info: what inference needs.
        tokenizer, bound: of the training.
        config: the run's, for the model card.
        metrics: the run's figures, for the model card.
    """

    info: TrainingInfo
    tokenizer: Any
    bound: BoundTemplate
    config: RunConfig
    metrics: Metrics

    def write_beside(self, model: Any, adapter: Path, directory: Path) -> None:
        """Write all but the tokenizer into a merged model's directory, and have the model decode greedily."""
        decode_greedily(model, self.tokenizer, self.info.stop_tokens)
        replace(self.info, extra={**self.info.extra, "merged_from": str(adapter)}).write_beside(directory)
        (directory / "Modelfile").write_text(modelfile(self.info, self.bound), encoding="utf-8")
        (directory / "SERVING.md").write_text(serving_notes(self.info), encoding="utf-8")
        write_card(self.config, self.info, self.metrics, directory, whole=True)


def write_merged(
    adapter: Path, spec: Model, provenance: Provenance, output: Path, run: RunDirectory | None = None
) -> MergeDeviation:
    """Merge an adapter into the base's weights in full precision; the directory is written atomically.

    Args:
        adapter: its directory.
        spec: the base.
        provenance: what goes beside the weights.
        output: where the model goes.
        run: the adapter's run, whose rows are used for the comparison; None for an adapter trained elsewhere.

    Raises:
        UserError: the adapter belongs to another base, or the logits differ by more than rounding.
    """
    dtype = provenance.info.dtype
    if dtype in ("bfloat16", "float16", "float32") and spec.dtype == "auto":
        spec = replace(spec, dtype=dtype)  # type: ignore[arg-type]
    rows = [row["input_ids"][:LONGEST] for row in (run.read_jsonl("preview.jsonl") if run else [])[:PROMPTS]]
    found = merge(
        spec,
        adapter,
        output,
        tokenizer=provenance.tokenizer,
        chat_template=provenance.bound.text,
        prompts=rows or None,
        complete=lambda model, directory: provenance.write_beside(model, adapter, directory),
    )
    log.info(
        "merged: the logits differ from the adapter's by at most %.1e of its effect, %.1e as the weights are rounded",
        found.difference,
        found.rounding,
    )
    return found


def refuse_to_overwrite(output: Path, base: str, overwrite: bool) -> None:
    """Refuse an output directory that has other contents, or a merged model that must not be replaced.

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
            "holds something other than a merged model, which would be lost",
            where=f"output={output}",
            remedy="name a directory that does not exist yet",
        )
    if not overwrite:
        raise UserError(
            "the run is already merged", where=str(output), remedy="overwrite=true to replace it, or another output=DIR"
        )
