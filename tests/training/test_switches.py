"""Performance options on whole runs of the tiny model: what each changes, and what it does not."""

import gzip
import json

import pytest
import torch
from transformers import TrainerCallback

from sft.config.errors import Interrupted, UserError
from sft.training.supported import supported
from sft.training.trainer.neftune import Noise, document_lengths

LIMIT = "trainer.max_tokens_per_batch=400"
PADDED = "model.attn_implementation=sdpa"


def logged(result) -> list[dict]:
    return [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]


def losses(result) -> list[float]:
    return [line["loss"] for line in logged(result) if "loss" in line]


def adapter(result) -> bytes:
    return (result.directory / "adapter/adapter_model.safetensors").read_bytes()


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Interrupted("stop", 143)


@pytest.mark.parametrize("attention", [[], [PADDED]])
def test_token_limited_batches_give_the_reported_number_of_steps(run, attention):
    result = run(LIMIT, "trainer.max_steps=-1", "trainer.num_train_epochs=2", *attention)
    report = json.loads((result.directory / "data_report.json").read_text())["train"]
    assert result.metrics["steps"] == 2 * report["steps_per_epoch"]
    assert result.metrics["total_tokens"] == 2 * report["tokens"]
    assert result.metrics["epochs"] == 2
    assert (result.metrics["padding"] > 0) == bool(attention)


def test_a_resumed_run_continues_within_the_epoch(run):
    steps = [LIMIT, "trainer.max_steps=-1", "trainer.num_train_epochs=3", "trainer.gradient_accumulation_steps=2"]
    steps += ["trainer.save_strategy=steps", "trainer.save_steps=1"]
    whole = run(*steps, to="whole")
    half = whole.metrics["steps"] // 2
    assert half % json.loads((whole.directory / "data_report.json").read_text())["train"]["steps_per_epoch"]
    with pytest.raises(Interrupted):
        run(*steps, to="again", callbacks=[StopAt(half)])
    again = run(*steps, to="again")
    assert adapter(again) == adapter(whole)
    assert losses(again) == losses(whole)


def test_a_row_beyond_the_limit_stops_the_run(run):
    with pytest.raises(UserError, match="more tokens than a batch may have"):
        run("trainer.max_tokens_per_batch=60")


def test_invalid_and_conflicting_batch_sizes_are_refused(run):
    with pytest.raises(UserError, match="0 is not a whole number of 1 or more"):
        run("trainer.max_tokens_per_batch=0")
    with pytest.raises(UserError, match="not made smaller automatically"):
        run(LIMIT, "trainer.auto_find_batch_size=true")


def test_noise_scales_with_the_documents_length_in_every_layout():
    flat = {"input_ids": torch.zeros(1, 6), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1]])}
    padded = {"input_ids": torch.zeros(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    assert document_lengths(flat).tolist() == [[4, 4, 4, 4, 2, 2]]
    assert document_lengths(padded).tolist() == [[4] * 4, [2] * 4]
    noise, table = Noise(5.0), torch.nn.Embedding(3, 16)
    noise.of(flat)
    output = torch.zeros(1, 6, 16)
    most = (noise(table, None, output) - output).abs().amax(-1)[0]
    limits = torch.tensor([5 / (4 * 16) ** 0.5] * 4 + [5 / (2 * 16) ** 0.5] * 2)
    assert (most <= limits).all() and (most > 0.7 * limits).all()
    assert torch.equal(noise(table.eval(), None, output), output)


@pytest.mark.slow
def test_embedding_noise_affects_training_but_not_evaluation(run):
    noisy = run("trainer.neftune_noise_alpha=5", "trainer.learning_rate=0", to="noisy")
    again = run("trainer.neftune_noise_alpha=5", "trainer.learning_rate=0", to="again")
    still = run("trainer.learning_rate=0", to="still")
    assert losses(noisy) == losses(again) != losses(still)
    assert noisy.metrics["eval_loss"] == still.metrics["eval_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_optimizers_train_and_resume(run, name):
    steps = [
        f"trainer.optim={name}",
        "trainer.save_strategy=steps",
        "trainer.save_steps=2",
        "lora=none",
        "template=chatml",
    ]
    steps += ["trainer.learning_rate=1e-3"]
    whole = run(*steps, to="whole")
    assert losses(whole)[-1] < losses(whole)[0]
    with pytest.raises(Interrupted):
        run(*steps, to="again", callbacks=[StopAt(3)])
    again = run(*steps, to="again")
    files = [result.directory / "model/model.safetensors" for result in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["lora=r8", "lora=none"])
def test_pure_bf16(run, lora):
    result = run("model.dtype=bfloat16", "trainer.bf16=false", lora, to="pure")
    info = json.loads((result.directory / "training_info.json").read_text())
    assert info["dtype"] == "bfloat16"
    assert losses(result)[0] == pytest.approx(losses(run(lora, to="fp32"))[0], rel=0.01)
    assert len(set(losses(result))) == 4


@pytest.mark.slow
def test_a_compiled_model_has_the_same_losses(run):
    steps = ["trainer.max_steps=2", "trainer.learning_rate=1e-3", "dataset.eval_sources=null", PADDED]
    plain = run(*steps, to="plain")
    compiled = run(*steps, "trainer.torch_compile=true", to="compiled")
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


def test_ligers_loss_does_not_replace_ours(monkeypatch):
    with pytest.raises(UserError, match="run on GPUs"):
        supported({"use_liger_kernel": True}, cuda=False)
    with pytest.raises(UserError, match="liger-kernel is not installed"):
        supported({"use_liger_kernel": True}, cuda=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    config = supported({"use_liger_kernel": True, "liger_kernel_config": {"rope": False}}, cuda=True)
    assert config["liger_kernel_config"] == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    with pytest.raises(UserError, match="Liger's would replace it"):
        supported({"use_liger_kernel": True, "liger_kernel_config": {"cross_entropy": True}}, cuda=True)


def test_tf32_needs_a_gpu():
    with pytest.raises(UserError, match="TF32 needs an NVIDIA GPU"):
        supported({"tf32": True}, cuda=False)


def test_speed_and_start_up_metrics_are_logged(run):
    result = run()
    metrics = result.metrics
    assert metrics["trained_tokens_per_second"] == pytest.approx(
        metrics["tokens_per_second"] * metrics["trained_tokens"] / metrics["total_tokens"]
    )
    assert metrics["padding"] == 0
    assert [*metrics["start_seconds"]] == [
        "imports",
        "tokenizer and template",
        "data",
        "weights",
        "adapter",
        "trainer",
        "start-up check",
        "first step",
    ]
    text = (result.directory / "train.log").read_text()
    assert text.count("first step after ") == 1
    assert "trained_tokens_per_second" in logged(result)[0]


def test_a_profile_is_written_and_changes_nothing(run):
    plain, profiled = run(to="plain"), run("profile=true", to="profiled")
    assert adapter(plain) == adapter(profiled)
    with gzip.open(profiled.directory / "profile/trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)
    table = (profiled.directory / "profile/table.txt").read_text()
    assert "aten::mm" in table
    assert not (plain.directory / "profile").exists()


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            ["trainer.max_steps=1", "trainer.num_train_epochs=2"],
            ["trainer.num_train_epochs is ignored: trainer.max_steps=1 takes precedence"],
        ),
        (
            ["trainer.max_tokens_per_batch=400", "trainer.per_device_train_batch_size=2", "trainer.max_steps=1"],
            ["trainer.per_device_train_batch_size is ignored: trainer.max_tokens_per_batch=400 takes precedence"],
        ),
        (["trainer.max_steps=-1", "trainer.num_train_epochs=0.2"], []),
    ],
)
def test_an_overridden_setting_is_logged(run_in, tmp_path, typed, told):
    run_in(tmp_path / "run", *typed)
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert [line.partition("sft.training.resume.start: ")[2] for line in lines if "is ignored" in line] == told
