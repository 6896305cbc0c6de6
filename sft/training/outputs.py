"""Files of a finished run: weights, what inference needs, metrics, plots, the model card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft import __version__
from sft.config.run_config import RunConfig
from sft.data.conversations import common_system
from sft.data.preview import preview_rows, to_html, to_jsonl
from sft.data.report.account import account, summary
from sft.data.report.table import total
from sft.hub.card import Card
from sft.model.base import base_of
from sft.model.fingerprint import weights_fingerprint
from sft.model.save import decode_greedily, save_adapter, save_model
from sft.model.spec import Model
from sft.run.directory import RunDirectory
from sft.run.info import TrainingInfo
from sft.run.metrics import Metrics
from sft.training.inputs import Inputs, fill_steps_per_epoch

log = logging.getLogger(__name__)

PREVIEWED = 20  # rows in a run directory's preview


def write_data(run: RunDirectory, inputs: Inputs) -> None:
    """Write data_report.json, preview.html, preview.jsonl and the plot of the lengths; log what was lost."""
    if not run.main:
        return
    from sft.data.report.length import plot_lengths

    for line in summary(inputs.data.report):
        log.warning("%s", line)
    log.info("%s", total(inputs.data.report))
    run.write_json(run.data_report, inputs.data.report)
    previews = preview_rows(inputs.data.train, inputs.tokenizer, PREVIEWED)
    run.write_text(run.preview_html, to_html(previews, run.path.name, account(inputs.data.report)))
    run.write_text("preview.jsonl", to_jsonl(previews))
    run.write_with("lengths.png", lambda path: plot_lengths(inputs.data.report, Path(path)))


def write_steps_per_epoch(run: RunDirectory, inputs: Inputs, config: RunConfig, padded: bool) -> None:
    """Update the steps per epoch in data_report.json, now that the batch layout is known."""
    before = inputs.data.report["train"]["steps_per_epoch"]
    fill_steps_per_epoch(inputs.data, config, padded)
    now = inputs.data.report["train"]["steps_per_epoch"]
    if now != before:
        log.info("batches are padded: %d steps per epoch, not %d", now, before)
        run.write_json(run.data_report, inputs.data.report)


def training_info(config: RunConfig, inputs: Inputs, model: Any) -> TrainingInfo:
    """The information that inference, merging and evaluation need."""
    spec, report = inputs.model, inputs.data.report
    base = base_of(model)
    adapter = getattr(model, "peft_config", {}).get("default")
    return TrainingInfo(
        model_name=spec.name or str(config.model["_target_"]).rpartition(".")[2],
        model_path=base.name_or_path,
        model_kind=_kind(spec, base.name_or_path),
        model_revision=spec.revision,
        base_fingerprint=weights_fingerprint(base.name_or_path, spec.revision),
        model_type=getattr(inputs.model_config, "model_type", None),
        family=inputs.family.name,
        method="full" if adapter is None else "qlora" if config.quant else "lora",
        stop_tokens=list(inputs.template.stop_tokens),
        system=common_system(inputs.sample) or inputs.template.system,
        template=inputs.template.text,
        template_name=inputs.template.reason,
        template_kwargs=dict(inputs.template.kwargs),
        lora={} if adapter is None else _plain(adapter.to_dict()),
        quant={} if config.quant is None else config.quant.plain(),
        dtype=str(base.dtype).removeprefix("torch."),
        tokenizer={
            "name": inputs.tokenizer.name_or_path,
            "size": len(inputs.tokenizer),
            "pad_token": inputs.tokenizer.pad_token,
            "eos_token": inputs.tokenizer.eos_token,
        },
        dataset={
            "sources": sorted(report["sources"]),
            "fingerprint": inputs.data.fingerprint,
            "max_length": inputs.dataset.max_length,
            "packing": inputs.dataset.packing,
        },
        sft_version=__version__,
    )


def write_weights(run: RunDirectory, model: Any, inputs: Inputs, weights: Mapping[str, Any] | None = None) -> Path:
    """Write adapter/, or model/ after a full fine-tune; from `weights` if the model itself is sharded."""
    if hasattr(model, "peft_config"):
        return save_adapter(model, run.adapter, inputs.tokenizer, inputs.template.text, weights)
    decode_greedily(model, inputs.tokenizer, inputs.template.stop_tokens)
    with run.replacing_directory(run.model) as directory:
        save_model(model, directory, inputs.tokenizer, inputs.template.text, weights=weights)
    return run.model


def write_card(config: RunConfig, info: TrainingInfo, metrics: Metrics, weights: Path, whole: bool) -> None:
    """Write the model card beside the weights.

    Args:
        weights: their directory.
        whole: whether they are a whole model, not an adapter.
    """
    trainer = config.get("trainer") or {}
    names = (
        "learning_rate",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "lr_scheduler_type",
        "optim",
    )
    settings = {
        **({"seed": config.seed} if "seed" in config else {}),
        **{name: trainer[name] for name in names if name in trainer},
    }
    library = "transformers" if whole else "peft"
    Card(name=str(config.name), info=info, metrics=metrics, settings=settings, library=library).write(weights)


def _kind(spec: Model, path: str) -> str:
    if not spec.name:
        return spec.kind
    return "local" if Path(path).is_dir() else "hub"


def _plain(value: Any) -> Any:
    """peft's settings as JSON: sets as sorted lists, enumerations as their values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)
