"""How close an answer is to its reference: text metrics in pure Python, without a model.

Every metric is between 0 and 1, higher is better. JSON metrics exist only where the reference is a JSON object or
array, so that their mean covers only such rows.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

# A word, or a single character of a script that writes without spaces (Chinese, Japanese kana).
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
)

_DEEPEST = 100  # levels of nested JSON, so that hostile answers cannot hit Python's recursion limit


def words(text: str) -> list[str]:
    """Split into lower-case words without punctuation; unspaced scripts fall into single characters."""
    return _TOKEN.findall(text.casefold())


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both are the same text but for white space around them."""
    return float(answer.strip() == reference.strip())


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the bags of words, as SQuAD scores answers (Rajpurkar et al., 2016).

    Articles are kept, since not every language has them. Two texts that hold no words match.
    """
    got, want = words(answer), words(reference)
    shared = sum((Counter(got) & Counter(want)).values())
    return _f_measure(shared, len(got), len(want))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L's F1 (Lin, 2004): the longest common subsequence of words against both lengths."""
    got, want = words(answer), words(reference)
    return _f_measure(longest_common_subsequence(got, want), len(got), len(want))


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one bit per word of `a` (Hyyrö, 2004: bit-parallel in len(b) steps)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    row = every  # a zero bit marks a place of `a` where the subsequence grows by one
    for word in b:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(a) - row.bit_count()


def parse_json(text: str) -> Any:
    """Return the text's JSON value, which may be surrounded only by white space.

    Raises:
        ValueError: anything else, NaN and Infinity included, which are not JSON.
    """

    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level, depth = [value], 0
    while level := [child for v in level if isinstance(v, dict | list) for child in _children(v)]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
    return value


def json_fields(value: Any, path: str = "") -> dict[str, Any]:
    """Flatten objects and arrays to their leaves by path: `{"a": {"b": [1]}}` is `{"a.b[0]": 1}`.

    Empty objects and arrays count as leaves.
    """
    if isinstance(value, dict) and value:
        parts = ((f"{path}.{key}" if path else str(key), child) for key, child in value.items())
    elif isinstance(value, list) and value:
        parts = ((f"{path}[{i}]", child) for i, child in enumerate(value))
    else:
        return {path: value}
    return {name: leaf for where, child in parts for name, leaf in json_fields(child, where).items()}


def same_json(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal; true is not 1, 1 is 1.0."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    return bool(a == b)


def field_matches(answer: str, reference: Any) -> dict[str, float]:
    """For each leaf of the parsed reference 1.0 where the answer has the same value there; all 0.0 if it is not
    JSON."""
    wanted = json_fields(reference)
    try:
        got = json_fields(parse_json(answer))
    except ValueError:
        return dict.fromkeys(wanted, 0.0)
    return {path: float(path in got and same_json(got[path], value)) for path, value in wanted.items()}


def score(answer: str, reference: str) -> dict[str, float]:
    """Score one answer: exact_match, f1, rouge_l, and for a JSON reference json_valid, json_match, json_field_accuracy.

    json_match is 1.0 for the same value in any formatting and order.
    """
    figures = {
        "exact_match": exact_match(answer, reference),
        "f1": token_f1(answer, reference),
        "rouge_l": rouge_l(answer, reference),
    }
    wanted = _json_reference(reference)
    if wanted is None:
        return figures
    fields = field_matches(answer, wanted)
    try:
        value = parse_json(answer)
        valid, equal = 1.0, float(same_json(value, wanted))
    except ValueError:
        valid = equal = 0.0
    accuracy = sum(fields.values()) / len(fields)
    return {**figures, "json_valid": valid, "json_match": equal, "json_field_accuracy": accuracy}


def mean_scores(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    """Average each metric over the rows that have it."""
    values: dict[str, list[float]] = {}
    for row in scores:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: sum(column) / len(column) for name, column in values.items()}


def field_accuracies(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Share of rows in which each field of the JSON references is correct, by the field's path; {} without any."""
    rows = [(answer, _json_reference(reference)) for answer, reference in zip(answers, references, strict=True)]
    return mean_scores(field_matches(answer, wanted) for answer, wanted in rows if wanted is not None)


def perplexity(loss: float) -> float:
    """exp of the mean loss per token (nats); infinite where it overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _children(value: dict | list) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _f_measure(shared: int, got: int, wanted: int) -> float:
    if got == wanted == 0:
        return 1.0
    return 2 * shared / (got + wanted)


def _json_reference(reference: str) -> dict | list | None:
    """The reference's value where it is a JSON object or array; numbers and words are plain text."""
    try:
        value = parse_json(reference)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None
