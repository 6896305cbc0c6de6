"""From conversations to input_ids and labels: rendered, tokenized once in batches, trained spans by their offsets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft.config.errors import UserError
from sft.data.labels.gate import Gate
from sft.data.labels.labelling import Encoded, Labelling
from sft.data.labels.markers import Markers
from sft.data.labels.offsets import prefill_splits_a_token
from sft.data.labels.raw_text import raw_row
from sft.data.labels.segments import Segments
from sft.data.labels.verbatim import Verbatim
from sft.template.bound import BoundTemplate
from sft.template.changes import Changes
from sft.template.contents import Contents, Note
from sft.template.control import HIDE
from sft.template.rendering.render import RenderError
from sft.template.rendering.spans import Rendered, Unlabelable, render_rows

_VERSION = 2  # part of the fingerprint: incremented when the same rows get different labels


class Encoder:
    """Turns conversations into labelled tokens; can be pickled and sent to worker processes.

    Args:
        bound: the chat template of the run.
        tokenizer: a fast tokenizer that knows the template's tokens.
        train_on: "assistant" (each assistant turn), "last" (the last one) or "all" (the whole text).
        masking: "template" (spans by rendering) or "response_template" (by searching token sequences).
        history: "expand", "allow" or "refuse", for turns that are rendered differently in a longer text than in
            generation.
        control_tokens: "refuse" conversations with control tokens typed in contents, or tokenize them as "text".
        response_template: with masking=response_template: the text, or token ids, that an answer follows.
        instruction_template: with masking=response_template: what ends an answer, the next user's header.

    Raises:
        UserError: inconsistent options, or a tokenizer without offsets.
    """

    def __init__(
        self,
        bound: BoundTemplate,
        tokenizer: Any,
        *,
        train_on: str = "assistant",
        masking: str = "template",
        history: str = "expand",
        control_tokens: str = "refuse",
        response_template: str | Sequence[int] | None = None,
        instruction_template: str | Sequence[int] | None = None,
    ) -> None:
        _choice("dataset.train_on", train_on, ("assistant", "last", "all"))
        _choice("dataset.masking", masking, ("template", "response_template"))
        _choice("dataset.history", history, ("expand", "allow", "refuse"))
        _choice("dataset.control_tokens", control_tokens, ("refuse", "text"))
        if not getattr(tokenizer, "is_fast", False):
            remedy = "use a model whose repository has a tokenizer.json"
            raise UserError("the tokenizer gives no offsets, which labels need", where="model.tokenizer", remedy=remedy)
        self.bound, self.tokenizer = bound, tokenizer
        self.train_on, self.masking, self.history = train_on, masking, history
        self.markers = None
        if masking == "response_template":
            self.markers = Markers(tokenizer, response_template, instruction_template)
        elif response_template or instruction_template:
            remedy = "dataset.masking=response_template"
            raise UserError("a response template is set, but masking does not look for it", remedy=remedy)
        ends = [*bound.stop_tokens, *([bound.tool_stop] if bound.tool_stop else [])]
        self.segments = Segments(tokenizer.backend_tokenizer, ends)
        self.gate = Gate(bound, tokenizer, train_on=train_on, masking=masking)
        self.labelling = Labelling(self.gate, self.markers, last=train_on == "last")
        self.contents, self._changes = Contents(bound, tokenizer, control_tokens), Changes(bound)
        self._verbatim = Verbatim(tokenizer.backend_tokenizer, [*self.contents.control, *self.contents.tags])
        self._options = [train_on, masking, history, control_tokens, response_template, instruction_template]
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """A digest of everything but the rows that the labels depend on: template, tokenizer, options."""
        if self._fingerprint is None:
            bound = self.bound
            facts = [
                [_VERSION, bound.text, bound.variables, bound.system, bound.date, bound.bos],
                [bound.stop_tokens, bound.tool_stop, bound.open_turn, repr(bound.style)],
                [list(option) if isinstance(option, tuple) else option for option in self._options],
            ]
            digest = hashlib.sha256(json.dumps(facts, ensure_ascii=False, default=str, sort_keys=True).encode())
            digest.update(self._backend().to_str().encode())
            self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    def encode(self, conversations: Sequence[dict[str, Any]]) -> list[Encoded]:
        """Label conversations.

        Args:
            conversations: `{"messages": …, "tools": …}` or `{"text": …}`.

        Returns:
            One entry per conversation: its rows (several with history=expand), or its problem. With
            masking=response_template a row without a match has both: it is fully masked.
        """
        notes: list[list[Note]] = [[] for _ in conversations]
        rendered = [self.render(one, noted) for one, noted in zip(conversations, notes, strict=True)]
        encodings = iter(self.tokenize([row.text for rows in rendered if not isinstance(rows, str) for row in rows]))
        out: list[Encoded] = []
        for conversation, rows, noted in zip(conversations, rendered, notes, strict=True):
            if isinstance(rows, str):
                out.append({"rows": [], "problem": rows})
            else:
                pairs = [(row.revealed(), next(encodings)) for row in rows]
                if inside := prefill_splits_a_token(conversation, pairs):
                    out.append({"rows": [], "problem": inside})
                    continue
                labelled = [self.labelling.label(row, encoding, noted) for row, encoding in pairs]
                out.append({**self.labelling.gated(labelled, raw="messages" not in conversation), "notes": noted})
        return out

    def check(self, conversations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Find the masks of some conversations a second way; see `sft.data.labels.cross_check.compare`."""
        from sft.data.labels.cross_check import compare

        return compare(self, conversations)

    def render(self, conversation: Mapping[str, Any], notes: list[Note] | None = None) -> list[Rendered] | str:
        """The conversation's texts and spans, or its problem. Control tokens typed as text are hidden in the texts.

        Args:
            notes: collects findings about the conversation that are not problems.
        """
        try:
            if "messages" not in conversation:
                rows = [raw_row(conversation["text"], self.bound, getattr(self.tokenizer, "eos_token", None))]
            else:
                conversation = self.contents.prepared(conversation, notes)
                # with markers the spans are found in the tokens, whatever the template
                train_on = self.train_on if self.markers is None else "all"
                rows = render_rows(self.bound, conversation, train_on, self.history)
                if notes is not None:
                    changed = self._changes.of(conversation["messages"], rows)
                    notes += [("changed_contents", detail) for detail in changed]
            for row in rows:
                row.text.encode()
            return rows
        except Unlabelable as error:
            return str(error)
        except UnicodeEncodeError:
            return "the text holds half of a surrogate pair, which is not a character"
        except (AttributeError, KeyError, TypeError) as error:  # a user's convert function may return such things
            return f"the conversation is malformed: {type(error).__name__}: {error}"

    def as_text(self, conversation: Mapping[str, Any]) -> str:
        """The conversation rendered to a text that is trained whole.

        Raises:
            RenderError: the template refuses it, or it has a typed control token, which a text cannot distinguish from
                the template's own.
        """
        try:
            prepared = self.contents.prepared(conversation)
        except Unlabelable as error:
            raise RenderError(str(error)) from None
        text = self.bound.render(prepared)
        if HIDE in text:
            raise RenderError(
                "a control token in the text, which cannot be distinguished in a row that is trained as text"
            )
        return text

    def tokenize(self, texts: list[str]) -> list[Any]:
        """Tokenize all texts at once; special tokens are part of the text, none is added, and hidden ones become
        text."""
        if not texts:
            return []
        self._backend()  # its file may ask for truncation
        if not any(HIDE in text for text in texts):
            return self.segments.encode(texts)
        usual = iter(self.segments.encode([text for text in texts if HIDE not in text]))
        return [self._verbatim.encode(text) if HIDE in text else next(usual) for text in texts]

    def _backend(self) -> Any:
        """The backend tokenizer, without the truncation and padding that its file may configure."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend


def _choice(where: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{value!r} is not one of {', '.join(choices)}", where=where)
