"""Arbitrary arguments of `python -m sft.train`: they compose, or are refused with a UserError; nothing else happens."""

from __future__ import annotations

import pytest
from hydra.errors import HydraException
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from sft.config.command_line.overrides import parse_command_line
from sft.config.compose import check_command, config_loader
from sft.config.errors import UserError

KEYS = st.sampled_from(
    [
        "lora",
        "lora.r",
        "lora.target_modules",
        "dataset",
        "dataset.path",
        "dataset.sources.alpaca.weight",
        "trainer.learning_rate",
        "trainer.max_steps",
        "callbacks",
        "callbacks.early_stopping.patience",
        "model.name",
        "model@other",
        "hydra.run.dir",
        "hydra/launcher",
        "seed",
        "seed.below",
        "allow_targets",
        "tracker._target_",
        "",
        ".",
        "a..b",
        "=",
    ]
)
# what Hydra's grammar, OmegaConf's interpolations and YAML give a meaning to
MARKS = st.sampled_from(
    [*"=,.:;@~+-*/\\'\"${}[]()<>|&#%!?^ \t\n\0", "${", "${oc.env:", "\ud800", "é", "🙂", "null", "1e999"]
)
VALUES = st.one_of(
    st.text(max_size=12),
    st.lists(MARKS, max_size=10).map("".join),
    st.sampled_from(
        ["", "null", "true", "nan", "-1", "1e999", "9" * 400, "[" * 60, "{a:" * 30, "choice(1,2)", "range(1,1e9)"]
    ),
    st.sampled_from(
        ["r8,r16", "interval(0,1)", "glob(*)", "sort(", "shuffle(1)", "${seed}", "${..}", "${nothing}", "???"]
    ),
)
OVERRIDES = st.one_of(
    st.tuples(st.sampled_from(["", "", "+", "++", "~"]), KEYS, st.sampled_from(["=", "=", "="]), VALUES).map("".join),
    VALUES,
)


@pytest.fixture(scope="module")
def loader():
    return config_loader()


@settings(max_examples=60)
@given(typed=st.lists(OVERRIDES, min_size=1, max_size=3), multirun=st.booleans())
@example(typed=["lora.r=" + "(" * 500], multirun=False)
@example(typed=["lora.r=range(1,1e9)"], multirun=True)
@example(typed=["~"], multirun=False)
@example(typed=["~lora=true"], multirun=False)
@example(typed=["quant=null"], multirun=False)
@example(typed=["hydra/launcher=null"], multirun=False)
def test_any_command_line_composes_or_is_refused(typed, multirun, loader):
    try:
        line = parse_command_line([*(["-m"] if multirun else []), *typed])
        check_command(loader, "train", line.overrides, "train", line.multirun)
    except (UserError, HydraException, OmegaConfBaseException) as error:  # which the commands end with, and exit code 2
        assert str(error)
    except SystemExit as stop:  # a flag of Hydra's that does not exist, by argparse
        assert stop.code == 2
