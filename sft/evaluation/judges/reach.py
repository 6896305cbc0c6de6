"""Checks that a judge's service is usable (key, address, model), before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from sft.config.errors import UserError
from sft.evaluation.judges.base import CallFailed
from sft.evaluation.judges.http import Service

T = TypeVar("T")
_TRIES = 3


def missing_key(names: str, where: str, more: str = "") -> UserError:
    """The error for a key that is not in any environment variable.

    Args:
        names: the variables that may hold it.
        where: the choice that needs it ("judge=gemini").
        more: an additional remedy.
    """
    return UserError(
        f"there is no key: {names} is not set", where=where, remedy=f"set it in the environment or in .env{more}"
    )


def ask_service(service: Service, call: Callable[[], T], key_name: str | None, model: str | None) -> T:
    """Make a first call; its failure becomes a UserError.

    Raises:
        UserError: the key is refused, the service is unreachable, or has no such model.
    """
    for attempt in range(_TRIES):
        try:
            return call()
        except CallFailed as error:
            if not error.again or attempt == _TRIES - 1:
                raise _explained(error, service, key_name, model) from None
            time.sleep(min(error.after or 0.5 * 2**attempt, 5.0))
    raise AssertionError("unreachable")


def _explained(error: CallFailed, service: Service, key_name: str | None, model: str | None) -> UserError:
    text = str(error)
    if text.startswith(("HTTP 401", "HTTP 403")) or "API_KEY_INVALID" in text or "API key" in text:
        if key_name is None:
            return UserError(
                f"{service.host} needs a key ({text})",
                where="judge",
                remedy="name its variable: judge.api_key_env=NAME",
            )
        return UserError(
            f"{service.host} refused the key in {key_name} ({text})",
            where="judge",
            remedy=f"check the value of {key_name}; the key may be mistyped, revoked, or not allowed to use this service",
        )
    if text.startswith("HTTP 404"):
        return UserError(
            f"{service.host} has no such model or path ({text})",
            where="judge.model",
            remedy=f"check judge.model={model} and judge.base_url={service.without_key(service.base_url)}",
        )
    if error.again and not text.startswith("HTTP"):
        return UserError(
            f"cannot be reached: {text}",
            where="judge.base_url",
            remedy="check the address and the network; judge=local needs no network",
        )
    return UserError(
        f"{service.host} cannot be asked ({text})", where="judge", remedy="try again later, or another judge"
    )


def text_at(answer: Any, *path: Any) -> Any:
    """The value at a path of keys and indices in nested dicts and lists; None where the path does not exist."""
    for step in path:
        try:
            answer = answer[step]
        except (KeyError, IndexError, TypeError):
            return None
    return answer
