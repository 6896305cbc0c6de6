"""Tokens that a tokenizer lacks: the chat template's, a pad token, the user's own; and the embedding rows they add."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sft.config.errors import UserError

_PAD_CANDIDATES = (
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<unk>",
)
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def added_rows(tokenizer: Any) -> dict[int, int | None]:
    """Ids added to a tokenizer after loading -> the id whose embedding initializes them (None: the mean)."""
    return tokenizer.__dict__.setdefault("_sft_added_rows", {})


def is_single(tokenizer: Any, token: str) -> bool:
    """Whether a text is encoded as one token other than the unknown token."""
    ids = tokenizer(token, add_special_tokens=False).input_ids
    return (
        len(ids) == 1
        and ids == [tokenizer.convert_tokens_to_ids(token)]
        and token
        in (
            tokenizer.unk_token,
            *tokenizer.convert_ids_to_tokens(ids),
        )
    )


def add_control_tokens(tokenizer: Any, control_tokens: Iterable[str], stop_tokens: Iterable[str] = ()) -> list[str]:
    """Add the tokens of a chat template that the tokenizer does not have as single tokens.

    A stop token that had to be added becomes the end-of-sequence token, and is initialized with the old one's
    embedding: the model then knows from the first step that a text ends there.

    Returns:
        The added tokens; empty for a tokenizer that has its chat tokens.
    """
    stops = list(stop_tokens)
    missing = [t for t in dict.fromkeys([*control_tokens, *stops[:1]]) if not is_single(tokenizer, t)]
    if not missing:
        return []
    old_eos = tokenizer.eos_token_id
    _add(tokenizer, missing, {token: old_eos for token in stops})
    if stops and stops[0] in missing:
        tokenizer.eos_token = stops[0]
    return missing


def set_special_tokens(tokenizer: Any, tokens: dict[str, Any]) -> None:
    """Set tokens by role, adding those that are new.

    Args:
        tokenizer: changed in place.
        tokens: `{"pad_token": "<pad>", "additional_special_tokens": ["<note>"]}`.

    Raises:
        UserError: no such role.
    """
    for role, value in (tokens or {}).items():
        texts = list(value) if isinstance(value, list | tuple) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"a token is given as its text, not as {value!r}",
                where=f"model.tokenizer.special_tokens.{role}",
                remedy="ids are checked with '" + _expected(tokens) + "'",
            )
        if role not in (*_ROLES, "additional_special_tokens", "extra_special_tokens"):
            raise UserError(
                f"{role} is not a role of a token",
                where="model.tokenizer.special_tokens",
                remedy=f"one of {', '.join(_ROLES)}, additional_special_tokens",
            )
        _add(tokenizer, [text for text in texts if not is_single(tokenizer, text)], {})
        if role in _ROLES:
            setattr(tokenizer, role, texts[0])


def _expected(tokens: dict[str, Any]) -> str:
    """The override that checks ids, with the ids that were given as tokens."""
    ids = {role.removesuffix("_token"): value for role, value in tokens.items() if isinstance(value, int)}
    listed = ", ".join(f"{role}: {value}" for role, value in ids.items()) or "pad: 0"
    return f"model.tokenizer.expected_ids={{{listed}}}"


def set_pad_token(tokenizer: Any) -> None:
    """Give a tokenizer without a pad token an existing token; batches are masked by position, so any will do."""
    if tokenizer.pad_token is not None:
        return
    vocabulary = tokenizer.get_vocab()
    found = next((t for t in _PAD_CANDIDATES if t in vocabulary and t != tokenizer.eos_token), tokenizer.eos_token)
    if found is None:
        raise UserError(
            "the tokenizer has neither a pad nor an end token",
            where="model.tokenizer",
            remedy='\'model.tokenizer.special_tokens={pad_token: "<pad>", eos_token: "</s>"}\'',
        )
    tokenizer.pad_token = found


def needed_rows(tokenizer: Any) -> int:
    """Embedding rows that the tokenizer's ids need."""
    return max(tokenizer.get_vocab().values()) + 1


def _add(tokenizer: Any, texts: list[str], starts: dict[str, int | None]) -> None:
    if not texts:
        return
    known = set(tokenizer.get_vocab())
    tokenizer.add_tokens(texts, special_tokens=True)
    rows = added_rows(tokenizer)
    for text in texts:
        if text not in known:
            rows[tokenizer.convert_tokens_to_ids(text)] = starts.get(text)
