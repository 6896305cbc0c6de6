"""The interactive chat: a line is a message, a line that begins with / is a command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from sft.config.errors import UserError
from sft.config.text import harmless
from sft.inference.talk import Talk

HELP = """/system TEXT   another system prompt; without TEXT the present one is shown
/reset         forget the conversation
/regenerate    another answer to the last message
/save FILE     add the conversation to FILE, one line of JSON
/help          this
/exit          leave (or Ctrl-D); Ctrl-C stops an answer"""


class Terminal:
    """Reads lines and shows answers as they come.

    Args:
        talk: the conversation.
        read: gives the next line for a prompt, EOFError at the end.
        write: shows text as it is.
    """

    def __init__(
        self, talk: Talk, read: Callable[[str], str] = input, write: Callable[[str], object] | None = None
    ) -> None:
        self.talk, self.read = talk, read
        self.write = write or _to_stdout

    def run(self) -> None:
        """Until /exit or the end of the input."""
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
                self.talk.ask(line, self._show)
                self.write("\n")
        except UserError as error:
            self.write(harmless(f"{error}\n"))
        except KeyboardInterrupt:
            self.write("\n(stopped; the message is forgotten)\n")

    def _command(self, name: str, argument: str) -> None:
        argument = argument.strip()
        if name == "/system":
            if argument:
                self.talk.system = argument
            self.write(harmless(f"system: {self.talk.system or '(none)'}\n"))
        elif name == "/reset":
            self.talk.reset()
            self.write("(forgotten)\n")
        elif name == "/regenerate":
            self.talk.again(self._show)
            self.write("\n")
        elif name == "/save":
            if not argument:
                raise UserError("no file is named", remedy="/save FILE")
            self.write(harmless(f"saved in {self.talk.save(argument)}\n"))
        elif name == "/help":
            self.write(HELP + "\n")
        else:
            raise UserError(f"there is no command {name}", remedy="/help lists them")

    def _show(self, piece: str) -> None:
        self.write(harmless(piece))


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
