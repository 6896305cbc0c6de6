"""A text that is not a conversation, as a row that is trained completely."""

from __future__ import annotations

from sft.template.bound import BoundTemplate
from sft.template.control import HIDE
from sft.template.rendering.spans import Rendered, Unlabelable


def raw_row(text: str, bound: BoundTemplate, eos: str | None) -> Rendered:
    """Raw text, trained whole, between BOS and the end-of-sentence token.

    Args:
        bound: the chat template of the run, for BOS and the stop tokens.
        eos: the tokenizer's own end-of-sentence token.

    Raises:
        Unlabelable: the text is empty, or holds the character that hides control tokens.
    """
    if not text.strip():
        raise Unlabelable("the text is empty")
    if HIDE in text:
        raise Unlabelable(f"the private-use character U+{ord(HIDE):04X}: in the text")
    if bound.bos and not text.startswith(bound.bos):
        text = bound.bos + text
    if eos and not text.rstrip().endswith((*bound.stop_tokens, eos)):
        text += eos
    return Rendered(text, [(0, len(text))])
