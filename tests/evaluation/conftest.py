"""Tiny models with random weights, and a tokenizer of single bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SPECIALS = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token a byte; <|im_end|> ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = CHATML
    return made


@pytest.fixture(scope="session")
def build_model() -> Callable[..., Any]:
    """A function that builds a model of an architecture: the same weights each time."""

    def build(architecture: str = "llama", **changes: Any) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = {
            "vocab_size": 260,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 3,
        }
        if architecture == "gpt2":
            drop = ("intermediate_size", "num_key_value_heads", "head_dim")
            sizes = {key: value for key, value in sizes.items() if key not in drop}
        torch.manual_seed(7)
        config = AutoConfig.for_model(architecture, **{**sizes, "initializer_range": 0.3, **changes})
        return AutoModelForCausalLM.from_config(config).float().eval()

    return build


class Bound:
    """Stands for a bound chat template."""

    def __init__(self) -> None:
        self.stop_tokens = ["<|im_end|>"]

    def render(self, conversation: dict, add_generation_prompt: bool = False) -> str:
        text = ""
        for message in conversation["messages"]:
            calls = "".join(f"<call>{call['function']['name']}</call>" for call in message.get("tool_calls", []))
            text += f"<|im_start|>{message['role']}\n{message.get('content') or ''}{calls}<|im_end|>\n"
        return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


@pytest.fixture
def bound() -> Bound:
    """ChatML, as a bound chat template renders it."""
    return Bound()
