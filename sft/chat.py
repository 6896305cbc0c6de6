"""`python -m sft.chat run=DIR prompt="…"`: one answer on stdout; without a prompt an interactive chat."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr


@command("chat")
def main(config: DictConfig) -> None:
    """Answer `prompt` or piped input, else start an interactive chat. Nothing is written to disk."""
    from sft.config.compose import plain
    from sft.run.log import RunLog

    settings = plain(config)
    question = _question(settings.get("prompt"))
    with logs_to_stderr():  # before the log is opened: it takes over the loggers of what is imported by then
        from sft.config.text import without_control_characters
        from sft.inference.chat_session import open_chat_session
        from sft.inference.terminal import Terminal
    with RunLog(None):
        with logs_to_stderr():
            chat_session = open_chat_session(settings)
            answer = chat_session.ask(question) if question is not None else None
        if answer is None:
            Terminal(chat_session).run()
        else:
            print(without_control_characters(answer) if sys.stdout.isatty() else answer)


def _question(prompt: str | None) -> str | None:
    """The prompt, else piped standard input; None on an interactive terminal."""
    from sft.config.errors import UserError

    if prompt is None:
        if sys.stdin is None or sys.stdin.isatty():
            return None
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    if not prompt.strip():
        raise UserError("there is nothing to answer", where="prompt", remedy='prompt="a question"')
    return prompt.strip()


if __name__ == "__main__":
    main()
