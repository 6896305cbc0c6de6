"""Keeping secrets out of what is written; see sft.config.secrets, where the command line's errors need it too."""

from sft.config.secrets import (
    HIDDEN,
    is_secret_key,
    is_secret_variable,
    redact,
    redact_command,
    redact_tree,
    secret_values,
    typed_command,
)

__all__ = [
    "HIDDEN",
    "is_secret_key",
    "is_secret_variable",
    "redact",
    "redact_command",
    "redact_tree",
    "secret_values",
    "typed_command",
]
