"""Attention by blocks of queries equals causal attention: values and gradients, with grouped heads, at block
boundaries."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sft.kernels import causal
from sft.kernels.attention import varlen_attention

pytestmark = pytest.mark.numeric

FP32, FP64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
LENGTHS = [1, 2, 127, 128, 129, 191, 192, 193, 300, causal.KEPT, causal.KEPT + 1]


def tensors(length: int, dtype=torch.float64, heads=(2, 3), dimension=8):
    generator = torch.Generator().manual_seed(length)
    shapes = ((*heads, length, dimension), (heads[0], length, dimension), (heads[0], length, dimension))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def reference(query, key, value, scale):
    """All heads on their own, keys repeated."""
    groups = query.shape[1]
    whole = scaled_dot_product_attention(
        query.flatten(0, 1),
        key.repeat_interleave(groups, 0),
        value.repeat_interleave(groups, 0),
        is_causal=True,
        scale=scale,
    )
    return whole.view_as(query)


@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients_equal_those_of_causal_attention(length, assert_near):
    inputs = tensors(length)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = reference(*inputs, 0.3)
    got = causal.causal_attention(*inputs, 0.3)
    assert_near(got, want)
    wanted = torch.autograd.grad(want, inputs, grad)
    # keys' and values' gradients are summed in fp32
    for one, other in zip(torch.autograd.grad(got, inputs, grad), wanted, strict=True):
        assert_near(one, other, roundings=64 * FP32 / FP64)


def test_the_16_bit_error_is_within_twice_the_rounding_of_its_inputs():
    exact = tensors(200)
    rounded = [each.detach().bfloat16().requires_grad_() for each in exact]
    grad = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = torch.autograd.grad(reference(*exact, 0.35), exact, grad)
    found = torch.autograd.grad(causal.causal_attention(*rounded, 0.35), rounded, grad.bfloat16())
    for one, other in zip(found, truth, strict=True):
        assert one.dtype is torch.bfloat16
        assert float((one.double() - other).norm() / other.norm()) < 0.015


def kept_by(compute):
    """The tensors that autograd keeps for the backward pass."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        compute()
    return saved


@pytest.mark.parametrize(("tokens", "keys"), [(1, 5), (140, 150), (5, 300), (400, 600)])
def test_fewer_queries_than_keys(tokens, keys, assert_near):
    query, key, value = tensors(keys)
    grad = torch.randn(query[:, :, -tokens:].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = reference(query, key, value, 0.3)[:, :, -tokens:]
    got = causal.causal_attention(query[:, :, -tokens:], key, value, 0.3)
    assert_near(got, want)
    wanted = torch.autograd.grad(want, (query, key, value), grad)
    for one, other in zip(torch.autograd.grad(got, (query, key, value), grad), wanted, strict=True):
        assert_near(one, other, roundings=64 * FP32 / FP64)


def test_memory_kept_for_the_backward_pass_is_counted():
    for length in LENGTHS:
        query, key, value = tensors(length)
        saved = kept_by(lambda given=(query, key, value): causal.causal_attention(*given, 1.0))
        probabilities = sum(each.numel() for each in saved) - query.numel() - key.numel() - value.numel()
        assert probabilities == 6 * causal.kept_probabilities(length)
    assert causal.kept_probabilities(causal.KEPT + 1) == 0 < causal.kept_probabilities(causal.KEPT)


def test_varlen_attention_uses_it_in_16_bits_and_equals_each_document_alone():
    lengths = [5, 140, 1]
    borders = torch.tensor([0, 5, 145, 146])
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 6, 146, 8, generator=generator).bfloat16()
    key, value = (torch.randn(1, 2, 146, 8, generator=generator).bfloat16() for _ in range(2))
    out, _ = varlen_attention(torch.nn.Module(), query, key, value, None, scaling=0.3, cu_seq_lens_q=borders)
    assert out.shape == (1, 146, 6, 8)
    for start, length in zip(borders.tolist(), lengths, strict=False):
        here = slice(start, start + length)
        grouped = query[0, :, here].unflatten(0, (2, 3))
        want = causal.causal_attention(grouped, key[0, :, here], value[0, :, here], 0.3).flatten(0, 1)
        assert torch.equal(out[0, here].transpose(0, 1), want)
        plain = reference(grouped.float(), key[0, :, here].float(), value[0, :, here].float(), 0.3).flatten(0, 1)
        torch.testing.assert_close(want.float(), plain, rtol=0.03, atol=0.03)
