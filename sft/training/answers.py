"""The model's answers to the evaluation rows before and after training, where `evaluation.generate` asks for them."""

from __future__ import annotations

import logging
from typing import Any

from sft.config.run_config import RunConfig
from sft.config.source_code.class_attributes import class_attribute
from sft.data.conversations import evaluation_conversations
from sft.distributed.ranks import Ranks
from sft.evaluation.answers import Answers, evaluate_generation
from sft.evaluation.benchmarks import Benchmarks, benchmark_files, benchmark_table, run_benchmarks
from sft.evaluation.compare import sample_table, score_table
from sft.evaluation.samples import samples_html, samples_jsonl
from sft.evaluation.spec import Evaluation
from sft.run.directory import RunDirectory
from sft.training.inputs import Inputs

log = logging.getLogger(__name__)


class AnswerEvaluation:
    """Has the model answer the evaluation rows, before and after training.

    Args:
        spec: the config node `evaluation`; with None or `generate=false` nothing is generated.
        inputs: the run's rows and template.
        seed: for sampling, if the temperature is above 0.
    """

    def __init__(self, spec: Evaluation | None, inputs: Inputs, seed: int) -> None:
        self.spec, self.inputs, self.seed = spec, inputs, seed
        self.before: Answers | None = None
        self.after: Answers | None = None
        self.benched: Benchmarks | None = None
        self.benched_before: Benchmarks | None = None
        self._conversations: dict[str, list[dict[str, Any]]] | None = None

    @property
    def enabled(self) -> bool:
        """Whether anything is to be generated."""
        return self.spec is not None and self.spec.generates and bool(self.inputs.data.eval)

    def evaluate_before(self, model: Any, ranks: Ranks) -> None:
        """Get the untrained model's answers and benchmarks if `evaluation.before` is on; rank 0 generates, the others
        wait."""
        if self.spec is None or not self.spec.before:
            return
        if self.enabled:
            fewer = self.spec.of_before()
            self.before = ranks.run_on_main_and_broadcast(lambda: self._generate(model, fewer, "before training"))
        self.benched_before = ranks.run_on_main_and_broadcast(lambda: self._run_benchmarks(model, "before training"))

    def evaluate_after(self, model: Any) -> dict[str, float]:
        """Get the trained model's answers and benchmarks, and return their metrics (eval_exact_match, ...), {} without
        any."""
        self.benched = self._run_benchmarks(model, "after training")
        benched = self.benched.metrics() if self.benched else {}
        if self.benched_before is not None:
            benched |= {f"before_{name}": value for name, value in self.benched_before.metrics().items()}
        return {**self._answer_figures(model), **benched}

    def _answer_figures(self, model: Any) -> dict[str, float]:
        if not self.enabled:
            return {}
        assert self.spec is not None
        self.after = self._generate(model, self.spec, "after training")
        figures = self.after.metrics()
        if self.before is not None:
            figures |= {f"before_{name}": value for name, value in self.before.metrics(prefix="eval_").items()}
        return figures

    def exact_matches(self) -> dict[str, list[float]]:
        """Of each source whether the trained model's answer is the expected one, 1 or 0, by row."""
        if self.after is None:
            return {}
        return {name: [row.scores["exact_match"] for row in self.after.of(name)] for name in self.after.sources}

    def write(self, run: RunDirectory) -> None:
        """Write samples.jsonl and samples.html, and print the tables to stderr."""
        if self.benched is not None:
            for name, text in benchmark_files(self.benched, self.benched_before).items():
                run.write_text(name, text)
            log.info("benchmarks:\n%s", benchmark_table(self.benched, self.benched_before))
        if self.after is None or self.spec is None:
            return
        run.write_text(run.samples_jsonl, samples_jsonl(self.after, self.before))
        run.write_text("samples.html", samples_html(self.after, self.before, count=self.spec.num_samples))
        for table in (
            score_table(self.after, self.before),
            sample_table(self.after, self.before, self.spec.num_samples),
        ):
            log.info("answers:\n%s", table)

    def _run_benchmarks(self, model: Any, when: str) -> Benchmarks | None:
        if self.spec is None or self.spec.benchmarks is None:
            return None
        found = run_benchmarks(model, self.inputs.tokenizer, self.spec.benchmarks)
        log.info("benchmarks %s in %.1f s", when, found.seconds)
        return found

    def _generate(self, model: Any, spec: Evaluation, when: str) -> Answers:
        inputs = self.inputs
        if self._conversations is None:
            assert self.spec is not None
            self._conversations = evaluation_conversations(inputs.dataset, inputs.data.eval, self.spec.max_samples)
        answers = evaluate_generation(
            model, inputs.tokenizer, inputs.template, self._conversations, spec, seed=self.seed
        )
        log.info("%d answers %s in %.1f s", len(answers.rows), when, answers.seconds)
        return answers


def sample_conversations_for_callbacks(inputs: Inputs, count: int, config: RunConfig) -> list[dict[str, Any]]:
    """A few evaluation conversations for callbacks that show generations; [] if no callback does."""
    nodes = [node for node in (config.callbacks or {}).values() if node]
    if not any(class_attribute(node.get("_target_"), "wants_examples") for node in nodes):
        return []
    found = evaluation_conversations(inputs.dataset, inputs.data.eval, count)
    return [conversation for conversations in found.values() for conversation in conversations][:count]
