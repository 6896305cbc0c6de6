"""The interactive chat: a line is a message, a line that begins with / is a command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from sft.config.errors import UserError
from sft.config.text import without_control_characters
from sft.inference.chat_session import ChatSession

HELP = """/system TEXT   set the system prompt; without TEXT, show the current one
/reset         forget the conversation
/regenerate    answer the last message again
/save FILE     append the conversation to FILE as one line of JSON
/help          show this list
/exit          exit (or Ctrl-D); Ctrl-C stops an answer"""


class Terminal:
    """Reads lines and shows answers as they come.

    Args:
        chat_session: the chat session.
        read: returns the next line for a prompt, raises EOFError at the end.
        write: prints text verbatim.
    """

    def __init__(
        self,
        chat_session: ChatSession,
        read: Callable[[str], str] = input,
        write: Callable[[str], object] | None = None,
    ) -> None:
        self.chat_session, self.read = chat_session, read
        self.write = write or _to_stdout

    def run(self) -> None:
        """Read and answer until /exit or the end of the input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives `input` a history and editing
        self.write("/help lists the commands\n")
        while True:
            try:
                line = self.read("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self.write("\n")
                return
            if line in ("/exit", "/quit"):
                return
            if line:
                self._answer_to(line)

    def _answer_to(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(*line.partition(" ")[::2])
            else:
                self.chat_session.ask(line, self._show)
                self.write("\n")
        except UserError as error:
            self.write(without_control_characters(f"{error}\n"))
        except KeyboardInterrupt:
            self.write("\n(stopped; the message is forgotten)\n")

    def _command(self, name: str, argument: str) -> None:
        argument = argument.strip()
        if name == "/system":
            if argument:
                self.chat_session.system = argument
            self.write(without_control_characters(f"system: {self.chat_session.system or '(none)'}\n"))
        elif name == "/reset":
            self.chat_session.reset()
            self.write("(forgotten)\n")
        elif name == "/regenerate":
            self.chat_session.again(self._show)
            self.write("\n")
        elif name == "/save":
            if not argument:
                raise UserError("no file is named", remedy="/save FILE")
            self.write(without_control_characters(f"saved in {self.chat_session.save(argument)}\n"))
        elif name == "/help":
            self.write(HELP + "\n")
        else:
            raise UserError(f"there is no command {name}", remedy="/help lists them")

    def _show(self, piece: str) -> None:
        self.write(without_control_characters(piece))


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
