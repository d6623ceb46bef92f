"""Which numbers may stand in one column, and which conditions may be compared on what."""

import csv
import json
import math
import shutil
from array import array
from pathlib import Path

import numpy as np
import pytest

from multiref_cli.files import read_json, write_json
from multiref_cli.reports import metrics
from multiref_cli.reports.collect import conditions, read_run, write_csv
from multiref_cli.reports.figures import metric_against_alpha
from multiref_cli.reports.numbers import Lines
from multiref_cli.reports.report import write_report, write_run_report
from multiref_cli.reports.verdicts import compare_job
from multiref_cli.sweeps.ledger import Ledger
from tests.reports.conftest import write_sweep


def _found(ledger: Ledger):
    return conditions(read_run(folder) for folder in ledger.run_folders())


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """Whole responses, normalized tokens, tokens as they are, no penalty, side by side."""
    folder = tmp_path_factory.mktemp("kinds") / "sweep"
    ledger = write_sweep(folder, ["experiment=online_toy", "regularizer=rkl,rkl_token", "beta=0,1", "baselines=false"])
    path = ledger.run_folders()[-1]
    shutil.copytree(path, folder / "other")
    text = (folder / "other" / "config.yaml").read_text()
    (folder / "other" / "config.yaml").write_text(text.replace("normalized: true", "normalized: false"))
    return ledger


def test_distances_to_different_mixes_have_columns_of_their_own(kinds: Ledger, tmp_path: Path, undrawn: None) -> None:
    folders = [*kinds.run_folders(), kinds.path / "other"]
    found = conditions(read_run(folder) for folder in folders)
    names = metrics.mixes(found)
    assert names == ["kl/mixed", "kl/token_mix", "kl/token_mix_unnormalized"]
    for condition in found:
        measured = [name for name in names if condition.values(name)]
        assert len(measured) == (condition.beta > 0)
        # Alpha is no part of a run without penalty, so neither is a sum weighted by it.
        assert bool(condition.values("kl/weighted")) == (condition.beta > 0)
        assert condition.values("kl/instruct")
    text = (write_report(folders, tmp_path).parent / "report.md").read_text()
    for name in names:
        assert metrics.heading(name) in text
    header = (tmp_path / "results.csv").read_text().splitlines()[0].split(",")
    assert set(names) <= set(header)


def test_training_curves_show_one_distance(kinds: Ledger) -> None:
    run = next(c for c in _found(kinds) if c.level == "token" and c.beta > 0).first
    rows = {"kl/instruct": [2.0, 1.0], "kl/math": [4.0, math.nan], "kl/mixed": [1.0, math.nan]}
    run.__dict__["history"] = array("q", [1, 2]), {name: array("d", values) for name, values in rows.items()}
    assert run.curve("kl/weighted") == ([1], [pytest.approx(3.0)]) and run.curve("kl/mixed") == ([], [])


def test_preference_accuracy_is_shown_and_never_compared(offline: Ledger, tmp_path: Path, undrawn: None) -> None:
    """Without scores the policy's own ranking of held-out pairs is compared; pair by pair, as scores are by prompt."""
    ledger = Ledger(tmp_path / "sweep")
    shutil.copytree(offline.path, ledger.path)
    names = ("preference_accuracy", "ranking_accuracy", "ranking_accuracy_per_token")
    for number, folder in enumerate(ledger.run_folders()):
        right = np.random.default_rng(number).integers(0, 2, (30, 3)).astype(float)
        rows = [{"row": i, **dict(zip(names, values))} for i, values in enumerate(right.tolist())]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        interval = {"ci_low": 0.0, "ci_high": 1.0, "n": 30}
        means = {name: {"mean": mean, **interval} for name, mean in zip(names, right.mean(0))}
        write_json(folder / "results.json", {**read_json(folder / "results.json"), "metrics": means})
    found = _found(ledger)
    assert metrics.scorers(found) == ["ranking_accuracy"]
    verdicts = compare_job(found, metrics.scorers(found))
    assert verdicts and {v.metric for v in verdicts} == {"ranking_accuracy"}
    assert {v.comparison.prompts for v in verdicts} == {30}
    assert found[0].estimate("preference_accuracy").over == "seeds and prompts"
    text = (write_report([ledger.path]).parent / "report.md").read_text()
    assert "preference accuracy, own reference" in text and "conditions are not compared by it" in text
    assert not any("preference" in line for line in text.splitlines() if line.startswith("- "))


def test_scores_are_shown_in_units_of_the_start(offline: Ledger, tmp_path: Path) -> None:
    run = read_run(offline.run_folders()[0])
    assert run.value("reward_model/standardized") is None  # scores of the start by prompt give the unit
    before, after = np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.0, 3.0, 5.0, 6.0])
    name = "reference/reward_model/instruct"
    columns = {name: array("d", before), "reward_model": array("d", after)}
    run.__dict__["evaluation"] = Lines(tuple("0123"), columns)
    run.metrics["reward_model"]["mean"], run.metrics[name]["mean"] = float(after.mean()), float(before.mean())
    spread = before.std(ddof=1)
    assert run.value("reward_model/standardized") == pytest.approx(1.0 / spread)
    assert run.per_prompt("reward_model/standardized") == pytest.approx((after - before) / spread)


def test_one_run_is_shown_under_each_of_its_names(tmp_path: Path, undrawn: None) -> None:
    grid = ["experiment=offline_toy", "regularizer=rkl,mrpo,mrpo_ctro", "alpha=0.5"]
    ledger = write_sweep(tmp_path / "sweep", grid)
    text = (write_report([ledger.path]).parent / "report.md").read_text()
    assert "- instruct alone (rkl) β=1: `rkl`, `mrpo`, `mrpo_ctro`" in text and "bit for bit" in text
    verdicts = compare_job(_found(ledger), ["gold"])
    assert ("mrpo_ctro α=0.5 β=1", "instruct alone (rkl) β=1") in {(v.first, v.second) for v in verdicts}


def test_what_makes_weights_of_its_own_has_no_alpha(tmp_path: Path, undrawn: None) -> None:
    grid = ["experiment=offline_toy", "regularizer=rkl,mrpo_full", "alpha=0.3,0.5,0.7", "seeds=2"]
    ledger = write_sweep(tmp_path / "sweep", grid)
    found = _found(ledger)
    own = next(one for one in found if one.experiment.adaptive_weights)
    assert [one.label for one in found if one.role == "grid"] == [
        *("rkl α=0.3 β=1", "rkl α=0.5 β=1", "rkl α=0.7 β=1", "mrpo_full β=1"),
    ]
    for name in ("kl/weighted", "kl/mixed", "objective/gold"):
        assert not own.values(name) and found[0].values(name)
    assert own.values("gold") and own.values("kl/instruct")
    mixes = {v.first for v in compare_job(found, ["gold"]) if v.second == "mrpo_full β=1"}
    assert mixes == {"rkl α=0.3 β=1", "rkl α=0.5 β=1", "rkl α=0.7 β=1"}
    alone = write_run_report(own.first.folder).parent / "report.md"
    assert "references instruct, instruct_large (α = made of each pair)" in alone.read_text()
    write_csv(found, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        told = {row["condition"]: row["alpha"] for row in csv.DictReader(file)}
    assert told["mrpo_full β=1"] == "" and told["rkl α=0.3 β=1"] == "0.3 0.7"


def test_what_makes_weights_of_its_own_says_which_references_it_leaves_out(tmp_path: Path) -> None:
    grid = ["experiment=offline_toy", "references=toy_trio", "regularizer=rkl,mrpo_arwc", "baselines=false", "seeds=1"]
    found = _found(write_sweep(tmp_path / "sweep", [*grid, "alpha=[0.5,0.5,0],[0.4,0.3,0.3]"]))
    assert [one.label for one in found] == [
        *("rkl α=[0.5, 0.5, 0] β=1", "rkl α=[0.4, 0.3, 0.3] β=1"),
        *("mrpo_arwc of instruct + instruct_large β=1", "mrpo_arwc β=1"),
    ]
    assert [(v.first, v.second) for v in compare_job(found, ["gold"])] == [
        ("rkl α=[0.5, 0.5, 0] β=1", "mrpo_arwc of instruct + instruct_large β=1"),
        ("rkl α=[0.4, 0.3, 0.3] β=1", "mrpo_arwc β=1"),
    ]


def test_what_has_no_alpha_is_a_horizontal_line_of_a_figure_against_alpha(tmp_path: Path) -> None:
    grid = ["experiment=offline_toy", "regularizer=rkl,mrpo_full", "alpha=0.3,0.7", "seeds=2", "baselines=false"]
    figure = metric_against_alpha(_found(write_sweep(tmp_path / "sweep", grid)), "gold", "gold", None)
    (axes,) = figure.axes
    level = next(line for line in axes.lines if list(line.get_xdata()) == [0, 1])
    named = next(text for text in axes.texts if text.get_text() == "mrpo_full")
    assert level.get_color() == named.get_color()


def test_the_same_run_trained_under_two_names_counts_once(offline: Ledger, tmp_path: Path) -> None:
    single = next(folder for folder in offline.run_folders() if "rkl-single_instruct-" in folder.name)
    shutil.copytree(single, tmp_path / "again")
    text = (single / "config.yaml").read_text()
    other = text.replace("name: rkl", "name: mrpo_arwc").replace("mean_order: 0.0", "mean_order: -1.0")
    other = other.replace("arwc: null", "arwc: paper")
    assert other.count("mrpo_arwc") == 1 and "mean_order: -1.0" in other and "arwc: paper" in other
    (tmp_path / "again" / "config.yaml").write_text(other)
    (condition,) = conditions([read_run(single), read_run(tmp_path / "again")])
    assert len(condition.runs) == 1 and condition.names == ("rkl", "mrpo_arwc")
    assert condition.label == "instruct alone (rkl) β=1"


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("kl/weighted", "Σ α KL"),
        ("kl/math", "KL to math"),
        ("objective/gold", "J, gold"),
        ("win_rate_lc/reward_model/instruct", "length-controlled win rate, reward_model against instruct"),
        ("reward_model/centered", "reward_model above the start"),
        ("pass@4/toy_verifier", "pass@4/toy_verifier"),
    ],
)
def test_columns_are_called_what_they_are(metric: str, words: str) -> None:
    assert metrics.heading(metric) == words
