"""The command line before Hydra: literal text, flags, the environment."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sft.config.command_line.overrides import parse_command_line, quote_literal, with_environment
from sft.config.command_line.sweeps import expand_sweep
from sft.config.compose import check_command, config_loader
from sft.config.errors import UserError
from sft.config.resolvers import plain_name

ODD = st.text(st.sampled_from("'\"\\${},=:#%?!()[]\n\t ab") | st.characters(exclude_categories=["Cs"]), max_size=20)


def value_of(override: str):
    parsed = OverridesParser.create().parse_override(override)
    config = OmegaConf.create({parsed.key_or_group: None})
    OmegaConf.update(config, parsed.key_or_group, parsed.value())
    return OmegaConf.select(config, parsed.key_or_group)


@given(ODD.filter(lambda text: text != "???"))  # with which OmegaConf marks a missing value: refused as that
def test_a_prompt_is_taken_literally(text):
    assert value_of(quote_literal(f"prompt={text}")) == text


@pytest.mark.parametrize(
    "key", ["run", "dir", "output", "dataset.path", "dataset.sources.a.path", "+dataset.sources.a.path"]
)
def test_paths_need_no_quoting(key):
    path = "/data/it's, a = (strange) {name}?.json"
    assert value_of(quote_literal(f"{key}={path}")) == path


def test_other_keys_keep_hydras_grammar():
    assert quote_literal("lora.r=8,16") == "lora.r=8,16"


def test_existing_files_can_be_swept_over(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    both = f"dataset.path={tmp_path}/a.json,{tmp_path}/b.json"
    assert quote_literal(both, multirun=True) == both
    assert value_of(quote_literal(both)) == f"{tmp_path}/a.json,{tmp_path}/b.json"


def test_flags_may_be_in_any_position():
    line = parse_command_line(["lora.r=8", "-m", "--cfg", "job", "seed=1", "--config-dir", "mine"])
    assert (line.multirun, line.shows, line.config_dirs) == (True, True, ["mine"])
    assert line.flags == ["--cfg", "job"]
    assert line.overrides == ["lora.r=8", "seed=1"]


def test_an_argument_that_is_not_an_override_is_reported():
    with pytest.raises(UserError, match="'qwen3' is neither a flag nor an override"):
        parse_command_line(["qwen3"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["lora=r8"], ["model.name='some/model'", "lora=r8"]),
        (["model.name=other"], ["model.name=other"]),
        (["model=qwen3"], ["model=qwen3"]),
        (["run=DIR"], ["run=DIR"]),
    ],
)
def test_the_command_line_takes_precedence_over_the_environment(overrides, expected):
    assert with_environment(overrides, {"MODEL_ID": "some/model"}) == expected


def test_a_sweep_is_the_product_of_its_choices():
    jobs = expand_sweep(["lora.r=8,16", "seed=range(1,3)", "name=x"], config_loader())
    assert jobs == [
        ["lora.r=8", "seed=1", "name=x"],
        ["lora.r=8", "seed=2", "name=x"],
        ["lora.r=16", "seed=1", "name=x"],
        ["lora.r=16", "seed=2", "name=x"],
    ]


def test_a_huge_sweep_is_checked_with_every_value_once():
    glob = expand_sweep(["quant=glob(n*)"], config_loader())
    assert glob == [["quant=nf4"], ["quant=none"]]
    jobs = expand_sweep([f"{key}=range(0,20)" for key in ("a", "b", "c")], config_loader())
    assert len(jobs) == 20
    assert jobs[0] == ["a=0", "b=0", "c=0"] and jobs[-1] == ["a=19", "b=19", "c=19"]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("lora.r=range(1,200002)", "lora.r: this sweep has 200,001 runs"),
        ("lora.r=shuffle(range(1,1000000000))", "999,999,999 runs"),
        ("lora.r=range(1,5,0)", r"range\(1, 5, 0\) has no end"),
        ("lora.r=range(1,inf)", r"range\(1, inf, 1\) has no end"),
    ],
)
def test_an_oversized_grid_is_refused(override, what):
    with pytest.raises(UserError, match=what):
        expand_sweep([override], config_loader(), most=None)


def test_an_oversized_product_is_refused_but_a_search_over_it_is_not():
    axes = ["lora.r=range(0,1000)", "seed=range(0,101)"]
    with pytest.raises(UserError, match="-m: this sweep has 101,000 runs"):
        expand_sweep(axes, config_loader(), most=None)
    assert len(expand_sweep(axes, config_loader())) == 1000
    assert expand_sweep(["seed=range(1,1000000000)"], config_loader()) == [["seed=1"], ["seed=1000000000"]]


@pytest.mark.parametrize(
    ("override", "remedy"),
    [("quant=null", "-> quant=none. There are: "), ("experiment=null", "-> leave it out. There are")],
)
def test_null_is_not_an_option_of_a_group(override, remedy):
    with pytest.raises(UserError, match="null is not an option") as caught:
        check_command(config_loader(), "train", [override], "train", multirun=False)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("lora.rank_pattern={^model.layers.0.*(q|v)_proj$: 2}", {"^model.layers.0.*(q|v)_proj$": 2}),
        (r'lora.rank_pattern={"^a\.\d+$": 2, k_proj: 4}', {r"^a\.\d+$": 2, "k_proj": 4}),
        ("lora.alpha_pattern={[qv]_proj: 2.5, $x~'y': 1}", {"[qv]_proj": 2.5, "$x~'y'": 1}),
        ("lora.rank_pattern={a{1,2}b: 2}", {"a{1,2}b": 2}),
        ("lora.rank_pattern={q_proj: 2}", {"q_proj": 2}),
        ("+lora.rank_pattern={^x: 2}", {"^x": 2}),
        (r"lora.target_modules=.*\.(q|v)_proj", r".*\.(q|v)_proj"),
        ("lora.target_modules='.*(q|v)_proj'", ".*(q|v)_proj"),
        ("lora.target_modules=[^a$,b(c,d)]", ["^a$", "b(c,d)"]),
        ("lora.target_modules=all-linear", "all-linear"),
        (r"lora.exclude_modules=^model\.layers\.[01]\..*$", r"^model\.layers\.[01]\..*$"),
    ],
)
def test_regular_expressions_are_taken_literally(compose, typed, means):
    key = typed.lstrip("+").partition("=")[0].removeprefix("lora.")
    assert compose(quote_literal(typed)).plain["lora"][key] == means


@pytest.mark.parametrize("key", ["model.name", "model.tokenizer.name", "resume"])
def test_directories_are_taken_literally_and_model_names_are_not(compose, tmp_path, key):
    directory = tmp_path / "DIR with , = and (x)"
    directory.mkdir()

    def value(override: str) -> object:
        found: object = compose(quote_literal(override)).plain
        for part in key.split("."):
            found = found[part]  # type: ignore[index]
        return found

    assert value(f"{key}={directory}") == str(directory)
    assert value(f"{key}=org/model") == value(f"{key}='org/model'") == "org/model"


def test_models_by_name_are_still_swept_over():
    assert quote_literal("model.name=org/a,org/b", multirun=True) == "model.name=org/a,org/b"


@pytest.mark.parametrize(
    ("value", "name"),
    [("1e+30", "1e30"), ("1e-30", "1e-30"), ("-1", "-1"), ("+1", "1"), ("3.5E+2", "3.5E2"), ("a+b", "a-b")],
)
def test_numbers_keep_their_value_in_a_jobs_name(value, name):
    assert plain_name(value) == name
