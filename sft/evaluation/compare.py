"""Two models' answers to the same questions, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sft.config.text import printable, shortened
from sft.evaluation.answers import Answers, Scored
from sft.evaluation.questions import Question

# The scores in the table, and their titles.
_SHOWN = {
    "exact_match": "exact match",
    "json_match": "same JSON",
    "json_valid": "valid JSON",
    "json_field_accuracy": "JSON fields",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
}
_WIDEST = 60  # characters of a text in the terminal


def loss_table(
    after: Mapping[str, float],
    before: Mapping[str, float] | None = None,
    names: tuple[str, str] = ("before", "after"),
    prefix: str = "eval_",
) -> str:
    """A table of loss, perplexity and token accuracy: one line per part and model.

    Args:
        after: figures as `sft.evaluation.loss.evaluate_loss` gives them.
        before: those of the model before training.
        names: of the two models.
        prefix: of the figures' names.
    """
    every = [name.removeprefix(prefix) for name in after if name.endswith("loss")]
    parts = [name.removesuffix("loss") for name in sorted(every, key=lambda name: name == "loss")]
    lines = []
    for part in parts:
        place = part.removesuffix("_") or "all"
        for name, figures in ((names[0], before), (names[1], after)):
            if figures:
                loss, share = figures[f"{prefix}{part}loss"], figures[f"{prefix}{part}token_accuracy"]
                row = [f"{loss:.4f}", f"{figures[f'{prefix}{part}perplexity']:.2f}", _percent(share)]
                lines.append([place, *([name] if before else []), *row])
                place = ""
    return format_table(["part", *(["model"] if before else []), "loss", "perplexity", "token accuracy"], lines)


def score_table(after: Answers, before: Answers | None = None, names: tuple[str, str] = ("before", "after")) -> str:
    """A table of mean scores by source: one line per score, with the change where there is a `before`.

    Args:
        after: the answers of the model that was trained.
        before: those of the model before training, to the same questions.
        names: headings of both. The first says where `before` has fewer rows.
    """
    header = ["part", "rows", "score", *([_heading(names[0], before, after)] if before else []), names[1]]
    lines = []
    for source in [*after.sources, *([None] if len(after.sources) > 1 else [])]:
        new, old = _all_scores(after, source), _all_scores(before, source) if before else {}
        rows = len(after.rows if source is None else after.of(source))
        labels = {**_SHOWN, **{name: f"  {name.removeprefix('field ')}" for name in new if name.startswith("field ")}}
        labels |= {name: _judged_label(name) for name in new if name.startswith("judge ")}
        shown = [(label, name) for name, label in labels.items() if name in new]
        for i, (label, name) in enumerate(shown):
            place = [source or "all", str(rows)] if i == 0 else ["", ""]
            lines.append([*place, label, *([_percent(old.get(name))] if before else []), _percent(new[name])])
    return format_table(header, lines)


def _heading(name: str, before: Answers, after: Answers) -> str:
    """The heading of the scores before training, with the number of rows per source where they are fewer than after."""
    counts = {len(before.of(source)) for source in after.sources}
    if len(before.rows) == len(after.rows):
        return name
    return f"{name} (first {'-'.join(map(str, sorted(counts)))})"


def sample_table(
    after: Answers, before: Answers | None = None, count: int = 5, names: tuple[str, str] = ("before", "after")
) -> str:
    """Show a few questions with the expected answer and each model's, spread evenly over the sources."""
    width = max(map(len, ("expected", *names))) + 2
    old = by_question(before)
    blocks = []
    for row in pick(after, count):
        question = row.question
        earlier = old.get(question_key(question))
        lines = [f"[{_printable(question.source)}] {_short(_asked(question.messages), 2 * _WIDEST)}"]
        lines.append(f"  {'expected':{width}}{_short(question.reference)}")
        if earlier:
            lines.append(f"  {names[0]:{width}}{_short(earlier.answer.text)}")
        differs = "" if row.scores["exact_match"] else "   (differs)"
        lines.append(f"  {names[1]:{width}}{_short(row.answer.text)}{differs}")
        if row.verdicts:
            lines.append(f"  {'judged':{width}}{_short(verdict_line(row))}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def question_key(question: Question) -> tuple[str, int, int]:
    """The identity of a question."""
    return question.source, question.row, question.turn


def by_question(answers: Answers | None) -> dict[tuple[str, int, int], Scored]:
    """Rows by the key of their question."""
    return {question_key(row.question): row for row in answers.rows} if answers else {}


def verdict_line(row: Scored) -> str:
    """A judge's scores in one line, with the reason of the first."""
    scores = ", ".join(f"{k} {'-' if v.score is None else format(v.score, '.2f')}" for k, v in row.verdicts.items())
    return f"{scores}: {next(iter(row.verdicts.values())).reason}"


def missing_table(answers: Answers, most: int = 10) -> str:
    """The missing verdicts with their reasons, in at most `most` lines; all are in samples.jsonl."""
    lines = [f"  {q.source} row {q.row + 1}, {metric}: {_short(why)}" for q, metric, why in answers.missing[:most]]
    more = len(answers.missing) - most
    return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])


def pick(answers: Answers, count: int) -> list:
    """The first rows of each source in turn, `count` in all."""
    columns = [answers.of(source) for source in answers.sources]
    longest = max(map(len, columns), default=0)
    turns = [column[i] for i in range(longest) for column in columns if i < len(column)]
    return turns[:count]


def format_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Align columns with two spaces between them; figures to the right, words to the left."""
    table = [[_printable(cell) for cell in line] for line in (header, *lines)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    right = [bool(lines) and all(_is_figure(row[i]) for row in lines) for i in range(len(header))]
    out = []
    for row in table:
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        out.append("  ".join(cells).rstrip())
    out.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(out)


def _all_scores(answers: Answers, source: str | None) -> dict[str, float]:
    judged = {f"judge {name}": value for name, value in answers.judged(source).items()}
    return {**answers.scores(source), **_by_field(answers, source), **judged}


def _judged_label(name: str) -> str:
    from sft.evaluation.judges.rubrics import RUBRICS

    metric = name.removeprefix("judge ")
    lower = metric in RUBRICS and RUBRICS[metric].lower_is_better
    return f"judge: {metric.replace('_', ' ')}" + (" (lower is better)" if lower else "")


def _by_field(answers: Answers, source: str | None) -> dict[str, float]:
    """Accuracy of each field, where the references share few fields; many different ones would fill the screen."""
    fields = answers.fields(source)
    return {f"field {name}": value for name, value in fields.items()} if len(fields) <= 8 else {}


def _asked(messages: Sequence[dict]) -> str:
    return str(messages[-1].get("content") or "")


def _short(text: str, width: int = 2 * _WIDEST) -> str:
    return shortened(_printable(" ".join(text.split())), width)


def _printable(text: str) -> str:
    return printable(text, "\N{REPLACEMENT CHARACTER}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _is_figure(cell: str) -> bool:
    return cell in ("", "-") or cell.removesuffix("%").replace(".", "").isdigit()
