"""Library settings that are controlled by another key here: which one, and the override to write instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sft.config.errors import UserError

TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")


@dataclass(frozen=True)
class Owner:
    """What controls a setting.

    Attributes:
        name: the key that controls it, or what else decides.
        remedy: value -> the override to write instead.
        fits: values that only restate what holds anyway, and are accepted.
    """

    name: str
    remedy: Callable[[Any], str]
    fits: tuple[Any, ...] = field(default=())

    def refusal(self, key: str, value: Any) -> UserError | None:
        """The error for this value of the key; None where it restates what holds anyway."""
        if value is None or any(value == fit and type(value) is type(fit) for fit in self.fits):
            return None
        return UserError(f"this setting belongs to {self.name}", where=key, remedy=self.remedy(value))


def _same(key: str) -> Callable[[Any], str]:
    """The same value under the owner's key."""
    return lambda value: f"{key}={override_text(value)}"


def _text(text: str) -> Callable[[Any], str]:
    return lambda value: text


def override_text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(override_text(each) for each in value)}]"
    return str(value) if not isinstance(value, dict) else "{...}"


def _tracker(value: Any) -> str:
    names = [str(name) for name in (value if isinstance(value, list) else [value])]
    known = [name for name in names if name in TRACKERS]
    if known:
        return f"tracker={known[0]}"
    return "tracker=none" if names in (["none"], []) else f"tracker=wandb, or one of {', '.join(TRACKERS[1:])}, none"


def _resume(value: Any) -> str:
    return {True: "resume=auto", False: "resume=never"}.get(value, "") if isinstance(value, bool) else f"resume={value}"


def _train_on(value: Any) -> str:
    return "dataset.train_on=assistant" if value else "dataset.train_on=all"


OWNED: dict[str, Owner] = {
    "trainer.seed": Owner("seed", _same("seed")),
    "trainer.output_dir": Owner("hydra.run.dir (the run directory)", _same("hydra.run.dir")),
    "trainer.report_to": Owner("tracker", _tracker),
    "trainer.run_name": Owner("name", lambda v: f"name={v}, or tracker.name={v} for the tracker's run alone"),
    "trainer.project": Owner("tracker.project", lambda v: f"tracker=trackio tracker.project={v}", ("huggingface",)),
    "trainer.trackio_space_id": Owner("tracker.space_id", lambda v: f"tracker=trackio tracker.space_id={v}"),
    "trainer.resume_from_checkpoint": Owner("resume", _resume),
    "trainer.hub_token": Owner("the environment variable HF_TOKEN", _text("HF_TOKEN=... in the environment or .env")),
    "trainer.push_to_hub": Owner("hub.push", _text("hub.push=ORG/NAME"), (False,)),
    "trainer.hub_model_id": Owner("hub.push", _same("hub.push")),
    "trainer.hub_private_repo": Owner("hub.private", _same("hub.private")),
    "trainer.local_rank": Owner("torchrun", _text("torchrun --nproc-per-node=GPUS -m sft.train ..."), (-1,)),
    "trainer.activation_checkpointing": Owner(
        "trainer.gradient_checkpointing", _same("trainer.gradient_checkpointing")
    ),
    "trainer.activation_checkpointing_kwargs": Owner(
        "trainer.gradient_checkpointing_kwargs", _same("trainer.gradient_checkpointing_kwargs")
    ),
    "trainer.use_cache": Owner("model.use_cache", _same("model.use_cache"), (False,)),
    "trainer.logging_nan_inf_filter": Owner("on_nonfinite", _text("on_nonfinite=stop, or on_nonfinite=skip"), (False,)),
    "trainer.disable_tqdm": Owner(
        "callbacks.display", lambda v: "callbacks.display=null" if v else "callbacks.display.live=true"
    ),
    "trainer.packing": Owner("dataset.packing", _same("dataset.packing")),
    "trainer.eval_packing": Owner("dataset.eval_packing", _same("dataset.eval_packing")),
    "trainer.max_length": Owner("dataset.max_length", _same("dataset.max_length")),
    "trainer.padding_free": Owner("model.attn_implementation", _text("model.attn_implementation=varlen")),
    "trainer.assistant_only_loss": Owner("dataset.train_on", _train_on),
    "trainer.completion_only_loss": Owner("dataset.train_on", _train_on),
    "trainer.dataset_kwargs": Owner("dataset", _text("its keys are those of dataset: --cfg job --package dataset")),
    "lora.task_type": Owner(
        "sft, which trains causal language models", _text("lora.task_type=CAUSAL_LM, or leave it out"), ("CAUSAL_LM",)
    ),
    "lora.peft_type": Owner(
        "lora=, which builds a LoraConfig", _text("lora.peft_type=LORA, or leave it out"), ("LORA",)
    ),
    "lora.inference_mode": Owner("sft, which trains the adapter", _text("lora.inference_mode=false"), (False,)),
    "lora.base_model_name_or_path": Owner("model.name", _same("model.name")),
    "lora.revision": Owner("model.revision", _same("model.revision")),
    "lora.fan_in_fan_out": Owner("the model's layers, from which it is derived", _text("remove lora.fan_in_fan_out")),
}
