"""LoRA's branch in few passes: the outputs and gradients of peft's own forward, and peft's own wherever it is another."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sft.model import lowrank


class Tower(torch.nn.Module):
    """Two linear layers, one with a bias."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(24, 40, bias=False), torch.nn.Linear(40, 16)

    def forward(self, x):
        return self.second(torch.nn.functional.silu(self.first(x)))


def pair(dtype=torch.float32, **settings):
    """The same adapted model twice: peft's own, and with `install`."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["first", "second"], init_lora_weights=False, **settings)
    plain = get_peft_model(Tower().to(dtype), config)
    ours = copy.deepcopy(plain)
    assert lowrank.install(ours) == 2
    return plain, ours


def results(model, x, autocast=None):
    """The output, and the gradients of input and adapter."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)  # of dropout
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        out = model(x)
    out.float().pow(2).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"out": out.detach(), "x": x.grad, **grads}


@pytest.fixture
def fused(monkeypatch):
    """How often the branch was computed here."""
    calls = []
    real = lowrank._LowRank.apply
    monkeypatch.setattr(lowrank._LowRank, "apply", lambda *given: calls.append(1) or real(*given))
    return calls


X = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("rslora", [False, True])
def test_outputs_and_gradients_are_pefts(fused, dropout, rslora):
    plain, ours = (results(model.train(), X) for model in pair(lora_dropout=dropout, use_rslora=rslora))
    assert len(fused) == 2 and plain.keys() == ours.keys() and len(plain) == 6
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_under_autocast_it_rounds_less_than_peft(fused, weights):
    exact = results(pair()[0], X)
    plain, ours = (results(model, X.to(weights), torch.bfloat16) for model in pair(weights))
    assert len(fused) == 2
    for name in exact:
        assert ours[name].dtype is plain[name].dtype, name
        error, theirs = (float((each[name].float() - exact[name]).norm()) for each in (ours, plain))
        assert error < 1.2 * theirs + 1e-6, name


def test_adapters_in_another_precision_than_the_base_are_computed_as_peft_does(fused):
    plain, ours = (results(model, X.bfloat16()) for model in pair(torch.bfloat16))
    assert not fused  # bf16 weights, fp32 adapter, no autocast
    for name in plain:
        assert torch.equal(plain[name], ours[name]), name


def test_what_is_no_plain_branch_keeps_pefts_forward(fused):
    for settings in ({"use_dora": True}, {"lora_bias": True}):
        plain, ours = (results(model, X) for model in pair(**settings))
        assert all(torch.equal(plain[name], ours[name]) for name in plain)
    plain, ours = pair()
    with plain.disable_adapter(), ours.disable_adapter():
        assert torch.equal(plain(X), ours(X))
    for model in (plain, ours):
        model.add_adapter("other", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    ours.load_state_dict(plain.state_dict())
    calls = len(fused)
    torch.testing.assert_close(ours(X), plain(X))
    assert len(fused) == calls + 1  # `second` has one adapter alone
    merged = pair()[1]
    before = merged(X)
    merged.merge_adapter()
    torch.testing.assert_close(merged(X), before, rtol=1e-5, atol=1e-5)


def test_a_hook_on_the_adapter_is_called():
    _, ours = pair()
    seen = []
    ours.base_model.model.first.lora_A["default"].register_forward_hook(lambda *given: seen.append(1))
    ours(X)
    assert seen == [1]


def test_the_first_layer_needs_no_gradient_of_its_input():
    _, ours = pair()
    ours(X).sum().backward()
    assert all(p.grad is not None for n, p in ours.named_parameters() if "lora_" in n)
