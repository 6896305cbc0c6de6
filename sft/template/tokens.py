"""Checks of a tokenizer: its special tokens, its chat tokens, its vocabulary."""

from __future__ import annotations

from typing import Any

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def special_variables(tokenizer: Any) -> dict[str, str]:
    """Special tokens by name (`bos_token`, `eos_token`, …), as chat templates see them."""
    found = getattr(tokenizer, "special_tokens_map", None)
    if isinstance(found, dict):
        return {name: str(token) for name, token in found.items() if isinstance(token, str) or hasattr(token, "content")}
    return {name: str(token) for name in _NAMED if (token := getattr(tokenizer, name, None)) is not None}


def control_tokens(tokenizer: Any) -> list[str]:
    """The text of every added token: those that the tokenizer never splits."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer begins a text with its BOS token by itself."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return False
    return tokenizer("x")["input_ids"][:1] == [bos]
