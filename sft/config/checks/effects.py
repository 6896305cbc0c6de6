"""Library settings that would have no effect in a run: in general, or without another setting that they depend on.

Every argument of `trainer`, `lora`, `quant` and the callbacks either changes a run or is refused here or by
`sft.config.checks.owners`; a test checks this for each signature, so that arguments a library adds are not missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sft.config.checks.needs import NEEDS, node_of
from sft.config.checks.no_effect import NO_EFFECT, PREDICTIONS, PREDICTIONS_WHY, WEIGHTS
from sft.config.checks.owners import override_text
from sft.config.errors import UserError

# Commands that train or show what a training would do; the others take a finished run's config as it is.
TRAINING = ("train", "preview", "estimate")


# Values that have no effect, of arguments that otherwise have one.
_STARTS = {"eva": "EVA", "corda": "CorDA", "lora_ga": "LoRA-GA"}


def without_effect(config: Mapping[str, Any], predicts: bool = False) -> Iterator[UserError]:
    """An error for each setting in a training config that would have no effect.

    Args:
        config: resolved, plain.
        predicts: whether a `compute_metrics` of a Python caller may be given.
    """
    for key, none in NO_EFFECT.items():
        value = _given(config, key)
        if value not in (None, {}, []) and value != none.default:
            yield UserError(f"it has no effect: {none.why}", where=key, remedy=none.remedy or f"remove {key}")
    for key, needs in NEEDS.items():
        value = _given(config, key)
        if value is not None and value != needs.default and not needs.holds(config):
            yield UserError(
                f"{override_text(value)} has no effect: it is {needs.why}",
                where=key,
                remedy=f"{needs.remedy}, or remove {key}",
            )
    if not predicts:
        yield from unread_without_predictions(config)
    yield from _values(config)


def unread_without_predictions(config: Mapping[str, Any]) -> Iterator[UserError]:
    """An error for each setting about predictions, which are made only for a `compute_metrics`."""
    for key, default in PREDICTIONS.items():
        value = _given(config, key)
        if value is not None and value != default:
            yield UserError(f"it has no effect: {PREDICTIONS_WHY}", where=key, remedy=f"remove {key}")


def _values(config: Mapping[str, Any]) -> Iterator[UserError]:
    """Errors for values without an effect, of arguments that otherwise have one."""
    start = str(node_of(config, "lora").get("init_lora_weights"))
    if start in _STARTS:
        yield UserError(
            f"{_STARTS[start]}: {WEIGHTS}",
            where="lora.init_lora_weights",
            remedy="lora=pissa, lora=olora, or lora=r16",
        )
    quant = config.get("quant")
    if isinstance(quant, Mapping) and not quant.get("load_in_4bit") and not quant.get("load_in_8bit"):
        yield UserError(
            "neither load_in_4bit nor load_in_8bit is set", where="quant", remedy="quant=nf4, quant=int8, or quant=none"
        )
    if "tpu_metrics_debug" in str(node_of(config, "trainer").get("debug")):
        yield UserError(
            "training on TPUs is not supported", where="trainer.debug", remedy="trainer.debug=underflow_overflow"
        )
    shared = node_of(config, "trainer").get("accelerator_config")
    for name in ("split_batches", "dispatch_batches", "even_batches", "use_configured_state"):
        if isinstance(shared, Mapping) and shared.get(name) not in (None, name == "even_batches"):
            yield UserError(
                "it has no effect: sft distributes rows over the processes itself, each exactly once",
                where=f"trainer.accelerator_config.{name}",
                remedy=f"remove trainer.accelerator_config.{name}",
            )


def _given(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
