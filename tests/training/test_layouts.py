"""The same rows packed, padded and apart: the same loss and gradients, however a step is split."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.config.errors import UserError
from sft.data.collate import FlatCollator
from sft.data.documents import Documents, Rows, Tokens
from sft.data.packing import pack
from sft.model.tiny import ARCHITECTURES, locate_tiny
from sft.training.isolation import check_isolation
from sft.training.trainer import SftTrainer

LENGTHS = (70, 11, 40, 25, 33, 9, 52, 2)  # longer than the tiny models' sliding windows, and as short as can be


def rows_of(lengths=LENGTHS, capacity: int | None = None) -> Rows:
    """Documents of random tokens, two thirds of each trained; packed where a capacity is given."""
    draw = np.random.default_rng(3)
    total = sum(lengths)
    trained = np.concatenate([np.arange(n) >= n // 3 for n in lengths]).astype(np.uint8)
    counts = np.asarray(lengths, np.int64)
    starts = np.cumsum(counts) - counts
    some = np.zeros(len(lengths), np.int32)
    wide = np.arange(len(lengths), dtype=np.int64)
    labels = np.array([int(trained[s + 1 : s + n].sum()) for s, n in zip(starts, counts, strict=True)])
    documents = Documents(some, starts, counts, labels, wide + 1, some, wide, wide.astype(np.uint64))
    tokens = Tokens(draw.integers(20, 1000, total).astype(np.int32), trained)
    packs = None if capacity is None else pack(counts, capacity)
    return Rows(["made"], [["made.jsonl"]], [tokens], documents, packs)


def load(architecture: str, attention: str = "sdpa"):
    return AutoModelForCausalLM.from_pretrained(locate_tiny(architecture), attn_implementation=attention)


class Tokenizer:
    pad_token_id = 0


def step(model, rows: Rows, tmp_path, *, batch: int, accumulation: int, flat: bool = False):
    """(loss, gradient of every parameter) of one optimizer step of the real trainer over all of the rows."""
    from transformers import TrainerCallback, TrainingArguments

    assert batch * accumulation >= len(rows)
    kept = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            kept.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = SftTrainer(model, arguments, tokenizer=Tokenizer, train=rows, evaluation={}, callbacks=[Keep()])
    if flat:
        trainer.data_collator = FlatCollator()
    trainer.train()
    return next(line["loss"] for line in trainer.state.log_history if "loss" in line), kept


LAYOUTS = {
    "packs, one a batch": {"capacity": 128, "batch": 1, "accumulation": 3},
    "packs side by side": {"capacity": 128, "batch": 3, "accumulation": 1},
    "packs of all": {"capacity": 256, "batch": 1, "accumulation": 1},
    "packs over two batches": {"capacity": 90, "batch": 2, "accumulation": 2},
    "padded": {"capacity": None, "batch": 8, "accumulation": 1},
    "padded, an uneven last batch": {"capacity": None, "batch": 3, "accumulation": 3},
    "end to end": {"capacity": None, "batch": 4, "accumulation": 2, "flat": True},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layout_gives_the_loss_and_gradients_of_separate_rows(architecture, tmp_path):
    want_loss, want = step(load(architecture), rows_of(), tmp_path, batch=1, accumulation=len(LENGTHS))
    scale = max(float(gradient.abs().max()) for gradient in want.values())
    assert len(want) > 10 and scale > 0
    for name, layout in LAYOUTS.items():
        capacity, split = layout["capacity"], {k: v for k, v in layout.items() if k != "capacity"}
        loss, got = step(load(architecture), rows_of(capacity=capacity), tmp_path, **split)
        assert loss == pytest.approx(want_loss, rel=2e-6), name
        assert got.keys() == want.keys()
        difference = max(float((got[key] - want[key]).abs().max()) for key in want)
        assert difference <= 1e-5 * scale, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packs_are_found_apart_on_every_backend(architecture, attention):
    found = check_isolation(load(architecture, attention), [rows_of(), rows_of(capacity=128)])
    assert found is not None and found.holds
    assert found.difference < 1e-5 and found.leak < 1e-5
    assert len(found.packed) == 3


def test_without_packs_there_is_nothing_to_compare():
    assert check_isolation(load("llama"), [rows_of()]) is None


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_mask_that_lets_documents_see_each_other_stops_the_run(architecture, monkeypatch):
    model = load(architecture)
    forward = model.forward

    def leaking(input_ids, **kwargs):  # an all-ones mask turns the isolation by positions off
        return forward(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **kwargs)

    monkeypatch.setattr(model, "forward", leaking)
    with pytest.raises(UserError, match=r"not apart in .* with attention sdpa.*another first document") as caught:
        check_isolation(model, [rows_of(capacity=128)])
    assert caught.value.where == "dataset.packing"
    assert "dataset.packing=false" in caught.value.remedy


def test_positions_that_do_not_start_again_stop_the_run(monkeypatch):
    """Apart, but counted on: a learned position is another one then, though nothing leaks."""
    model = load("gpt2")
    forward = model.forward

    def counting_on(input_ids, position_ids, **kwargs):
        starts = (position_ids == 0).cumsum(-1)
        apart = (starts[:, :, None] == starts[:, None, :]) & torch.ones(
            input_ids.shape[1], input_ids.shape[1]
        ).tril().bool()
        mask = torch.where(apart, 0.0, torch.finfo(torch.float32).min)[:, None]
        on = torch.arange(input_ids.shape[1])[None]
        return forward(input_ids=input_ids, position_ids=on, attention_mask=mask, **kwargs)

    monkeypatch.setattr(model, "forward", counting_on)
    with pytest.raises(UserError, match="not apart") as caught:
        check_isolation(model, [rows_of(capacity=128)])
    assert "another first document" not in str(caught.value)


def test_the_check_leaves_random_states_and_modes_as_they_were():
    model = load("llama").train()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    check_isolation(model, [rows_of(capacity=128)])
    assert torch.equal(torch.rand(3), want)
    assert model.training
