"""Settings that may change when a run is resumed, and that the changes have the documented effects."""

import json
import math
import shutil

import pytest
import torch
from transformers import TrainerCallback

from sft.config.errors import RunFailed, UserError
from sft.training.resume.changeable import EFFECTS, FACTS, FIXED, effect_of

pytestmark = pytest.mark.slow  # a minute together: each trains twice

WEIGHTS = "adapter/adapter_model.safetensors"
STEPS = ("trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.logging_steps=1", "trainer.eval_strategy=no")
PLAIN = ("trainer.lr_scheduler_type=constant", "trainer.learning_rate=1e-2", "trainer.optim=adamw_torch")


class Break(TrainerCallback):
    """Ends a run as a power cut does, at the end of a step or of the first epoch."""

    def __init__(self, step=None):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("power cut")

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.step is None:
            raise RuntimeError("power cut")


class Watch(TrainerCallback):
    """Keeps what a step is made with."""

    def __init__(self):
        self.groups, self.args, self.model, self.evaluated = [], None, None, []

    def on_step_end(self, args, state, control, optimizer=None, model=None, **kwargs):
        keys = ("lr", "weight_decay", "betas", "eps")
        self.groups.append([{key: group[key] for key in keys if key in group} for group in optimizer.param_groups])
        self.args, self.model = args, model

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated.append(state.global_step)


def lines(result, *names):
    read = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    names = names or ("step", "loss", "grad_norm", "learning_rate", "eval_loss")
    return [{name: line[name] for name in names if name in line} for line in read if "train_runtime" not in line]


def rates(result):
    return {line["step"]: line["learning_rate"] for line in lines(result) if "learning_rate" in line}


@pytest.fixture(scope="module")
def begun(tmp_path_factory, run_in):
    """Overrides -> the directory of a run that broke off after its checkpoint at step 2; each is made once."""
    made = {}

    def make(*overrides):
        if overrides not in made:
            directory = tmp_path_factory.mktemp("begun") / "run"
            with pytest.raises(RunFailed, match="power cut"):
                run_in(directory, *STEPS, *overrides, callbacks=[Break(3)])
            made[overrides] = directory
        return made[overrides]

    return make


@pytest.fixture
def resumed(begun, run_in, tmp_path):
    """(overrides then, overrides now, keys that are allowed) -> the result of resuming, and what was watched."""

    def start(then, now, *allowed):
        directory, watch = tmp_path / "run", Watch()
        shutil.copytree(begun(*then), directory)
        names = ",".join(allowed)
        result = run_in(directory, *STEPS, *then, *now, f"allow_changes=[{names}]", callbacks=[watch])
        return result, watch

    return start


# -- the end of a run is its end ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        ("trainer.max_steps=4",),
        ("trainer.max_steps=4", "trainer.eval_strategy=epoch", "trainer.logging_strategy=epoch"),
        ("trainer.max_steps=6", "trainer.eval_strategy=epoch"),
        ("trainer.max_steps=-1", "trainer.num_train_epochs=1", "trainer.eval_strategy=epoch"),
    ],
    ids=["within an epoch", "evaluated at its end", "at an epoch's end", "epochs"],
)
def test_a_run_killed_after_its_last_checkpoint_trains_no_more(run, options):
    """Six steps per epoch. The last checkpoint is written in the last step, before the epoch's end is dealt with."""
    options = (*STEPS, *PLAIN, "lora.lora_dropout=0.1", *options)
    whole = run(*options, to="whole")
    with pytest.raises(RunFailed, match="power cut"):
        run(*options, to="cut", callbacks=[Break()])
    cut = run(*options, to="cut")
    assert cut.metrics["steps"] == whole.metrics["steps"]
    assert (cut.directory / WEIGHTS).read_bytes() == (whole.directory / WEIGHTS).read_bytes()
    assert lines(cut) == lines(whole)


def test_a_run_killed_while_finishing_evaluates_once(run, tmp_path, monkeypatch):
    """The last evaluation of a run without a schedule of them is made, and logged, after its last checkpoint."""
    from sft.training import finish

    options = (*STEPS, *PLAIN, "trainer.max_steps=4")
    whole = run(*options, to="whole")
    with monkeypatch.context() as patch:
        patch.setattr(finish, "write_weights", lambda *_: 1 / 0)
        with pytest.raises(RunFailed, match="ZeroDivisionError"):
            run(*options, to="cut")
    cut = run(*options, to="cut")
    assert [line["step"] for line in lines(cut) if "eval_loss" in line] == [4]
    assert lines(cut) == lines(whole)
    assert (cut.directory / WEIGHTS).read_bytes() == (whole.directory / WEIGHTS).read_bytes()


def test_an_interrupted_epoch_end_is_completed_in_the_middle_of_a_run(run):
    options = (*STEPS, "trainer.max_steps=8", "trainer.eval_strategy=epoch")
    whole = run(*options, to="whole")
    with pytest.raises(RunFailed, match="power cut"):
        run(*options, to="cut", callbacks=[Break()])
    cut = run(*options, to="cut")
    assert [line["step"] for line in lines(cut) if "eval_loss" in line] == [6, 8]
    assert lines(cut) == lines(whole)


def test_a_run_that_had_stopped_early_trains_no_more(run):
    stopping = ("callbacks=[quiet,early_stopping]", "callbacks.early_stopping.early_stopping_patience=1")
    options = (*STEPS, *stopping, "trainer.max_steps=9", "trainer.eval_strategy=steps", "trainer.eval_steps=2")
    options += ("trainer.learning_rate=0.0",)  # no evaluation is better than the first, at step 2
    whole = run(*options, to="whole")
    with pytest.raises(RunFailed, match="power cut"):
        run(*options, to="cut", callbacks=[Break()])
    cut = run(*options, to="cut")
    assert cut.metrics["steps"] == whole.metrics["steps"] == 4
    assert lines(cut) == lines(whole)


def test_a_finished_run_resumed_in_another_directory_trains_no_more(run):
    options = (*STEPS, *PLAIN, "trainer.max_steps=4")
    first = run(*options)
    again = run(*options, f"resume={first.directory}", to="again")
    assert again.metrics["steps"] == 4
    assert (again.directory / WEIGHTS).read_bytes() == (first.directory / WEIGHTS).read_bytes()
    assert lines(again, "step", "loss", "learning_rate") == lines(first, "step", "loss", "learning_rate")


# -- the checkpoint that is named ----------------------------------------------------------------------------------------
def test_a_given_checkpoint_is_resumed(run):
    options = (*STEPS, *PLAIN, "lora.lora_dropout=0.1", "trainer.max_steps=5")
    first = run(*options)
    chosen = first.directory / "checkpoints" / "checkpoint-4"
    watch = Watch()
    again = run(*options, f"resume={chosen}", to="again", callbacks=[watch])
    assert len(watch.groups) == 1
    assert (again.directory / WEIGHTS).read_bytes() == (first.directory / WEIGHTS).read_bytes()
    assert lines(again) == lines(first)
    sessions = json.loads((again.directory / "run.json").read_text())["sessions"]
    assert [session["resumed_from"] for session in sessions] == [str(chosen)]
    with pytest.raises(
        UserError, match=r"lora.r: this run was started with 8, not 4, and it cannot change: the adapter"
    ):
        run(*options, "lora.r=4", f"resume={chosen}", to="other")


def test_an_unusable_checkpoint_is_refused(run, tmp_path):
    options = (*STEPS, "trainer.max_steps=4")
    first = run(*options)
    checkpoints = first.directory / "checkpoints"
    with pytest.raises(UserError, match=r"has newer checkpoints than checkpoint-2 \(the newest is checkpoint-4\)"):
        run(*options, f"resume={checkpoints / 'checkpoint-2'}")
    with pytest.raises(UserError, match="no such directory"):
        run(*options, f"resume={checkpoints / 'checkpoint-3'}", to="new")
    shutil.copytree(checkpoints / "checkpoint-2", tmp_path / "checkpoint-2")
    with pytest.raises(UserError, match="its training config is unknown"):
        run(*options, f"resume={tmp_path / 'checkpoint-2'}", to="new")
    (checkpoints / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"is incomplete: optimizer.pt is missing"):
        run(*options, f"resume={checkpoints / 'checkpoint-2'}", to="new")
    with pytest.raises(UserError, match=r"checkpoint-4 is at 4, past the end of training at 3"):
        run(*options, "trainer.max_steps=3", "allow_changes=[trainer.max_steps]", f"resume={first.directory}", to="new")
    shutil.rmtree(checkpoints)
    with pytest.raises(UserError, match="has no complete checkpoint"):
        run(*options, f"resume={first.directory}", to="new")
    assert not (tmp_path / "new" / "metrics.jsonl").exists()


def test_weights_only_checkpoints_are_not_resumed(run):
    options = (*STEPS, "trainer.save_only_model=true")
    with pytest.raises(RunFailed, match="power cut"):
        run(*options, callbacks=[Break(3)])
    with pytest.raises(UserError, match=r"checkpoint-2 has only weights \(trainer.save_only_model=true\)"):
        run(*options)


# -- what changes ------------------------------------------------------------------------------------------------------
LINEAR = ("trainer.lr_scheduler_type=linear", "trainer.learning_rate=1e-2", "trainer.warmup_steps=0")
COSINE = ("trainer.lr_scheduler_type=cosine", "trainer.learning_rate=1e-2", "trainer.warmup_steps=0")
FLOOR = ("trainer.lr_scheduler_type=cosine_with_min_lr", "trainer.learning_rate=1e-2", "trainer.warmup_steps=0")
FLOOR += ("trainer.lr_scheduler_kwargs={min_lr: 1e-3}",)


def cosine(peak, step, steps):
    return peak * 0.5 * (1 + math.cos(math.pi * step / steps))


# The rate of step k is the schedule's after k - 1 steps. Checkpoint at step 2, of four.
SCHEDULES = {
    "another constant rate": (PLAIN, ["trainer.learning_rate=3e-3"], {3: 3e-3, 4: 3e-3}),
    "another peak": (LINEAR, ["trainer.learning_rate=4e-2"], {3: 4e-2 * 2 / 4, 4: 4e-2 * 1 / 4}),
    "constant and longer": (PLAIN, ["trainer.max_steps=6"], {3: 1e-2, 4: 1e-2, 5: 1e-2, 6: 1e-2}),
    "linear, stretched": (LINEAR, ["trainer.max_steps=6"], {k: 1e-2 * (7 - k) / 6 for k in (3, 4, 5, 6)}),
    "cosine, stretched": (COSINE, ["trainer.max_steps=6"], {k: cosine(1e-2, k - 1, 6) for k in (3, 4, 5, 6)}),
    "cosine, stretched, by epochs": (
        COSINE,
        ["trainer.max_steps=-1", "trainer.num_train_epochs=2"],
        {k: cosine(1e-2, k - 1, 12) for k in range(3, 13)},
    ),
    "linear, kept and cut short": (
        LINEAR,
        ["trainer.max_steps=3", "trainer.resume_schedule=kept"],
        {3: 1e-2 * 2 / 4},
    ),
    "kept, and held at its last rate": (
        FLOOR,
        ["trainer.max_steps=6", "trainer.resume_schedule=kept"],
        {3: 1e-3 + cosine(9e-3, 2, 4), 4: 1e-3 + cosine(9e-3, 3, 4), 5: 1e-3, 6: 1e-3},
    ),
    "another schedule": (LINEAR, ["trainer.lr_scheduler_type=cosine"], {3: cosine(1e-2, 2, 4), 4: cosine(1e-2, 3, 4)}),
    "another floor": (
        FLOOR,
        ["trainer.lr_scheduler_kwargs={min_lr: 5e-3}"],
        {3: 5e-3 + cosine(5e-3, 2, 4), 4: 5e-3 + cosine(5e-3, 3, 4)},
    ),
    "another warmup": (LINEAR, ["trainer.warmup_steps=3"], {3: 1e-2 * 2 / 3, 4: 1e-2}),
}


@pytest.mark.parametrize("case", SCHEDULES.values(), ids=SCHEDULES)
def test_a_changed_schedule_applies_from_the_current_step(resumed, case):
    then, now, wanted = case
    keys = [each.partition("=")[0] for each in now if "resume_schedule" not in each]
    result, _ = resumed(("trainer.optim=adamw_torch", *then), now, *keys)
    found = rates(result)
    assert set(found) == {1, 2, *wanted}
    assert {step: found[step] for step in wanted} == pytest.approx(wanted, rel=1e-12)


def test_a_kept_schedule_stays_kept_when_the_run_is_resumed_again(begun, run_in, tmp_path):
    shutil.copytree(begun("trainer.optim=adamw_torch", *FLOOR), tmp_path / "run")
    longer = (*STEPS, "trainer.optim=adamw_torch", *FLOOR, "trainer.max_steps=6", "trainer.resume_schedule=kept")
    with pytest.raises(RunFailed, match="power cut"):
        run_in(tmp_path / "run", *longer, "allow_changes=[trainer.max_steps]", callbacks=[Break(5)])
    result = run_in(tmp_path / "run", *longer)
    wanted = {4: 1e-3 + cosine(9e-3, 3, 4), 5: 1e-3, 6: 1e-3}
    assert {step: rates(result)[step] for step in wanted} == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("option", "key", "wanted"),
    [
        ("trainer.weight_decay=0.25", "weight_decay", 0.25),
        ("trainer.adam_beta1=0.5", "betas", (0.5, 0.999)),
        ("trainer.adam_beta2=0.75", "betas", (0.9, 0.75)),
        ("trainer.adam_epsilon=1e-3", "eps", 1e-3),
    ],
)
def test_the_optimizer_uses_the_current_settings(resumed, option, key, wanted):
    _, watch = resumed(PLAIN, [option], option.partition("=")[0])
    assert len(watch.groups) == 2
    assert all(groups[0][key] == wanted for groups in watch.groups)


def test_gradients_are_clipped_to_the_current_norm(resumed):
    from safetensors.torch import load_file

    then = ("trainer.lr_scheduler_type=constant", "trainer.learning_rate=1.0", "trainer.optim=sgd")
    result, _ = resumed(
        then, ["trainer.max_grad_norm=1e-3", "trainer.max_steps=3"], "trainer.max_grad_norm", "trainer.max_steps"
    )
    before = load_file(result.directory / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    after = load_file(result.directory / WEIGHTS)
    moved = sum(float((after[name].double() - before[name].double()).square().sum()) for name in after) ** 0.5
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_a_step_with_other_batch_sizes_has_the_same_rows(resumed, run):
    split = ["trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2"]
    result, watch = resumed(PLAIN, split, *(each.partition("=")[0] for each in split))
    whole = run(*STEPS, *PLAIN, to="whole")
    assert watch.args.per_device_train_batch_size == 2
    found, wanted = ([line["loss"] for line in lines(each, "loss") if line] for each in (result, whole))
    assert len(found) == 4
    assert found == pytest.approx(wanted, rel=1e-5)
    assert result.metrics["total_tokens"] == whole.metrics["total_tokens"]


def test_a_step_of_more_rows_is_refused(resumed):
    with pytest.raises(UserError, match="a step of this run has 4 rows, and would have 8: rows would be left out"):
        resumed(PLAIN, ["trainer.gradient_accumulation_steps=2"], "trainer.gradient_accumulation_steps")


def test_computation_settings_are_the_current_ones(resumed):
    dropouts = [
        ("trainer.gradient_checkpointing=true", lambda watch: watch.model.is_gradient_checkpointing),
        ("trainer.bf16=true", lambda watch: watch.args.bf16),
        ("trainer.cpu_parts=2", lambda watch: watch.args.cpu_parts == 2),
        (
            "lora.lora_dropout=0.25",
            lambda watch: {m.p for m in watch.model.modules() if isinstance(m, torch.nn.Dropout)} >= {0.25},
        ),
    ]
    options = [option for option, _ in dropouts]
    _, watch = resumed(PLAIN, options, *(option.partition("=")[0] for option in options))
    assert [bool(holds(watch)) for _, holds in dropouts] == [True] * len(dropouts)


def test_noise_and_attention_are_the_current_ones(resumed, monkeypatch):
    from sft.training.trainer.trainer import SftTrainer

    seen = []
    choose_layout = SftTrainer.apply_layout
    monkeypatch.setattr(
        SftTrainer,
        "apply_layout",
        lambda self, layout: (seen.append((self.noise, layout.attention)), choose_layout(self, layout)),
    )
    options = ["trainer.neftune_noise_alpha=3.0", "model.attn_implementation=sdpa"]
    resumed(PLAIN, options, *(option.partition("=")[0] for option in options))
    assert [(noise.alpha, attention) for noise, attention in seen] == [(3.0, "sdpa")]


@pytest.mark.parametrize(
    ("then", "now", "steps"),
    [
        ((), ["trainer.eval_strategy=steps", "trainer.eval_steps=3"], [3, 4]),
        (("trainer.eval_strategy=steps", "trainer.eval_steps=4"), ["trainer.eval_steps=1"], [3, 4]),
        (("trainer.eval_strategy=steps", "trainer.eval_steps=1"), ["trainer.eval_delay=4"], [4]),
    ],
)
def test_evaluations_happen_at_the_current_steps(resumed, then, now, steps):
    _, watch = resumed((*PLAIN, *then), now, *(option.partition("=")[0] for option in now))
    assert watch.evaluated == steps


def test_freely_changeable_intervals_are_the_current_ones(resumed):
    result, _ = resumed(PLAIN, ["trainer.logging_steps=2", "trainer.save_steps=1", "trainer.save_total_limit=4"])
    assert list(rates(result)) == [1, 2, 4]
    assert sorted(path.name for path in (result.directory / "checkpoints").iterdir()) == [
        f"checkpoint-{step}" for step in (2, 3, 4)
    ]


def test_callbacks_use_the_current_settings(resumed):
    stopping = ("callbacks=[quiet,early_stopping]", "callbacks.early_stopping.early_stopping_patience=3")
    then = (*PLAIN, *stopping, "trainer.learning_rate=0.0", "trainer.max_steps=6")
    then += ("trainer.eval_strategy=steps", "trainer.eval_steps=1")
    key = "callbacks.early_stopping.early_stopping_patience"
    result, _ = resumed(then, [f"{key}=2"], key)  # one evaluation without gain by the checkpoint, the second at step 3
    assert result.metrics["steps"] == 3


def test_changed_rows_are_used_from_the_current_step(resumed, run):
    """Without training the loss of a step tells its rows alone."""
    then = (*PLAIN, "trainer.learning_rate=0.0")
    rows = "dataset.sources.tickets.generator.seed=5"
    result, _ = resumed(then, [rows], "dataset.sources.tickets.generator.seed")
    fresh, before = run(*STEPS, *then, rows, to="fresh"), run(*STEPS, *then, to="before")
    losses = [[line["loss"] for line in lines(each, "loss") if line] for each in (result, fresh, before)]
    assert losses[0] == [*losses[2][:2], *losses[1][2:]]
    assert losses[1] != losses[2]


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            "trainer.optim=sgd",
            "trainer.optim: this run was started with adamw_torch, not sgd, and it cannot change: another optimizer",
        ),
        ("lora.r=4", "lora.r: this run was started with 8, not 4, and it cannot change: the adapter"),
        ("lora=none", "lora: this run was started with LoraConfig, not none, and it cannot change"),
        (
            "seed=7",
            "seed: this run was started with 42, not 7, and it cannot change: it determines the order of the rows",
        ),
        ("model.dtype=bfloat16", "model.dtype: this run was started with float32, not bfloat16, and it cannot change"),
        ("trainer.max_tokens_per_batch=64", "trainer.max_tokens_per_batch: this run was started with None, not 64"),
        (
            "callbacks=[quiet,best_model] trainer.eval_strategy=steps trainer.eval_steps=2",
            "callbacks.best_model: .* cannot change: the best evaluation so far",
        ),
    ],
)
def test_fixed_keys_are_refused_by_name_even_if_allowed(begun, resumed, option, words, monkeypatch):
    begun(*PLAIN)
    monkeypatch.setattr("sft.training.inputs.prepare_on_all_ranks", lambda *_: pytest.fail("data was loaded"))
    with pytest.raises(UserError, match=words):
        resumed(PLAIN, option.split(), "trainer", "lora", "seed", "model", "callbacks")


def test_a_rate_that_follows_evaluations_cannot_change(resumed):
    then = ("trainer.lr_scheduler_type=reduce_lr_on_plateau", "trainer.optim=adamw_torch")
    then += ("trainer.eval_strategy=steps", "trainer.eval_steps=2")
    with pytest.raises(UserError, match="reduce_lr_on_plateau computes the rate from past evaluations"):
        resumed(then, ["trainer.learning_rate=1e-2"], "trainer.learning_rate")


@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
def test_a_kept_schedule_that_ends_at_0_is_refused(resumed, schedule):
    with pytest.raises(UserError, match="ends at step 4 with a rate of 0: nothing more would be trained"):
        resumed(
            ("trainer.optim=adamw_torch", *schedule),
            ["trainer.max_steps=6", "trainer.resume_schedule=kept"],
            "trainer.max_steps",
        )


def test_a_key_is_changeable_or_fixed():
    assert not set(EFFECTS) & set(FIXED)
    assert all(effect_of(name) for name in [*EFFECTS, *FACTS])
    unknown = ("trainer.learning_rat", "trainer", "lora.r", "callbacks.best_model.metric_for_best_model")
    assert [effect_of(name) for name in unknown] == [None] * 4


# -- a finished run ----------------------------------------------------------------------------------------------------
def test_a_finished_run_is_trained_further(run):
    options = (*STEPS, "trainer.optim=adamw_torch", *LINEAR)
    run(*options, "trainer.max_steps=4")
    with pytest.raises(UserError, match=r"allow_changes=\[trainer.max_steps\]': training ends there"):
        run(*options, "trainer.max_steps=6")
    further = run(*options, "trainer.max_steps=6", "allow_changes=[trainer.max_steps]")
    assert (further.metrics["status"], further.metrics["steps"]) == ("finished", 6)
    wanted = {1: 1e-2, 2: 7.5e-3, 3: 5e-3, 4: 2.5e-3, 5: 1e-2 * 2 / 6, 6: 1e-2 * 1 / 6}
    assert rates(further) == pytest.approx(wanted, rel=1e-12)
    assert run(*options, "trainer.max_steps=6").metrics == further.metrics  # finished, and of this config now
    sessions = json.loads((further.directory / "run.json").read_text())["sessions"]
    assert [session.get("changed") for session in sessions] == [None, {"trainer.max_steps": [4, 6]}]


def test_a_changed_run_is_not_replayed_as_if_it_had_one_config(run, tmp_path):
    from sft.api import compose
    from sft.training.reproduce import replay_of

    options = (*STEPS, *PLAIN, "trainer.max_steps=2")
    run(*options)
    run(*options, "trainer.max_steps=3", "allow_changes=[trainer.max_steps]")
    overrides = (f"run={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'replay'}")
    with pytest.raises(
        UserError, match=r"the run had trainer\.max_steps=2 until checkpoint-2, and trainer\.max_steps=3 since"
    ):
        replay_of(compose(*overrides, "allow_changes=[]", command="reproduce"))
    replay_of(compose(*overrides, "allow_changes=[trainer.max_steps]", command="reproduce"))


def test_the_documented_table_equals_the_code():
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "reliability.md").read_text()
    table = text.partition("<!-- changes:")[2].partition("<!-- end of changes")[0]
    for effects in (EFFECTS, FACTS):
        for key, effect in effects.items():
            assert any(f"`{key}`" in row and row.endswith(f"| {effect} |") for row in table.splitlines()), key
    assert {name for row in table.splitlines() for name in row.split("`")[1::2]} == {*EFFECTS, *FACTS}


def test_a_change_that_affects_no_step_is_refused(run):
    options = (*STEPS, *PLAIN, "trainer.max_steps=4")
    run(*options)
    with pytest.raises(UserError, match="the run is finished after 4 steps: no step is left that this could change"):
        run(*options, "trainer.learning_rate=1e-3", "allow_changes=[trainer.learning_rate]")
    with pytest.raises(UserError, match="the run is finished after 4 steps"):
        run(*options, "trainer.max_steps=3", "allow_changes=[trainer.max_steps]")


def test_a_finished_run_without_checkpoints_says_how_to_train_further(run):
    options = ("trainer.save_strategy=no", "trainer.max_steps=2")
    run(*options)
    with pytest.raises(UserError, match=r"no complete checkpoint to continue from[^$]*model.adapter="):
        run(*options, "trainer.max_steps=4", "allow_changes=[trainer.max_steps]")
