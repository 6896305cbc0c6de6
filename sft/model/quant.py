"""Quantized base weights through bitsandbytes."""

from __future__ import annotations

from typing import Any, Literal

from sft.model.dtype import resolve_dtype


def bits_and_bytes(
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    llm_int8_threshold: float = 6.0,
    llm_int8_skip_modules: list[str] | None = None,
    llm_int8_enable_fp32_cpu_offload: bool = False,
    llm_int8_has_fp16_weight: bool = False,
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "bf16", "float16", "fp16", "float32", "fp32"] | None = None,
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4",
    bnb_4bit_use_double_quant: bool = False,
    bnb_4bit_quant_storage: str | None = None,
) -> Any:
    """A transformers.BitsAndBytesConfig from its own arguments; precisions may be short names or auto.

    Raises:
        ValueError: the arguments contradict each other.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=load_in_8bit,
        load_in_4bit=load_in_4bit,
        llm_int8_threshold=float(llm_int8_threshold),
        llm_int8_skip_modules=llm_int8_skip_modules,
        llm_int8_enable_fp32_cpu_offload=llm_int8_enable_fp32_cpu_offload,
        llm_int8_has_fp16_weight=llm_int8_has_fp16_weight,
        bnb_4bit_compute_dtype=resolve_dtype(bnb_4bit_compute_dtype or "auto"),
        bnb_4bit_quant_type=bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=bnb_4bit_use_double_quant,
        bnb_4bit_quant_storage=bnb_4bit_quant_storage,
    )


def quantized_modules(model: Any) -> list[Any]:
    """The model's linear layers with quantized weights."""
    return [module for module in model.modules() if type(module).__name__ in ("Linear4bit", "Linear8bitLt")]


def prepare_quantized(model: Any) -> None:
    """Prepare a newly quantized model for an adapter: freeze the weights, and keep them unchanged in use.

    peft's prepare_model_for_kbit_training also converts norms, embeddings and output layer to fp32. This is omitted:
    norms compute in fp32 anyway, and the adapter would be trained on a model that differs from the one it is loaded
    on later.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in quantized_modules(model):
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # otherwise the first forward pass in eval mode repacks and rounds the weights permanently
            module.support_avx512bf16_for_cpu = False
