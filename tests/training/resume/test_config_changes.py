"""Which config changes count as changes of the run; changed versions, rows and tokenizers."""

from __future__ import annotations

import pytest

from sft.config.errors import UserError
from sft.run.environment import versions
from sft.training.resume.config_changes import changes
from sft.training.resume.fingerprints import changed_inputs, changed_versions, refuse

STOPPING = {"_target_": "sft.training.callbacks.early_stopping.EarlyStopping", "patience": 2, "threshold": 0.0}
DISPLAY = {"_target_": "sft.training.callbacks.display.Display", "seconds": 10.0}
ARGUMENTS = {"_target_": "sft.training.arguments.Arguments"}
NF4 = {"_target_": "transformers.BitsAndBytesConfig", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ({"seed": 1, "name": "a"}, {"seed": 2, "name": "b"}, {"seed": (1, 2)}),
        ({"callbacks": {"stop": STOPPING}}, {"callbacks": {}}, {"callbacks.stop": ("EarlyStopping", "none")}),
        ({"callbacks": {}}, {"callbacks": {"stop": STOPPING}}, {"callbacks.stop": ("none", "EarlyStopping")}),
        ({"callbacks": None}, {"callbacks": {"display": DISPLAY}}, {}),
        ({"callbacks": None}, {"callbacks": {"display": STOPPING}}, {"callbacks.display": ("none", "EarlyStopping")}),
        (
            {"callbacks": {"stop": STOPPING}},
            {"callbacks": {"stop": {**STOPPING, "patience": 3}}},
            {"callbacks.stop.patience": (2, 3)},
        ),
        ({"quant": None}, {"quant": NF4}, {"quant": ("none", "BitsAndBytesConfig")}),
        ({"lora": {"_target_": "peft.LoraConfig", "r": 8}}, {"lora": None}, {"lora": ("LoraConfig", "none")}),
        ({"on_nonfinite": "stop"}, {"on_nonfinite": "skip"}, {}),
        (
            {"trainer": {**ARGUMENTS, "save_steps": 1}},
            {"trainer": {**ARGUMENTS, "save_steps": 2, "auto_find_batch_size": True}},
            {},
        ),
    ],
)
def test_changes_that_reach_the_weights(before, now, found) -> None:
    assert changes(before, now) == found
    assert changes(before, now, found) == {}


def test_versions_that_shape_the_weights() -> None:
    record = {"versions": {**versions(), "torch": "1.0", "numpy": "1.0", "bitsandbytes": "0.1"}}
    assert set(changed_versions(record, {})) == {"versions.torch"}
    assert set(changed_versions(record, {"quant": NF4})) == {"versions.torch", "versions.bitsandbytes"}
    assert set(changed_versions(record, {"trainer": {"optim": "adamw_8bit"}})) == {
        "versions.torch",
        "versions.bitsandbytes",
    }
    assert changed_versions({"versions": versions()}, {"quant": NF4}) == changed_versions({}, {}) == {}


def test_inputs_that_are_others() -> None:
    then = {
        "tokenizer": "a",
        "template": "b",
        "data": {"rows": "c", "sources": {"x": "d", "y": "e"}, "files": {"f": "g"}},
    }
    assert changed_inputs(then, then) == changed_inputs({}, then) == changed_inputs({"data": {"rows": "c"}}, then) == {}
    other = {**then, "data": {"rows": "1", "sources": {"x": "2", "y": "e"}, "files": {"f": "3"}}}
    assert changed_inputs(then, other) == {"data.sources.x": ("d", "2")}
    assert changed_inputs(then, {**then, "data": {**then["data"], "rows": "1"}}) == {"data.rows": ("c", "1")}  # type: ignore[dict-item]
    assert changed_inputs(then, {**then, "tokenizer": "z"}) == {"tokenizer": ("a", "z")}


def test_a_difference_is_refused_unless_its_name_is_allowed() -> None:
    found = {"versions.torch": ("2.0", "2.1"), "data.sources.x": ("d" * 32, "e" * 32)}
    with pytest.raises(UserError) as refused:
        refuse(found, [], "allow_changes", "the old rows")
    assert "versions.torch: this run was started with torch 2.0, not 2.1" in str(refused.value)
    assert "pip install torch==2.0, or 'allow_changes=[versions.torch]'" in str(refused.value)
    assert f"data.sources.x: the rows are not what the run was started with (fingerprint {'d' * 12} then" in str(
        refused.value
    )
    assert "the old rows, or 'allow_changes=[data]'" in str(refused.value)
    with pytest.raises(UserError, match=r"^data\.sources\.x"):
        refuse(found, ["versions"], "allow_changes", "")
    assert len(refuse(found, ["versions.torch", "data"], "allow_changes", "")) == 2
