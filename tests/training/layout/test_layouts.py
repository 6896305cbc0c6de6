"""The same rows packed, padded and separate: the same loss and gradients, however a step is split."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.config.errors import UserError
from sft.data.batches.packing import pack
from sft.data.documents import Documents, Rows, Tokens
from sft.kernels.attention import register
from sft.model.sources.tiny import ARCHITECTURES, locate_tiny
from sft.training.layout.isolation import compare, losses_alone, sample_documents
from sft.training.layout.layout import Layout, choose_layout
from sft.training.trainer.trainer import SftTrainer

pytestmark = pytest.mark.numeric

EPS = torch.finfo(torch.float32).eps
LENGTHS = (70, 11, 40, 25, 33, 9, 52, 2)  # longer than the tiny models' sliding windows, and as short as can be


def rows_of(lengths=LENGTHS, capacity: int | None = None, alike: int = 0) -> Rows:
    """Documents of random tokens, two thirds of each trained; packed where a capacity is given.

    Args:
        alike: tokens that all of them begin with.
    """
    draw = np.random.default_rng(3)
    total = sum(lengths)
    trained = np.concatenate([np.arange(n) >= n // 3 for n in lengths]).astype(np.uint8)
    counts = np.asarray(lengths, np.int64)
    starts = np.cumsum(counts) - counts
    some = np.zeros(len(lengths), np.int32)
    wide = np.arange(len(lengths), dtype=np.int64)
    labels = np.array([int(trained[s + 1 : s + n].sum()) for s, n in zip(starts, counts, strict=True)])
    documents = Documents(some, starts, counts, labels, wide + 1, some, wide, wide.astype(np.uint64))
    ids = draw.integers(20, 1000, total).astype(np.int32)
    for start in starts:
        ids[start : start + alike] = ids[:alike]
    tokens = Tokens(ids, trained)
    packs = None if capacity is None else pack(counts, capacity)
    return Rows(["made"], [["made.jsonl"]], [tokens], documents, packs)


def scale_of(gradients) -> float:
    """The largest element of all gradients, which differences are relative to."""
    return max(float(gradient.abs().max()) for gradient in gradients.values())


def load(architecture: str, attention: str = "sdpa"):
    register()
    return AutoModelForCausalLM.from_pretrained(locate_tiny(architecture), attn_implementation=attention)


class Tokenizer:
    pad_token_id = 0


def step(
    model,
    rows: Rows,
    tmp_path,
    *,
    batch: int,
    accumulation: int,
    flat: bool = False,
    chunked: bool = False,
    shared: bool = False,
    parts: int = 1,
):
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
    trainer.apply_layout(Layout("varlen" if flat else "sdpa", chunked, shared))
    trainer.parts = parts
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
    "end to end, document by document": {"capacity": None, "batch": 4, "accumulation": 2, "attention": "varlen"},
    "by chunks of the output layer": {"capacity": None, "batch": 4, "accumulation": 2, "chunked": True},
    "packs, document by document, by chunks": {
        "capacity": 128,
        "batch": 1,
        "accumulation": 3,
        "attention": "varlen",
        "chunked": True,
    },
    "packs, document by document": {"capacity": 128, "batch": 2, "accumulation": 2, "attention": "varlen"},
}


SOME = ("llama", "gemma3")  # grouped heads, sliding windows; the others are slow tests
EVERY = [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


@pytest.mark.parametrize("architecture", EVERY)
def test_every_layout_has_the_loss_and_gradients_of_separate_rows(architecture, tmp_path):
    want_loss, want = step(load(architecture), rows_of(), tmp_path, batch=1, accumulation=len(LENGTHS))
    scale = scale_of(want)
    assert len(want) > 10 and scale > 0
    for name, layout in LAYOUTS.items():
        split = {key: value for key, value in layout.items() if key not in ("capacity", "attention")}
        attention = layout.get("attention", "sdpa")
        rows, flat = rows_of(capacity=layout["capacity"]), split.pop("flat", False) or attention == "varlen"
        loss, got = step(load(architecture, attention), rows, tmp_path, flat=flat, **split)
        assert loss == pytest.approx(want_loss, rel=64 * EPS), name
        assert got.keys() == want.keys()
        difference = max(float((got[key] - want[key]).abs().max()) for key in want)
        assert difference <= 1e-5 * scale, name


@pytest.mark.parametrize("architecture", EVERY)
@pytest.mark.parametrize("capacity", [None, 128])
def test_a_shared_prefix_changes_no_loss_and_no_gradient(architecture, capacity, tmp_path):
    lengths = (70, 39, 50, 41, 33, 36)  # longer than the tiny models' sliding windows, and shorter
    want_loss, want = step(load(architecture), rows_of(lengths, alike=10), tmp_path, batch=1, accumulation=6)
    scale = scale_of(want)
    rows = rows_of(lengths, capacity, alike=10)
    seen = []
    model = load(architecture, "varlen")
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: seen.append(given[0].numel()))
    split = {"batch": 3, "accumulation": 2} if capacity is None else {"batch": 3, "accumulation": 1}
    loss, got = step(model, rows, tmp_path, flat=True, chunked=True, shared=True, **split)
    documents = sum(lengths) - 10 * len(lengths)
    assert sum(seen) == documents + 10 * split["accumulation"]  # once in each batch
    assert loss == pytest.approx(want_loss, rel=64 * EPS)
    assert max(float((got[key] - want[key]).abs().max()) for key in want) <= 1e-5 * scale


@pytest.mark.parametrize("architecture", EVERY)
@pytest.mark.parametrize(("parts", "shared", "chunked"), [(2, False, True), (3, True, True), (2, True, False)])
def test_concurrent_parts_change_no_loss_and_no_gradient(architecture, parts, shared, chunked, tmp_path):
    lengths = (70, 39, 50, 41, 33, 36)
    want_loss, want = step(load(architecture), rows_of(lengths, alike=10), tmp_path, batch=1, accumulation=6)
    scale = scale_of(want)
    seen = []
    model = load(architecture, "varlen")
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: seen.append(given[0].numel()))
    layout = {"flat": True, "shared": shared, "chunked": chunked, "parts": parts}
    loss, got = step(model, rows_of(lengths, alike=10), tmp_path, batch=6, accumulation=1, **layout)
    assert len(seen) == parts
    assert loss == pytest.approx(want_loss, rel=64 * EPS)
    assert got.keys() == want.keys()
    assert max(float((got[key] - want[key]).abs().max()) for key in want) <= 1e-5 * scale


def test_an_output_layer_with_an_adapter_is_computed_in_parts(tmp_path):
    from peft import LoraConfig, get_peft_model

    found = []
    for parts in (1, 2):
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        model = get_peft_model(load("llama", "varlen"), config)
        found.append(step(model, rows_of(), tmp_path, batch=8, accumulation=1, flat=True, chunked=True, parts=parts))
    (want_loss, want), (loss, got) = found
    assert loss == pytest.approx(want_loss, rel=64 * EPS) and any("lm_head" in name for name in got)
    assert max(float((got[key] - want[key]).abs().max()) for key in want) <= 1e-5 * scale_of(want)


def test_a_model_with_state_changed_in_forward_is_not_called_concurrently(caplog):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    rotations = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, rope_parameters=rotations, **sizes))
    with caplog.at_level("INFO"):
        assert choose_layout(model, [rows_of()], None) == Layout("varlen", chunked=True, shared=True)
    assert "batches are computed whole: LlamaForCausalLM changes module state in its forward pass" in caplog.text


def test_no_prefix_is_shared_with_random_numbers_or_without_model_support(monkeypatch, caplog):
    noisy = choose_layout(load("llama"), [rows_of()], None, noisy=True)
    assert not noisy.shared and not noisy.parallel
    dropping = load("llama")
    dropping.model.layers[0].mlp.dropout = torch.nn.Dropout(0.1)
    assert not choose_layout(dropping, [rows_of()], None).shared
    monkeypatch.setattr("sft.training.layout.layout.register", lambda: None)
    from transformers import AttentionInterface

    model = load("llama")
    AttentionInterface.register("varlen", attention_blind_to(("cu_seq_lens_k",)))
    with caplog.at_level("INFO"):
        assert choose_layout(model, [rows_of()], None) == Layout("varlen", chunked=True, parallel=True)
    assert "the shared prefix is computed for each document: shared, loss" in caplog.text
    register()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_are_isolated_on_every_backend(architecture, attention, caplog):
    with caplog.at_level("INFO"):
        layout = choose_layout(load(architecture, attention), [rows_of(), rows_of(capacity=128)], attention)
    assert layout == Layout(attention, chunked=True)
    assert "packed and separate losses agree on 2 of them" in caplog.text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("capacity", [None, 128])
def test_every_family_trains_without_padding(architecture, capacity):
    model = load(architecture)
    assert choose_layout(model, [rows_of(capacity=capacity)], None) == Layout(
        "varlen", True, shared=True, parallel=True
    )
    assert model.config._attn_implementation == "varlen"


def test_the_layout_is_reused_for_the_next_job_on_the_same_base(caplog):
    model = load("llama")
    with caplog.at_level("INFO"):
        choose_layout(model, [rows_of()], None)
        choose_layout(model, [rows_of()], None)
    assert caplog.text.count("batches are padding-free") == 1


def test_a_job_with_dropout_shares_no_prefix_although_the_previous_job_did():
    from peft import LoraConfig, get_peft_model

    base, rows = load("llama"), [rows_of()]

    def layout(dropout):
        adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"], lora_dropout=dropout))
        found = choose_layout(adapted, rows, None)
        adapted.unload()
        return found

    without, with_dropout, again = layout(0.0), layout(0.5), layout(0.0)
    assert (without.shared, with_dropout.shared, again.shared) == (True, False, True)


def attention_blind_to(names: tuple[str, ...]):
    """varlen attention of a model that does not tell it these facts."""
    from sft.kernels.attention import varlen_attention

    def blind(*args, **kwargs):
        return varlen_attention(*args, **{key: value for key, value in kwargs.items() if key not in names})

    return blind


@pytest.mark.parametrize(("architecture", "hidden"), [("llama", "scaling"), ("gemma3", "sliding_window")])
def test_an_attention_that_differs_from_the_models_own_is_not_used(architecture, hidden, monkeypatch, caplog):
    monkeypatch.setattr("sft.training.layout.layout.register", lambda: None)
    model = load(architecture)
    if hidden == "scaling":  # which is the default's where it is the square root; make it another
        for layer in model.model.layers:
            layer.self_attn.scaling = 0.1
    from transformers import AttentionInterface

    AttentionInterface.register("varlen", attention_blind_to((hidden,)))
    with caplog.at_level("INFO"):
        assert choose_layout(model, [rows_of()], None) == Layout("sdpa", chunked=True)
    assert "batches are padded: varlen attention is not for" in caplog.text
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="varlen attention does not reproduce") as caught:
        choose_layout(model, [rows_of()], "varlen")
    assert caught.value.remedy == "model.attn_implementation=sdpa"
    register()


@pytest.mark.slow
def test_soft_capping_is_padded_and_refused_by_name():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Gemma2ForCausalLM(
        Gemma2Config(vocab_size=1000, num_key_value_heads=1, head_dim=16, attn_implementation="eager", **sizes)
    )
    assert choose_layout(model, [rows_of()], None) == Layout("eager", chunked=False)  # its logits are capped as well
    with pytest.raises(UserError, match="soft-capping"):
        choose_layout(model, [rows_of()], "varlen")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_mask_that_lets_documents_attend_to_each_other_stops_the_run(architecture, monkeypatch):
    model = load(architecture)
    forward = model.forward

    def leaking(input_ids, **kwargs):  # an all-ones mask turns the isolation by positions off
        return forward(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **kwargs)

    monkeypatch.setattr(model, "forward", leaking)
    with pytest.raises(UserError, match=r"not isolated in .* with attention sdpa.*another first document") as caught:
        choose_layout(model, [rows_of(capacity=128)], "sdpa")
    assert caught.value.where == "dataset.packing"
    assert "dataset.packing=false" in caught.value.remedy


def test_positions_that_are_not_reset_stop_the_run(monkeypatch):
    """Apart, but counted on: a learned position is another one then, though nothing leaks."""
    model = load("gpt2")
    forward = model.forward

    def counting_on(input_ids, position_ids, **kwargs):
        starts, count = (position_ids == 0).cumsum(-1), input_ids.shape[1]
        apart = (starts[:, :, None] == starts[:, None, :]) & torch.ones(count, count).tril().bool()
        mask = torch.where(apart, 0.0, torch.finfo(torch.float32).min)[:, None]
        on = torch.arange(count)[None]
        return forward(input_ids=input_ids, position_ids=on, attention_mask=mask, **kwargs)

    monkeypatch.setattr(model, "forward", counting_on)
    with pytest.raises(UserError, match="not isolated") as caught:
        choose_layout(model, [rows_of(capacity=128)], "sdpa")
    assert "another first document" not in str(caught.value)


def test_non_finite_losses_do_not_pass_the_check():
    model = load("llama", "varlen")
    documents = sample_documents(rows_of())
    with torch.no_grad():
        apart = losses_alone(model, documents)
        assert compare(model, documents, apart).holds
        assert not compare(model, documents, [each * float("nan") for each in apart]).holds


def test_the_check_leaves_random_states_and_modes_as_they_were():
    model = load("llama").train()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    choose_layout(model, [rows_of(capacity=128)], None)
    assert torch.equal(torch.rand(3), want)
    assert model.training
