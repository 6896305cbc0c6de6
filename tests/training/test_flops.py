"""The FLOPs of training, counted by hand for a model of known sizes."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sft.training.flops import FlopsPerToken, attention_pairs, flops_per_token
from sft.training.trainer.progress import Progress


def model():
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=8))


LAYERS = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)  # q; k and v; o; gate, up and down


def test_a_full_fine_tune_needs_three_products_per_weight():
    assert flops_per_token(model()) == FlopsPerToken(
        per_token=6.0 * LAYERS, per_trained=6.0 * 3200, per_pair=12.0 * 4 * 8 * 2
    )


def test_frozen_weights_need_two_and_an_adapters_own_three():
    adapted = get_peft_model(model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    flops = flops_per_token(adapted)
    assert flops is not None
    assert flops.per_token == 4.0 * LAYERS + 6.0 * 2 * (32 * 4 + 4 * 32)
    assert flops.per_trained == 4.0 * 3200


def test_models_with_uncounted_weights_have_no_flops():
    import torch

    odd = model()
    odd.model.experts = torch.nn.Parameter(torch.zeros(2, 3, 4))
    assert flops_per_token(odd) is None


def test_utilization_counts_only_real_tokens():
    progress = Progress()
    progress.total_tokens, progress.trained_tokens, progress.padded_tokens = 10, 4, 16
    progress.pairs, progress.step_seconds = attention_pairs([4, 6]), 2.0
    assert progress.pairs == 10 + 21
    assert progress.utilization(FlopsPerToken(3.0, 5.0, 2.0), 56.0) == pytest.approx((30 + 20 + 62) / 2 / 56)
    assert progress.padding == 1 - 10 / 16
    assert progress.utilization(None, 56.0) is progress.utilization(FlopsPerToken(1, 1, 1), None) is None
