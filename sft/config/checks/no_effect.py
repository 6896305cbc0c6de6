"""Library settings that nothing here reads, each with what replaces it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NoEffect:
    """An argument of a library class that nothing here reads.

    Attributes:
        why: what replaces it.
        default: its default value, which is accepted, as null is.
        remedy: the override to write instead; None: to leave it out.
    """

    why: str
    default: Any = None
    remedy: str | None = None


PREDICTIONS_WHY = "it is about predictions, which are made only for the `compute_metrics` of a Python caller"
_HUB = "a finished run is pushed once, by sft"
_DATA = "rows come tokenized and labelled from `dataset`"
WEIGHTS = "its weights would have to be fitted to data before training, which is not supported"
_LOSS = "its regularization term of the loss is not computed"

NO_EFFECT: dict[str, NoEffect] = {
    "trainer.bf16_full_eval": NoEffect(
        "evaluation computes in the precision that training does", False, "trainer.bf16=true"
    ),
    "trainer.fp16_full_eval": NoEffect(
        "evaluation computes in the precision that training does", False, "trainer.fp16=true"
    ),
    "trainer.include_num_input_tokens_seen": NoEffect(
        "every run counts its tokens: total_tokens in metrics.json", "no"
    ),
    "trainer.trackio_bucket_id": NoEffect(
        "Trackio is reached by `tracker`", None, "tracker=trackio tracker.space_id=USER/NAME"
    ),
    "trainer.trackio_static_space_id": NoEffect("Trackio is reached by `tracker`", None, "tracker=trackio"),
    "trainer.prediction_loss_only": NoEffect("without a `compute_metrics` only the loss is measured", False),
    "trainer.enable_jit_checkpoint": NoEffect("a checkpoint is written on SIGTERM and SIGINT by every run", False),
    "trainer.hub_strategy": NoEffect(_HUB, "every_save", "hub.push=ORG/NAME"),
    "trainer.hub_always_push": NoEffect(_HUB, False, "hub.push=ORG/NAME"),
    "trainer.hub_revision": NoEffect(_HUB, None, "hub.push=ORG/NAME"),
    "trainer.restore_callback_states_from_checkpoint": NoEffect(
        "a resumed run restores the state of its callbacks in any case", False
    ),
    "trainer.parallelism_config": NoEffect(
        "it is an accelerate object, which a config cannot describe", None, "trainer=fsdp"
    ),
    "trainer.remove_unused_columns": NoEffect("rows have only the model's inputs", False),
    "trainer.label_names": NoEffect("labels are made by `dataset` and read by name"),
    "trainer.length_column_name": NoEffect("the lengths of rows are known", "length"),
    "trainer.do_train": NoEffect("sft.train trains", False),
    "trainer.do_eval": NoEffect("evaluation is switched by its strategy", False, "trainer.eval_strategy=epoch"),
    "trainer.do_predict": NoEffect("sft.train makes no predictions", False, "python -m sft.evaluate run=DIR"),
    "trainer.model_init_kwargs": NoEffect(
        "the model is loaded by `model`", None, "the keys of model: --cfg job --package model"
    ),
    "trainer.trust_remote_code": NoEffect("the model is loaded by `model`", False, "model.trust_remote_code=true"),
    "trainer.chat_template_path": NoEffect(_DATA, None, "template=file template.path=FILE"),
    "trainer.dataset_text_field": NoEffect(_DATA, "text", "columns of a source: dataset.sources.NAME.columns"),
    "trainer.dataset_num_proc": NoEffect(_DATA),
    "trainer.eos_token": NoEffect(_DATA, None, "model.tokenizer.special_tokens.eos_token=TOKEN"),
    "trainer.pad_token": NoEffect(_DATA, None, "model.tokenizer.special_tokens.pad_token=TOKEN"),
    "trainer.truncation_mode": NoEffect(_DATA, "keep_start", "dataset.on_long=truncate"),
    "trainer.shuffle_dataset": NoEffect(_DATA, False, "dataset.shuffle=true"),
    "trainer.packing_strategy": NoEffect(_DATA, "bfd", "dataset.packing=true"),
    "trainer.pad_to_multiple_of": NoEffect("batches are padded to their longest row"),
    "lora.auto_mapping": NoEffect("peft writes it itself"),
    "lora.peft_version": NoEffect("peft writes it itself"),
    "lora.megatron_config": NoEffect("Megatron's layers are not used"),
    "lora.megatron_core": NoEffect("Megatron's layers are not used", "megatron.core"),
    "lora.arrow_config": NoEffect("Arrow routes among adapters that were trained before"),
    "lora.use_qalora": NoEffect("QALoRA is for bases that GPTQ quantized", False, "quant=nf4"),
    "lora.qalora_group_size": NoEffect("QALoRA is for bases that GPTQ quantized", 16, "quant=nf4"),
    "lora.loftq_config": NoEffect(
        "LoftQ fits the adapter in one step to the base as `quant` quantized it",
        {"loftq_bits": 4, "loftq_iter": 1},
        "quant=nf4, or quant=int8",
    ),
    "lora.eva_config": NoEffect(f"EVA: {WEIGHTS}", None, "lora=pissa"),
    "lora.corda_config": NoEffect(f"CorDA: {WEIGHTS}", None, "lora=pissa"),
    "lora.lora_ga_config": NoEffect(f"LoRA-GA: {WEIGHTS}", None, "lora=pissa"),
    "lora.kasa_config": NoEffect(f"KaSA: {_LOSS}", None, "lora=dora"),
    "lora.monteclora_config": NoEffect(f"MonteCLoRA: {_LOSS}", None, "lora.lora_dropout=0.05"),
    "lora.alora_invocation_tokens": NoEffect(
        "activated LoRA looks for its tokens once per row, and a row here may hold several conversations"
    ),
    "lora.layer_replication": NoEffect(
        "layers that share their weights can be trained, but can neither be merged nor loaded by adapter servers"
    ),
}


# Arguments of transformers that mean something only with a Python caller's `compute_metrics`.
PREDICTIONS: dict[str, Any] = {
    "trainer.eval_do_concat_batches": True,
    "trainer.eval_use_gather_object": False,
    "trainer.eval_accumulation_steps": None,
    "trainer.include_for_metrics": [],
    "trainer.batch_eval_metrics": False,
}
