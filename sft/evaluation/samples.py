"""Every answer as a line of samples.jsonl, and a page to read them: samples.html."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator

from sft.drawing.page import page
from sft.evaluation.answers import Answers, Scored
from sft.evaluation.compare import by_question, pick, question_key

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
article { border-top: 1px solid #ccc; padding: .6em 0; }
h2 { font-size: 1em; margin: .2em 0; color: #666; font-weight: normal; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2em 0; padding: .4em .6em; background: #f6f6f6; }
.right { border-left: 4px solid #2a8a3e; } .wrong { border-left: 4px solid #c0392b; }
label { color: #666; font-size: .85em; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } pre { background: #262626; } }
"""


def sample_lines(after: Answers, before: Answers | None = None) -> Iterator[dict]:
    """Yield one record per answer: source, row, messages, prompt, reference, answer, stopped, scores.

    With a `before` also base_answer and base_scores, the answer of the model that training started from. With a judge
    also judge (and base_judge): score and reason by metric, a score of null where there is no verdict.
    """
    old = by_question(before)
    for row in after.rows:
        question = row.question
        line = {
            "source": question.source,
            "row": question.row,
            "turn": question.turn,
            "messages": question.messages,
            "prompt": question.prompt,
            "reference": question.reference,
            "answer": row.answer.text,
            "stopped": row.answer.stopped,
            "scores": row.scores,
        }
        if row.verdicts:
            line["judge"] = _verdicts(row)
        earlier = old.get(question_key(question))
        if earlier:
            line |= {"base_answer": earlier.answer.text, "base_scores": earlier.scores}
            if earlier.verdicts:
                line["base_judge"] = _verdicts(earlier)
        yield line


def samples_jsonl(after: Answers, before: Answers | None = None) -> str:
    """The text of samples.jsonl."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in sample_lines(after, before))


def samples_html(
    after: Answers, before: Answers | None = None, count: int | None = None, title: str = "Answers"
) -> str:
    """The text of samples.html, self-contained; everything from the data or a model is escaped.

    Args:
        after: answers to show.
        before: answers of the model that training started from.
        count: how many rows, spread over the sources; None for all.
        title: the page's heading.
    """
    rows = after.rows if count is None else pick(after, count)
    old = by_question(before)
    articles = [_article(row, old.get(question_key(row.question))) for row in rows]
    return page(title, _STYLE, f"<p>{len(rows)} of {len(after.rows)} answers</p>{''.join(articles)}")


def _article(row: Scored, earlier: Scored | None) -> str:
    question = row.question
    parts = [f"<h2>{html.escape(question.source)}, row {question.row + 1}</h2>"]
    for message in question.messages:
        parts.append(_block(str(message["role"]), str(message.get("content") or "")))
    parts.append(_block("expected", question.reference))
    if earlier:
        parts.append(_block("before", earlier.answer.text, _mark(earlier)))
        parts.append(_judged(earlier))
    parts.append(_block("answer", row.answer.text, _mark(row)))
    parts.append(_judged(row))
    return f"<article>{''.join(parts)}</article>"


def _verdicts(row: Scored) -> dict[str, dict]:
    return {name: {"score": verdict.score, "reason": verdict.reason} for name, verdict in row.verdicts.items()}


def _judged(row: Scored) -> str:
    lines = [
        f"{name} {'-' if verdict.score is None else format(verdict.score, '.2f')}: {verdict.reason}"
        for name, verdict in row.verdicts.items()
    ]
    return _block("judge", "\n".join(lines)) if lines else ""


def _block(label: str, text: str, kind: str = "") -> str:
    return f'<label>{html.escape(label)}</label><pre class="{kind}">{html.escape(text)}</pre>'


def _mark(row: Scored) -> str:
    return "right" if row.scores["exact_match"] else "wrong"
