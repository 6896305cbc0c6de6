"""A model's answers to the evaluation rows, scored by source."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sft.evaluation.generate import Answer, answer_prompts
from sft.evaluation.metrics import field_accuracies, mean_scores, score
from sft.evaluation.questions import Question, Renders, make_questions
from sft.evaluation.spec import Evaluation


@dataclass(frozen=True)
class Scored:
    """A question, its answer and the answer's scores (see `sft.evaluation.metrics.score`)."""

    question: Question
    answer: Answer
    scores: dict[str, float]


@dataclass
class Answers:
    """All answers of one model.

    Args:
        rows: in the order of sources and rows.
        seconds: what generation took.
    """

    rows: list[Scored] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sources(self) -> list[str]:
        """The sources' names, in order."""
        return list(dict.fromkeys(row.question.source for row in self.rows))

    def of(self, source: str) -> list[Scored]:
        """The rows of one source."""
        return [row for row in self.rows if row.question.source == source]

    def scores(self, source: str | None = None) -> dict[str, float]:
        """Mean scores of one source, or of all rows."""
        return mean_scores(row.scores for row in (self.rows if source is None else self.of(source)))

    def fields(self, source: str | None = None) -> dict[str, float]:
        """Share of right values of each field of JSON references, in one source or in all rows."""
        rows = self.rows if source is None else self.of(source)
        return field_accuracies([row.answer.text for row in rows], [row.question.reference for row in rows])

    def metrics(self, prefix: str = "eval_") -> dict[str, float]:
        """`{prefix}exact_match` and its like over all rows, and `{prefix}{source}_exact_match` of each source.

        Also `{prefix}answers`, how many there are, and `{prefix}stopped`, the share that the model itself ended.
        """
        if not self.rows:
            return {}
        figures = {f"{prefix}{name}": value for name, value in self.scores().items()}
        for source in self.sources:
            figures |= {f"{prefix}{source}_{name}": value for name, value in self.scores(source).items()}
        stopped = sum(row.answer.stopped for row in self.rows) / len(self.rows)
        return {**figures, f"{prefix}answers": len(self.rows), f"{prefix}stopped": stopped}


def evaluate_generation(
    model: Any,
    tokenizer: Any,
    bound: Renders,
    sources: Mapping[str, Iterable[Mapping[str, Any]]],
    spec: Evaluation,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Let the model answer the evaluation conversations of each source and score what it says.

    Args:
        model: a causal language model; it is left as it was.
        tokenizer: its tokenizer.
        bound: the chat template it was trained with.
        sources: conversations by source name.
        spec: how many rows, how long the answers, how to draw tokens.
        seed: of the draws, where temperature is above 0.
        progress: called with rows answered and rows in all, after each batch.
    """
    questions = [
        question
        for source, conversations in sources.items()
        for question in make_questions(bound, conversations, source, spec.max_samples)
    ]
    started = time.perf_counter()
    answers = answer_prompts(
        model,
        tokenizer,
        [question.prompt for question in questions],
        stop_tokens=bound.stop_tokens,
        batch_size=spec.batch_size,
        progress=progress,
        **asdict(spec.sampling(seed)),
    )
    seconds = time.perf_counter() - started
    pairs = zip(questions, answers, strict=True)
    return Answers(
        [Scored(question, answer, score(answer.text, question.reference)) for question, answer in pairs], seconds
    )
