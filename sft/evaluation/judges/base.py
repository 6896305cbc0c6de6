"""What a judge is: a prompt goes in, a text of an asked form comes out, or a call fails in a way that is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Judge(Protocol):
    """A model that answers questions about answers.

    Attributes:
        name: how to speak of it: "gemini-2.5-flash".
        settings: everything beside the prompt that an answer of its depends on; part of the cache's key.
        parallel: whether calls may be under way side by side.
    """

    name: str
    parallel: bool

    @property
    def settings(self) -> Mapping[str, Any]:
        """See above."""

    def check(self) -> None:
        """Find out whether it can be asked at all, before anything else is computed.

        Raises:
            UserError: no key, a key that is refused, a service that cannot be reached, no such model.
        """

    def reply(self, prompt: str, schema: Mapping[str, Any] | None = None) -> str:
        """Answer a prompt.

        Args:
            prompt: the whole question.
            schema: the JSON schema that the answer should follow; None for plain text.

        Raises:
            CallFailed: there is no answer.
        """


class CallFailed(Exception):
    """A call that gave no answer.

    Args:
        message: why, in the service's words where it said something; never with a key in it.
        again: whether another attempt may do better.
        after: seconds that the service asks to wait before it.
        fatal: whether every other call would fail in the same way (a refused key, no such model).
    """

    def __init__(self, message: str, *, again: bool, after: float | None = None, fatal: bool = False) -> None:
        super().__init__(message)
        self.again, self.after, self.fatal = again, after, fatal
