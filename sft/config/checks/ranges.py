"""Numbers out of range, found from the config alone; the libraries would report them after minutes or never."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sft.config.errors import UserError

_Rule = tuple[str, Callable[[Any], bool]]
_ABOVE_0: _Rule = ("a number above 0", lambda value: 0 < value < math.inf)
_WHOLE_OR_SHARE = "a whole number of steps, or a share of all steps below 1"
_EVERY: _Rule = (f"{_WHOLE_OR_SHARE}, as 10", lambda value: 0 < value < 1 or _whole(value, 1))
_NOT_NEGATIVE: _Rule = ("a number of 0 or more", lambda value: 0 <= value < math.inf)
_COUNT: _Rule = ("a whole number of 1 or more", lambda value: 1 <= value < 2**31)
_COUNT_OR_NONE: _Rule = ("a whole number of 0 or more", lambda value: 0 <= value < 2**31)
_STEPS: _Rule = ("a whole number of 1 or more, or -1", lambda value: value == -1 or 1 <= value < 2**31)
_DROPOUT: _Rule = ("a number of 0 or more and below 1", lambda value: 0 <= value < 1)
_SEED: _Rule = ("a whole number between 0 and 4294967295", lambda value: 0 <= value < 2**32)

RANGES: dict[str, _Rule] = {
    "seed": _SEED,
    "lora.r": _COUNT,
    "lora.lora_alpha": ("a number above 0, as 16", _ABOVE_0[1]),
    "lora.lora_dropout": _DROPOUT,
    "trainer.learning_rate": _NOT_NEGATIVE,
    "trainer.weight_decay": _NOT_NEGATIVE,
    "trainer.max_grad_norm": _NOT_NEGATIVE,
    "trainer.num_train_epochs": ("a number above 0, as 3", _ABOVE_0[1]),
    "trainer.max_steps": _STEPS,
    "trainer.warmup_steps": (f"{_WHOLE_OR_SHARE}, as 10", lambda value: 0 <= value < 1 or _whole(value, 1)),
    "trainer.adam_beta1": _DROPOUT,
    "trainer.adam_beta2": _DROPOUT,
    "trainer.adam_epsilon": _NOT_NEGATIVE,
    "trainer.label_smoothing_factor": _DROPOUT,
    "trainer.per_device_train_batch_size": _COUNT,
    "trainer.per_device_eval_batch_size": _COUNT,
    "trainer.gradient_accumulation_steps": _COUNT,
    "trainer.logging_steps": _EVERY,
    "trainer.save_steps": _EVERY,
    "trainer.eval_steps": _EVERY,
    "trainer.eval_delay": _NOT_NEGATIVE,
    "trainer.save_total_limit": _COUNT,
    "trainer.max_tokens_per_batch": _COUNT,
    "trainer.torch_empty_cache_steps": _COUNT,
    "trainer.neftune_noise_alpha": _NOT_NEGATIVE,
    "trainer.ddp_timeout": _COUNT,
    "trainer.dataloader_prefetch_factor": _COUNT,
    "trainer.dataloader_num_workers": _COUNT_OR_NONE,
    "trainer.cpu_parts": ("a whole number between 1 and 256, as 2", lambda value: 1 <= value <= 256),
}


def _whole(value: float, least: int) -> bool:
    return least <= value < 2**31 and value == int(value)


def out_of_range(config: Mapping[str, Any]) -> Iterator[UserError]:
    """An error for each number of a config that is out of range; values of other types are left to the type check."""
    for key, (wanted, fits) in RANGES.items():
        node: Any = config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, int | float) and not isinstance(node, bool) and not fits(node):
            yield UserError(f"{node!r} is not {wanted}", where=key, remedy=f"{key}={_example(wanted)}")


def _example(wanted: str) -> str:
    if ", as " in wanted:
        return wanted.rpartition(" ")[2]
    if "between 0 and 1" in wanted or "below 1" in wanted:
        return "0.1"
    return (
        "1"
        if "1 or more" in wanted or "whole number of 0" in wanted
        else "42"
        if "4294967295" in wanted
        else "1e-4"
        if "number" in wanted
        else "1"
    )
