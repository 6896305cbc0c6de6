"""A model's answers to the evaluation rows, scored by source."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sft.evaluation.generate import Answer, answer_prompts
from sft.evaluation.judges.verdict import Verdict
from sft.evaluation.metrics import field_accuracies, mean_scores, score
from sft.evaluation.questions import Question, Renders, make_questions
from sft.evaluation.replay import replay
from sft.evaluation.spec import Evaluation


@dataclass(frozen=True)
class Scored:
    """A question, its answer, the answer's scores (see `sft.evaluation.metrics.score`), and a judge's verdicts."""

    question: Question
    answer: Answer
    scores: dict[str, float]
    verdicts: dict[str, Verdict] = field(default_factory=dict)


@dataclass
class Answers:
    """All answers of one model.

    Args:
        rows: in the order of sources and rows.
        seconds: the time that generation took.
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
        """Share of correct values of each field of JSON references, in one source or in all rows."""
        rows = self.rows if source is None else self.of(source)
        return field_accuracies([row.answer.text for row in rows], [row.question.reference for row in rows])

    def judged(self, source: str | None = None) -> dict[str, float]:
        """Mean of the available verdicts, by metric, in one source or in all rows; {} without a judge."""
        rows = self.rows if source is None else self.of(source)
        return mean_scores({k: v.score for k, v in row.verdicts.items() if v.score is not None} for row in rows)

    @property
    def missing(self) -> list[tuple[Question, str, str]]:
        """(question, metric, reason) of each missing verdict."""
        return [(row.question, k, v.reason) for row in self.rows for k, v in row.verdicts.items() if not v.is_scored]

    def judge_metrics(self) -> dict[str, float]:
        """`judge_correctness` and so on, also per source where there are several; and the number of verdicts."""
        verdicts = sum(len(row.verdicts) for row in self.rows)
        if not verdicts:
            return {}
        figures = {f"judge_{name}": value for name, value in self.judged().items()}
        for source in self.sources if len(self.sources) > 1 else []:
            figures |= {f"judge_{source}_{name}": value for name, value in self.judged(source).items()}
        missing = len(self.missing)
        return {**figures, "judge_verdicts": verdicts - missing, "judge_missing": missing}

    def metrics(self, prefix: str = "eval_") -> dict[str, float]:
        """`{prefix}exact_match` and so on over all rows, and `{prefix}{source}_exact_match` of each source.

        Also `{prefix}answers`, how many there are, and `{prefix}stopped`, the share that the model itself ended; and
        what a judge said (`judge_metrics`).
        """
        if not self.rows:
            return {}
        figures = {f"{prefix}{name}": value for name, value in self.scores().items()}
        for source in self.sources:
            figures |= {f"{prefix}{source}_{name}": value for name, value in self.scores(source).items()}
        stopped = sum(row.answer.stopped for row in self.rows) / len(self.rows)
        counts = {f"{prefix}answers": len(self.rows), f"{prefix}stopped": stopped}
        return {**figures, **counts, **self.judge_metrics()}


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
    """Let the model answer the evaluation conversations of each source, and score the answers.

    Args:
        model: a causal language model; unchanged afterwards.
        tokenizer: its tokenizer.
        bound: the chat template it was trained with.
        sources: conversations by source name.
        spec: number of rows, length of answers, sampling.
        seed: of the draws, where temperature is above 0.
        progress: called with rows answered and rows in all, after each batch.
    """
    ask = _AnswerFunction(model, tokenizer, bound, spec, seed, progress)
    started = time.perf_counter()
    if spec.turns == "all":
        pairs = _replayed(bound, sources, spec.max_samples, ask)
    else:
        questions = [
            question
            for source, conversations in sources.items()
            for question in make_questions(bound, conversations, source, spec.max_samples)
        ]
        pairs = list(zip(questions, ask([question.prompt for question in questions]), strict=True))
    seconds = time.perf_counter() - started
    return Answers(
        [Scored(question, answer, score(answer.text, question.reference)) for question, answer in pairs], seconds
    )


@dataclass
class _AnswerFunction:
    """A model as a function from prompts to answers."""

    model: Any
    tokenizer: Any
    bound: Renders
    spec: Evaluation
    seed: int
    progress: Callable[[int, int], None] | None

    def __call__(self, prompts: Sequence[str]) -> list[Answer]:
        return answer_prompts(
            self.model,
            self.tokenizer,
            prompts,
            stop_tokens=self.bound.stop_tokens,
            batch_size=self.spec.batch_size,
            progress=self.progress,
            **asdict(self.spec.sampling(self.seed)),
        )


def _replayed(
    bound: Renders,
    sources: Mapping[str, Iterable[Mapping[str, Any]]],
    limit: int | None,
    ask: Callable[[Sequence[str]], list[Answer]],
) -> list[tuple[Question, Answer]]:
    """Every turn of every conversation, the model's own answers before it; turns without a reference are not scored."""
    chats = [
        (source, row, conversation)
        for source, conversations in sources.items()
        for row, conversation in enumerate(itertools.islice(conversations, limit))
        if conversation.get("messages")
    ]
    said: dict[tuple[int, int], tuple[str, Answer]] = {}

    def answer_all(histories: Sequence[list[dict[str, Any]]], which: Sequence[int], turn: int) -> list[str]:
        prompts = [
            bound.render({**chats[i][2], "messages": history}, add_generation_prompt=True)
            for i, history in zip(which, histories, strict=True)
        ]
        answers = ask(prompts)
        said.update({(i, turn): each for i, *each in zip(which, prompts, answers, strict=True)})  # type: ignore[misc]
        return [answer.text for answer in answers]

    turns = replay([conversation["messages"] for _, _, conversation in chats], answer_all)
    return [
        (Question(source, row, turn.messages, said[i, k][0], turn.reference, k), said[i, k][1])
        for i, (source, row, _) in enumerate(chats)
        for k, turn in enumerate(turns[i])
        if turn.reference is not None
    ]
