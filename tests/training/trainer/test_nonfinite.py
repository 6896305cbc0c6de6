"""Non-finite losses and gradients: the run stops or skips the step, and keeps the rows."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback

from sft.config.errors import RunFailed

WEIGHTS = "adapter/adapter_model.safetensors"
ACCUMULATED = ("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2")


class Poison(TrainerCallback):
    """Makes the gradient, or the loss, of one step infinite, by a hook on an adapter's weight or on the logits."""

    def __init__(self, what, step):
        self.what, self.step, self.now = what, step, False

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.what == "gradient":
            weight = next(p for n, p in model.named_parameters() if p.requires_grad and "lora_A" in n)
            weight.register_hook(lambda grad: grad * math.inf if self.now else grad)
        else:
            head = model.get_base_model().lm_head
            head.register_forward_hook(
                lambda module, given, out: out * math.nan if self.now and module.training else out
            )

    def on_step_begin(self, args, state, control, **kwargs):
        self.now = state.global_step + 1 == self.step


class States(TrainerCallback):
    """The trained weights and the optimizer's moments after each step."""

    def __init__(self):
        self.steps = {}

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        kept = optimizer.state_dict()["state"]
        moments = [value.clone() for one in kept.values() for value in one.values() if torch.is_tensor(value)]
        self.steps[state.global_step] = (weights, moments)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("clip", [1.0, 0])
def test_the_run_stops_and_keeps_the_rows_of_the_step(run, tmp_path, what, clip):
    with pytest.raises(RunFailed, match=rf"the {what} of step 3 is not finite on tickets rows \d+, .*nonfinite_step-3"):
        run(*ACCUMULATED, f"trainer.max_grad_norm={clip}", callbacks=[Poison(what, 3)])
    kept = lines(tmp_path / "run" / "nonfinite_step-3.jsonl")
    assert len(kept) == (2 if what == "loss" else 4)  # the batch's rows, or those of all batches of the step
    for row in kept:
        assert (row["step"], row["what"], row["source"]) == (3, what, "tickets")
        assert row["trained_text"] in row["text"] and row["trained_text"].startswith("{")
        assert len(row["labels"]) == len(row["input_ids"]) and str(row["row"]) in row["where"]
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 2


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_skipped_step_changes_nothing(run, what):
    states = States()
    result = run(*ACCUMULATED, "on_nonfinite=skip", "trainer.max_steps=5", callbacks=[Poison(what, 3), states])
    for before, after in zip(states.steps[2], states.steps[3], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states.steps[3][0], states.steps[4][0], strict=True))
    assert (result.metrics["skipped_steps"], result.metrics["steps"]) == (1, 5)
    logged = {line["step"]: line for line in lines(result.directory / "metrics.jsonl") if "learning_rate" in line}
    assert "loss" not in logged[3] and logged[3]["skipped_steps"] == 1
    others = [logged[step]["loss"] for step in (1, 2, 4, 5)]
    assert all(math.isfinite(loss) for loss in others)
    assert result.metrics["train_loss"] == pytest.approx(sum(others) / 4)
    assert (result.directory / "nonfinite_step-3.jsonl").exists()


def test_a_logged_mean_loss_excludes_the_skipped_step(run):
    one = run("on_nonfinite=skip", to="one", callbacks=[Poison("gradient", 3)])
    four = run("on_nonfinite=skip", "trainer.logging_steps=4", to="four", callbacks=[Poison("gradient", 3)])
    losses = [line["loss"] for line in lines(one.directory / "metrics.jsonl") if "loss" in line]
    logged = [line["loss"] for line in lines(four.directory / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 3
    assert logged == [pytest.approx(sum(losses) / 3, abs=1e-6)]


@pytest.mark.slow
def test_a_run_with_a_skipped_step_resumes_to_the_same_weights(run):
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise RuntimeError("power cut")

    options = ("on_nonfinite=skip", "lora.lora_dropout=0.1", "trainer.save_strategy=steps", "trainer.save_steps=4")
    options += ("trainer.max_steps=7", "trainer.logging_steps=3")
    whole = run(*options, to="whole", callbacks=[Poison("loss", 3), Poison("gradient", 6)])
    with pytest.raises(RunFailed, match="power cut"):
        run(*options, to="cut", callbacks=[Poison("loss", 3), Poison("gradient", 6), Break()])
    cut = run(*options, to="cut", callbacks=[Poison("loss", 3), Poison("gradient", 6)])
    assert (cut.directory / WEIGHTS).read_bytes() == (whole.directory / WEIGHTS).read_bytes()
    assert cut.metrics["skipped_steps"] == whole.metrics["skipped_steps"] == 2
    assert cut.metrics["train_loss"] == whole.metrics["train_loss"]


def test_too_many_skipped_steps_in_a_row_stop_the_run(run, monkeypatch):
    monkeypatch.setattr("sft.training.trainer.guarding.IN_A_ROW", 3)

    class Always(Poison):
        def on_step_begin(self, args, state, control, **kwargs):
            self.now = True

    with pytest.raises(RunFailed, match="3 steps in a row"):
        run("on_nonfinite=skip", callbacks=[Always("loss", 0)])


def test_a_spike_names_step_and_rows(run):
    class Louder(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                head = model.get_base_model().lm_head
                head.register_forward_hook(lambda module, given, out: -9 * out if module.training else out)

    result = run("callbacks.loss_logger.window=4", "callbacks.loss_logger.spike_factor=1.01", callbacks=[Louder()])
    text = (result.directory / "train.log").read_text()
    assert "loss spike at step 4" in text and "; its rows: tickets rows" in text.split("loss spike at step 4")[1]
