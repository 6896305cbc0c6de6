"""Families are detected by model_type first, by name second; everything they refer to exists."""

from __future__ import annotations

from pathlib import Path

import pytest

import sft
from sft.template.candidates import packaged_templates
from sft.template.families import FAMILIES, GENERIC, by_template, detect

CONF = Path(sft.__file__).parent.parent / "conf" / "template"


@pytest.mark.parametrize(
    ("model_type", "name", "family"),
    [
        ("llama", None, "llama3"),
        ("llama", "meta-llama/Meta-Llama-3-8B", "llama3"),
        ("llama", "meta-llama/Llama-3.2-1B-Instruct", "llama3.1"),
        ("llama", "/models/Llama-2-7b-hf", "llama2"),
        ("llama", "HuggingFaceTB/SmolLM2-135M", "smollm2"),
        ("llama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "zephyr"),
        ("llama", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek"),
        ("qwen2", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "deepseek"),
        ("qwen2", "Qwen/Qwen2.5-0.5B", "qwen2"),
        ("qwen3", "Qwen/Qwen3-0.6B", "qwen3"),
        ("qwen3_5", None, "qwen3.5"),
        ("mistral", "mistralai/Mistral-7B-v0.3", "mistral"),
        ("mistral", "HuggingFaceH4/zephyr-7b-beta", "zephyr"),
        ("gemma3_text", None, "gemma"),
        ("gemma4", None, "gemma4"),
        ("phi3", None, "phi3"),
        ("phi3", "microsoft/Phi-4-mini-instruct", "phi4-mini"),
        ("phi3", "microsoft/phi-4", "phi4"),
        ("phi3", "microsoft/Phi-3.5-mini-instruct", "phi3"),
        ("gpt2", "gpt2", "gpt2"),
        ("smollm3", "HuggingFaceTB/SmolLM3-3B", "smollm3"),
        ("granite", None, "granite"),
        ("deepseek_v3", None, "deepseek"),
        ("glm4_moe", None, "glm"),
        ("gpt_oss", None, "gpt-oss"),
        ("nemotron_h", None, "nemotron"),
        ("cohere2", None, "cohere"),
        ("lfm2", None, "lfm2"),
        (None, "some/qwen3-finetune", "qwen3"),
        (None, "runs/gemma-tuned", "gemma"),
        ("unheard_of", "who/knows", "chatml"),
        (None, None, "chatml"),
    ],
)
def test_detect(model_type, name, family):
    assert detect(model_type, name).name == family


def test_each_family_has_its_template_and_its_stop_tokens():
    for family in FAMILIES:
        assert family.template in packaged_templates(), family.name
        assert family.stop_tokens, family.name
        assert family.padding_side == "right"


def test_the_names_of_families_are_distinct():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)


def test_a_template_finds_its_family():
    assert by_template("chatml") is GENERIC
    assert by_template("llama3").name == "llama3"
    assert by_template("alpaca") is None


def test_each_config_names_an_existing_template():
    for path in CONF.glob("*.yaml"):
        name = path.read_text().split("name: ")[1].splitlines()[0]
        assert name in {"auto", "file", *packaged_templates()}, path.name
    assert {path.stem for path in CONF.glob("*.yaml")} >= {
        *("auto", "chatml", "llama2", "llama3", "mistral", "gemma", "phi", "zephyr", "alpaca", "instruct", "file")
    }
