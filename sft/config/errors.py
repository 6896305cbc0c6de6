"""Errors that the user can fix: what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class UserError(Exception):
    """A mistake in the config, the data or the environment; a command prints it without a traceback and exits with 2.

    Args:
        what: what is wrong, one line.
        where: the config key, or file and row.
        remedy: what to do about it, an override or a command where there is one.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.remedy}" if self.remedy else text

    def __reduce__(self):  # the default one loses keyword arguments, and errors are pickled between processes
        return (_rebuild, (type(self), self.what, self.where, self.remedy))


class UserErrors(UserError):
    """Several mistakes found at once, each printed in turn."""

    def __init__(self, errors: Iterable[UserError]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(str(error) for error in self.errors))

    def __reduce__(self):
        return (UserErrors, (self.errors,))


class RunFailed(Exception):
    """A run that started and failed; its traceback is already in train.log, and the command exits with 1."""


class Interrupted(Exception):
    """A run stopped by a signal with its checkpoint written.

    Attributes:
        code: the process's exit code, 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self):
        return (Interrupted, (str(self), self.code))


class Pruned(Exception):
    """A run that a search pruned: what it wrote is kept, and it does not count as a failure."""


class PastHydra(BaseException):
    """Carries an error past Hydra, which would print its own message and wrap it, or swallow it in a callback."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _rebuild(kind: type[UserError], what: str, where: str | None, remedy: str | None) -> UserError:
    return kind(what, where=where, remedy=remedy)


def out_of_range(node: object, rules: Mapping[str, tuple[bool, str]], where: str = "") -> list[UserError]:
    """An error for each value of a config node that is out of its range.

    Args:
        node: what has the values.
        rules: by key: whether the rule holds, and the range in words.
        where: what the keys are prefixed with in the config (`judge.`).
    """
    return [
        UserError(f"{getattr(node, key)!r} is out of range", where=f"{where}{key}", remedy=f"give {range_}")
        for key, (holds, range_) in rules.items()
        if not holds
    ]


def not_installed(library: str, extra: str, where: str) -> UserError:
    """The error for a library that comes with one of sft's extras."""
    return UserError(f"{library} is not installed", where=where, remedy=f"pip install 'sft[{extra}]'")


def raise_all(errors: list[UserError]) -> None:
    """Raise the only error, or all of them as one UserErrors; do nothing when the list is empty."""
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
