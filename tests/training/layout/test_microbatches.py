"""Concurrent parts of a batch: the batch's own loss and gradients, deterministic, and no error lost."""

import json
import threading

import pytest
import torch

from sft.config.errors import UserError
from sft.training.layout.microbatches import ParallelParts, number_of_parts
from sft.training.layout.reentrant import changed_attribute, has_dynamic_rope, module_state

pytestmark = pytest.mark.numeric

FLAT = ["trainer.max_steps=6", "trainer.cpu_parts=2"]


def adapter(result) -> bytes:
    return (result.directory / "adapter/adapter_model.safetensors").read_bytes()


def losses(result) -> list[float]:
    lines = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_with_parts_has_the_same_losses_and_is_reproducible(run, caplog):
    whole = run(*FLAT, "trainer.cpu_parts=1", to="whole")
    with caplog.at_level("INFO"):
        parts, again = run(*FLAT, to="parts"), run(*FLAT, to="again")
    assert caplog.text.count("computed in 2 concurrent parts") == 2
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(parts) == losses(again)
    assert adapter(parts) == adapter(again) != adapter(whole)  # rounding differs, so they were computed apart


def test_a_run_with_parts_resumes_to_the_same_bytes(run):
    from transformers import TrainerCallback

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise RuntimeError("power cut")

    steps = [*FLAT, "trainer.save_strategy=steps", "trainer.save_steps=2"]
    whole = run(*steps, to="whole")
    with pytest.raises(Exception, match="power cut"):
        run(*steps, to="half", callbacks=[Break()])
    assert adapter(run(*steps, to="half")) == adapter(whole)


@pytest.mark.parametrize(
    "why",
    ["lora.lora_dropout=0.1", "trainer.neftune_noise_alpha=5", "trainer.gradient_checkpointing=true", "padded"],
)
def test_runs_with_dropout_checkpointing_or_padding_do_not_use_parts(run, caplog, why):
    with caplog.at_level("INFO"):
        run(*FLAT, "trainer.max_steps=1", "model.attn_implementation=sdpa" if why == "padded" else why)
    assert "at the same time" not in caplog.text
    assert "trainer.cpu_parts=2 is ignored" in caplog.text


@pytest.mark.parametrize("value", ["0", "-2", "many", "1.5"])
def test_an_invalid_number_of_parts_is_refused(run, value):
    with pytest.raises(UserError, match="cpu_parts") as caught:
        run(f"trainer.cpu_parts={value}")
    assert caught.value.where == "trainer.cpu_parts"


def test_auto_uses_two_parts_with_enough_cores_and_few_trained_weights(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert number_of_parts("auto", model) == 1  # all of them are
    model[0].requires_grad_(False)
    assert number_of_parts("auto", model) == 2
    assert number_of_parts(3, model) == 3
    with torch.autocast("cpu", torch.bfloat16):
        assert number_of_parts("auto", model) == 1  # the others would be cast twice
        model[0].to(torch.bfloat16)
        assert number_of_parts("auto", model) == 2
    packed = torch.nn.Parameter(torch.zeros(50, 1, dtype=torch.uint8), requires_grad=False)
    model[0].weight = packed
    assert number_of_parts("auto", model) == 1  # and unpacked twice
    model[0] = torch.nn.Linear(10, 10).requires_grad_(False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert number_of_parts("auto", model) == 1
    model[1].to(torch.bfloat16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert number_of_parts("auto", model) == 1  # their gradients would be added in 16 bits


def test_threads_divide_the_cores_and_do_not_affect_other_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        threads = ParallelParts(2, None)
        names = threads.run(lambda _: (threading.current_thread().name, torch.get_num_threads()), range(4))
        assert {cores for _, cores in names} == {2} and all(name.startswith("part") for name, _ in names)
        assert torch.get_num_threads() == 4
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [4]
        threads.close()
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_part_is_raised_after_the_others_have_finished():
    threads, ended = ParallelParts(2, None), []

    def does(part):
        if part == 0:
            raise MemoryError("no more")
        ended.append(part)

    with pytest.raises(MemoryError, match="no more"):
        threads.run(does, [0, 1, 2])
    threads.close()
    assert ended == [1, 2]


def test_if_not_all_threads_can_start_none_keeps_waiting(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    submit, begun = ThreadPoolExecutor.submit, []

    def one_alone(pool, *args):
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(submit(pool, *args))
        return begun[0]

    monkeypatch.setattr(ThreadPoolExecutor, "submit", one_alone)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ParallelParts(2, None)
    assert isinstance(begun[0].exception(timeout=10), threading.BrokenBarrierError)


def test_sharded_weights_do_not_use_parts(run, caplog, monkeypatch):
    monkeypatch.setattr("sft.training.trainer.trainer.SftTrainer._head_needs_gathering", lambda self: True)
    with caplog.at_level("INFO"):
        run(*FLAT, "trainer.max_steps=1")
    assert "trainer.cpu_parts=2 is ignored" in caplog.text


def test_module_state_changed_in_forward_is_detected():
    class Keeping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.register = None, torch.nn.Buffer(torch.zeros(1))

        def forward(self, given, keep=None):
            if keep == "attribute":
                self.seen = given
            if keep == "buffer":
                self.register.add_(1)
            return given

    model = torch.nn.Sequential(Keeping())
    before = module_state(model)
    model[0](torch.ones(1))
    assert changed_attribute(before, module_state(model)) is None
    model[0](torch.ones(1), "attribute")
    assert changed_attribute(before, module_state(model)) == "0.seen"
    before = module_state(model)
    model[0](torch.ones(1), "buffer")
    assert changed_attribute(before, module_state(model)) == "0.register"


def small_llama(**kwargs):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=1000, max_position_embeddings=64, **sizes, **kwargs))


def test_dynamic_rotary_embeddings_are_detected():
    assert not has_dynamic_rope(small_llama())
    assert has_dynamic_rope(small_llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
