"""Searches: the space in Hydra's grammar, resuming, seeds, pruning; with a function instead of training."""

import json
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sft.config.errors import Pruned, UserError
from sft.run.directory import RunDirectory
from sft.run.record import read_record
from sft.sweep.search.pruning import current, reporting
from sft.sweep.search.search import Search
from sft.sweep.search.space import grid, parse_space
from sft.sweep.search.study import SearchOptions, open_study

SPACE = ["lora=r8", "lora.r=choice(4,8,16,32)", "trainer.learning_rate=tag(log, interval(1e-5,1e-2))"]


class Jobs:
    """A launcher whose jobs take no time; remembers them, and may fail or break off at some."""

    def __init__(self, fails=(), stops=()):
        self.fails, self.stops = set(fails), set(stops)
        self.seen: list[tuple[int, list[str]]] = []

    def __call__(self, overrides, first):
        return [self.job(number, job) for number, job in enumerate(overrides, first)]

    def job(self, number, overrides):
        self.seen.append((number, list(overrides)))
        if number in self.stops:
            raise KeyboardInterrupt
        if number in self.fails:
            return None
        values = dict(override.split("=") for override in overrides)
        return value_of(values)

    @property
    def numbers(self):
        return [number for number, _ in self.seen]


def value_of(values):
    return abs(int(values["lora.r"]) - 8) + float(values["trainer.learning_rate"]) + int(values.get("seed", 0))


def search(directory: Path, jobs, arguments=SPACE, parallel=False, direction="minimize", retry_failed=True, **options):
    return Search(
        directory,
        parse_space(arguments),
        SearchOptions(**options),
        jobs,
        objective="eval_loss",
        direction=direction,
        parallel=parallel,
        retry_failed=retry_failed,
    ).run()


@pytest.mark.parametrize(
    ("written", "distribution"),
    [
        ("x=4,8", CategoricalDistribution(["4", "8"])),
        ("x=a,null,'b c'", CategoricalDistribution(["a", "null", "'b c'"])),
        ("x=shuffle(a,b,c)", CategoricalDistribution(["a", "b", "c"])),
        ("x=interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("x=tag(log, interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
        ("x=int(interval(4,64))", IntDistribution(4, 64)),
        ("x=tag(log, int(interval(4,64)))", IntDistribution(4, 64, log=True)),
        ("x=range(1,9,2)", IntDistribution(1, 7, step=2)),
        ("x=range(8,0,-2)", IntDistribution(2, 8, step=2)),
        ("+x=range(0,0.5,0.125)", FloatDistribution(0.0, 0.375, step=0.125)),
    ],
)
def test_space(written, distribution):
    assert parse_space(["lora=r8", written]).distributions == {"x": distribution}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("x=tag(log, interval(0,1))", "x: a log scale begins above 0, not at 0.0"),
        ("x=tag(log, choice(1,2))", "x: only an interval has a log scale"),
        ("x=tag(normal, interval(0,1))", "x: unknown tag normal"),
        ("x=interval(2,1)", "x: begins at 2.0 and ends before it"),
        ("x=range(3,3)", "x: is an empty range"),
        ("x=1", "there is nothing to search over"),
    ],
)
def test_invalid_spaces_are_refused(written, message):
    with pytest.raises(UserError, match=message):
        parse_space([written])


def test_a_job_has_its_values_in_the_order_typed_with_its_prefixes_and_four_digits():
    space = parse_space(["+a=choice(x,y)", "lora=r8", "++b=interval(0,1)", "c=tag(log, interval(1e-5,1e-3))"])
    point = {"a": "y", "b": 0.123456789, "c": 3.45678e-5}
    assert space.overrides(point) == ["+a=y", "lora=r8", "++b=0.1235", "c=3.457e-05"]
    assert space.texts({"a": "x", "b": 0.0, "c": 9.99999e-4}) == {"a": "x", "b": "0.0", "c": "0.001"}


def test_grid_has_every_point_once():
    assert grid(parse_space(["a=x,y", "b=range(1,6,2)"])) == [{"a": a, "b": b} for a in "xy" for b in (1, 3, 5)]
    with pytest.raises(UserError, match="b: a grid cannot sample an interval"):
        grid(parse_space(["a=x,y", "b=interval(0,1)"]))


def test_the_best_point_is_written_with_its_overrides(tmp_path):
    jobs = Jobs()
    found = search(tmp_path, jobs, n_trials=6)
    values = [value_of(dict(o.split("=") for o in overrides)) for _, overrides in jobs.seen]
    assert jobs.numbers == [0, 1, 2, 3, 4, 5]
    assert [row["value"] for row in found["trials"]] == values
    assert found["best"]["value"] == min(values)
    assert f"lora=r8 {found['best']['overrides']}".split() == jobs.seen[found["best"]["trial"]][1]
    assert json.loads((tmp_path / "optimization_results.json").read_text()) == found


def test_maximize(tmp_path):
    found = search(tmp_path, Jobs(), n_trials=5, direction="maximize")
    assert found["best"]["value"] == max(row["value"] for row in found["trials"])


def test_the_grid_ends_with_its_last_point(tmp_path):
    jobs = Jobs()
    arguments = ["lora.r=4,8", "trainer.learning_rate=0.1,0.2"]
    found = search(tmp_path, jobs, arguments, sampler="grid", n_trials=20)
    assert [o for _, o in jobs.seen] == [
        [f"lora.r={r}", f"trainer.learning_rate={x}"] for r in (4, 8) for x in (0.1, 0.2)
    ]
    assert (found["n_trials"], found["finished"]) == (4, 4)


def test_a_small_space_is_covered_before_a_point_repeats(tmp_path):
    jobs = Jobs()
    search(tmp_path, jobs, ["lora.r=4,8,16,32", "trainer.learning_rate=0.1"], n_trials=4)
    assert sorted(int(o[0].partition("=")[2]) for _, o in jobs.seen) == [4, 8, 16, 32]


def test_a_resumed_search_equals_an_uninterrupted_one(tmp_path):
    whole, first, second = Jobs(), Jobs(stops=[12]), Jobs()
    expected = search(tmp_path / "whole", whole, n_trials=15, n_startup_trials=4)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", first, n_trials=15, n_startup_trials=4)
    found = search(tmp_path / "cut", second, n_trials=15, n_startup_trials=4)
    assert second.numbers == [12, 13, 14]  # what was cut off runs again under its number, what is finished does not
    assert [*first.seen[:12], *second.seen] == whole.seen
    assert found == expected
    nothing = Jobs()
    assert search(tmp_path / "cut", nothing, n_trials=15, n_startup_trials=4) == found
    assert nothing.seen == []
    more = Jobs()
    search(tmp_path / "cut", more, n_trials=16, n_startup_trials=4)
    assert more.numbers == [15]


def test_a_search_killed_while_sampling_a_point_resumes(tmp_path):
    study = open_study(tmp_path, SearchOptions(sampler="grid"), "minimize")
    study.ask()
    study.enqueue_trial({"lora.r": "32", "trainer.learning_rate": "0.1"})
    jobs = Jobs()
    found = search(tmp_path, jobs, ["lora.r=4,8", "trainer.learning_rate=choice(0.1)"], sampler="grid")
    assert jobs.numbers == [0, 1] and [row["params"]["lora.r"] for row in found["trials"]] == ["4", "8"]


def test_failed_trials_do_not_stop_the_search_and_are_retried_under_their_numbers(tmp_path):
    first, second, third = Jobs(fails=[1, 2]), Jobs(fails=[2]), Jobs()
    found = search(tmp_path, first, n_trials=4)
    assert [row["status"] for row in found["trials"]] == ["finished", "failed", "failed", "finished"]
    assert (found["finished"], found["failed"]) == (2, 2)
    found = search(tmp_path, second, n_trials=4)
    assert second.seen == first.seen[1:3]
    assert [row["status"] for row in found["trials"]] == ["finished", "finished", "failed", "finished"]
    search(tmp_path, third, n_trials=5, retry_failed=False)
    assert third.numbers == [4]


def test_each_point_runs_with_every_seed_and_counts_by_the_mean(tmp_path):
    jobs = Jobs(fails=[5])
    found = search(tmp_path, jobs, n_trials=2, seeds=[3, 4, 8])
    assert jobs.numbers == [0, 1, 2, 3, 4, 5]
    assert [overrides[-1] for _, overrides in jobs.seen] == ["seed=3", "seed=4", "seed=8"] * 2
    assert jobs.seen[0][1][:-1] == jobs.seen[2][1][:-1] != jobs.seen[3][1][:-1]
    point = dict(o.split("=") for o in jobs.seen[0][1][:-1])
    assert found["trials"][0]["value"] == pytest.approx(value_of(point) + 5)
    assert found["trials"][0]["jobs"] == [0, 1, 2]
    assert found["trials"][1]["status"] == "failed"  # a point that fails with one seed is not to be recommended


def test_parallel_jobs_are_launched_together_and_resumed_under_their_numbers(tmp_path):
    calls = []

    def launch(overrides, first):
        calls.append((first, len(overrides)))
        return [None if first + i == 3 else float(first + i) for i in range(len(overrides))]

    search(tmp_path, launch, n_trials=5, n_jobs=2, seeds=[1, 2], parallel=True)
    assert calls == [(0, 4), (4, 4), (8, 2)]
    calls.clear()
    search(tmp_path, launch, n_trials=6, n_jobs=2, seeds=[1, 2], parallel=True)
    assert calls == [(2, 2), (10, 2)]  # trial 1 failed and is tried again, trial 5 is new


def test_another_search_in_the_same_directory_is_refused(tmp_path):
    search(tmp_path, Jobs(), n_trials=1)
    with pytest.raises(UserError, match=r"holds another search \(seeds: \[\], now \[1, 2\]\)"):
        search(tmp_path, Jobs(), n_trials=2, seeds=[1, 2])
    with pytest.raises(UserError, match=r"holds another search \(space: "):
        search(tmp_path, Jobs(), ["lora=r8", "lora.r=4,8"], n_trials=2)
    with pytest.raises(UserError, match="started to minimize its objective, not to maximize it"):
        search(tmp_path, Jobs(), n_trials=2, direction="maximize")


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_unpromising_jobs_are_pruned(tmp_path, pruner):
    steps = {}

    def launch(overrides, first):
        reporter, value = current(), 1.0 + (first >= 5)
        for step in (1, 2, 3, 4):
            reporter.report(step, value / step)
            steps.setdefault(first, []).append(step)
            if step < 4 and reporter.should_prune():
                return [None]
        return [value]

    found = search(tmp_path, launch, n_trials=8, pruner=pruner, reduction_factor=2)
    statuses = [row["status"] for row in found["trials"]]
    assert statuses[0] == "finished" and "pruned" in statuses[5:]
    assert found["pruned"] == statuses.count("pruned") and found["failed"] == 0
    assert all((steps[n][-1] < 4) == (status == "pruned") for n, status in enumerate(statuses))
    assert current() is None


def test_the_first_seed_decides_pruning_for_all(tmp_path):
    launched = []

    def launch(overrides, first):
        launched.append(first)
        reporter, value = current(), 10.0 if first >= 8 else 1.0
        reporter.report(1, value)
        return [None if reporter.should_prune() else value]

    found = search(tmp_path, launch, n_trials=5, seeds=[1, 2], pruner="median")
    assert launched == [*range(8), 8]  # the second seed of the fifth point never starts
    assert [row["status"] for row in found["trials"]] == ["finished"] * 4 + ["pruned"]


def test_a_pruning_decision_survives_a_kill(tmp_path):
    def launch(overrides, first):
        current().report(1, 10.0 if first == 4 else 1.0)
        if current().should_prune():
            raise KeyboardInterrupt
        return [1.0]

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, launch, n_trials=5, pruner="median")
    jobs = Jobs()
    found = search(tmp_path, jobs, n_trials=5, pruner="median")
    assert jobs.seen == [] and found["trials"][4]["status"] == "pruned"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sampler": "magic"}, "hydra.sweeper.sampler: there is no sampler 'magic'"),
        ({"pruner": "no"}, "hydra.sweeper.pruner: there is no pruner 'no'"),
        ({"n_trials": 0}, "hydra.sweeper.n_trials: 0 is not a whole number from 1 on"),
        ({"seeds": [1, 1]}, "hydra.sweeper.seeds: seeds are different whole numbers"),
    ],
)
def test_invalid_options_are_refused(option, message):
    with pytest.raises(UserError, match=message):
        SearchOptions(**option)


def test_a_run_reports_its_evaluations_and_ends_as_pruned(tmp_path):
    from sft.api import compose, train

    class Reporter:
        reported: list[tuple[int, float]] = []

        def report(self, step, value):
            self.reported.append((step, value))

        def should_prune(self):
            return len(self.reported) == 2

    tiny = [
        "model=tiny",
        "lora=r8",
        "dataset=tickets",
        "dataset.sources.tickets.generator.rows=12",
        "dataset.eval_sources.known.generator.rows=4",
        "dataset.eval_sources.unseen.generator.rows=4",
        "dataset.num_proc=0",
        "trainer.per_device_train_batch_size=4",
        "trainer.max_steps=3",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=1",
        "callbacks=quiet",
        f"hydra.run.dir={tmp_path}",
    ]
    with reporting(Reporter()), pytest.raises(Pruned, match="at step 2 of 3"):
        train(compose(*tiny))
    run = RunDirectory(tmp_path)
    losses = [line["eval_loss"] for line in run.read_jsonl(run.metrics_jsonl) if "eval_loss" in line]
    assert Reporter.reported == [(1, losses[0]), (2, losses[1])]
    assert (read_record(run)["status"], read_record(run)["error"]) == ("pruned", None)
    figures = run.read_json(run.metrics_json)
    assert (figures["status"], figures["steps"], figures["eval_loss"]) == ("pruned", 2, losses[1])
    assert not run.adapter.exists()
