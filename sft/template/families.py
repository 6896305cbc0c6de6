"""Facts about each model family, all in this one place.

A family provides defaults for what a model's own files do not say: its chat template, the tokens that end a turn, the
text around an answer. A model's YAML may override every field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Facts about one model family.

    Args:
        name: the family's name in configs and reports.
        model_types: values of `config.model_type` that belong to it.
        template: name of its chat template in `sft/template/files/`.
        patterns: regular expressions for model names, which distinguish families of one model_type.
        padding_side: "right" for training.
        stop_tokens: tokens that end an assistant turn, the usual one first.
        tool_stop: the token that ends a turn which calls a tool, where it is another one.
        response_marker: the text right before an answer, as the template writes it.
        instruction_marker: the text right before a user's message.
        control_tokens: tokens that the template writes and the tokenizer must have as single tokens.
        system: the system message that its models were trained with for conversations that have none.
        target_modules: the modules that LoRA adapts by default.
    """

    name: str
    model_types: tuple[str, ...]
    template: str
    patterns: tuple[str, ...] = ()
    padding_side: str = "right"
    stop_tokens: tuple[str, ...] = ()
    tool_stop: str | None = None
    response_marker: str | None = None
    instruction_marker: str | None = None
    control_tokens: tuple[str, ...] = ()
    system: str | None = None
    target_modules: str | list[str] = "all-linear"


_IM = ("<|im_start|>", "<|im_end|>")
_IM_ANSWER, _IM_USER = "<|im_start|>assistant\n", "<|im_start|>user\n"
_HEADER = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_HEADER_ANSWER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_HEADER_USER = "<|start_header_id|>user<|end_header_id|>\n\n"


def _chatml(name: str, model_types: tuple[str, ...], template: str = "chatml", **facts: object) -> Family:
    """A family that uses ChatML turns."""
    known = dict(
        stop_tokens=("<|im_end|>",), response_marker=_IM_ANSWER, instruction_marker=_IM_USER, control_tokens=_IM
    )
    return Family(name, model_types, template, **{**known, **facts})  # type: ignore[arg-type]


def _llama3(name: str, template: str, patterns: tuple[str, ...]) -> Family:
    return Family(
        name,
        ("llama",),
        template,
        patterns,
        stop_tokens=("<|eot_id|>", "<|eom_id|>"),
        response_marker=_HEADER_ANSWER,
        instruction_marker=_HEADER_USER,
        control_tokens=_HEADER,
    )


GENERIC = _chatml("chatml", ())

# Among families of one model_type the first whose pattern matches the model's name wins, and the last one if none
# matches: the default of a model_type comes last.
FAMILIES: tuple[Family, ...] = (
    Family(
        "llama2",
        ("llama",),
        "llama2",
        (r"llama-?2", r"codellama", r"vicuna"),
        stop_tokens=("</s>",),
        response_marker="[/INST]",
        instruction_marker="[INST]",
        control_tokens=("<s>", "</s>"),
    ),
    _chatml(
        "smollm2",
        ("llama",),
        patterns=(r"smollm-?[12]?(?![0-9])",),
        system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    Family(
        "zephyr",
        ("llama", "mistral", "stablelm", "stablelm_epoch"),
        "zephyr",
        (r"zephyr", r"tinyllama", r"stablelm"),
        stop_tokens=("</s>", "<|endoftext|>"),
        response_marker="<|assistant|>\n",
        instruction_marker="<|user|>\n",
        control_tokens=("</s>",),
    ),
    Family(
        "deepseek",
        ("deepseek_v3", "deepseek_v2", "deepseek", "llama", "qwen2"),
        "deepseek",
        (r"deepseek",),
        stop_tokens=("<｜end▁of▁sentence｜>",),
        response_marker="<｜Assistant｜>",
        instruction_marker="<｜User｜>",
        control_tokens=("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    ),
    _llama3("llama3.1", "llama3_1", (r"llama-?3\.[1-9]", r"llama-?3[1-9]")),
    _llama3("llama3", "llama3", (r"llama-?3",)),
    _chatml("qwen2", ("qwen2", "qwen2_moe", "qwen"), "qwen2"),
    _chatml("qwen3", ("qwen3", "qwen3_moe", "qwen3_next"), "qwen3"),
    _chatml(
        "qwen3.5",
        ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_6", "qwen3_6_text"),
        "qwen3",
    ),
    Family(
        "mistral",
        ("mistral", "mixtral", "ministral", "ministral3", "mistral3"),
        "mistral",
        stop_tokens=("</s>",),
        response_marker="[/INST]",
        instruction_marker="[INST]",
        control_tokens=("<s>", "</s>", "[INST]", "[/INST]"),
    ),
    Family(
        "gemma",
        ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"),
        "gemma",
        stop_tokens=("<end_of_turn>",),
        response_marker="<start_of_turn>model\n",
        instruction_marker="<start_of_turn>user\n",
        control_tokens=("<bos>", "<start_of_turn>", "<end_of_turn>"),
    ),
    Family(
        "gemma4",
        ("gemma4", "gemma4_text", "diffusion_gemma"),
        "gemma4",
        stop_tokens=("<turn|>",),
        tool_stop="<|tool_response>",
        response_marker="<|turn>model\n",
        instruction_marker="<|turn>user\n",
        control_tokens=("<bos>", "<|turn>", "<turn|>"),
    ),
    Family(
        "phi4",
        ("phi3",),
        "phi4",
        (r"phi-?4(?!.*mini)",),
        stop_tokens=("<|im_end|>",),
        response_marker="<|im_start|>assistant<|im_sep|>",
        instruction_marker="<|im_start|>user<|im_sep|>",
        control_tokens=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    Family(
        "phi4-mini",
        ("phi3", "phi4_multimodal"),
        "phi4_mini",
        (r"phi-?4",),
        stop_tokens=("<|end|>", "<|endoftext|>"),
        response_marker="<|assistant|>",
        instruction_marker="<|user|>",
        control_tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>"),
    ),
    Family(
        "phi3",
        ("phi3", "phimoe"),
        "phi3",
        stop_tokens=("<|end|>", "<|endoftext|>"),
        response_marker="<|assistant|>\n",
        instruction_marker="<|user|>\n",
        control_tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    _chatml("smollm3", ("smollm3",), "smollm3"),
    _chatml("gpt2", ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "phi")),
    _chatml("lfm2", ("lfm2", "lfm2_moe")),
    Family(
        "granite",
        ("granite", "granitemoe", "granitemoehybrid", "granitemoeshared"),
        "granite",
        stop_tokens=("<|end_of_text|>",),
        response_marker="<|start_of_role|>assistant<|end_of_role|>",
        instruction_marker="<|start_of_role|>user<|end_of_role|>",
        control_tokens=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    Family(
        "glm",
        ("glm4", "glm4_moe", "glm", "glm4_moe_lite"),
        "glm4",
        stop_tokens=("<|user|>", "<|endoftext|>"),
        tool_stop="<|observation|>",
        response_marker="<|assistant|>",
        instruction_marker="<|user|>",
        control_tokens=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    ),
    Family(
        "gpt-oss",
        ("gpt_oss",),
        "gptoss",
        stop_tokens=("<|return|>", "<|call|>", "<|end|>"),
        tool_stop="<|call|>",
        response_marker="<|start|>assistant",
        instruction_marker="<|start|>user<|message|>",
        control_tokens=("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
    ),
    _chatml("nemotron", ("nemotron_h", "nemotron_h_moe"), "nemotron"),
    Family(
        "cohere",
        ("cohere", "cohere2"),
        "cohere",
        stop_tokens=("<|END_OF_TURN_TOKEN|>",),
        response_marker="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        instruction_marker="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
        control_tokens=(
            "<BOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
        ),
    ),
    Family(
        "muse",
        ("muse_glimmer", "muse_glimmer_text"),
        "chatml",
        stop_tokens=("<|eot|>", "<|eom|>"),
        response_marker="<|start|>assistant",
        instruction_marker="<|start|>user<|message|>",
    ),
    GENERIC,
)


def detect(model_type: str | None, name: str | None = None) -> Family:
    """The family of a model: by its config's `model_type`, then by its name, and ChatML's if neither is known.

    Args:
        model_type: `config.model_type`, or None where no config can be read.
        name: a hub id or a directory; its last two parts are looked at.
    """
    label = "/".join((name or "").rstrip("/").split("/")[-2:]).lower()
    members = [family for family in FAMILIES if model_type is not None and model_type.lower() in family.model_types]
    for family in members:
        if any(re.search(pattern, label) for pattern in family.patterns):
            return family
    if members:  # the default of a model_type: the last one that is not bound to a name, else the last one
        unbound = [family for family in members if not family.patterns]
        return (unbound or members)[-1]
    for family in FAMILIES:
        words = family.patterns or (rf"(?<![a-z]){re.escape(family.name)}",)
        if family is not GENERIC and label and any(re.search(word, label) for word in words):
            return family
    return GENERIC


def by_template(name: str) -> Family | None:
    """The family whose template has this name, for its stop tokens and markers; None for a template of no family."""
    own = [family for family in (GENERIC, *FAMILIES) if family.template == name]
    return own[0] if own else None
