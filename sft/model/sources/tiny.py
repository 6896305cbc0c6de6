"""Small models with random weights, one for each architecture, with small tokenizers.

They share the properties of the real models that training can get wrong: grouped-query heads, sliding windows, fused
projections, tied embeddings, beginning-of-text tokens, chat tokens that are single tokens.
"""

from __future__ import annotations

import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.model.sources.cache import cached_model

VOCABULARY = 1536  # tokens, special ones included
SEED = 20240
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    # Wide enough for the output layer to separate tokens: with the usual 0.02 and 64 dimensions an adapter could not
    # change the loss at all.
    "initializer_range": 0.12,
    "tie_word_embeddings": True,
}
# architecture -> transformers' config class, what differs from _SIZES, the tokenizer's special tokens.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {
        "config": "LlamaConfig",
        "sizes": {"rope_theta": 500000.0},
        "bos": "<|begin_of_text|>",
        "eos": "<|eot_id|>",
        "pad": "<|finetune_right_pad_id|>",
        "others": ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"],
        "adds_bos": True,
    },
    "qwen3": {
        "config": "Qwen3Config",
        "sizes": {"head_dim": 32},
        "eos": "<|im_end|>",
        "pad": "<|endoftext|>",
        "others": ["<|im_start|>"],
        "words": ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"],
    },
    "mistral": {
        "config": "MistralConfig",
        "sizes": {"sliding_window": 64, "tie_word_embeddings": False},
        "bos": "<s>",
        "eos": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "others": [
            "[INST]",
            "[/INST]",
            "[SYSTEM_PROMPT]",
            "[/SYSTEM_PROMPT]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ],
        "adds_bos": True,
    },
    "gemma3": {
        "config": "Gemma3TextConfig",
        "sizes": {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "bos": "<bos>",
        "eos": "<eos>",
        "pad": "<pad>",
        "unk": "<unk>",
        "others": ["<start_of_turn>", "<end_of_turn>"],
        "stop": "<end_of_turn>",
        "adds_bos": True,
    },
    "phi3": {
        "config": "Phi3Config",
        "sizes": {"sliding_window": 64, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 4096},
        "eos": "<|endoftext|>",
        "pad": "<|endoftext|>",
        "others": [
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|end|>",
            "<|tool|>",
            "<|/tool|>",
            "<|tool_call|>",
            "<|/tool_call|>",
            "<|tool_response|>",
        ],
        "stop": "<|end|>",
    },
    "gpt2": {
        "config": "GPT2Config",
        "sizes": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 4096},
        "dropouts": ("embd_pdrop", "resid_pdrop", "attn_pdrop"),
        "eos": "<|endoftext|>",
        "pad": "<|endoftext|>",
        "others": ["<|im_start|>", "<|im_end|>"],
    },
}


def locate_tiny(architecture: str) -> Path:
    """The cached directory of a tiny model, built if it does not exist."""
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"no tiny model is built as {architecture}",
            where="model.architecture",
            remedy=f"one of {', '.join(ARCHITECTURES)}",
        )
    # The architecture comes last: with a hash after it the name could look like another model's ("llama-2...").
    name = f"tiny-{_recipe(architecture)}-{architecture}"
    return cached_model(name, lambda directory: build_tiny(architecture, directory))


def build_tiny(architecture: str, directory: Path) -> None:
    """Write a tiny model and its tokenizer into a directory, the same bytes each time."""
    facts = ARCHITECTURES[architecture]
    tokenizer = build_tokenizer(facts)
    tokenizer.save_pretrained(directory)
    _build_model(facts, tokenizer).save_pretrained(directory)


def build_tokenizer(facts: dict[str, Any]) -> Any:
    """A byte-level BPE tokenizer trained on the package's own text, with the architecture's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(facts[k] for k in ("unk", "bos", "eos", "pad") if k in facts)) + facts["others"]
    words = facts.get("words", [])
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(words),
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_corpus().splitlines(keepends=True), trainer)
    core.add_tokens([AddedToken(word, normalized=False) for word in words])
    processor: Any = processors.ByteLevel(trim_offsets=False)
    if facts.get("adds_bos"):
        bos = facts["bos"]
        start = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, core.token_to_id(bos))]
        )
        processor = processors.Sequence([processor, start])
    core.post_processor = processor
    roles = {f"{role}_token": facts[role] for role in ("bos", "eos", "pad", "unk") if role in facts}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=_SIZES["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        **roles,
    )


def _build_model(facts: dict[str, Any], tokenizer: Any) -> Any:
    import torch
    import transformers

    ids = {
        f"{role}_token_id": tokenizer.convert_tokens_to_ids(facts[role])
        for role in ("bos", "eos", "pad")
        if role in facts
    }
    ids.setdefault("bos_token_id", None)
    options = {
        **_SIZES,
        **ids,
        "vocab_size": VOCABULARY,
        **facts["sizes"],
        **dict.fromkeys(facts.get("dropouts", ()), 0.0),
    }
    config = getattr(transformers, facts["config"])(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if "stop" in facts:  # as in the real models: the tokenizer's end of text, and the token that ends a turn
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([facts["eos"], facts["stop"]])
    return model


@functools.cache
def _recipe(architecture: str) -> str:
    """A hash of everything that affects the written files."""
    parts = [
        json.dumps([_SIZES, ARCHITECTURES[architecture], VOCABULARY, SEED]),
        _corpus(),
        metadata.version("transformers"),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def _corpus() -> str:
    return (Path(__file__).parent / "tiny_corpus.txt").read_text(encoding="utf-8")
