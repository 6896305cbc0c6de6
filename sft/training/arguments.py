"""The config node `trainer`: transformers' TrainingArguments with the settings that sft adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from transformers import TrainingArguments

from sft.config.build import build
from sft.config.rank import world_size
from sft.distributed.sharding import with_fsdp_checkpointing
from sft.model.dtype import autocast_dtype
from sft.run.directory import RunDirectory
from sft.training.supported import supported

if TYPE_CHECKING:
    from sft.training.trainer.trainer import SftTrainer


# With several processes: no search for unused weights, which costs a pass over the graph each step and would count the
# weights of an output layer that is applied by chunks as unused.
DISTRIBUTED = {"ddp_find_unused_parameters": False}


@dataclass
class Arguments(TrainingArguments):
    """transformers.TrainingArguments with their own names; `bf16` and `gradient_checkpointing` may be `auto`.

    Attributes:
        max_tokens_per_batch: batches of whole rows with at most this many tokens, instead of
            `per_device_train_batch_size` rows (see `sft.data.batches.by_tokens`).
        cpu_parts: parts of a batch that are computed concurrently on the CPU (see `sft.training.layout.microbatches`);
            `auto` is two where that is faster, 1 computes the batch as a whole.
        resume_schedule: the learning rate schedule of a run that is resumed with a different last step: `stretched`
            over the new length, or `kept` as it was, with its last rate from its end on.
        own_loss: whether the trainer computes the loss in its own way, by an output layer that it puts into the model.
        requires: as of `sft.run.trackers.base.Tracker`.
        weight_neutral: the settings with no effect on the weights (see `sft.config.weight_neutral`).
    """

    own_loss: ClassVar[bool] = False
    requires: ClassVar[tuple[str, str | None] | None] = None
    weight_neutral: ClassVar[tuple[str, ...]] = (
        "resume_schedule", "logging_*", "log_level*", "disable_tqdm", "report_to", "save_*", "skip_memory_metrics",
        "per_device_eval_batch_size", "auto_find_batch_size", "ddp_timeout", "dataloader_num_workers",
        "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    )  # fmt: skip

    max_tokens_per_batch: int | None = None
    cpu_parts: int | Literal["auto"] = "auto"
    resume_schedule: Literal["stretched", "kept"] = "stretched"
    fsdp: bool | str | None = None  # type: ignore[assignment]  # transformers annotates str, and means bool

    def trainer(self) -> type[SftTrainer]:
        """The trainer class for these arguments."""
        from sft.training.trainer.trainer import SftTrainer

        return SftTrainer


def build_arguments(
    node: Mapping[str, Any],
    run: RunDirectory,
    *,
    seed: int,
    asked: Mapping[str, Any],
    dtype: str,
    evaluates: bool,
    allowed: Iterable[str] = (),
) -> Any:
    """The training arguments of a run.

    Args:
        node: the `trainer` node, plain.
        run: where checkpoints go.
        seed: the run's.
        asked: arguments that callbacks require; they take precedence over the node.
        dtype: `model.dtype` as configured; `auto` precision follows it.
        evaluates: whether there are evaluation rows.
        allowed: the user's own `allow_targets`.

    Raises:
        UserError: TrainingArguments refuses them, or the node names a class that is not admitted.
    """
    return build(
        _settled({**node, **asked}, dtype, evaluates),
        where="trainer",
        allowed=allowed,
        output_dir=str(run.checkpoints),
        seed=seed,
        report_to="none",
        disable_tqdm=True,  # the display callback has its own bar; two bars would garble each other
        remove_unused_columns=False,
        logging_nan_inf_filter=False,  # it would hide non-finite losses, which must stop the run
        include_num_input_tokens_seen="no",
    )


def _settled(settings: dict[str, Any], dtype: str, evaluates: bool) -> dict[str, Any]:
    """The node with what it leaves open decided by this machine, the number of processes and the rows."""
    import torch

    if settings.get("bf16") == "auto":
        settings["bf16"] = autocast_dtype(settings, dtype) is torch.bfloat16
    if settings.get("gradient_checkpointing") == "auto":
        settings["gradient_checkpointing"] = False
    if not evaluates:
        settings["eval_strategy"] = "no"
    settings.setdefault("use_cpu", not torch.cuda.is_available())
    settings.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    for name in ("gradient_checkpointing_kwargs", "lr_scheduler_kwargs"):
        if settings.get(name) is None:
            settings.pop(name, None)
    if world_size() > 1:
        for name, value in DISTRIBUTED.items():
            if settings.get(name) is None:
                settings[name] = value
    settings = with_fsdp_checkpointing(settings)
    return supported(settings, cuda=torch.cuda.is_available() and not settings["use_cpu"])
