"""The embedded dataset: deterministic, varied, with disjoint parts and records determined by the text."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.data.tickets import PARTS, SYSTEM, generate
from sft.data.tickets.names import HELD_OUT_NAMES, HELD_OUT_SURNAMES, TRAIN_NAMES, TRAIN_SURNAMES
from sft.data.tickets.phrases import CLOSINGS, DISTRACTORS, ISSUES, OPENINGS, PRODUCTS, UNNAMED, URGENCIES, Phrases
from sft.data.tickets.typos import misspell


def text_of(row: dict) -> str:
    return row["messages"][-2]["content"]


def record_of(row: dict) -> dict:
    return json.loads(row["messages"][-1]["content"])


def test_first_rows_are_the_same_on_every_machine() -> None:
    rows = {part: next(iter(generate(part, 1)))["messages"][1:] for part in PARTS}
    assert rows == FIRST_ROWS


@given(part=st.sampled_from(PARTS), few=st.integers(0, 30), more=st.integers(0, 30), seed=st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_rows_repeat_differ_and_begin_alike(part: str, few: int, more: int, seed: int) -> None:
    tickets = generate(part, few + more, seed)
    rows = list(tickets)
    assert len(rows) == len(tickets) == few + more
    assert list(tickets) == rows
    assert list(generate(part, few, seed)) == rows[:few]
    assert len({text_of(row) for row in rows}) == len(rows)


def test_another_seed_gives_other_rows() -> None:
    assert list(generate("train", 5, 0)) != list(generate("train", 5, 1))


def test_rows_are_conversations_with_a_strict_record() -> None:
    products, issues, urgencies = {*PRODUCTS, None}, set(ISSUES), {*URGENCIES, None}
    for part in PARTS:
        for row in generate(part, 300):
            system, user, assistant = row["messages"]
            assert (system["role"], user["role"], assistant["role"]) == ("system", "user", "assistant")
            assert system["content"] == SYSTEM
            record = record_of(row)
            assert assistant["content"] == json.dumps(record)
            assert list(record) == ["customer", "product", "issue", "urgency"]
            assert record["product"] in products
            assert record["issue"] in issues
            assert record["urgency"] in urgencies


def test_no_system_message_if_disabled() -> None:
    row = next(iter(generate("train", 1, system="")))
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


def _spoken(templates: tuple[str, ...], text: str) -> bool:
    """Whether one of the templates stands in the text: a name in the slot for a name, anything in others."""
    for template in templates:
        pattern = re.escape(template).replace(re.escape("{name}"), r"(?-i:[A-Z]\w+( [A-Z]\w+)?)")
        if re.search(re.sub(r"\\\{\w+\\\}", ".+?", pattern), text, re.IGNORECASE):
            return True
    return False


def _ways(phrases: Phrases, part: str, varied: bool) -> tuple[str, ...]:
    """What a part may say: its column of the table, and the further phrasings where they are asked for."""
    return phrases.unseen if part == "unseen" else phrases.known + (phrases.further if varied else ())


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_the_record_depends_only_on_the_text(part: str, varied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.data.tickets.compose.MISSPELLED", 0)
    for row in generate(part, 400, varied=varied):
        text, record = text_of(row), record_of(row)
        named = [t for t in (*_ways(OPENINGS, part, varied), *_ways(CLOSINGS, part, varied)) if _spoken((t,), text)]
        if record["customer"]:
            assert any(t.format(name=record["customer"]) in text for t in named)
        else:
            assert not named
        said = [issue for issue, phrases in ISSUES.items() if _spoken(_ways(phrases, part, varied), text)]
        assert said == [record["issue"]]
        called = _ways(PRODUCTS.get(record["product"], UNNAMED), part, varied)
        assert any(
            phrase.format(p=word).lower() in text.lower()
            for word in called
            for phrase in _ways(ISSUES[record["issue"]], part, varied)
        )
        hurry = [level for level, phrases in URGENCIES.items() if _spoken(_ways(phrases, part, varied), text)]
        assert hurry == ([record["urgency"]] if record["urgency"] else [])


def test_every_field_is_sometimes_missing_and_usually_there() -> None:
    records = [record_of(row) for row in generate("train", 1000)]
    for name in ("customer", "product", "issue", "urgency"):
        missing = sum(record[name] is None for record in records) / len(records)
        assert 0.05 < missing < 0.3, name


def test_thousands_of_varied_rows() -> None:
    rows = list(generate("train", 4000))
    assert len({text_of(row) for row in rows}) == 4000
    values = [{record_of(row)[name] for row in rows} for name in ("product", "issue", "urgency")]
    assert [len(column) for column in values] == [len(PRODUCTS) + 1, len(ISSUES), len(URGENCIES) + 1]
    assert len({record_of(row)["customer"] for row in rows}) > 500


def test_parts_share_no_row_and_no_customer() -> None:
    train = list(generate("train", 3000))
    known = list(generate("known", 500))
    unseen = list(generate("unseen", 500))
    assert not {text_of(row) for row in train} & {text_of(row) for row in known + unseen}
    names = [{record_of(row)["customer"] for row in rows} - {None} for rows in (train, known, unseen)]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not set(TRAIN_NAMES) & set(HELD_OUT_NAMES)
    assert not set(TRAIN_SURNAMES) & set(HELD_OUT_SURNAMES)


def test_known_part_has_known_phrasings_in_unseen_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.data.tickets.compose.MISSPELLED", 0)

    def pairs(part: str) -> set[tuple[str, str]]:
        found = set()
        for row in generate(part, 3000):
            record, text = record_of(row), text_of(row)
            phrase = next(p for p in ISSUES[record["issue"]].known if _spoken((p,), text))
            unnamed = [word for word in UNNAMED.known if phrase.format(p=word).lower() in text.lower()]
            found.add((record["product"] or unnamed[0], phrase))
        return found

    train, known = pairs("train"), pairs("known")
    assert not train & known
    assert {phrase for _, phrase in train} == {phrase for _, phrase in known}
    assert {product for product, _ in train} == {product for product, _ in known} == {*PRODUCTS, *UNNAMED.known}


def test_unseen_phrasings_are_not_known_ones() -> None:
    for phrases in (*ISSUES.values(), *URGENCIES.values(), UNNAMED, OPENINGS, CLOSINGS, DISTRACTORS):
        assert phrases.known
        assert phrases.unseen
        for phrase in phrases.unseen:
            assert not _spoken(phrases.known + phrases.further, phrase), phrase


def test_varied_rows_use_every_further_phrasing_and_leave_the_unseen_part_as_it_is() -> None:
    assert list(generate("unseen", 100, varied=True)) == list(generate("unseen", 100))
    texts = "\n".join(text_of(row).lower() for row in generate("train", 4000, varied=True))
    for phrases in (*ISSUES.values(), *URGENCIES.values()):
        assert all(_spoken((phrase,), texts) for phrase in phrases.further)


def test_an_unknown_part_or_negative_rows_are_user_errors() -> None:
    with pytest.raises(UserError, match="no part 'test'"):
        generate("test", 3)
    with pytest.raises(UserError, match="-1 rows"):
        generate("train", -1)


@given(sentence=st.text("abcdeXY ", max_size=40), seed=st.integers())
def test_a_typo_changes_one_long_lower_case_word_after_its_first_letter(sentence: str, seed: int) -> None:
    from random import Random

    before, after = sentence.split(" "), misspell(Random(seed), sentence).split(" ")
    changed = [(b, a) for b, a in zip(before, after, strict=True) if a != b]
    assert len(changed) == any(len(word) >= 5 and word.isalpha() and word.islower() for word in before)
    for b, a in changed:
        assert len(b) >= 5
        assert b.islower()
        assert a[0] == b[0]
        assert abs(len(a) - len(b)) <= 1


FIRST_ROWS: dict[str, list[dict[str, str]]] = {
    "train": [
        {
            "role": "user",
            "content": "I want my mnoey back for my router! I bought it in May. I need it by Friday.\n"
            "Yours,\n"
            "Walter Lee",
        },
        {
            "role": "assistant",
            "content": '{"customer": "Walter Lee", "product": "router", "issue": "refund", "urgency": "normal"}',
        },
    ],
    "known": [
        {"role": "user", "content": "The sound of my mobile crackles.\nThanks,\nXavier Quinn"},
        {
            "role": "assistant",
            "content": '{"customer": "Xavier Quinn", "product": "phone", "issue": "sound", "urgency": null}',
        },
    ],
    "unseen": [
        {"role": "user", "content": "There is a hiss in every song on my portable computer.\nCheers,\nHarriet"},
        {
            "role": "assistant",
            "content": '{"customer": "Harriet", "product": "laptop", "issue": "sound", "urgency": null}',
        },
    ],
}
