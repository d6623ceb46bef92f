"""A search finds known optima within its budget, treats equal arms alike, and has the same trials however killed."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_trials

from multiref_cli.errors import RequestError, RunError
from multiref_cli.sweeps.request import parse_request
from multiref_cli.sweeps.search import open_tuning


def _samplers() -> list[str]:
    try:
        import optuna  # noqa: F401
    except ImportError:
        return ["random"]
    return ["random", "tpe"]


@pytest.fixture(autouse=True)
def _plans_are_light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of an experiment are checked by the tests of plans."""
    monkeypatch.setattr("multiref_cli.sweeps.plan._check_parts", lambda experiments: None)


@pytest.mark.parametrize("sampler", _samplers())
def test_known_optima_are_found_within_the_budget(tmp_path: Path, sampler: str) -> None:
    given = ["regularizer=rkl,fkl", "search.trials=20", f"search.sampler={sampler}"]
    tuning = fake_trials.search(fake_trials.request_of(tmp_path, *given))
    for arm in tuning.arms:
        best = tuning.best(arm)
        assert len(tuning.of(arm)) == 20 and best is not None and best.value is not None
        beta, rate = fake_trials.optimum(arm.asked.experiment)
        distance = math.hypot(
            math.log10(float(best.params["beta"])) - beta,
            math.log10(float(best.params["optimizer.learning_rate"])) - rate,
        )
        # Of 3 x 3 decades a disk of this radius is 1 part in 8 around the optimum of an arm.
        assert distance < 0.6, (arm.name, best)
    chosen = tuning.chosen()
    assert [one.experiment.data.held_out_split for one in chosen] == ["test", "test"]
    assert [f"beta={one.experiment.beta!r}" for one in chosen] == [
        f"beta={float(tuning.best(arm).params['beta'])!r}" for arm in tuning.arms
    ]


@pytest.mark.parametrize("sampler", _samplers())
def test_equal_arms_are_tried_alike_and_none_wins_more_than_chance(tmp_path: Path, sampler: str) -> None:
    # Arms that differ in alpha alone, which the fake score does not read: they differ by the noise of a hash.
    wins = 0
    given = ["regularizer=rkl", "alpha=0.3,0.7", "search.trials=8", f"search.sampler={sampler}"]
    opened = open_tuning(fake_trials.request_of(tmp_path, *given))
    for seed in range(10):
        tuning = fake_trials.on_paper(replace(opened, search=replace(opened.search, seed=seed), trials=[]))
        first, second = (tuning.of(arm) for arm in tuning.arms)
        assert len(first) == len(second) == 8
        assert [one.params for one in first[:4]] == [one.params for one in second[:4]], "the first batch is shared"
        best = [tuning.best(arm) for arm in tuning.arms]
        assert best[0] is not None and best[1] is not None and best[0].value != best[1].value
        wins += best[0].value > best[1].value
    # Of 10 fair coins 1 to 9 heads come with probability .998.
    assert 1 <= wins <= 9


@pytest.mark.parametrize("pruning", ["median", "halving"])
def test_pruning_stops_what_earlier_trials_beat_and_keeps_the_optimum(tmp_path: Path, pruning: str) -> None:
    given = ["regularizer=rkl", "search.trials=24", "search.sampler=random", "search.curve=reward"]
    pruned = fake_trials.search(fake_trials.request_of(tmp_path / "pruned", *given, f"search.pruning={pruning}"))
    whole = fake_trials.search(fake_trials.request_of(tmp_path / "whole", *given[:-1]))
    (arm,) = pruned.arms
    states = [trial.state for trial in pruned.of(arm)]
    assert states[:4] == ["done"] * 4 and states.count("pruned") >= 6 and set(states) == {"done", "pruned"}
    assert pruned.best(arm) == whole.best(arm), "curves that rise to the score: the best is never pruned"
    # By hand: at its rung a pruned trial lay below the rank that its rule asks for, of the trials of earlier rounds.
    share, rungs = {"median": (1 / 2, (5, 10, 15)), "halving": (1 / 3, (3, 7))}[pruning]
    finals = [trial.value for trial in whole.of(arm)]
    for trial in pruned.of(arm):
        if trial.state == "pruned":
            step, value = trial.reached
            ended = {one.number: one.reached[0] if one.reached else 20 for one in pruned.of(arm)}
            earlier = sorted(finals[n] for n in range(4 * trial.round) if ended[n] >= step)
            assert step in rungs and value < 0.9 * step / 20 + 1
            assert finals[trial.number] < earlier[len(earlier) - math.ceil(share * len(earlier))]
            assert len((pruned.folder / trial.points[0] / "metrics.jsonl").read_text().splitlines()) == step


def test_a_failed_trial_counts_as_worst_and_is_tried_again_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "1")
    request = fake_trials.request_of(tmp_path, "regularizer=mrpo", "search.trials=12", "search.sampler=random")
    tuning = fake_trials.search(request)
    (arm,) = tuning.arms
    failed = [trial for trial in tuning.of(arm) if trial.state == "failed"]
    assert failed and all(float(trial.params["beta"]) > 1 and trial.value is None for trial in failed)
    best = tuning.best(arm)
    assert best is not None and float(best.params["beta"]) <= 1
    monkeypatch.delenv("FAKE_FAIL")
    again = open_tuning(request)
    again.try_again()
    assert again.left == len(failed)
    again = fake_trials.search(request, again=again)
    assert {trial.state for trial in again.of(arm)} == {"done"}
    assert [trial.params for trial in again.of(arm)] == [trial.params for trial in tuning.of(arm)]


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    given = ["regularizer=rkl", "search.sampler=random"]
    few = fake_trials.search(fake_trials.request_of(tmp_path / "a", *given, "search.trials=4"))
    more = fake_trials.search(fake_trials.request_of(tmp_path / "a", *given, "search.trials=8"))
    once = fake_trials.search(fake_trials.request_of(tmp_path / "b", *given, "search.trials=8"))
    assert more.trials[:4] == few.trials and more.trials == once.trials
    with pytest.raises(RequestError, match="holds another search"):
        open_tuning(fake_trials.request_of(tmp_path / "a", *given, "search.space.beta=[0.1,1,log]"))


@pytest.mark.parametrize("metric", ["reward_model", "kl/mixed", "win_rate/toy_gold/instruct", "preference_accuracy"])
def test_what_trials_will_measure_may_be_the_metric(tmp_path: Path, metric: str) -> None:
    open_tuning(fake_trials.request_of(tmp_path, "regularizer=rkl", "search.sampler=random", f"search.metric={metric}"))


def test_a_metric_or_curve_that_no_trial_has_in_the_end_can_be_changed(tmp_path: Path) -> None:
    given = ["regularizer=rkl", "search.sampler=random", "search.trials=12", "search.pruning=median"]
    wrong = "search.curve=nothing"
    with pytest.raises(RunError, match=r"holds no kl/mixed; .* search.metric=ANOTHER and the same run.dir"):
        fake_trials.search(fake_trials.request_of(tmp_path / "a", *given, wrong, "search.metric=kl/mixed"))
    begun = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("results.json")}
    asked = [*given, "search.metric=toy_gold"]
    with pytest.raises(RunError, match=r"search.curve=nothing is in .* hold reward, step; .* search.curve=ANOTHER"):
        fake_trials.search(fake_trials.request_of(tmp_path / "a", *asked, wrong))
    assert len(begun) == 4 and begun == {path: path.stat().st_mtime_ns for path in begun}
    last = fake_trials.search(fake_trials.request_of(tmp_path / "a", *asked, "search.curve=reward"))
    once = fake_trials.search(fake_trials.request_of(tmp_path / "b", *asked, "search.curve=reward"))
    assert last.trials == once.trials and begun == {path: path.stat().st_mtime_ns for path in begun}
    # What was chosen by one metric is not gone on with by another.
    with pytest.raises(RequestError, match="holds another search"):
        open_tuning(fake_trials.request_of(tmp_path / "a", *given, "search.curve=reward", "search.metric=reward_model"))


def _command(folder: Path, workers: int, given: list[str]) -> tuple[list[str], dict[str, str]]:
    """A search in a process of its own, and its environment: every trial takes long enough to be met in it."""
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "FAKE_SECONDS": "0.004"}
    return [sys.executable, str(Path(fake_trials.__file__)), str(folder), str(workers), *given], environment


@pytest.mark.slow
def test_killed_at_random_moments_a_search_has_the_same_trials(tmp_path: Path) -> None:
    given = ["regularizer=rkl,fkl", "search.trials=8", f"search.sampler={_samplers()[-1]}"]
    given += ["search.pruning=median", "search.curve=reward"]
    whole = fake_trials.search(fake_trials.request_of(tmp_path / "whole", *given))
    command, environment = _command(tmp_path / "killed", 2, given)
    generator, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            process.wait(generator.uniform(1.0, 4.0) if kills < 3 else 120)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.5)  # its workers see that it is gone
    assert process.returncode == 0 and kills >= 1
    assert fake_trials.told(tmp_path / "killed") == fake_trials.told(tmp_path / "whole") and whole.left == 0


@pytest.mark.slow
def test_ctrl_c_in_a_round_leaves_the_same_trials(tmp_path: Path) -> None:
    """As a terminal sends it: to the parent and its workers at once."""
    given = ["regularizer=rkl", "search.trials=8", f"search.sampler={_samplers()[-1]}"]
    whole = fake_trials.search(fake_trials.request_of(tmp_path / "whole", *given))
    command, environment = _command(tmp_path / "stopped", 2, given)
    search = tmp_path / "stopped" / "search"
    slow = {**environment, "FAKE_SECONDS": "0.5"}
    process = subprocess.Popen(command, env=slow, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(search.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    left = fake_trials.told(tmp_path / "stopped")
    assert [line["state"] for line in left] == ["planned"] * 4 and not list(search.glob("*/results.json"))
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert fake_trials.told(tmp_path / "stopped") == fake_trials.told(tmp_path / "whole") and whole.left == 0
    assert [line["params"] for line in left] == [trial.params for trial in whole.trials[:4]]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["search.trails=3"], "did you mean 'trials'"),
        (["search.trials=0"], "search.trials is 0; give a whole number, 1 or more"),
        (["search.space.beta=[3,0.01]"], "an empty range"),
        (["search.space.beta=[1,1,log]"], "an empty range"),
        (["search.space.beta=[0,1,log]"], "a range on a log scale begins above 0"),
        (["search.space.beta=[1,2,lin]"], "give [LOW, HIGH], [LOW, HIGH, log]"),
        (["search.space.beta=choice(1)"], "there is nothing to choose"),
        (["search.space.beta=[0.5,1.5,int]"], "the ends of whole numbers are whole"),
        (["search.space.betta=[0.1,1]"], "there is no key 'betta'; did you mean 'beta'"),
        (["search.space.seed=[0,5,int]"], "a seed is nothing that is tuned"),
        (["search.space.optimizer.learning_rate=[1,2000]"], "optimizer.learning_rate is 2000"),
        (["beta=0.1,1"], "beta is tuned by search.space.beta"),
        (["beta=0.1"], "beta is tuned by search.space.beta"),
        (["search.tuning=data.held_out_split=test"], "on the rows that the report is about"),
        (["search.tuning=data.held_out_split=dev beta=2"], "search.tuning sets beta=2"),
        (["search.seeds=[0]"], "seed 0 is tuned on and reported"),
        (["search.seeds=[]"], "search.seeds is []"),
        (["search.sampler=grid"], "search.sampler is 'grid'; allowed: tpe, random"),
        (["search.pruning=median"], "needs search.curve"),
        (["search.curve=reward"], "search.curve is read by search.pruning"),
        (["search=yes"], "search is 'yes'; give its keys"),
        (["alpha=auto"], "alpha=auto is chosen for one beta"),
        (
            ["search.metric=toy_golf"],
            "search.metric is 'toy_golf', which no trial of dpo-rkl-a0.5 will have; did you mean",
        ),
        (["search.metric=greedy/toy_gold"], "will have; "),
        (["search.metric=reward"], "will have; "),
    ],
)
def test_wrong_searches(tmp_path: Path, given: list[str], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        open_tuning(fake_trials.request_of(tmp_path / "s", "regularizer=rkl", "search.sampler=random", *given))
    assert sentence in str(refused.value) and not (tmp_path / "s").exists()


def test_a_search_with_nothing_left_to_tune_is_refused(tmp_path: Path) -> None:
    request = fake_trials.request_of(tmp_path / "s", "search.sampler=random")
    fixed = ("regularizer=rkl", "beta=1", "optimizer.learning_rate=1e-4")
    with pytest.raises(RequestError) as refused:
        open_tuning(replace(request, grids=(fixed,)))
    keys = "search.space.beta and search.space.optimizer.learning_rate"
    assert str(refused.value).startswith(f"{keys} are fixed by every grid: nothing is left to search;")
    assert not (tmp_path / "s").exists()
    # One grid that has a key open is enough: the arms of the others have one trial each.
    tuning = open_tuning(replace(request, grids=(fixed, ("regularizer=fkl", "beta=1"))))
    assert [len(arm.axes) for arm in tuning.arms] == [0, 1]


def test_optuna_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RequestError, match=r"pip install optuna, or give search\.sampler=random"):
        open_tuning(fake_trials.request_of(tmp_path, "regularizer=rkl"))


def test_a_grid_keeps_what_it_sets_itself_and_an_arm_without_ranges_is_run_once(tmp_path: Path) -> None:
    own = tmp_path / "conf" / "sweep"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "common: experiment=online_toy\n"
        "grids: [regularizer=rkl_token, regularizer=rkl_token beta=0,"
        " regularizer=fkl_token beta=3 optimizer.learning_rate=1e-3]\n"
        "baselines: false\n"
        "search: {space: {beta: [0.1, 1, log], optimizer.learning_rate: [1e-4, 1e-2, log]}, trials: 4, sampler: random,"
        " tuning: data.held_out_split=dev}\n"
    )
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        tuning = fake_trials.search(parse_request(["sweep=mine", f"run.dir={tmp_path / 's'}"]))
    finally:
        os.chdir(here)
    assert [[axis.key for axis in arm.axes] for arm in tuning.arms] == [
        ["beta", "optimizer.learning_rate"],
        ["optimizer.learning_rate"],
        [],
    ]
    assert [len(tuning.of(arm)) for arm in tuning.arms] == [4, 4, 1]
    assert [one.experiment.beta for one in tuning.chosen()][1:] == [0, 3]
