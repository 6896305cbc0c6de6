"""From conversations to input_ids and labels: rendered, tokenized once in batches, trained spans by their offsets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from sft.config.errors import UserError
from sft.data.labels.gate import IGNORE, Gate
from sft.data.labels.markers import Markers
from sft.data.labels.offsets import begun_inside_a_token, pieces_of, tokens_between
from sft.data.labels.segments import Segments
from sft.data.labels.verbatim import Verbatim
from sft.template.bound import BoundTemplate
from sft.template.changes import Changes
from sft.template.contents import Contents, Note
from sft.template.control import HIDE
from sft.template.rendering.render import RenderError
from sft.template.rendering.spans import Rendered, Unlabelable, render_rows

_MERGED = ("untrained_edges", "the first characters of answers, in one token with the generation prompt's last")
_VERSION = 2  # part of the fingerprint: raised when the same rows get other labels


class Row(TypedDict):
    """One training example: token ids, labels (the id where it is trained, -100 elsewhere), and both as text."""

    input_ids: list[int]
    labels: list[int]
    text: str
    trained_text: list[str]


class Encoded(TypedDict):
    """What a conversation became: its rows, or the reason why it has none, as `kind: particulars`.

    `notes` are what was found in it that is no problem, as (kind, detail); see sft.data.report.notes.
    """

    rows: list[Row]
    problem: str | None
    notes: NotRequired[list[Note]]


class Encoder:
    """Turns conversations into labelled tokens; it can be pickled and sent to worker processes.

    Args:
        bound: the chat template of the run.
        tokenizer: a fast tokenizer that knows the template's tokens.
        train_on: "assistant" (each assistant turn), "last" (the last one) or "all" (the whole text).
        masking: "template" (spans by rendering) or "response_template" (by searching token sequences).
        history: "expand", "allow" or "refuse", for turns that a longer text renders unlike generation.
        control_tokens: "refuse" conversations in whose contents a control token is typed, or tokenize it as "text".
        response_template: with masking=response_template: the text, or token ids, that an answer follows.
        instruction_template: with masking=response_template: what ends an answer, the next user's header.

    Raises:
        UserError: options that do not fit together, or a tokenizer without offsets.
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
            remedy = "take a model whose repository has a tokenizer.json"
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
        self.contents, self._changes = Contents(bound, tokenizer, control_tokens), Changes(bound)
        self._verbatim = Verbatim(tokenizer.backend_tokenizer, [*self.contents.control, *self.contents.tags])
        self._options = [train_on, masking, history, control_tokens, response_template, instruction_template]
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """A digest of all that the labels depend on but the rows: template, tokenizer, options."""
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
            One entry a conversation: its rows (several with history=expand), or the problem that it has. With
            masking=response_template a row without a match has both: it is masked whole.
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
                if inside := begun_inside_a_token(conversation, pairs):
                    out.append({"rows": [], "problem": inside})
                    continue
                labelled = [self.label(row, encoding, noted) for row, encoding in pairs]
                out.append({**self._gated(labelled, raw="messages" not in conversation), "notes": noted})
        return out

    def check(self, conversations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Find the masks of some conversations a second way; see `sft.data.labels.cross_check.compare`."""
        from sft.data.labels.cross_check import compare

        return compare(self, conversations)

    def render(self, conversation: Mapping[str, Any], notes: list[Note] | None = None) -> list[Rendered] | str:
        """The conversation's texts and spans, or its problem. Control tokens that are text are hidden in the texts.

        Args:
            notes: gets what was found in the conversation and is no problem.
        """
        try:
            if "messages" not in conversation:
                rows = [self._raw(conversation["text"])]
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
            return "the text holds half of a surrogate pair, which is no character"
        except (AttributeError, KeyError, TypeError) as error:  # what a user's own convert function may give
            return f"the conversation is malformed: {type(error).__name__}: {error}"

    def as_text(self, conversation: Mapping[str, Any]) -> str:
        """The conversation rendered to a text that is trained whole.

        Raises:
            RenderError: the template refuses it, or a control token is typed in it, which no text can tell from the
                template's own.
        """
        try:
            prepared = self.contents.prepared(conversation)
        except Unlabelable as error:
            raise RenderError(str(error)) from None
        text = self.bound.render(prepared)
        if HIDE in text:
            raise RenderError("a control token in the text, which a row that is trained as text cannot keep apart")
        return text

    def tokenize(self, texts: list[str]) -> list[Any]:
        """Tokenize all texts at once; special tokens stand in the text, none is added, and hidden ones become text."""
        if not texts:
            return []
        self._backend()  # its file may ask for truncation
        if not any(HIDE in text for text in texts):
            return self.segments.encode(texts)
        usual = iter(self.segments.encode([text for text in texts if HIDE not in text]))
        return [self._verbatim.encode(text) if HIDE in text else next(usual) for text in texts]

    def _backend(self) -> Any:
        """The tokenizer itself, without the truncation and padding that its file may ask for."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend

    def label(self, row: Rendered, encoding: Any, notes: list[Note] | None = None) -> Row:
        """Labels by offsets: a token is trained where it lies inside a span, whatever its id.

        Args:
            notes: gets what of a span is not trained, for its token begins in the prompt.
        """
        ids: list[int] = encoding.ids
        labels = [IGNORE] * len(ids)
        pieces = []
        stretches = self._stretches(row, encoding)
        if notes is not None and self.markers is None:
            begun = {start for _, _, start, _ in stretches}
            notes += [_MERGED for start, _ in row.spans if start not in begun]
        for first, last, start, end in stretches:
            labels[first : last + 1] = ids[first : last + 1]
            pieces.append(row.text[start:end])
        for start, end in row.masked:
            found = tokens_between(encoding, start, end)
            if found is not None:
                labels[found[0] : found[1] + 1] = [IGNORE] * (found[1] + 1 - found[0])
        if row.masked:
            pieces = pieces_of(row.text, labels, encoding.offsets)
        return {"input_ids": ids, "labels": labels, "text": row.text, "trained_text": pieces}

    def _stretches(self, row: Rendered, encoding: Any) -> list[tuple[int, int, int, int]]:
        """(first token, last token, start, end) of what is trained, in tokens and in characters."""
        if self.markers is not None:
            offsets = encoding.offsets

            def elsewhere(at: int) -> bool:
                return any(start < offsets[at][1] and offsets[at][0] < stop for start, stop in row.others)

            found = [
                (first, self._cut(encoding.ids, first, end))
                for first, end in self.markers.spans(encoding.ids, elsewhere)
            ]
            found = found[-1:] if self.train_on == "last" else found
            return [(first, end - 1, offsets[first - 1][1], offsets[end - 1][1]) for first, end in found]
        spans = [(tokens_between(encoding, start, end), start, end) for start, end in row.spans]
        return [(*found[:2], max(start, found[2]), found[3]) for found, start, end in spans if found is not None]

    def _cut(self, ids: Sequence[int], first: int, end: int) -> int:
        """Where an answer found by markers ends: after its first stop token, else at the end of what was found."""
        for at in range(first + 1, end + 1):
            if self.gate.stops_at(ids, at):
                return at
        return end

    def _gated(self, rows: list[Row], raw: bool) -> Encoded:
        """The rows, or what the gate says of one of them."""
        if self.markers is not None and not any(label != IGNORE for row in rows for label in row["labels"]):
            return {"rows": rows, "problem": "the response template is not in the row, which is masked whole"}
        problem = next((p for row in rows if (p := self.gate.row(row["input_ids"], row["labels"], raw))), None)
        return {"rows": [] if problem else rows, "problem": problem}

    def _raw(self, text: str) -> Rendered:
        """Raw text, trained whole, between BOS and the end-of-sentence token."""
        if not text.strip():
            raise Unlabelable("the text is empty")
        if HIDE in text:
            raise Unlabelable(f"the private-use character U+{ord(HIDE):04X}: in the text")
        bos, eos = self.bound.bos, getattr(self.tokenizer, "eos_token", None)
        if bos and not text.startswith(bos):
            text = bos + text
        if eos and not text.rstrip().endswith((*self.bound.stop_tokens, eos)):
            text += eos
        return Rendered(text, [(0, len(text))])


def _choice(where: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{value!r} is not one of {', '.join(choices)}", where=where)
