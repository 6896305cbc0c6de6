"""The results of an evaluation: metrics.json, samples.jsonl, samples.html, and the tables for the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.evaluation.benchmarks import benchmark_files, benchmark_table
from sft.evaluation.compare import loss_table, missing_table, sample_table, score_table
from sft.evaluation.samples import samples_html, samples_jsonl
from sft.inference.evaluate_model import ModelMetrics
from sft.inference.model_source import ModelSource
from sft.run.directory import RunDirectory
from sft.run.record import now

NAMES = ("base", "fine-tuned")  # headings where both models are shown


@dataclass
class Evaluated:
    """The results of one evaluation.

    Attributes:
        directory: where it was written.
        model_source: the evaluated model.
        after: its metrics.
        before: those of the model before training, if requested.
        shown: answers shown in the terminal and in samples.html.
        facts: further entries at the top of metrics.json (the judge).
    """

    directory: Path
    model_source: ModelSource
    after: ModelMetrics
    before: ModelMetrics | None = None
    shown: int = 5
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json; metrics of the base have the prefix `before_`."""
        run = self.model_source.run
        facts = {
            "status": "finished",
            **self.facts,
            "model": self.model_source.name,
            "run": str(run.path) if run else None,
        }
        earlier = self.before.metrics() if self.before else {}
        return {
            **facts,
            "evaluated": now(),
            **self.after.metrics(),
            **{f"before_{name}": value for name, value in earlier.items()},
        }

    @property
    def missing(self) -> str:
        """A message on missing verdicts; "" where there are none."""
        sets = [figures.answers for figures in (self.before, self.after) if figures and figures.answers]
        missing = sum(len(answers.missing) for answers in sets)
        if not missing:
            return ""
        asked = sum(len(row.verdicts) for answers in sets for row in answers.rows)
        listed = "\n".join(table for answers in sets if (table := missing_table(answers)))
        return (
            f"{missing} of {asked} verdicts are missing, the others are scored:\n{listed}\n"
            "the same command asks for these again, and for no others"
        )

    def __str__(self) -> str:
        """The tables, and the directory in the last line."""
        parts = []
        if self.after.loss:
            parts.append(loss_table(self.after.loss, self.before.loss if self.before else None, NAMES))
        elif self.after.benchmarks is None:
            parts.append("the loss was left out (evaluation.generate=only)")
        if self.after.benchmarks is not None:
            old = self.before.benchmarks if self.before else None
            parts.append(benchmark_table(self.after.benchmarks, old, NAMES if old else ("", "score")))
        if self.after.answers is not None:
            earlier = self.before.answers if self.before else None
            parts.append(score_table(self.after.answers, earlier, NAMES if earlier else ("", "score")))
            parts.append(sample_table(self.after.answers, earlier, self.shown, NAMES if earlier else ("", "answer")))
        elif self.after.benchmarks is None:
            parts.append(
                "no answers were generated: evaluation=generate scores them, evaluation=compare also the base's"
            )
        return "\n\n".join(part for part in [*parts, str(self.directory)] if part)


def free_directory(run: RunDirectory) -> RunDirectory:
    """The directory, or a numbered one if its name comes from the clock and another evaluation of this second has
    it."""
    path, number = run.path, 1
    while path.parent.name == "evaluations" and (path / "metrics.json").exists():
        number += 1
        path = run.path.with_name(f"{run.path.name}-{number}")
    return RunDirectory(path)


def write(directory: RunDirectory, found: Evaluated, status: str = "finished") -> None:
    """Write the results (the results so far, with another `status`)."""
    directory.write_json(directory.metrics_json, {**found.metrics, "status": status})
    if found.after.benchmarks is not None:
        old = found.before.benchmarks if found.before else None
        for name, text in benchmark_files(found.after.benchmarks, old).items():
            directory.write_text(name, text)
    if found.after.answers is None:
        return
    earlier = found.before.answers if found.before else None
    directory.write_text(directory.samples_jsonl, samples_jsonl(found.after.answers, earlier))
    directory.write_text(
        "samples.html",
        samples_html(found.after.answers, earlier, count=found.shown, title=f"Answers of {found.model_source.name}"),
    )
