"""The one builder."""

import pytest

from sft.config import UserError, build


def test_a_librarys_class_is_built_from_its_own_argument_names():
    lora = build({"_target_": "peft.LoraConfig", "r": 3, "target_modules": ["q_proj"]}, where="lora")
    assert (type(lora).__name__, lora.r, lora.target_modules) == ("LoraConfig", 3, {"q_proj"})


def test_a_missing_node_builds_none():
    assert build(None) is None


def test_a_refused_target_is_not_imported():
    with pytest.raises(UserError, match=r"os\.system is not on the list"):
        build({"_target_": "os.system", "command": "touch owned"}, where="callbacks.evil")


def test_a_constructors_error_becomes_a_user_error():
    with pytest.raises(UserError, match=r"evaluation\.max_new_tokens: 0 is out of range"):
        build({"_target_": "sft.evaluation.spec.Evaluation", "max_new_tokens": 0}, where="evaluation")
    with pytest.raises(UserError, match=r"^trainer: ") as caught:
        build(
            {"_target_": "transformers.EarlyStoppingCallback", "early_stopping_patience": 1, "nonsense": 2},
            where="trainer",
        )
    assert "nonsense" in caught.value.what


def test_an_extra_argument_overrides_the_node():
    assert build({"_target_": "peft.LoraConfig", "r": 3}, where="lora", r=5).r == 5
