"""The config node `evaluation`: whether and how answers to the evaluation rows are generated. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from sft.config.errors import UserError, out_of_range, raise_all
from sft.evaluation.sampling import Sampling


@dataclass
class Evaluation:
    """How the evaluation rows are scored in addition to their loss.

    Args:
        generate: true lets the model answer the rows' prompts and scores the answers; `only` leaves out the loss.
        before: also generate answers of the model before training (of a finished run: without its adapter).
        before_samples: rows of each source that are answered before training, the first ones; null: as many as after.
        turns: `last` generates each conversation's last answer, after the data's earlier ones; `all` replays the
            conversation: every answer is generated, after the model's own earlier ones.
        max_samples: rows of each source that are answered, the first ones; null: all of them. Loss is over all rows.
        num_samples: answers shown in the terminal and in samples.html; every answer is in samples.jsonl.
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts answered together.
        temperature: 0 for the likeliest token each time (greedy); more draws at random.
        top_p: share of probability that tokens are drawn from, where temperature is above 0.
        top_k: number of tokens that are drawn from; 0 for all.
        repetition_penalty: above 1 makes tokens that were seen less likely.
    """

    generate: bool | Literal["only"] = False
    before: bool = False
    before_samples: int | None = None
    turns: Literal["last", "all"] = "last"
    max_samples: int | None = None
    num_samples: int = 5
    max_new_tokens: int = 256
    batch_size: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: all values out of range at once.
        """
        rules = {
            "generate": (self.generate in (True, False, "only"), "true, false or only"),
            "max_samples": (self.max_samples is None or self.max_samples >= 1, "1 or more, or null for all rows"),
            "before_samples": (
                self.before_samples is None or self.before_samples >= 1,
                "1 or more, or null for all rows",
            ),
            "num_samples": (self.num_samples >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
        }
        raise_all(out_of_range(self, rules, "evaluation.") + self.sampling().faults("evaluation."))

    def sampling(self, seed: int = 0) -> Sampling:
        """How the answers' tokens are drawn.

        Args:
            seed: of the draws.
        """
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")
        return Sampling(**{name: getattr(self, name) for name in names}, seed=seed)

    def of_before(self) -> Self:
        """The settings for the model before training: fewer rows where `before_samples` says so."""
        limits = [limit for limit in (self.max_samples, self.before_samples) if limit is not None]
        return replace(self, max_samples=min(limits, default=None))

    @property
    def generates(self) -> bool:
        """Whether answers are generated."""
        return bool(self.generate)

    @property
    def measures_loss(self) -> bool:
        """Whether the loss is measured."""
        return self.generate != "only"

    @property
    def benchmarks(self) -> LmEval | None:
        """The benchmarks to run."""
        return None


@dataclass
class LmEval(Evaluation):
    """`evaluation=lm_eval`: standard benchmarks beside the loss.

    Args:
        tasks: names of lm-eval's tasks, groups or tags, of tasks in `include_path`, or paths of task files.
        include_path: a directory with task files of the user's own. They may name Python functions, which are run.
        num_fewshot: examples before each question; null: as the task says.
        limit: questions of each task, the first ones; below 1 a share of them.
        apply_chat_template: ask in the tokenizer's chat template.
        loss: measure the loss on the evaluation rows too (`sft.evaluate`; a training measures it anyway).
    """

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    apply_chat_template: bool = False
    loss: bool = True

    def __post_init__(self) -> None:
        """Check the ranges. Raises UserError."""
        super().__post_init__()
        rules = {
            "tasks": (
                bool(self.tasks),
                "is empty",
                "evaluation.tasks=[arc_easy,hellaswag]; `lm-eval ls tasks` lists them",
            ),
            "num_fewshot": (self.num_fewshot is None or self.num_fewshot >= 0, "is out of range", "give 0 or more"),
            "limit": (
                self.limit is None or 0 < self.limit < 1 or (self.limit >= 1 and self.limit == int(self.limit)),
                "is out of range",
                "give a number of questions, or a share below 1",
            ),
        }
        raise_all(
            [
                UserError(f"{getattr(self, key)!r} {what}", where=f"evaluation.{key}", remedy=remedy)
                for key, (holds, what, remedy) in rules.items()
                if not holds
            ]
        )

    @property
    def measures_loss(self) -> bool:
        """Whether the loss is measured."""
        return self.loss and super().measures_loss

    @property
    def benchmarks(self) -> LmEval | None:
        """The benchmarks to run: these."""
        return self
