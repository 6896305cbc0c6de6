"""Attacks through a model or adapter directory: code, pickles, false headers, broken JSON. Nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import struct
from typing import Any

import pytest

from sft.config.errors import UserError


class Owned:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch owned",))


PICKLE = pickle.dumps(Owned())
CODE = b"open('owned', 'w')\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
GROWS = {"type": "Replace", "pattern": {"String": "h"}, "content": "h" * 100}
DEEP = b"[" * 100_000
OWN_CODE = "brings its own code, which is not run by default"
LOADED = "(loaded without it)"
CONFIG, TOKENIZER, WEIGHTS, INDEX = (
    "config.json",
    "tokenizer_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)


def tensors(header: Any, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def index(*names: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"w{i}": name for i, name in enumerate(names)}}).encode()


# What is tried: (files of the directory, keys of its JSON files, what is told)
ATTACKS: dict[str, tuple[dict[str, bytes | None], dict[str, dict[str, Any]], str]] = {
    "a model with code of its own": (
        {"evil.py": CODE},
        {
            CONFIG: {
                "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
                "model_type": "evil",
            }
        },
        OWN_CODE,
    ),
    "code beside a known architecture": (
        {"evil.py": CODE},
        {CONFIG: {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}},
        LOADED,
    ),
    "code out of another repository": (
        {},
        {CONFIG: {"auto_map": {"AutoConfig": "other/repository--evil.Config"}, "model_type": "evil"}},
        OWN_CODE,
    ),
    "a tokenizer with code of its own": (
        {"evil.py": CODE},
        {TOKENIZER: {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}},
        OWN_CODE,
    ),
    "a tokenizer's class that is a function": ({}, {TOKENIZER: {"tokenizer_class": "os.system"}}, LOADED),
    "pickled weights": (
        {WEIGHTS: None, "pytorch_model.bin": PICKLE},
        {},
        "has no safetensors weights, and pickled ones are not read",
    ),
    "pickled weights beside an index of safetensors": (
        {WEIGHTS: None, "pytorch_model.bin": PICKLE, INDEX: index("pytorch_model.bin")},
        {},
        "names 'pytorch_model.bin', which is not a safetensors file beside it",
    ),
    "a pickle beside the weights": ({"training_args.bin": PICKLE, "optimizer.pt": PICKLE}, {}, LOADED),
    "an index that leads out": (
        {WEIGHTS: None, INDEX: index("../../../etc/passwd")},
        {},
        "names '../../../etc/passwd', which is not a safetensors file beside it",
    ),
    "an index nested without end": ({INDEX: DEEP}, {}, "is not an index of weights"),
    "weights with a header of 2^60 bytes": (
        {WEIGHTS: tensors({}, 2**60)},
        {},
        "cannot be loaded: Error while deserializing header",
    ),
    "weights with a tensor of 4 TiB": (
        {WEIGHTS: tensors({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})},
        {},
        "cannot be loaded: Error while deserializing header",
    ),
    "weights whose header is not JSON": (
        {WEIGHTS: tensors(b"{no")},
        {},
        "cannot be loaded: Error while deserializing header",
    ),
    "weights of one byte": ({WEIGHTS: b"\0"}, {}, "cannot be loaded: Error while deserializing header"),
    "weights without tensors": ({WEIGHTS: tensors({})}, {}, "of the model's weights, which would be random"),
    "`config.json` cut off": ({CONFIG: b'{"model_type": '}, {}, "is not a valid JSON file"),
    "`config.json` nested without end": ({CONFIG: DEEP}, {}, "one of its JSON files is nested too deeply"),
    "`config.json` that is not UTF-8": ({CONFIG: b"\xff\xfe"}, {}, "is not a valid JSON file"),
    "`config.json` with a text for a size": ({}, {CONFIG: {"hidden_size": "x"}}, "cannot be loaded: Validation error"),
    "`config.json` with a size of 2^40": (
        {},
        {CONFIG: {"hidden_size": 2**40}},
        "hidden_size is a number of more than 12 digits, and",
    ),
    "`config.json` of 100,000 layers": (
        {},
        {CONFIG: {"num_hidden_layers": 100_000}},
        "num_hidden_layers is 100000, and",
    ),
    "`config.json` without a head": (
        {},
        {CONFIG: {"num_attention_heads": 0}},
        "num_attention_heads is 0, and no model",
    ),
    "`config.json` of a billion labels": (
        {},
        {CONFIG: {"num_labels": 10**9}},
        "num_labels is 1000000000, and no model",
    ),
    "a normalizer that makes 10^12 letters of one": (
        {},
        {"tokenizer.json": {"normalizer": {"type": "Sequence", "normalizers": [GROWS] * 6}}},
        "its normalizer expands one character to more than 10,000",
    ),
    "`config.json` with a vocabulary of -1": ({}, {CONFIG: {"vocab_size": -1}}, "cannot be loaded: "),
    "`config.json` of an unknown type": ({}, {CONFIG: {"model_type": "nonsense"}}, "has model type `nonsense`"),
    "`config.json` that is a pipe's name": ({CONFIG: None}, {}, "has no config.json"),
    "`tokenizer.json` cut off": ({"tokenizer.json": b"{"}, {}, "cannot be loaded: "),
    "`tokenizer.json` without content": ({"tokenizer.json": b"{}"}, {}, "cannot be loaded: "),
    "`tokenizer.json` nested without end": ({"tokenizer.json": DEEP}, {}, "one of its JSON files is nested too deeply"),
    "a chat template that is a list": ({}, {TOKENIZER: {"chat_template": ["x"]}}, "cannot be loaded: "),
    "a chat template that is a number": (
        {},
        {TOKENIZER: {"chat_template": 5}},
        "the tokenizer's chat template is not text",
    ),
    "a special token that is a number": ({}, {TOKENIZER: {"pad_token": {"content": 5}}}, "cannot be loaded: "),
}


def told(directory: Any) -> str:
    from sft.model.load import load_config, load_model, load_tokenizer
    from sft.model.spec import Model
    from sft.template.bind import bind
    from sft.template.spec import Template

    spec = Model(name=str(directory))
    try:
        config = load_config(spec)
        bind(Template(), load_tokenizer(spec, config))
        load_model(spec, config=config)
    except UserError as error:
        return str(error)
    return LOADED


@pytest.mark.parametrize("name", ATTACKS)
def test_each_hostile_model_is_refused_with_its_reason_and_not_executed(name, broken_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, keys, reason = ATTACKS[name]
    directory = broken_model(files, keys)
    if "pipe" in name:
        os.mkfifo(directory / CONFIG)
    assert reason in told(directory)
    assert not (tmp_path / "owned").exists()


# What an adapter's directory may hold: (files, keys of adapter_config.json, what is told)
ADAPTERS: dict[str, tuple[dict[str, bytes | None], dict[str, Any], str]] = {
    "target modules by an expression that never ends": (
        {},
        {"target_modules": "(.*.*.*.*.*.*.*.*.*)*xyz"},
        "has nested repeats, whose matching may never end",
    ),
    "target modules by an invalid expression": ({}, {"target_modules": "((("}, "is not a regular expression"),
    "a rank for modules by an expression that never ends": (
        {},
        {"rank_pattern": {"(a+)+b": 4}},
        "has nested repeats",
    ),
    "a million layers replicated": (
        {},
        {"layer_replication": [[0, 1]] * 10**6},
        "layer_replication has more than 1,000",
    ),
    "a billion iterations of PiSSA": ({}, {"init_lora_weights": "pissa_niter_1000000000"}, "more than 999 iterations"),
    "a row of 10^12 of the embeddings": (
        {},
        {"trainable_token_indices": {"embed_tokens": [10**12]}},
        "trainable_token_indices are not ids below 10,000,000",
    ),
    "a rank of 10^9": ({}, {"r": 10**9}, "r=1000000000 is not a rank from 1 to 65,536"),
    "a pickled adapter": (
        {"adapter_model.safetensors": None, "adapter_model.bin": PICKLE},
        {},
        "holds no adapter in safetensors",
    ),
    "a pickle beside an adapter": ({"adapter_model.bin": PICKLE}, {}, LOADED),
    "an adapter that names another base": ({}, {"base_model_name_or_path": "/etc"}, LOADED),
    "an adapter that names code for its base": (
        {},
        {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},
        LOADED,
    ),
    "an adapter that names a module": (
        {},
        {"megatron_core": "evil", "megatron_config": {}},
        "names a module to import, 'evil'",
    ),
    "an adapter of an unknown kind": ({}, {"peft_type": "EVIL"}, "is not an adapter that can be read"),
    "an adapter's config nested without end": (
        {"adapter_config.json": DEEP},
        {},
        "is not an adapter's config: nested too deeply",
    ),
    "an adapter's config that is a list": (
        {"adapter_config.json": b"[]"},
        {},
        "is not an adapter's config: not a JSON object",
    ),
    "an adapter with a false header": (
        {"adapter_model.safetensors": tensors({}, 2**60)},
        {},
        "holds no complete safetensors file",
    ),
    "an adapter of another shape": (
        {"adapter_model.safetensors": tensors({})},
        {},
        "does not belong to",
    ),
}


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """The base, and an adapter of it in a directory."""
    import peft

    from sft.model.load import load_model
    from sft.model.spec import Model

    directory = tmp_path_factory.mktemp("adapter")
    base = load_model(Model(name=str(tiny), dtype="float32"))
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_hostile_adapter_is_refused_with_its_reason_and_not_executed(name, adapter, tiny, tmp_path, monkeypatch):
    import shutil

    from sft.model.adapters.existing import check_adapter, load_adapter
    from sft.model.load import load_model
    from sft.model.spec import Model

    monkeypatch.chdir(tmp_path)
    files, keys, reason = ADAPTERS[name]
    directory = shutil.copytree(adapter, tmp_path / "adapter")
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    for file, content in files.items():
        (directory / file).unlink(missing_ok=True) if content is None else (directory / file).write_bytes(content)
    try:
        load_adapter(load_model(Model(name=str(tiny), dtype="float32")), check_adapter(str(directory)))
        answer = LOADED
    except UserError as error:
        answer = str(error)
    assert reason in answer
    assert not (tmp_path / "owned").exists()
