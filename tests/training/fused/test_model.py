"""Jobs that train together in one pass: the losses, gradients and predictions that each has alone."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sft.data.batches.collate import FlatCollator, split_batch
from sft.data.batches.prefix import SharedPrefixCollator
from sft.kernels import attention, lowrank
from sft.kernels.cross_entropy import summed_loss
from sft.model.head import output_layer, output_layer_skipped
from sft.model.view import original_of, view_of
from sft.training.fused.model import JointModel, Share
from sft.training.memory import RngState
from sft.training.trainer.neftune import Noise, noisy

pytestmark = pytest.mark.numeric

VOCABULARY = 97
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base():
    attention.register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).requires_grad_(False)


def job(base, seed, r=4, targets=ALL, dropout=0.0):
    """A model of one job over the base, as a run has it."""
    torch.manual_seed(seed)
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets, lora_dropout=dropout, init_lora_weights=False)
    model = get_peft_model(view_of(base), config)
    model.get_base_model().set_attn_implementation(attention.VARLEN)
    lowrank.install(model)
    return model.train()


def batch(seed, lengths, collator=None):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index, length in enumerate(lengths):
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        if isinstance(collator, SharedPrefixCollator):
            ids[:9] = range(9)
        labels = [-100] * (length // 2) + ids[length // 2 :]
        rows.append({"input_ids": ids, "labels": labels, "source": "s", "row": index})
    return split_batch((collator or FlatCollator())(rows))[0]


def alone(model, given, noise=None):
    """Loss and gradients of one job by itself."""
    if noise is not None:
        noise.of(given)
    with noisy(model, noise):
        loss, _ = summed_loss(model, given, True, output_layer(model))
    trained = [each for each in model.parameters() if each.requires_grad]
    return loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)


def together(base, models, batches, **more):
    joint = JointModel(base)
    for number, model in enumerate(models):
        joint.join(number, model)
    shares = [Share(number, each, **{k: v[number] for k, v in more.items()}) for number, each in enumerate(batches)]
    with output_layer_skipped(joint.head):
        return joint.losses_and_gradients(shares, nullcontext)


def near(found, wanted, assert_near):
    """Losses and gradients are the wanted ones, up to roundings of the largest gradient of the job."""
    losses, gradients = found
    for number, (loss, own) in enumerate(wanted):
        torch.testing.assert_close(losses[number], loss, rtol=1e-5, atol=1e-5)
        assert [got.shape for got in gradients[number]] == [want.shape for want in own]
        assert_near(*(torch.cat([each.flatten() for each in some]) for some in (gradients[number], own)), 1024)


jobs_of_all_kinds = st.lists(
    st.tuples(
        st.integers(1, 9),
        st.lists(st.sampled_from(ALL), min_size=1, max_size=7, unique=True),
        st.lists(st.integers(6, 24), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=25)
@given(jobs_of_all_kinds)
def test_losses_and_gradients_in_company_are_those_alone(base, assert_near, kinds):
    models = [job(base, number, r, targets) for number, (r, targets, _) in enumerate(kinds)]
    batches = [batch(number, lengths) for number, (_, _, lengths) in enumerate(kinds)]
    wanted = [alone(*pair) for pair in zip(models, batches, strict=True)]
    near(together(base, models, batches), wanted, assert_near)


def test_a_shared_prefix_stays_within_its_job(base, assert_near):
    models = [job(base, 1), job(base, 2, r=2)]
    batches = [batch(1, [20, 25], SharedPrefixCollator()), batch(2, [22, 27, 30], SharedPrefixCollator())]
    assert all(each["cu_seq_lens_k"][-1] > each["cu_seq_lens_q"][-1] for each in batches)
    wanted = [alone(*pair) for pair in zip(models, batches, strict=True)]
    near(together(base, models, batches), wanted, assert_near)


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_dropout_and_noise_draw_each_jobs_own_numbers(base, assert_near, alpha):
    models = [job(base, 1, dropout=0.3), job(base, 2, dropout=0.0), job(base, 3, dropout=0.1)]
    batches = [batch(number, [9, 14]) for number in range(3)]
    noises = [Noise(alpha) if alpha else None for _ in models]
    states, wanted = [], []
    for number, model in enumerate(models):
        torch.manual_seed(100 + number)
        states.append(RngState())
        wanted.append(alone(model, batches[number], noises[number]))

    class Own:
        def __init__(self, state):
            self.state = state

        def __call__(self):
            return self

        def __enter__(self):
            self.home = RngState()
            self.state.restore()

        def __exit__(self, *_):
            self.state = RngState()
            self.home.restore()

    for noise, given_ in zip(noises, batches, strict=True):
        if noise is not None:
            noise.of(given_)
    near(together(base, models, batches, draws=[Own(state) for state in states], noise=noises), wanted, assert_near)


def test_predictions_in_company_are_those_alone(base):
    models, batches = [job(base, 1), job(base, 2, r=2)], [batch(1, [8, 3]), batch(2, [5])]
    joint = JointModel(base)
    for number, model in enumerate(models):
        joint.join(number, model.eval())
    found = joint.outputs([Share(number, each) for number, each in enumerate(batches)], nullcontext)
    for model, given_, got in zip(models, batches, found, strict=True):
        with torch.no_grad(), output_layer_skipped(output_layer(model)):
            inputs = {key: value for key, value in given_.items() if key not in ("labels", "shift_labels")}
            want = model(**inputs, use_cache=False, logits_to_keep=given_["shift_labels"] != -100).logits
        torch.testing.assert_close(got, want.reshape(got.shape), rtol=1e-4, atol=1e-5)


def test_a_job_that_left_leaves_the_others_as_they_were(base, assert_near):
    models, batches = [job(base, 1), job(base, 2)], [batch(1, [8, 3]), batch(2, [5])]
    joint = JointModel(base)
    for number, model in enumerate(models):
        joint.join(number, model)
    joint.leave(0)
    with output_layer_skipped(joint.head):
        losses, gradients = joint.losses_and_gradients([Share(1, batches[1])], nullcontext)
    near((losses, [gradients[1]]), [alone(models[1], batches[1])], assert_near)


def test_a_view_shares_tensors_and_nothing_else(base):
    view = view_of(base)
    assert original_of(view) is base and original_of(base) is base
    assert [id(p) for p in view.parameters()] == [id(p) for p in base.parameters()]
    assert not {id(m) for m in view.modules()} & {id(m) for m in base.modules()}
    assert view.config is not base.config
