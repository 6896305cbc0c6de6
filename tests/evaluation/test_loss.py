"""Loss per trained token: equal to that of full logits, for any batches and packs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft.evaluation.loss import TokenTotals, evaluate_loss, measure

pytestmark = pytest.mark.numeric


def make_rows(count: int = 7, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of different lengths, the first third of each untrained."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        ids = torch.randint(4, 260, (5 + 4 * i,), generator=generator).tolist()
        start = len(ids) // 3
        rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return rows


def expected(model: Any, rows: list[dict[str, list[int]]]) -> TokenTotals:
    """The obvious way: one row, all logits, a shift."""
    total = TokenTotals()
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double()
        targets = torch.tensor(row["labels"][1:])
        kept = targets != -100
        loss = torch.nn.functional.cross_entropy(logits[kept], targets[kept], reduction="sum")
        total += TokenTotals(loss.item(), int((logits[kept].argmax(-1) == targets[kept]).sum()), int(kept.sum()))
    return total


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "qwen3"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_totals_are_those_of_full_logits(architecture: str, batch_size: int, build_model: Any) -> None:
    model, rows = build_model(architecture), make_rows()
    got = sum(measure(model, rows, batch_size=batch_size), TokenTotals())
    want = expected(model, rows)
    assert got.tokens == want.tokens == sum(label != -100 for row in rows for label in row["labels"])
    assert got.correct == want.correct
    assert got.mean_loss == pytest.approx(want.mean_loss, rel=1e-5)


def test_packs_count_as_their_documents(build_model: Any) -> None:
    model, rows = build_model(), make_rows(4)
    packed = {
        "input_ids": [t for row in rows for t in row["input_ids"]],
        "labels": [t for row in rows for t in row["labels"]],
        "lengths": [len(row["input_ids"]) for row in rows],
    }
    whole, apart = evaluate_loss(model, {"a": [packed]}), evaluate_loss(model, {"a": rows})
    assert whole == pytest.approx(apart, rel=1e-6)


def test_sources_are_separate_and_weighted_by_tokens(build_model: Any) -> None:
    model = build_model()
    known, unseen = make_rows(3, seed=1), make_rows(5, seed=2)
    found = evaluate_loss(model, {"known": known, "unseen": unseen}, batch_size=2)
    for name, rows in (("known_", known), ("unseen_", unseen), ("", known + unseen)):
        want = expected(model, rows)
        assert found[f"eval_{name}loss"] == pytest.approx(want.mean_loss, rel=1e-5)
        assert found[f"eval_{name}perplexity"] == pytest.approx(math.exp(want.mean_loss), rel=1e-4)
        assert found[f"eval_{name}token_accuracy"] == want.accuracy
    assert set(evaluate_loss(model, {"only": known})) == {"eval_loss", "eval_perplexity", "eval_token_accuracy"}


def test_a_model_with_full_logits_gives_the_same_loss(build_model: Any) -> None:
    model, rows = build_model(), make_rows(3)

    class Plain(torch.nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

        def get_input_embeddings(self) -> Any:
            return model.get_input_embeddings()

    assert evaluate_loss(Plain(), {"a": rows}) == pytest.approx(evaluate_loss(model, {"a": rows}), rel=1e-6)


def test_rows_without_a_trained_token_add_nothing(build_model: Any) -> None:
    model, rows = build_model(), make_rows(2)
    silent = [{"input_ids": [5, 6, 7], "labels": [-100] * 3}, {"input_ids": [5], "labels": [5]}]
    assert evaluate_loss(model, {"a": rows + silent}) == pytest.approx(evaluate_loss(model, {"a": rows}), rel=1e-6)
    assert math.isnan(evaluate_loss(model, {"a": silent})["eval_loss"])


def test_the_model_stays_in_training_mode(build_model: Any) -> None:
    model = build_model("gpt2")  # it has dropout
    model.train()
    state = torch.get_rng_state()
    first, second = (evaluate_loss(model, {"a": make_rows(3)}) for _ in range(2))
    assert first == second
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 5), st.integers(5, 9)), max_size=6))
def test_totals_add_up(parts: list[tuple[float, int, int]]) -> None:
    total = sum((TokenTotals(*part) for part in parts), TokenTotals())
    assert total.tokens == sum(part[2] for part in parts)
    assert total.correct == sum(part[1] for part in parts)
    assert math.isnan(total.mean_loss) == (total.tokens == 0)
