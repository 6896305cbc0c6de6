"""Tokenizing texts in which some control tokens were typed by users and are ordinary text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from sft.config.errors import UserError
from sft.template.control import TokenFinder, revealed

_FIRST, _FILL = 0xF0000, "\U000fff01"  # private-use characters for the placeholder names
_MOST = 0xFF00  # placeholders


class Verbatim:
    """Encodes texts with hidden tokens (see sft.template.control), which become ordinary tokens.

    It uses a copy of the tokenizer in which the control tokens have other names of the same length. In a text the
    template's own control tokens are renamed and the typed ones are not, so that the copy reads the latter as text.
    Everything else, offsets and ids included, is as with the tokenizer itself.

    Args:
        backend: a `tokenizers.Tokenizer`.
        tokens: those that may be typed.
    """

    def __init__(self, backend: Any, tokens: Iterable[str]) -> None:
        self.backend = backend
        self.tokens = [token for token in dict.fromkeys(tokens) if backend.token_to_id(token) is not None][:_MOST]
        self._finder = TokenFinder(self.tokens)
        self._names = {
            token: chr(_FIRST + number) + _FILL * (len(token) - 1) for number, token in enumerate(self.tokens)
        }

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_copy"}

    def encode(self, text: str) -> Any:
        """The encoding of a text, no special token added; its offsets are those of the revealed text.

        Raises:
            UserError: this tokenizer cannot be copied in this way.
        """
        pieces, last = [], 0
        for start, end in self._finder.spans(text):  # hidden tokens do not match
            pieces += [text[last:start], self._names[text[start:end]]]
            last = end
        renamed = revealed("".join([*pieces, text[last:]]))
        return self._copy.encode(renamed, add_special_tokens=False)

    @cached_property
    def _copy(self) -> Any:
        from tokenizers import Tokenizer

        state = json.loads(self.backend.to_str())
        for added in state["added_tokens"]:
            added["content"] = self._names.get(added["content"], added["content"])
        _rename_vocabulary(state["model"], self._names)
        try:
            copy = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
        except Exception as error:  # the library raises only Exception
            raise self._refusal(str(error)) from None
        copy.no_truncation()
        copy.no_padding()
        wrong = [t for t, name in self._names.items() if copy.token_to_id(name) != self.backend.token_to_id(t)]
        if wrong:
            raise self._refusal(f"{wrong[0]} gets another id")
        return copy

    @staticmethod
    def _refusal(why: str) -> UserError:
        return UserError(
            f"this tokenizer cannot encode control tokens as text: {why}",
            where="dataset.control_tokens",
            remedy="dataset.control_tokens=refuse, and drop the rows that have them with dataset.max_dropped",
        )


def _rename_vocabulary(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens in a model's vocabulary, so that no text is looked up as one of them."""
    vocabulary = model.get("vocab")
    merged = {piece for merge in model.get("merges") or [] for piece in _pieces(merge)}
    names = {token: name for token, name in names.items() if token not in merged}
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: (piece, score)
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


def _pieces(merge: Any) -> list[str]:
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    return [*parts, "".join(parts)]
