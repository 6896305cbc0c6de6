"""Library settings that are read only where another setting is on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sft.config.checks.roles import in_role


@dataclass(frozen=True)
class Needs:
    """An argument that is read only where another setting is on.

    Attributes:
        holds: config -> whether it is read.
        why: when it is read.
        remedy: an override that makes it read.
        default: its default value.
    """

    holds: Callable[[Mapping[str, Any]], bool]
    why: str
    remedy: str
    default: Any = None


def _trainer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("trainer")
    return found if isinstance(found, Mapping) else {}


def node_of(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _is(key: str, *values: Any) -> Callable[[Mapping[str, Any]], bool]:
    """Whether trainer.KEY is one of the values."""
    return lambda config: _trainer(config).get(key) in values


def _on(key: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda config: bool(_trainer(config).get(key))


def _picks_best(config: Mapping[str, Any]) -> bool:
    """Whether something watches a metric of the evaluations."""
    trainer = _trainer(config)
    return (
        bool(trainer.get("load_best_model_at_end"))
        or trainer.get("save_strategy") == "best"
        or trainer.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
        or bool(in_role(config, "stops_early", "loads_best"))
    )


_WORKERS = Needs(
    _on("dataloader_num_workers"), "read by worker processes, and there are none", "trainer.dataloader_num_workers=2"
)
_BEST = Needs(_picks_best, "read where the best model is tracked", "callbacks=[default,best_model]")
_ADAM = Needs(
    lambda config: any(name in str(_trainer(config).get("optim", "adamw")) for name in ("adam", "lion")),
    "read by the Adam family of optimizers",
    "trainer.optim=adamw_torch_fused",
)
_IN_4BIT = Needs(lambda config: bool(node_of(config, "quant").get("load_in_4bit")), "read with 4 bits", "quant=nf4")
_IN_8BIT = Needs(lambda config: bool(node_of(config, "quant").get("load_in_8bit")), "read with 8 bits", "quant=int8")
_ROWS = Needs(
    lambda config: not _trainer(config).get("max_tokens_per_batch"),
    "read for batches of a fixed number of rows, and trainer.max_tokens_per_batch limits batches by tokens",
    "trainer.max_tokens_per_batch=null",
)
_READS_ARGS = (
    "sgd", "adagrad", "rmsprop", "anyprecision", "rmsprop_bnb", "ademamix", "galore", "apollo", "grok", "4bit", "torch_8bit",
    "schedule_free", "stable",
)  # fmt: skip

NEEDS: dict[str, Needs] = {
    "trainer.eval_steps": Needs(
        lambda config: _is("eval_strategy", "steps")(config) or bool(in_role(config, "evaluates")),
        "read where trainer.eval_strategy is steps",
        "trainer.eval_strategy=steps",
    ),
    "trainer.save_steps": Needs(
        lambda config: _is("save_strategy", "steps", None)(config) or bool(in_role(config, "saves")),
        "read where trainer.save_strategy is steps",
        "trainer.save_strategy=steps",
    ),
    "trainer.metric_for_best_model": _BEST,
    "trainer.greater_is_better": _BEST,
    "trainer.liger_kernel_config": Needs(
        _on("use_liger_kernel"), "read by Liger's kernels, and they are off", "trainer.use_liger_kernel=true"
    ),
    "trainer.gradient_checkpointing_kwargs": Needs(
        lambda config: _trainer(config).get("gradient_checkpointing", "auto") is not False,
        "read where gradient checkpointing is on",
        "trainer.gradient_checkpointing=true",
    ),
    "trainer.fsdp_config": Needs(_on("fsdp"), "read by FSDP", "trainer=fsdp"),
    "trainer.optim_target_modules": Needs(
        lambda config: str(_trainer(config).get("optim")).startswith(("galore", "apollo")),
        "read by GaLore and APOLLO",
        "trainer.optim=galore_adamw",
    ),
    "trainer.optim_args": Needs(
        lambda config: any(name in str(_trainer(config).get("optim")) for name in _READS_ARGS),
        "read by optimizers with arguments of their own, and the betas of Adam are trainer.adam_beta1 and adam_beta2",
        "trainer.optim=sgd",
    ),
    "trainer.adam_beta1": _ADAM,
    "trainer.adam_beta2": _ADAM,
    "trainer.adam_epsilon": _ADAM,
    "trainer.dataloader_prefetch_factor": _WORKERS,
    "trainer.dataloader_persistent_workers": Needs(_WORKERS.holds, _WORKERS.why, _WORKERS.remedy, False),
    "trainer.dataloader_multiprocessing_context": _WORKERS,
    "trainer.dataloader_in_order": Needs(_WORKERS.holds, _WORKERS.why, _WORKERS.remedy, True),
    "trainer.dataloader_drop_last": Needs(_ROWS.holds, _ROWS.why, _ROWS.remedy, False),
    "trainer.data_seed": Needs(
        lambda config: not _ROWS.holds(config) or _is("train_sampling_strategy", None, "random")(config),
        "read where rows are drawn at random",
        "trainer.train_sampling_strategy=random",
    ),
    "trainer.train_sampling_strategy": Needs(_ROWS.holds, _ROWS.why, _ROWS.remedy, "random"),
    "lora.layers_pattern": Needs(
        lambda config: node_of(config, "lora").get("layers_to_transform") is not None,
        "read with layers_to_transform, which says which of the layers",
        "lora.layers_to_transform=[0,1]",
    ),
    "quant.bnb_4bit_compute_dtype": _IN_4BIT,
    "quant.bnb_4bit_quant_type": _IN_4BIT,
    "quant.bnb_4bit_use_double_quant": Needs(_IN_4BIT.holds, _IN_4BIT.why, _IN_4BIT.remedy, False),
    "quant.bnb_4bit_quant_storage": _IN_4BIT,
    "quant.llm_int8_threshold": _IN_8BIT,
    "quant.llm_int8_has_fp16_weight": Needs(_IN_8BIT.holds, _IN_8BIT.why, _IN_8BIT.remedy, False),
    "quant.llm_int8_enable_fp32_cpu_offload": Needs(
        lambda config: node_of(config, "model").get("device_map") is not None,
        "read with a device map that puts modules on the CPU",
        "model.device_map=auto",
        False,
    ),
    "callbacks.generation_samples.count": Needs(
        lambda config: node_of(node_of(config, "callbacks"), "generation_samples").get("prompts") is None,
        "read where the prompts are examples of the data, and callbacks.generation_samples.prompts names its own",
        "callbacks.generation_samples.prompts=null",
        3,
    ),
}
