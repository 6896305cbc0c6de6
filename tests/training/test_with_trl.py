"""The same config and rows through trl.SFTTrainer."""

import json

import pytest
from transformers import TrainerCallback

from sft.config.errors import Interrupted, UserError

SAME = ["trainer.max_steps=2", "trainer.learning_rate=1e-3"]


def losses(result) -> list[float]:
    lines = map(json.loads, (result.directory / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_trl_makes_the_same_steps_as_ours(run):
    ours, trls = run(*SAME, to="ours"), run("trainer=trl", *SAME, to="trl")
    want = losses(ours)
    assert losses(trls) == pytest.approx(want, rel=2e-5)
    assert want[0] != want[1]
    for figure in ("eval_loss", "total_tokens", "trained_tokens"):
        assert trls.metrics[figure] == pytest.approx(ours.metrics[figure], rel=2e-5)
    assert ours.metrics["padding"] == 0 < trls.metrics["padding"] < 1


def test_packed_documents_stay_isolated(run):
    packed = ["dataset.packing=true", "dataset.max_length=512", "trainer.per_device_train_batch_size=1", *SAME]
    want = losses(run(*packed, to="ours"))
    assert losses(run("trainer=trl", *packed, to="trl")) == pytest.approx(want, rel=2e-5)


@pytest.mark.slow
def test_a_trl_run_resumes_from_its_checkpoint(run):
    steps = ["trainer=trl", "trainer.max_steps=4", "trainer.save_strategy=steps", "trainer.save_steps=2"]
    whole = run(*steps, to="whole")

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise Interrupted("stop", 143)

    with pytest.raises(Interrupted):
        run(*steps, to="again", callbacks=[Stop()])
    again = run(*steps, to="again")
    files = [result.directory / "adapter/adapter_model.safetensors" for result in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.packing=true", "belongs to dataset.packing"),
        ("model.attn_implementation=varlen", "TRL's batches are padded"),
    ],
)
def test_our_own_settings_are_not_passed_to_trl(run, override, message):
    with pytest.raises(UserError, match=message):
        run("trainer=trl", override)
