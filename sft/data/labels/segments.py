"""Tokenizing texts that share parts: a part that ends with a stop token is tokenized once for all rows that have it.

With `history=expand` the rows of a conversation repeat its earlier turns, and in many datasets every row has the same
system prompt or tools. Special tokens are split off before any other step, so the tokens of a text are those of its
parts, cut after such tokens, one after another. That holds for tokenizers whose other steps do not depend on the
position in the text; these are recognised here, and checked on the first texts. Others encode whole texts.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

log = logging.getLogger(__name__)

KEPT_TOKENS = 200_000  # tokens of the repeated parts that are kept
SEEN_PARTS = 2_000_000  # remembered by their hash
TRIED = 8  # number of texts on which both ways are compared
_NORMALIZERS = {None, "NFC", "NFKC", "NFD", "NFKD"}
_PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"}
_PROCESSORS = {"ByteLevel", "TemplateProcessing"}  # TemplateProcessing does nothing where no special token is added


class JoinedEncoding:
    """An encoding assembled from parts, with the ids and offsets of `tokenizers.Encoding`.

    Args:
        parts: the encodings of the text's parts, in order.
        begins: the character that each part begins at.
    """

    def __init__(self, parts: Sequence[Part], begins: Sequence[int]) -> None:
        self._parts, self._begins = parts, begins
        self.ids: list[int] = []
        self._firsts: list[int] = []  # the token that each part begins with
        for part in parts:
            self._firsts.append(len(self.ids))
            self.ids += part.ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The characters [start, end) of every token."""
        return [
            (start + begin, end + begin)
            for part, begin in zip(self._parts, self._begins, strict=True)
            for start, end in part.encoding.offsets
        ]

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        """The characters [start, end) that a token stands for."""
        if not 0 <= token < len(self.ids):
            return None
        part = bisect_right(self._firsts, token) - 1
        start, end = self._parts[part].encoding.token_to_chars(token - self._firsts[part])
        return start + self._begins[part], end + self._begins[part]

    def char_to_token(self, position: int) -> int | None:
        """The first token that holds a character; None where none does."""
        part = bisect_right(self._begins, position) - 1
        if part < 0:
            return None
        token = self._parts[part].encoding.char_to_token(position - self._begins[part])
        return None if token is None else token + self._firsts[part]


class Part:
    """A part's encoding and its token ids."""

    __slots__ = ("encoding", "ids")

    def __init__(self, encoding: Any) -> None:
        self.encoding, self.ids = encoding, encoding.ids


class Segments:
    """Encodes texts by parts where that gives the same tokens. Pickled without its memory.

    Args:
        backend: a `tokenizers.Tokenizer`.
        stops: texts after which a text may be cut; those that are not plain special tokens are left out.
    """

    def __init__(self, backend: Any, stops: Iterable[str]) -> None:
        self.backend = backend
        self.stops = cutting_tokens(backend, stops)
        self._tried = False
        self._seen: set[int] = set()
        self._kept: dict[str, Part] = {}
        self._kept_tokens = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": set(), "_kept": {}, "_kept_tokens": 0}

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """The encodings of texts, no special token added: `JoinedEncoding`, or the library's own."""
        if not self.stops:
            return self._whole(texts)
        cut = [self._parts(text) for text in texts]
        parts = self._encoded({part for some in cut for part in some})
        joined = []
        for some in cut:
            begins, at = [], 0
            for part in some:
                begins.append(at)
                at += len(part)
            joined.append(JoinedEncoding([parts[part] for part in some], begins))
        return joined if self._tried or self._agree(texts[:TRIED], joined[:TRIED]) else self._whole(texts)

    def _whole(self, texts: Sequence[str]) -> list[Any]:
        return self.backend.encode_batch(list(texts), add_special_tokens=False)

    def _parts(self, text: str) -> list[str]:
        """The text cut after every stop token."""
        ends = set()
        for stop in self.stops:
            at = text.find(stop)
            while at >= 0:
                ends.add(at + len(stop))
                at = text.find(stop, at + len(stop))
        parts, begin = [], 0
        for end in sorted(ends):
            parts.append(text[begin:end])
            begin = end
        return [*parts, text[begin:]] if begin < len(text) else parts

    def _encoded(self, parts: set[str]) -> dict[str, Part]:
        """Each part's tokens; a part is kept from the second batch that contains it."""
        known = {part: self._kept[part] for part in parts & self._kept.keys()}
        fresh = [part for part in parts if part not in known]
        if len(self._seen) > SEEN_PARTS:
            self._seen.clear()
        for part, encoding in zip(fresh, self._whole(fresh), strict=True):
            known[part] = Part(encoding)
            if hash(part) in self._seen:
                self._keep(part, known[part])
            else:
                self._seen.add(hash(part))
        return known

    def _keep(self, text: str, part: Part) -> None:
        if self._kept_tokens > KEPT_TOKENS:
            self._kept.clear()
            self._kept_tokens = 0
        self._kept[text] = part
        self._kept_tokens += len(part.ids)

    def _agree(self, texts: Sequence[str], joined: Sequence[JoinedEncoding]) -> bool:
        """Whether both ways give the same; if not, whole texts are encoded from now on."""
        whole = self._whole(texts)
        same = all(a.ids == b.ids and a.offsets == b.offsets for a, b in zip(whole, joined, strict=True))
        self._tried = True
        if not same:
            self.stops = ()
            log.debug("this tokenizer's tokens depend on a part's position; whole texts are tokenized")
        return same


def cutting_tokens(backend: Any, stops: Iterable[str]) -> tuple[str, ...]:
    """The stops after which a text may be cut without changing its tokens; () where the tokenizer does not allow it."""
    if not _position_free(backend):
        return ()
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    plain = (stop for stop in dict.fromkeys(stops) if stop in added and _is_plain(added[stop]))
    return tuple(stop for stop in plain if not any(_overlaps(other, stop) for other in added if other != stop))


def _is_plain(token: Any) -> bool:
    """Whether a token is matched in the raw text, anywhere, without stripping the text around it."""
    return not (token.normalized or token.lstrip or token.rstrip or token.single_word)


def _overlaps(other: str, stop: str) -> bool:
    """Whether both tokens can overlap in a text, so that one may hide the other."""
    if stop in other or other in stop:
        return True
    shortest = min(len(other), len(stop))
    return any(other.endswith(stop[:size]) or stop.endswith(other[:size]) for size in range(1, shortest))


def _position_free(backend: Any) -> bool:
    """Whether all steps of a tokenizer are known not to depend on the position in the text."""
    normalizers = _steps(backend.normalizer, "normalizers")
    pre_tokenizers = _steps(backend.pre_tokenizer, "pretokenizers")
    processors = _steps(backend.post_processor, "processors")
    return (
        all(step.get("type") in _NORMALIZERS for step in normalizers)
        and all(step.get("type") in _PRE_TOKENIZERS and not step.get("add_prefix_space") for step in pre_tokenizers)
        and all(step.get("type") in _PROCESSORS and not _trims_first(step) for step in processors)
    )


def _trims_first(step: dict[str, Any]) -> bool:
    """Whether a processor treats the offsets of a text's first token differently."""
    return bool(step.get("trim_offsets") and step.get("add_prefix_space"))


def _steps(component: Any, several: str) -> list[dict[str, Any]]:
    """The steps of a tokenizer component; an unknown component is a step of no known type."""
    if component is None:
        return []
    try:
        state = json.loads(component.__getstate__())
    except (TypeError, ValueError):  # custom code
        return [{"type": "unknown"}]
    return state[several] if state.get("type") == "Sequence" else [state]
