"""The model card."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from sft.hub.card import Card
from sft.run.info import TrainingInfo
from sft.run.metrics import Metrics


def card(**changes: Any) -> Card:
    info = TrainingInfo(
        model_name="smollm2_offline",
        model_path="/cache/smollm2",
        model_kind="embedded",
        method="lora",
        system='Answer "in JSON"\n```alone```',
        dtype="bfloat16",
        template_name="chatml",
        lora={"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        dataset={"sources": {"tickets": {"rows": 900, "weight": 1.0, "note": "a|b"}}},
        sft_version="0.1.0",
    )
    for name in [name for name in changes if hasattr(info, name)]:
        setattr(info, name, changes.pop(name))
    given = {"name": "demo", "info": info, "metrics": Metrics(status="finished", steps=12, eval_loss=0.5), **changes}
    return Card(**given)


def usage(text: str) -> str:
    found = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_front_matter_is_valid_for_the_hub() -> None:
    text = card(hub_id="HuggingFaceTB/SmolLM2-135M-Instruct", settings={"learning_rate": 2e-4}, tags=["tickets"]).text()
    data = ModelCard(text).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["sft", "lora", "tickets"]
    assert data.to_dict()["base_model_relation"] == "adapter"


def test_a_local_base_is_not_listed_as_a_hub_model() -> None:
    data = ModelCard(card().text()).data
    assert data.base_model is None
    assert ModelCard(card(model_path="Qwen/Qwen3-0.6B").text()).data.base_model == "Qwen/Qwen3-0.6B"


def test_the_card_has_model_data_and_results() -> None:
    text = card(settings={"learning_rate": 2e-4, "max_steps": None}).text()
    for expected in (
        "| lora.r | 8 |",
        "| lora.target_modules | q_proj, v_proj |",
        "| learning_rate | 0.0002 |",
        "| eval_loss | 0.5 |",
        "| eval_perplexity | 1.64872 |",
        "| steps | 12 |",
        r"- `tickets`: rows 900, weight 1, note a\|b",
        '````\nAnswer "in JSON"\n```alone```\n````',
    ):
        assert expected in text
    assert "max_steps" not in text
    assert "train_loss" not in text


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_snippet_is_valid_python_for_the_saved_weights(method: str) -> None:
    text = card(method=method, hub_id="org/base").text()
    code = usage(text)
    ast.parse(code)
    assert ("PeftModel.from_pretrained" in code) is (method != "full")
    assert ('AutoModelForCausalLM.from_pretrained("org/base")' in code) is (method != "full")
    assert '"role": "system"' in code
    assert ("full-fine-tuning" in ModelCard(text).data.tags) is (method == "full")


def test_a_card_is_written_without_any_information(tmp_path: Path) -> None:
    path = Card("empty", TrainingInfo(), Metrics()).write(tmp_path)
    assert path == tmp_path / "README.md"
    assert "Not recorded." in path.read_text()
    ModelCard(path.read_text())


def test_the_card_contains_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-value")
    assert "very-secret-value" not in card(settings={"note": "very-secret-value"}).text()
