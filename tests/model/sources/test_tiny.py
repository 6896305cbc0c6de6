"""Tiny models: quick to build, deterministic, and like the large models in everything that training can get wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer

from sft.config.errors import UserError
from sft.model.facts import count_parameters, empty_model, family_of
from sft.model.load import load_config, load_tokenizer
from sft.model.sources.tiny import ARCHITECTURES, VOCABULARY, build_tiny, locate_tiny
from sft.model.spec import TinyModel
from sft.model.tokens import is_single

FAMILIES = {
    "llama": "llama3",
    "qwen3": "qwen3",
    "mistral": "mistral",
    "gemma3": "gemma",
    "phi3": "phi3",
    "gpt2": "gpt2",
}


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_the_family_and_its_chat_tokens(architecture):
    spec = TinyModel(architecture=architecture)
    family = family_of(spec, load_config(spec))
    assert family.name == FAMILIES[architecture]
    tokenizer = load_tokenizer(spec)
    assert len(tokenizer) == VOCABULARY == load_config(spec).vocab_size
    assert all(is_single(tokenizer, token) for token in (*family.control_tokens, *family.stop_tokens))
    assert tokenizer.pad_token is not None and tokenizer.is_fast


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_models_are_byte_identical_every_time(architecture, tmp_path):
    # not compared with the cached one: PyTorch's normal draws differ in the last bit between instruction sets
    once, again = tmp_path / "once", tmp_path / "again"
    for directory in (once, again):
        directory.mkdir()
        build_tiny(architecture, directory)
    names = {path.name for path in once.iterdir()}
    assert names == {path.name for path in again.iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert names == {path.name for path in locate_tiny(architecture).iterdir()}
    for name in names:
        assert (once / name).read_bytes() == (again / name).read_bytes()


def test_traits_of_the_families():
    configs = {name: AutoConfig.from_pretrained(locate_tiny(name)) for name in ARCHITECTURES}
    assert all(c.num_key_value_heads < c.num_attention_heads for n, c in configs.items() if n != "gpt2")
    assert configs["gemma3"].layer_types == ["sliding_attention", "full_attention"]
    assert {n: c.sliding_window for n, c in configs.items() if getattr(c, "sliding_window", None)} == {
        "mistral": 64,
        "gemma3": 32,
        "phi3": 64,
    }
    assert [n for n, c in configs.items() if not c.tie_word_embeddings] == ["mistral"]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_the_beginning_of_text_is_added_once(architecture):
    tokenizer = load_tokenizer(TinyModel(architecture=architecture))
    ids = tokenizer("hi there").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_round_trips_and_its_offsets_cover_it(text):
    tokenizer = _tokenizer()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == text
    covered = {i for start, end in encoded.offset_mapping for i in range(start, end)}
    assert covered == set(range(len(text)))


def test_a_ticket_is_not_absurdly_long():
    text = "Hi, this is Paul Novak. My dishwasher leaks water since Tuesday, please send somebody as soon as possible."
    assert len(_tokenizer()(text, add_special_tokens=False).input_ids) < len(text) / 2.5


def test_an_unknown_architecture_names_the_known_ones():
    with pytest.raises(UserError, match="llama, qwen3, mistral, gemma3, phi3, gpt2"):
        locate_tiny("bert")


def test_parameters_are_counted_from_the_config_alone():
    spec = TinyModel(architecture="mistral")
    model = empty_model(load_config(spec))
    assert all(p.is_meta for p in model.parameters())
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64
    assert count_parameters(model) == 2 * VOCABULARY * 64 + 2 * layer + 64


def test_importing_the_spec_loads_nothing_heavy():
    code = "import sys, sft.model.spec as s; s.TinyModel(); print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(root)})
    assert done.stdout.strip() == "[]", done.stderr


_loaded: list = []


def _tokenizer():
    if not _loaded:
        _loaded.append(AutoTokenizer.from_pretrained(locate_tiny("qwen3")))
    return _loaded[0]
