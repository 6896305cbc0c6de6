"""Parts of a batch at the same time: the batch's own loss and gradients, the same each time, and no error lost."""

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


def test_a_run_in_parts_has_the_losses_of_one_without_and_its_own_bytes_again(run, caplog):
    whole = run(*FLAT, "trainer.cpu_parts=1", to="whole")
    with caplog.at_level("INFO"):
        parts, again = run(*FLAT, to="parts"), run(*FLAT, to="again")
    assert caplog.text.count("computed in 2 concurrent parts") == 2
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(parts) == losses(again)
    assert adapter(parts) == adapter(again) != adapter(whole)  # rounding differs, so they were computed apart


def test_a_run_in_parts_resumes_to_the_same_bytes(run):
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
def test_what_draws_or_computes_again_or_is_padded_is_computed_whole(run, caplog, why):
    with caplog.at_level("INFO"):
        run(*FLAT, "trainer.max_steps=1", "model.attn_implementation=sdpa" if why == "padded" else why)
    assert "at the same time" not in caplog.text
    assert "trainer.cpu_parts=2 is ignored" in caplog.text


@pytest.mark.parametrize("value", ["0", "-2", "many", "1.5"])
def test_what_is_no_number_of_parts_is_refused(run, value):
    with pytest.raises(UserError, match="cpu_parts") as caught:
        run(f"trainer.cpu_parts={value}")
    assert caught.value.where == "trainer.cpu_parts"


def test_auto_is_two_where_cores_are_and_few_weights_are_trained(monkeypatch):
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


def test_threads_share_the_cores_and_leave_those_of_others_as_they_were(monkeypatch):
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


def test_an_error_in_a_part_is_raised_when_the_others_have_ended():
    threads, ended = ParallelParts(2, None), []

    def does(part):
        if part == 0:
            raise MemoryError("no more")
        ended.append(part)

    with pytest.raises(MemoryError, match="no more"):
        threads.run(does, [0, 1, 2])
    threads.close()
    assert ended == [1, 2]


def test_threads_that_cannot_all_begin_leave_none_waiting(monkeypatch):
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


def test_weights_that_lie_in_shares_are_computed_whole(run, caplog, monkeypatch):
    monkeypatch.setattr("sft.training.trainer.trainer.SftTrainer._head_needs_gathering", lambda self: True)
    with caplog.at_level("INFO"):
        run(*FLAT, "trainer.max_steps=1")
    assert "trainer.cpu_parts=2 is ignored" in caplog.text


def test_notes_that_a_model_keeps_are_seen():
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


def test_rotations_that_change_by_call_are_seen():
    assert not has_dynamic_rope(small_llama())
    assert has_dynamic_rope(small_llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
