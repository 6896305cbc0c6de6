"""Every option of every group composes, and passes the check."""

import pytest

from sft.config.paths import conf_dir

GROUPS = (
    "model",
    "quant",
    "lora",
    "dataset",
    "template",
    "callbacks",
    "trainer",
    "tracker",
    "evaluation",
    "experiment",
    "debug",
)
# What an option needs to be given, or to be given with, before it makes sense.
NEEDS = {
    "model=hub": ["model.name=some/model"],
    "dataset=local": ["dataset.path=rows.jsonl"],
    "dataset=mixture": ["+dataset.sources.a={path: rows.jsonl}"],
    "evaluation=lm_eval": ["evaluation.tasks=[arc_easy]"],
    "template=file": ["template.path=chat.jinja"],
}
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((conf_dir() / group).glob("*.yaml"))]


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes_and_passes_the_check(compose, option):
    assert compose(option, *NEEDS.get(option, [])).errors == []


def test_every_documented_group_exists():
    assert {option.split("=")[0] for option in OPTIONS} == set(GROUPS)


def test_disabled_options_compose_to_none(compose):
    config = compose("quant=none", "lora=none", "callbacks=none", "tracker=none").config
    assert [config[key] for key in ("quant", "lora", "callbacks", "tracker")] == [None] * 4


@pytest.mark.parametrize("rank", [4, 8, 64])
def test_alpha_follows_the_rank_unless_it_is_set(compose, rank):
    assert compose(f"lora.r={rank}").config.lora.lora_alpha == rank
    assert compose(f"lora.r={rank}", "lora.lora_alpha=5").config.lora.lora_alpha == 5
