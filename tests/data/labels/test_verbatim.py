"""Typed control tokens become ordinary tokens, and everything else is tokenized as usual."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from sft.config.errors import UserError
from sft.data.labels.verbatim import Verbatim
from sft.template.control import HIDE, TokenFinder, hidden, in_texts, revealed, shifts

SPECIAL = ["<s>", "</s>", "<|end|>", "[INST]", "<unk>"]
TEXTS = st.lists(st.sampled_from([*SPECIAL, "a", " b", "\n", "é", "<", "|end|>", "s>"]), max_size=8).map("".join)


def bpe(ignore_merges=False):
    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return core, trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def unigram(scheme):
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return core, trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=SPECIAL,
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=list("<|>[]INST/"),
    )


def llama2():
    core, trainer = bpe()
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.model = models.BPE(unk_token="<unk>", fuse_unk=True)
    return core, trainer


KINDS = {
    "byte-level": bpe,
    "whole words first": lambda: bpe(True),
    "unigram": lambda: unigram("always"),
    "unigram, first": lambda: unigram("first"),
    "llama 2": llama2,
}


@pytest.fixture(scope="module", params=KINDS)
def backend(request):
    core, trainer = KINDS[request.param]()
    core.train_from_iterator(["a b é end s INST <|end|> <s> a b"] * 20, trainer)
    core.add_tokens([AddedToken("<tool>", normalized=False)])  # beside the model's vocabulary
    return core


@given(text=TEXTS)
def test_a_text_without_typed_tokens_is_tokenized_normally(backend, text):
    ours, theirs = Verbatim(backend, [*SPECIAL, "<tool>"]).encode(text), backend.encode(text, add_special_tokens=False)
    assert (ours.ids, ours.offsets) == (theirs.ids, theirs.offsets)


@given(before=TEXTS, typed=TEXTS, after=TEXTS)
def test_typed_tokens_have_other_ids_and_the_rest_keeps_its_own(backend, before, typed, after):
    finder = TokenFinder(SPECIAL)
    control = {backend.token_to_id(token) for token in SPECIAL if token != "<unk>"}
    text = f"{before}<tool>{hidden(typed, finder)}<tool>{after}"
    one, tool = Verbatim(backend, [*SPECIAL, "<tool>"]).encode(text), backend.token_to_id("<tool>")
    first, last = one.ids.index(tool), len(one.ids) - 1 - one.ids[::-1].index(tool)
    assert not control & set(one.ids[first:last])
    theirs = backend.encode(f"{before}<tool>x<tool>{after}", add_special_tokens=False).ids
    assert one.ids[: first + 1] == theirs[: theirs.index(tool) + 1]
    assert one.ids[last:] == theirs[len(theirs) - 1 - theirs[::-1].index(tool) :]
    assert all(end <= len(revealed(text)) for _, end in one.offsets)


def test_it_can_be_pickled_and_refuses_unsupported_tokenizers(backend):
    found = Verbatim(backend, ["<s>"])
    assert found.encode("a").ids and pickle.loads(pickle.dumps(found)).encode("a").ids == found.encode("a").ids
    unknown = json.dumps({**json.loads(backend.to_str()), "model": {"type": "Unknown"}})
    other = SimpleNamespace(token_to_id=backend.token_to_id, to_str=lambda: unknown)
    with pytest.raises(UserError, match=r"dataset.control_tokens: this tokenizer cannot encode control tokens as text"):
        Verbatim(other, ["<s>"]).encode("a")
    moved = SimpleNamespace(token_to_id=lambda token: 999, to_str=backend.to_str)
    with pytest.raises(UserError, match="cannot encode control tokens as text: <s> gets another id"):
        Verbatim(moved, ["<s>"]).encode("a")


@given(st.lists(st.sampled_from([*SPECIAL, "<", ">", "[", "]", "|end", " ", "€tok€"]), max_size=9).map("".join))
def test_the_finder_finds_the_same_as_a_search_for_every_token(text):
    tokens = [*SPECIAL, "€tok€"]
    spans = TokenFinder(tokens).spans(text)
    assert all(text[start:end] in tokens for start, end in spans)
    assert bool(spans) == any(token in text for token in tokens)
    assert TokenFinder(tokens).first(text) == (text[slice(*spans[0])] if spans else None)
    covered = hidden(text, TokenFinder(tokens))
    assert revealed(covered) == text and not TokenFinder(tokens).spans(covered)
    moved = shifts(covered)
    assert [moved(at) for at, character in enumerate(covered) if character != HIDE] == list(range(len(text)))


def test_every_text_of_a_value_is_changed_and_other_values_are_kept():
    value = {"a": ["x", 1, {"x": None}], "b": "y"}
    assert in_texts(value, lambda text: text.replace("x", "z")) == {"a": ["z", 1, {"z": None}], "b": "y"}
    assert in_texts(value, str) is value
