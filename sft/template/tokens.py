"""Checks of a tokenizer: its special tokens, its chat tokens, its vocabulary, its SentencePiece model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sft.config.errors import UserError

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_WHERE = "model.tokenizer"
# field numbers in SentencePiece's ModelProto and TrainerSpec
_TRAINER_SPEC, _ID_FIELDS = 2, {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
_ID_DEFAULTS = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}


def special_variables(tokenizer: Any) -> dict[str, str]:
    """Special tokens by name (`bos_token`, `eos_token`, …), as chat templates see them."""
    found = getattr(tokenizer, "special_tokens_map", None)
    if not isinstance(found, Mapping):
        found = {name: getattr(tokenizer, name, None) for name in _NAMED}
    return {name: str(token) for name, token in found.items() if isinstance(token, str) or hasattr(token, "content")}


def control_tokens(tokenizer: Any) -> list[str]:
    """The text of every added token; the tokenizer never splits these."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def is_single(tokenizer: Any, token: str) -> bool:
    """Whether a text is one token, and not the unknown token."""
    ids = tokenizer.encode(token, add_special_tokens=False)
    return len(ids) == 1 and ids[0] == tokenizer.convert_tokens_to_ids(token)


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts its BOS token before a text."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]


def check_tokenizer(
    tokenizer: Any,
    *,
    stop_tokens: Iterable[str] = (),
    chat_tokens: Iterable[str] = (),
    embeddings: int | None = None,
    expected_ids: Mapping[str, int] | None = None,
) -> list[str]:
    """Check that tokenizer, model and chat template fit together.

    Args:
        tokenizer: after the template's missing tokens were added.
        stop_tokens: tokens that end a turn, the usual one first (`bound.stop_tokens`).
        chat_tokens: other tokens that the template writes (the family's `control_tokens`).
        embeddings: rows of the model's input embedding; None leaves the comparison out.
        expected_ids: ids required by the config, by role: `{"pad": 0, "unk": 1, "bos": 2, "eos": 3}`.

    Returns:
        Warnings, each a sentence.

    Raises:
        UserError: no end-of-sentence token, a stop token that is split, ids beyond the embedding, or unexpected ids.
    """
    if tokenizer.eos_token_id is None:
        remedy = "model.tokenizer.special_tokens={eos_token: '</s>'}"
        raise UserError("the tokenizer has no end-of-sentence token", where=_WHERE, remedy=remedy)
    largest = max(tokenizer.get_vocab().values())
    if embeddings is not None and largest >= embeddings:
        raise UserError(
            f"the tokenizer has ids up to {largest}, the model's embedding has {embeddings} rows",
            where=_WHERE,
            remedy="use the model's own tokenizer, or resize the embedding",
        )
    for role, wanted in (expected_ids or {}).items():
        found = getattr(tokenizer, f"{role}_token_id", None)
        if found != wanted:
            raise UserError(f"{role} has id {found}, expected {wanted}", where=_WHERE)
    stops, warnings = list(stop_tokens), []
    for token in dict.fromkeys([*stops[:1], *chat_tokens]):
        if is_single(tokenizer, token):
            continue
        pieces = tokenizer.tokenize(token)
        if token in stops[:1]:
            raise UserError(f"the stop token {token} is not a single token but {pieces}", where=_WHERE)
        warnings.append(f"the chat token {token} is not a single token but {pieces}")
    return warnings + _shared(tokenizer, stops)


def _shared(tokenizer: Any, stops: list[str]) -> list[str]:
    """Roles that share one token although labels or generation need to tell them apart."""
    warnings = []
    ids = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "unk", "pad")}
    if ids["eos"] is not None and ids["eos"] == ids["unk"] and ids["bos"] != ids["eos"]:
        warnings.append(f"end of sentence and unknown text are one token, {tokenizer.eos_token}")
    if ids["pad"] is not None and ids["pad"] == ids["unk"] and ids["pad"] != ids["eos"]:
        warnings.append(f"padding and unknown text are one token, {tokenizer.pad_token}: labels go by position")
    if stops and tokenizer.eos_token not in stops:
        warnings.append(f"turns end with {stops[0]}, the end-of-sentence token is {tokenizer.eos_token}")
    return warnings


def sentencepiece_ids(path: str | Path) -> dict[str, int]:
    """The ids of pad, unk, bos and eos in a SentencePiece model (`tokenizer.model`); -1 if switched off.

    The file is a protocol buffer; the few fields needed are read without SentencePiece itself.

    Raises:
        UserError: the file cannot be read or is not a SentencePiece model.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", where=_WHERE) from None
    try:
        fields = list(_fields(data))
        specs = [value for number, value in fields if number == _TRAINER_SPEC and isinstance(value, bytes)]
        if not any(number == 1 for number, _ in fields):
            raise ValueError("no pieces")
        found = {_ID_FIELDS[n]: v for spec in specs for n, v in _fields(spec) if n in _ID_FIELDS and isinstance(v, int)}
    except (ValueError, IndexError):
        raise UserError(f"{path} is not a SentencePiece model", where=_WHERE) from None
    signed = {role: value - (1 << 64) if value >= 1 << 63 else value for role, value in found.items()}
    return {**_ID_DEFAULTS, **signed}


def check_sentencepiece(path: str | Path, expected: Mapping[str, int]) -> None:
    """Check the ids of a `tokenizer.model` against those that the config requires.

    Args:
        expected: ids by role, for instance `{"pad": 0, "unk": 1, "bos": 2, "eos": 3}`.

    Raises:
        UserError: the file is not a SentencePiece model, or has other ids; the message names all that differ.
    """
    found = sentencepiece_ids(path)
    wrong = [
        f"{role} is {found.get(role)}, expected {wanted}"
        for role, wanted in expected.items()
        if found.get(role) != wanted
    ]
    if wrong:
        raise UserError(f"{path}: " + "; ".join(wrong), where=_WHERE)


def _fields(data: bytes) -> Iterable[tuple[int, int | bytes]]:
    """The fields of a protocol buffer message: (number, value). Raises ValueError on anything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("truncated")
            yield number, data[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            yield number, b""
        else:
            raise ValueError("unknown wire type")
        if number == 0:
            raise ValueError("no field has number 0")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
