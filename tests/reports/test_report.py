"""Reports say what is on disk: values, intervals, comparisons, sentences, provenance; and miss nothing."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from multiref_cli.errors import RequestError
from multiref_cli.evaluation.crossed import compare
from multiref_cli.evaluation.statistics import t_interval
from multiref_cli.reports.collect import Condition, conditions, read_run
from multiref_cli.reports.job_section import jobs, plus_minus
from multiref_cli.reports.metrics import scorers
from multiref_cli.reports.report import write_report, write_run_report
from multiref_cli.reports.verdicts import compare_job, series
from multiref_cli.sweeps.ledger import Ledger, expand_folders


def _conditions(ledger: Ledger) -> list[Condition]:
    return conditions(read_run(folder) for folder in ledger.run_folders())


def _one(found: list[Condition], label: str) -> Condition:
    return next(condition for condition in found if condition.label == label)


def test_conditions_group_seeds(offline: Ledger) -> None:
    found = _conditions(offline)
    assert len(found) == 13 and all([run.seed for run in c.runs] == [0, 1, 2] for c in found)
    assert {c.label for c in found if c.role == "single"} == {
        *("instruct alone (rkl) β=1", "instruct_large alone (rkl) β=1"),
        *("instruct alone (fkl) β=1", "instruct_large alone (fkl) β=1"),
    }
    assert scorers(found) == ["reward_model", "gold"]
    one = _one(found, "rkl α=0.3 β=1")
    values = [run.metrics["gold"]["mean"] for run in one.runs]
    assert one.interval("gold") == t_interval(values) and one.values("gold") == dict(enumerate(values))


def test_labels_name_what_differs(offline: Ledger, tmp_path: Path) -> None:
    for rate in ("1e-4", "3e-4"):
        shutil.copytree(offline.run_folders()[0], tmp_path / rate)
        path = tmp_path / rate / "config.yaml"
        config = yaml.safe_load(path.read_text())
        config["optimizer"]["learning_rate"] = float(rate)
        path.write_text(yaml.safe_dump(config))
    found = conditions(read_run(tmp_path / rate) for rate in ("1e-4", "3e-4"))
    assert [c.label for c in found] == [f"rkl α=0.3 β=1 learning_rate={r}" for r in ("0.0001", "0.0003")]


def test_the_same_run_twice_counts_once(offline: Ledger) -> None:
    folders = offline.run_folders()
    twice = conditions(read_run(folder) for folder in [*folders, *folders])
    assert [len(c.runs) for c in twice] == [3] * 13


def test_comparisons_are_paired_with_their_own_baselines(offline: Ledger) -> None:
    found = _conditions(offline)
    verdicts = [verdict for verdict in compare_job(found, ["gold"]) if not verdict.over_alpha]
    pairs = {(v.first, v.second) for v in verdicts}
    # 9 points x 2 baselines, and at each of 3 alphas 3 pairs of regularizers.
    assert len(verdicts) == len(pairs) == 27
    assert ("mrpo α=0.5 β=1", "instruct alone (rkl) β=1") in pairs
    assert ("fkl α=0.5 β=1", "instruct alone (rkl) β=1") not in pairs
    one = next(v for v in verdicts if (v.first, v.second) == ("rkl α=0.5 β=1", "fkl α=0.5 β=1"))
    sides = [_one(found, label).values("gold") for label in (one.first, one.second)]
    block = [condition for condition in found if condition.role != "beta0"]
    others = [c.values("gold") for c in block if c.label not in (one.first, one.second)]
    assert one.comparison == compare(*sides, [c.values("gold") for c in block], others=others)
    assert one.adjusted_p >= one.comparison.p_value


def test_lines_over_alpha(offline: Ledger) -> None:
    found = _conditions(offline)
    lines = series(found)
    assert [line.label for line in lines] == ["rkl", "mrpo", "fkl"]
    values = [_one(found, f"rkl α={a} β=1").values("gold") for a in (0.3, 0.5, 0.7)]
    assert lines[0].values("gold")[1] == pytest.approx(np.mean([v[1] for v in values]))
    verdicts = [verdict for verdict in compare_job(found, ["gold"]) if verdict.over_alpha]
    assert len(verdicts) == 3 * 2 + 3
    assert verdicts[0].first == "rkl (mean over 3 α)" and verdicts[0].word() == "**above**"


def test_only_pairs_that_differ_in_one_thing_are_compared(estimators: Ledger) -> None:
    """Two regularizers x two estimators: four pairs with one difference, none of the two with both."""
    found = _conditions(estimators)
    verdicts = compare_job(found, ["gold"])
    assert sorted(verdict.kind for verdict in verdicts) == ["estimator", "estimator", "regularizer", "regularizer"]
    for verdict in verdicts:
        names = [side.split(" ")[0] for side in (verdict.first, verdict.second)]
        assert (names[0] == names[1]) == (verdict.kind == "estimator")


def test_the_scale_of_the_advantages_is_one_difference_too(scales: Ledger) -> None:
    """Two scales x two inner iterations: scales are compared under each, iterations are another run's setting."""
    verdicts = compare_job(_conditions(scales), ["gold"])
    assert [verdict.kind for verdict in verdicts] == ["advantage scale", "advantage scale"]
    for verdict in verdicts:
        sides = [set(side.split(" ")) for side in (verdict.first, verdict.second)]
        assert sides[0] ^ sides[1] == {"advantage_scale=none", "advantage_scale=group"}


def test_sweep_report(offline: Ledger) -> None:
    index = write_report([offline.path])
    folder, text = index.parent, (index.parent / "report.md").read_text()
    assert folder == offline.path / "report"
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    per_metric = {f"{m}-{k}" for m in ("gold", "reward-model") for k in ("against-alpha", "against-kl")}
    assert figures == per_metric | {"learning-curves"}
    interval = _one(_conditions(offline), "rkl α=0.5 β=1").interval("gold")
    assert interval is not None and plus_minus(interval) in text
    for fact in (
        "instruct, untrained, the start",
        "J, gold",
        "held-out accuracy 0.812",
        "one family",
        "Holm",
        "Σ α KL",
    ):
        assert fact in text
    for fact in ("multiref sweep", "0123456789ab", "some processor", "torch 2.13.0", "n = 500", "sequence"):
        assert fact in text
    assert r"\begin{tabular}" in (folder / "tables" / "results.tex").read_text()


def test_a_report_is_called_after_the_sweep_file(offline: Ledger, tmp_path: Path, undrawn: None) -> None:
    named = Ledger(tmp_path / "sweep")
    shutil.copytree(offline.path, named.path)
    description = named.description() | {"overrides": ["sweep=paper_grid", "experiment=offline_toy"]}
    (named.path / "sweep.yaml").write_text(yaml.safe_dump(description))
    titles = [write_report([ledger.path]).parent / "report.md" for ledger in (offline, named)]
    assert [path.read_text().splitlines()[0] for path in titles] == ["# sweep", "# paper_grid"]


def test_a_report_of_many_runs_has_a_title_of_three(offline: Ledger, tmp_path: Path, undrawn: None) -> None:
    folders = offline.run_folders()[:5]
    write_report(folders, tmp_path / "report")
    first, *_ = (tmp_path / "report" / "report.md").read_text().splitlines()
    assert first == f"# {', '.join(folder.name for folder in folders[:3])} and 2 more"


def test_results_csv(offline: Ledger, undrawn: None) -> None:
    write_report([offline.path])
    with (offline.path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 39
    row = next(r for r in rows if r["condition"] == "fkl α=0.7 β=1" and r["seed"] == "2")
    run = next(r for r in _one(_conditions(offline), "fkl α=0.7 β=1").runs if r.seed == 2)
    assert float(row["gold"]) == run.metrics["gold"]["mean"]
    assert row["alpha"] == "0.7 0.3" and row["role"] == "grid" and row["config_hash"] == run.results["config_hash"]


def test_three_references(trio: Ledger) -> None:
    text = (write_report([trio.path]).parent / "report.md").read_text()
    assert "gold-simplex" in text and "rkl α=[0.6, 0.2, 0.2] β=1" in text and "against-alpha" not in text


def test_sweeps_are_merged(offline: Ledger, trio: Ledger, tmp_path: Path, undrawn: None) -> None:
    index = write_report([offline.path, trio.path], tmp_path / "merged")
    text = (index.parent / "report.md").read_text()
    assert len(jobs(_conditions(offline) + _conditions(trio))) == 2
    assert text.count("## Offline: DPO on toy_preferences with instruct + instruct_large") == 2
    with (tmp_path / "merged" / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 39 + 14


def test_unfinished_points_are_named(offline: Ledger, tmp_path: Path, undrawn: None) -> None:
    shutil.copytree(offline.path, tmp_path / "sweep")
    ledger = Ledger(tmp_path / "sweep")
    point = ledger.planned()[0]
    status = ledger.folder(point["name"]) / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "failed"}))
    text = (write_report([ledger.path]).parent / "report.md").read_text()
    assert f"`{point['name']}`: failed" in text and "38 runs" in text


def test_one_seed_says_so(offline: Ledger, tmp_path: Path, undrawn: None) -> None:
    runs = [folder for folder in offline.run_folders() if "-s0-" in folder.name]
    text = (write_report(runs, tmp_path).parent / "report.md").read_text()
    assert "There is one seed" in text and "One seed: no interval." in text
    assert "±" not in text.split("## Results")[1].split("Untrained")[0].split("J =")[0]


def test_run_report(offline: Ledger, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(offline.run_folders()[0], run)
    text = (write_run_report(run).parent / "report.md").read_text()
    assert "order of the mean 0" in text and "learning-curves" in text and "| `gold` |" in text
    assert write_report([run]) == run / "report" / "index.html"


def test_refuses_what_is_no_run(offline: Ledger, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="neither a run nor a sweep"):
        write_report([tmp_path])
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(RequestError, match="no finished run"):
        write_report([tmp_path])
    assert expand_folders([offline.path]) == offline.run_folders()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.66, 0.67, 0.68], "0.670 ± 0.025"),
        ([100.0, 160.0, 130.0], "130 ± 75"),
        ([1.5], "1.5"),
        ([-1.0, -1.02], "−1.01 ± 0.13"),
    ],
)
def test_rounding_follows_the_interval(values: list[float], text: str) -> None:
    assert plus_minus(t_interval(values)) == text
