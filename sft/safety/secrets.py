"""Keep secrets out of everything that is written: values of secret variables, and text that looks like a credential."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"

_SECRET_VARIABLE = re.compile(
    r"(^|_)(TOKEN|SECRET|SECRETS|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_KEY|PRIVATE_KEY|SECRET_KEY|AUTH_KEY)($|_)"
    r"|(^|_)(KEY|CREDENTIALS?)$|_(PWD|PAT)$",  # only as the last word: PWD is a shell's working directory
    re.IGNORECASE,
)
# `eos_token`, `max_new_tokens` and `tokenizer` are not secrets: "token" counts only alone or after one of these words.
_SECRET_KEY = re.compile(
    r"^((.*_)?(api_?key|access_?key|private_?key|secret|secret_?key|password|passwd|passphrase)"
    r"|(.*_)?(hub|hf|access|auth|api|bearer|refresh|session|write|read)_?tokens?|token)$",
    re.IGNORECASE,
)
_CREDENTIAL = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|AIza[A-Za-z0-9_-]{30,}|AKIA[A-Z0-9]{16}|glpat-[A-Za-z0-9_-]{20,}|xox[abps]-[A-Za-z0-9-]{20,}|nvapi-[A-Za-z0-9_-]{20,})\b"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
# Shorter values would redact ordinary words and numbers everywhere.
_SHORTEST = 8
_SWITCHES = {"disabled", "anonymous", "undefined"}


@functools.cache
def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name holds a secret (HF_TOKEN, WANDB_API_KEY, *_SECRET, *PASSWORD*)."""
    return bool(_SECRET_VARIABLE.search(name)) or "password" in name.lower()


def is_secret_key(name: str) -> bool:
    """Whether a config key of this name holds a secret (hub_token, api_key, password; not eos_token)."""
    return bool(_SECRET_KEY.match(name.rsplit(".", 1)[-1]))


def secret_values(environment: Mapping[str, str] | None = None) -> list[str]:
    """The values to redact, longest first so that a secret that contains another is redacted completely."""
    environment = os.environ if environment is None else environment
    found = {form for name in list(environment) if is_secret_variable(name) for form in _forms(environment[name])}
    return sorted((v for v in found if len(v) >= _SHORTEST and v.lower() not in _SWITCHES), key=len, reverse=True)


@functools.lru_cache(maxsize=256)
def _forms(secret: str) -> frozenset[str]:
    """The forms of a secret in files: verbatim, quoted as in Python, JSON and HTML, and each line of several."""
    lines = [line.strip() for line in secret.splitlines()]
    forms = {secret.strip(), *(line for line in lines if len(lines) > 1)}
    forms |= {repr(each)[1:-1] for each in forms} | {html.escape(each) for each in forms}
    return frozenset(
        forms | {json.dumps(each, ensure_ascii=ascii_)[1:-1] for each in forms for ascii_ in (True, False)}
    )


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with every secret in it replaced by ``***``."""
    return _hide(text, secret_values(environment))


def redact_tree(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """A copy of nested dicts and lists in which secret values, and all values under a secret key, are redacted."""
    return _hide_in_tree(value, secret_values(environment))


def holds_secret(text: str, environment: Mapping[str, str] | None = None) -> str | None:
    """How a text reveals a secret, in words that do not repeat it; None where it does not."""
    environment = os.environ if environment is None else environment
    for value in secret_values(environment):
        if value in text:
            names = [name for name in environment if is_secret_variable(name) and value in _forms(environment[name])]
            return f"holds the value of the environment variable {names[0]}"
    if _CREDENTIAL.search(text):
        return "looks like an access token"
    return "holds a login" if "://" in text and _URL_LOGIN.search(text) else None


def _hide(text: str, values: list[str]) -> str:
    for value in values:
        if value in text:
            text = text.replace(value, HIDDEN)
    if "://" in text:
        text = _URL_LOGIN.sub(HIDDEN, text)
    return _CREDENTIAL.sub(HIDDEN, text)


def _hide_in_tree(value: Any, values: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            _hide_in_tree(key, values): HIDDEN
            if isinstance(key, str) and is_secret_key(key) and isinstance(item, str) and item
            else _hide_in_tree(item, values)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hide_in_tree(item, values) for item in value]
    return _hide(value, values) if isinstance(value, str) else value


def redact_command(arguments: Iterable[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """A command line without secrets: ``trainer.hub_token=abc`` and ``--api-key abc`` lose their values."""
    clean: list[str] = []
    hide_next = False
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        named = is_secret_key(key.lstrip("+~-").replace("-", "_"))
        if hide_next:
            clean.append(HIDDEN)
        else:
            clean.append(f"{key}={HIDDEN}" if named and equals else redact(argument, environment))
        hide_next = not hide_next and named and not equals and argument.startswith("--")
    return clean


def typed_command() -> list[str]:
    """This process's command line as typed (`python -m sft.train lora=r16`), without secrets.

    The commands rewrite sys.argv for Hydra; the interpreter keeps the original.
    """
    typed = list(sys.orig_argv)
    typed[0] = "python" if "python" in os.path.basename(typed[0]) else typed[0]
    return redact_command(typed)
