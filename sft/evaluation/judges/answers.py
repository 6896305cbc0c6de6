"""A model's answers with a judge's verdicts on them."""

from __future__ import annotations

from dataclasses import replace

from sft.evaluation.answers import Answers, Scored
from sft.evaluation.judges.cases import Case
from sft.evaluation.judges.judging import Judging
from sft.evaluation.progress import told_now_and_then


def judge_answers(judging: Judging, answers: Answers) -> Answers:
    """The same answers, each with the verdicts on it.

    Args:
        judging: the judge with its settings.
        answers: as `evaluate_generation` returns them; the turns before an answer are its context.

    Raises:
        UserError: the judge refuses every call.
        Interrupted: by a signal; the verdicts so far are kept.
    """
    verdicts = judging.judge([_case(row) for row in answers.rows], told_now_and_then("verdicts"))
    rows = [replace(row, verdicts=found) for row, found in zip(answers.rows, verdicts, strict=True)]
    return replace(answers, rows=rows)


def _case(row: Scored) -> Case:
    return Case(row.question.messages, row.answer.text, row.question.reference or None)
