"""The LoRA branch in few passes: outputs and gradients equal peft's forward, which is used for unsupported layers."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sft.kernels import adapted, lowrank

pytestmark = pytest.mark.numeric


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
    """How the branch was computed here, each time: with its layer, or added to what that gave."""
    calls = []
    for function, name in ((adapted._AdaptedLayers, "whole"), (lowrank._LowRank, "added")):
        spy = lambda *given, real=function.apply, name=name: calls.append(name) or real(*given)  # noqa: E731
        monkeypatch.setattr(function, "apply", spy)
    return calls


X = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("rslora", [False, True])
def test_outputs_and_gradients_equal_pefts(fused, dropout, rslora, assert_near):
    plain, ours = (results(model.train(), X) for model in pair(lora_dropout=dropout, use_rslora=rslora))
    assert fused == 2 * ["added" if dropout else "whole"] and plain.keys() == ours.keys() and len(plain) == 6
    for name in plain:
        assert_near(ours[name], plain[name], name=name)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_under_autocast_it_rounds_less_than_peft(fused, weights):
    exact = results(pair()[0], X)
    plain, ours = (results(model, X.to(weights), torch.bfloat16) for model in pair(weights))
    assert fused == 2 * ["whole" if weights is torch.bfloat16 else "added"]  # others are cast by autocast
    for name in exact:
        assert ours[name].dtype is plain[name].dtype, name
        error, theirs = (float((each[name].float() - exact[name]).norm()) for each in (ours, plain))
        assert error < 1.2 * theirs + 1e-6, name


def test_adapters_in_another_precision_than_the_base_use_pefts_forward(fused):
    plain, ours = (results(model, X.bfloat16()) for model in pair(torch.bfloat16))
    assert not fused  # bf16 weights, fp32 adapter, no autocast
    for name in plain:
        assert torch.equal(plain[name], ours[name]), name


def test_unsupported_layers_keep_pefts_forward(fused, assert_near):
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
    assert_near(ours(X), plain(X))
    assert len(fused) == calls + 1  # `second` has one adapter alone
    merged = pair()[1]
    before = merged(X)
    merged.merge_adapter()
    assert_near(merged(X), before)


def test_a_hook_on_the_adapter_is_called():
    _, ours = pair()
    seen = []
    ours.base_model.model.first.lora_A["default"].register_forward_hook(lambda *given: seen.append(1))
    ours(X)
    assert seen == [1]


def test_the_first_layers_input_needs_no_gradient():
    _, ours = pair()
    ours(X).sum().backward()
    assert all(p.grad is not None for n, p in ours.named_parameters() if "lora_" in n)


class Attention(torch.nn.Module):
    """Three layers of one input, of which one is wider, under the names that transformers has for them."""

    def __init__(self):
        super().__init__()
        sizes = {"q_proj": 32, "k_proj": 16, "v_proj": 16}
        for name, size in sizes.items():
            self.add_module(name, torch.nn.Linear(24, size, bias=name == "k_proj"))

    def forward(self, x):
        return self.q_proj(x) * torch.cat([self.k_proj(x).sin(), self.v_proj(x)], -1)


def attention(targets=("q_proj", "k_proj", "v_proj"), **settings):
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, rank_pattern={"k_proj": 3}, target_modules=list(targets), init_lora_weights=False, **settings
    )
    plain = get_peft_model(Attention(), config)
    ours = copy.deepcopy(plain)
    lowrank.install(ours)
    return plain, ours


@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj"), ("q_proj", "v_proj"), ("v_proj",)])
def test_layers_with_the_same_input_are_computed_together(fused, targets, assert_near):
    plain, ours = (results(model, X) for model in attention(targets))
    assert fused == ["whole"] and plain.keys() == ours.keys() and len(plain) == 2 + 2 * len(targets)
    for name in plain:
        assert_near(ours[name], plain[name], name=name)


def written_to(model, x):
    """Of a model that writes into what its layers gave, as some clip it."""
    layers, x = model.base_model.model, x.clone().requires_grad_()
    q, k, v = (getattr(layers, name)(x) for name in ("q_proj", "k_proj", "v_proj"))
    q.clamp_(-1, 1)
    k *= 2
    v.view(-1, v.shape[-1]).mul_(3)
    (q.sum() + k.sin().sum() + v.sum()).backward()
    return {"x": x.grad, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


class Quantized(torch.nn.Linear):
    """Another class than torch's own, as those of bitsandbytes."""


@pytest.mark.parametrize("base", [torch.nn.Linear, Quantized])
def test_outputs_can_be_modified_in_place(fused, base, assert_near):
    plain, ours = attention()
    for layer in (ours.base_model.model.q_proj, ours.base_model.model.k_proj, ours.base_model.model.v_proj):
        layer.base_layer.__class__ = base
    plain, ours = written_to(plain, X), written_to(ours, X)
    assert fused == (["whole"] if base is torch.nn.Linear else 3 * ["added"]) and len(plain) == 7
    for name in plain:
        assert_near(ours[name], plain[name], name=name)


def test_an_unsupported_layer_does_not_affect_the_others(fused, assert_near):
    plain, ours = attention()
    for model in (plain, ours):
        model.base_model.model.k_proj.enable_adapters(False)
    plain, ours = results(plain, X), results(ours, X)
    assert fused == ["whole", "whole"]
    for name in plain:
        assert_near(ours[name], plain[name], name=name)


def test_precomputed_outputs_are_only_used_for_the_same_input(fused, assert_near):
    plain, ours = attention()
    theirs, layers = plain.base_model.model, ours.base_model.model
    x = X.clone().requires_grad_()
    with torch.no_grad():
        layers.q_proj(x)  # nothing is kept without gradients
    assert layers.k_proj(x).requires_grad and adapted._OUTPUT_CACHE.outputs.keys() == {layers.q_proj, layers.v_proj}
    with torch.no_grad():
        x.add_(1)
        assert_near(layers.q_proj(x), theirs.q_proj(x))  # the input was written to
        layers.v_proj.lora_B["default"].weight.mul_(2)
        theirs.v_proj.lora_B["default"].weight.mul_(2)
    assert_near(layers.q_proj(x), theirs.q_proj(x))
    with torch.no_grad():
        layers.v_proj.lora_B["default"].weight.mul_(2)
        theirs.v_proj.lora_B["default"].weight.mul_(2)
    assert_near(layers.v_proj(x), theirs.v_proj(x))  # the layer was
    assert_near(layers.v_proj(x), theirs.v_proj(x))  # and each is given once
    assert_near(layers.k_proj(x.clone()), theirs.k_proj(x))
    ours(X)
    assert adapted._OUTPUT_CACHE.x is None and not adapted._OUTPUT_CACHE.outputs  # all were asked for: nothing is held


def test_precomputed_outputs_are_per_thread(assert_near):
    plain, ours = attention()
    inputs = [X + at for at in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ours, inputs * 20))
    for at, out in enumerate(found):
        assert_near(out, plain(inputs[at % 4]))
