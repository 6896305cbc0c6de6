"""Writing tokenizers so that plain transformers loads them anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Entries of transformers about where a tokenizer was loaded from, which are meaningless elsewhere.
_LOADING_NOTES = ("is_local", "local_files_only", "name_or_path", "token", "use_auth_token")


def save_tokenizer(tokenizer: Any, directory: str | Path, chat_template: str | None = None) -> None:
    """Write a tokenizer and its chat template.

    Args:
        tokenizer: any transformers tokenizer; unchanged afterwards.
        directory: where tokenizer.json and its companions go.
        chat_template: Jinja text that replaces the tokenizer's own.
    """
    kept = {note: tokenizer.init_kwargs.pop(note) for note in _LOADING_NOTES if note in tokenizer.init_kwargs}
    template = tokenizer.chat_template
    try:
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(str(directory))
    finally:
        tokenizer.chat_template = template
        tokenizer.init_kwargs.update(kept)
