"""Conversations replayed turn by turn with the model's own answers as history, and every answer judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.evaluation.judges.cases import Case, Test, make_test, read_tests
from sft.evaluation.judges.judging import Judging, Verdicts
from sft.evaluation.metrics import mean_scores
from sft.evaluation.replay import Turn, replay

Messages = list[dict[str, Any]]


@dataclass
class JudgedTurn:
    """One answer of a replayed conversation.

    Attributes:
        conversation: its index, from 0.
        turn: its index in the conversation, from 0.
        case: the answer, with the preceding turns of the replay.
        verdicts: by metric.
    """

    conversation: int
    turn: int
    case: Case
    verdicts: Verdicts

    def line(self) -> dict[str, Any]:
        """The turn as a line of JSONL."""
        judged = {name: {"score": v.score, "reason": v.reason} for name, v in self.verdicts.items()}
        return {
            "conversation": self.conversation,
            "turn": self.turn,
            "messages": self.case.messages,
            "answer": self.case.answer,
            "reference": self.case.reference,
            "judge": judged,
        }


@dataclass
class Report:
    """Every turn of every conversation, judged."""

    turns: list[JudgedTurn] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """`judge_correctness` and so on: means over the turns with a verdict; and the number of turns without."""
        verdicts = [turn.verdicts for turn in self.turns]
        means = mean_scores({k: v.score for k, v in each.items() if v.score is not None} for each in verdicts)
        every = [verdict for each in verdicts for verdict in each.values()]
        missing = sum(not verdict.is_scored for verdict in every)
        return {
            **{f"judge_{name}": value for name, value in means.items()},
            "judge_verdicts": len(every) - missing,
            "judge_missing": missing,
        }

    @property
    def missing(self) -> list[tuple[int, int, str, str]]:
        """(conversation, turn, metric, reason) of each missing verdict."""
        return [
            (turn.conversation, turn.turn, name, verdict.reason)
            for turn in self.turns
            for name, verdict in turn.verdicts.items()
            if not verdict.is_scored
        ]


class MultiTurnEvaluator:
    """Judges a model's conversations.

    Args:
        answer: the model: any callable from the turns so far to the next answer.
        judging: the judge, from `open_judging`.
        answer_all: the same for many conversations at once.
    """

    def __init__(
        self,
        answer: Callable[[Messages], str] | None,
        judging: Judging,
        answer_all: Callable[[Sequence[Messages]], Sequence[str]] | None = None,
    ) -> None:
        if (answer is None) == (answer_all is None):
            raise TypeError("give either answer or answer_all")
        self.judging = judging
        self._answer_all = answer_all or (lambda chats: [answer(chat) for chat in chats])  # type: ignore[misc]

    def evaluate_on_dataset(
        self,
        dataset: str | Path | Iterable[Mapping[str, Any] | Test],
        limit: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Replay and judge conversations.

        The model answers each user turn, with its own answers (not the data's) in the history. The data's assistant
        turns are the references.

        Args:
            dataset: a JSONL file (see `sft.evaluation.judges.cases.read_tests`), or such rows.
            limit: at most so many conversations.
            progress: called with the verdicts so far and the number of all.

        Raises:
            UserError: broken rows, or a judge that refuses every call.
            Interrupted: by a signal; verdicts that were had are kept.
        """
        rows = read_tests(dataset) if isinstance(dataset, str | Path) else dataset
        tests = [row if isinstance(row, Test) else make_test(row) for row in rows][:limit]
        chats = replay([test.messages for test in tests], lambda histories, *_: self._answer_all(histories))
        return self.judge(chats, [test.context for test in tests], progress)

    def judge(
        self,
        chats: Sequence[Sequence[Turn]],
        contexts: Sequence[list[str]],
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Judge conversations that were replayed already."""
        turns = [
            (i, k, Case(turn.messages, turn.answer, turn.reference, context))
            for i, (chat, context) in enumerate(zip(chats, contexts, strict=True))
            for k, turn in enumerate(chat)
        ]
        verdicts = self.judging.judge([case for _, _, case in turns], progress)
        return Report([JudgedTurn(*turn, found) for turn, found in zip(turns, verdicts, strict=True)])
