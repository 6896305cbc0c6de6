"""Norms and rotary embeddings in fewer passes: transformers' values and gradients, and transformers' code for the
rest."""

from functools import partial

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as interleaved
from transformers.models.llama import modeling_llama as llama
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from sft.kernels import elementwise

pytestmark = pytest.mark.numeric

ROTATE = llama.apply_rotary_pos_emb


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    monkeypatch.setattr(llama, "apply_rotary_pos_emb", ROTATE)


@pytest.fixture
def ours(monkeypatch):
    """What was computed here."""
    calls = []
    for function in (elementwise._Norm, elementwise._Rotation):
        spy = lambda *given, f=function.apply, name=function.__name__: calls.append(name) or f(*given)  # noqa: E731
        monkeypatch.setattr(function, "apply", spy)
    return calls


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def gradient(out, x):
    return torch.autograd.grad(out, x, numbers(*out.shape).to(out.dtype))[0]


def distance(one, other):
    return float((one.double() - other.double()).norm() / other.double().norm())


def test_norms_match_llamas_in_value_and_gradient(assert_near):
    norm = llama.LlamaRMSNorm(16, eps=0.01).requires_grad_(False)
    norm.weight.copy_(numbers(16))
    x = numbers(2, 5, 16).requires_grad_()
    want, got = norm(x), elementwise._Norm.apply(x, norm.weight, 0.01)
    assert_near(got, want)
    assert_near(gradient(got, x), gradient(want, x))


def test_in_16_bits_norms_round_like_llamas_and_gradients_no_worse():
    norm = llama.LlamaRMSNorm(64).requires_grad_(False)
    norm.weight.copy_(numbers(64))
    x = numbers(7, 64).bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    truth = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-6) * norm.weight.bfloat16().double()
    norm.bfloat16()
    want, got = norm(x), elementwise._Norm.apply(x, norm.weight, 1e-6)
    assert torch.equal(got, want)
    wanted = gradient(truth, exact)
    assert distance(gradient(got, x), wanted) <= 1.05 * distance(gradient(want, x), wanted)


def test_rotary_embeddings_match_llamas_in_value_and_gradient(assert_near):
    q, k = numbers(1, 4, 6, 8).double().requires_grad_(), numbers(1, 2, 6, 8).double().requires_grad_()
    cos, sin = numbers(2, 1, 6, 8).double()
    for x, want in zip((q, k), ROTATE(q, k, cos, sin), strict=True):
        got = elementwise._Rotation.apply(x, cos[:, None], sin[:, None])
        assert_near(got, want)
        assert_near(gradient(got, x), gradient(want, x))


def test_different_functions_are_detected_by_trial():
    assert [elementwise._normalizes(kind) for kind in (llama.LlamaRMSNorm, Qwen3RMSNorm)] == [True, True]
    # one adds 1 to its weight, one rounds after it, one has another signature
    others = (GemmaRMSNorm, Olmo2RMSNorm, torch.nn.LayerNorm, torch.nn.Linear)
    assert not any(elementwise._normalizes(kind) for kind in others)
    assert elementwise._is_rotation(ROTATE) and elementwise._is_rotation(apply_rotary_pos_emb)
    assert not elementwise._is_rotation(interleaved)
    assert not elementwise._is_rotation(lambda q, k, cos, sin: (q, k))


def test_the_trial_uses_no_global_random_numbers():
    elementwise._normalizes.cache_clear()
    elementwise._is_rotation.cache_clear()
    before = torch.get_rng_state()
    elementwise._normalizes(torch.nn.Linear)
    elementwise._normalizes(llama.LlamaRMSNorm)
    elementwise._is_rotation(ROTATE)
    assert torch.equal(torch.get_rng_state(), before)


def tower(**changed):
    torch.manual_seed(0)
    settings = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**settings, **heads, **changed)).requires_grad_(False)


def embeddings_gradient(model, dtype):
    """Of a loss, with respect to the embeddings of some tokens."""
    embedded = model.get_input_embeddings()(torch.arange(20)[None]).to(dtype).detach().requires_grad_()
    out = model(inputs_embeds=embedded, labels=torch.arange(20)[None]).loss
    return torch.autograd.grad(out.float(), embedded)[0]


def test_a_whole_models_gradient_is_unchanged(ours):
    exact = embeddings_gradient(tower().double(), torch.float64)
    theirs = embeddings_gradient(tower().bfloat16(), torch.bfloat16)
    model = tower().bfloat16()
    assert elementwise.install(model) == (5, 1)
    found = embeddings_gradient(model, torch.bfloat16)
    assert sorted(ours) == ["_Norm"] * 5 + ["_Rotation"] * 4
    assert distance(found, exact) < 1.1 * distance(theirs, exact)
    assert elementwise.install(tower()) == (5, 0)  # the function is replaced already, once


def test_a_norms_forward_patched_by_another_library_is_kept():
    model = tower().bfloat16()
    add_hook_to_module(model.model.norm, AlignDevicesHook(execution_device="cpu"))
    hooked = model.model.norm.forward
    assert elementwise.install(model) == (4, 1) and model.model.norm.forward is hooked
    assert elementwise.install(model) == (0, 0)


def test_transformers_own_code_is_used_without_gradients_in_fp32_and_for_trained_norms(ours):
    model = tower().bfloat16()
    elementwise.install(model)
    with torch.no_grad():
        model(torch.arange(20)[None])
    embeddings_gradient(model.float(), torch.float32)
    assert not ours
    for name, parameter in model.bfloat16().named_parameters():
        parameter.requires_grad_("norm" in name)
    embeddings_gradient(model, torch.bfloat16)
    assert set(ours) == {"_Rotation"}
    assert isinstance(llama.apply_rotary_pos_emb, partial)
