"""The handwritten cross entropy of a chunk of logits and its gradient: equal to PyTorch's, and exact for confident
models."""

import pytest
import torch

from sft.kernels import cross_entropy as losses
from sft.kernels.cross_entropy import _loss_and_gradient, chunked_cross_entropy_sum

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("rows", [1, 2, 9])  # that are widened at once
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_slope_are_those_of_cross_entropy(dtype, rows, monkeypatch):
    monkeypatch.setattr(losses, "CPU_ELEMENTS", rows * 50 * losses.SLICES)
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(9, 50, generator=generator)).to(dtype)
    targets = torch.randint(0, 50, (9,), generator=generator)
    kept = logits.clone()
    wide = logits.double().requires_grad_()
    want = torch.nn.functional.cross_entropy(wide, targets, reduction="sum")
    want.backward()
    loss, gradient = _loss_and_gradient(logits, targets, True)
    assert torch.equal(logits, kept)  # they are the model's
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    assert gradient.dtype is dtype
    torch.testing.assert_close(gradient.double(), wide.grad, rtol=5e-3 if dtype is torch.bfloat16 else 1e-5, atol=1e-7)
    assert _loss_and_gradient(logits, targets, False)[1] is None


def test_the_slope_of_a_sure_token_is_not_rounded_away():
    logits = torch.tensor([[12.0, 5.0, 0.0]]).bfloat16()
    _, gradient = _loss_and_gradient(logits, torch.tensor([0]), True)
    exact = torch.softmax(logits.double(), -1)[0, 0] - 1
    assert -1e-3 < exact < -9e-4  # 1 - 0.0009 is 1 in bf16
    assert gradient[0, 0].item() == pytest.approx(exact.item(), rel=5e-3)


def test_scores_that_would_overflow_give_a_loss():
    logits = torch.tensor([[3e38, -3e38], [-3e38, 3e38]])
    loss, gradient = _loss_and_gradient(logits, torch.tensor([0, 1]), True)
    assert loss.item() == 0 and torch.equal(gradient, torch.zeros(2, 2))


def test_no_number_stays_none():
    hidden = torch.tensor([[float("nan"), 1.0]], requires_grad=True)
    head = torch.nn.Linear(2, 3, bias=False)
    loss = chunked_cross_entropy_sum(hidden, head, torch.tensor([1]))
    loss.backward()
    assert torch.isnan(loss) and torch.isnan(hidden.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_share_of_a_step_does_not_round_the_gradient_as_a_whole(dtype):
    head = torch.nn.Linear(8, 5, bias=False).to(dtype)
    hidden = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.arange(7) % 5

    def gradient(share):
        given = hidden.clone().requires_grad_()
        (chunked_cross_entropy_sum(given, head, targets) * share).backward()
        return given.grad.double()

    whole, part = gradient(1.0), gradient(1 / 333)
    # 1/333 in bf16 is 0.14% too large, in every element; roundings of single ones cancel
    assert float(part.norm() / whole.norm()) * 333 == pytest.approx(1, abs=1e-3 if dtype is torch.bfloat16 else 3e-4)
