"""Options that contradict each other, found from the config alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sft.config.checks.ranges import out_of_range
from sft.config.checks.roles import in_role
from sft.config.errors import UserError
from sft.config.source_code.class_attributes import class_attribute

# Attention that isolates packed documents; eager and flex would need a 4-D mask, which is not built.
ISOLATING = {None, "varlen", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "eager"}


def conflicts(config: dict[str, Any]) -> Iterator[UserError]:
    """An error for each pair of settings in a resolved training config that contradict each other."""
    yield from out_of_range(config)
    for rule in _RULES:
        try:
            yield from rule(config)
        except (AttributeError, TypeError):
            continue  # a node of the wrong shape, which the type check has already reported


def _quantized_full(config: dict[str, Any]) -> Iterator[UserError]:
    if config.get("quant") and config.get("lora") is None and "lora" in config and not _model(config).get("adapter"):
        yield UserError(
            "quantized weights cannot be trained in full",
            where="quant",
            remedy="quant=none, or lora=r16 to train an adapter",
        )


def _early_stopping(config: dict[str, Any]) -> Iterator[UserError]:
    if evaluates(config):
        return
    for name in in_role(config, "stops_early"):
        yield UserError(
            "early stopping needs evaluations, and this run makes none",
            where=f"callbacks.{name}",
            remedy="trainer.eval_strategy=epoch with dataset.eval_fraction=0.1, or leave the callback out",
        )


def _best_model(config: dict[str, Any]) -> Iterator[UserError]:
    trainer = config.get("trainer") or {}
    best = in_role(config, "loads_best")
    if (trainer.get("load_best_model_at_end") or best) and not evaluates(config):
        yield UserError(
            "the best model is chosen by evaluations, and this run makes none",
            where=f"callbacks.{best[0]}" if best else "trainer.load_best_model_at_end",
            remedy="trainer.eval_strategy=epoch with dataset.eval_fraction=0.1",
        )


def _delay(config: dict[str, Any]) -> Iterator[UserError]:
    trainer = config.get("trainer") or {}
    delay = trainer.get("eval_delay")
    if delay and trainer.get("eval_strategy") == "steps" and delay != int(delay):
        yield UserError(
            f"{delay} is not a number of steps, and the run evaluates by steps",
            where="trainer.eval_delay",
            remedy=f"trainer.eval_delay={math.ceil(delay)}",
        )


def _adapter(config: dict[str, Any]) -> Iterator[UserError]:
    if _model(config).get("adapter") and "lora" in config and config["lora"] is None:
        yield UserError(
            "an adapter to continue training is given, but adapters are off",
            where="model.adapter",
            remedy="lora=r16, or leave it out",
        )


def _merge(config: dict[str, Any]) -> Iterator[UserError]:
    if config.get("save_merged_model") and "lora" in config and config["lora"] is None:
        yield UserError(
            "a full fine-tune has no adapter to merge; its model/ is already a complete model",
            where="save_merged_model",
            remedy="save_merged_model=false",
        )


def _merged_artifact(config: dict[str, Any]) -> Iterator[UserError]:
    merges = config.get("save_merged_model") is not False or "run" in config
    if (config.get("tracker") or {}).get("log_merged") and not merges:
        yield UserError(
            "the merged model is to be logged, but none is made",
            where="tracker.log_merged",
            remedy="save_merged_model=true, or tracker.log_merged=false",
        )


def _precision(config: dict[str, Any]) -> Iterator[UserError]:
    trainer = config.get("trainer") or {}
    if trainer.get("bf16") is True and trainer.get("fp16") is True:
        yield UserError("bf16 and fp16 are both on", where="trainer.fp16", remedy="leave one of them out")


def _batches(config: dict[str, Any]) -> Iterator[UserError]:
    trainer = config.get("trainer") or {}
    if trainer.get("max_tokens_per_batch") and trainer.get("auto_find_batch_size"):
        yield UserError(
            "batches limited by tokens are not made smaller automatically",
            where="trainer.auto_find_batch_size",
            remedy="a lower trainer.max_tokens_per_batch with trainer.auto_find_batch_size=false",
        )


def _hub(config: dict[str, Any]) -> Iterator[UserError]:
    hub = config.get("hub") or {}
    if (
        hub.get("push")
        and hub.get("what") == "merged"
        and config.get("save_merged_model") is False
        and "run" not in config
    ):
        yield UserError(
            "no merged model will be made that could be pushed",
            where="hub.what",
            remedy="save_merged_model=true, or hub.what=adapter",
        )


def _dataset(config: dict[str, Any]) -> Iterator[UserError]:
    dataset = config.get("dataset")
    if not isinstance(dataset, dict):
        return
    if "sources" in dataset and not dataset.get("sources") and not dataset.get("path"):
        yield UserError(
            "there is no source to train on",
            where="dataset.sources",
            remedy="'+dataset.sources.NAME={path: FILE}', or dataset=local dataset.path=FILE",
        )
    attention = _model(config).get("attn_implementation")
    if dataset.get("packing") and attention not in ISOLATING:
        yield UserError(
            f"{attention} cannot isolate packed documents",
            where="model.attn_implementation",
            remedy="model.attn_implementation=varlen, or dataset.packing=false",
        )
    if dataset.get("masking") == "response_template" and not dataset.get("response_template"):
        yield UserError(
            "masking=response_template needs the text that answers begin with",
            where="dataset.response_template",
            remedy="dataset.response_template='### Response:'",
        )


def _smoothing(config: dict[str, Any]) -> Iterator[UserError]:
    trainer = config.get("trainer") or {}
    if trainer.get("label_smoothing_factor") and not class_attribute(trainer.get("_target_"), "own_loss"):
        yield UserError(
            "the loss is plain cross entropy at trained positions, without smoothing",
            where="trainer.label_smoothing_factor",
            remedy="trainer.label_smoothing_factor=0, or trainer=trl",
        )


def _sharding(config: dict[str, Any]) -> Iterator[UserError]:
    trainer = config.get("trainer") or {}
    if trainer.get("fsdp") and trainer.get("deepspeed"):
        yield UserError("FSDP and DeepSpeed are both on", where="trainer.deepspeed", remedy="leave one of them out")
    if trainer.get("auto_find_batch_size") and (trainer.get("fsdp") or trainer.get("deepspeed")):
        yield UserError(
            "auto_find_batch_size works in one process only",
            where="trainer.auto_find_batch_size",
            remedy="a lower trainer.per_device_train_batch_size with more trainer.gradient_accumulation_steps",
        )
    if trainer.get("deepspeed") and config.get("on_nonfinite") == "skip":
        yield UserError(
            "DeepSpeed makes its step before the gradient can be checked for NaN",
            where="on_nonfinite",
            remedy="on_nonfinite=stop",
        )
    if not shards_weights(config):
        return
    if config.get("quant"):
        yield UserError(
            "quantized weights cannot be sharded",
            where="quant",
            remedy="quant=none, or trainer=default or trainer=deepspeed_zero2, where every GPU has all weights",
        )
    if (config.get("evaluation") or {}).get("generate"):
        yield UserError(
            "answers are generated by one process, and the weights are sharded over all",
            where="evaluation.generate",
            remedy="evaluation.generate=false, and afterwards python -m sft.evaluate run=DIR",
        )
    if str((config.get("lora") or {}).get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq")):
        yield UserError(
            "an adapter that is initialized from the base's weights needs all of them in one process",
            where="lora.init_lora_weights",
            remedy="lora=r16, or trainer=default",
        )


def shards_weights(config: Mapping[str, Any]) -> bool:
    """Whether a config shards the weights themselves over the processes: FSDP, or DeepSpeed's ZeRO stage 3."""
    trainer = config.get("trainer") or {}
    deepspeed = trainer.get("deepspeed")
    stage = (deepspeed.get("zero_optimization") or {}).get("stage") if isinstance(deepspeed, Mapping) else None
    return bool(trainer.get("fsdp")) or stage == 3


def evaluates(config: dict[str, Any]) -> bool:
    """Whether a run has evaluation rows and a strategy that uses them."""
    trainer, dataset = config.get("trainer") or {}, config.get("dataset") or {}
    rows = bool(dataset.get("eval_fraction", 0.1)) or bool(dataset.get("eval_sources"))  # 0.1: spec.Dataset
    asks = bool(in_role(config, "evaluates"))
    return rows and (asks or str(trainer.get("eval_strategy", "no")).lower() not in ("no", "false"))


def _model(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("model") or {}


_RULES = (
    _quantized_full,
    _early_stopping,
    _best_model,
    _delay,
    _adapter,
    _merge,
    _merged_artifact,
    _precision,
    _batches,
    _dataset,
    _hub,
    _sharding,
    _smoothing,
)
