"""Scores beside means: intervals from prompts, and published numbers that follow from the scores again."""

import gzip
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from multiref_cli.errors import RequestError
from multiref_cli.evaluation.crossed import estimate
from multiref_cli.reports.collect import conditions, read_run
from multiref_cli.reports.published import BEGIN, END, README_METRICS, read_rows, rows_of, update_readme, write_rows
from multiref_cli.reports.report import write_report
from multiref_cli.reports.scores import SCORES, check_readme, check_rows, write_scores
from multiref_cli.sweeps.ledger import Ledger

PROMPTS = 40


@pytest.fixture(scope="module")
def scored(offline: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """The offline sweep with scores of 40 prompts in every run, whose means are those of results.json."""
    ledger = Ledger(tmp_path_factory.mktemp("scored") / "sweep")
    shutil.copytree(offline.path, ledger.path)
    prompts = np.random.default_rng(0).normal(size=PROMPTS)
    prompts -= prompts.mean()
    for number, folder in enumerate(ledger.run_folders()):
        metrics = json.loads((folder / "results.json").read_text())["metrics"]
        noise = np.random.default_rng(number).normal(size=PROMPTS)
        values = 0.2 * prompts + 0.1 * (noise - noise.mean())
        rows = [
            {
                "prompt": f"question {i}",
                "responses": ["a\u2028b"],
                **{k: v["mean"] + values[i] for k, v in metrics.items()},
            }
            for i in range(PROMPTS)
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / "evaluation.jsonl").write_text("".join(lines))
    return ledger


@pytest.fixture(scope="module")
def found(scored: Ledger):
    return conditions(read_run(folder) for folder in scored.run_folders())


def test_intervals_are_over_seeds_and_prompts(found) -> None:
    one = next(c for c in found if c.label == "rkl α=0.3 β=1")
    table = {run.seed: np.frombuffer(run.evaluation.columns["gold"]) for run in one.runs}
    assert one.estimate("gold") == estimate(table) and one.estimate("gold").over == "seeds and prompts"
    assert one.interval("gold").n == 3 and {np.shape(v) for v in one.by_seed("gold").values()} == {(PROMPTS,)}


def test_derived_metrics(found) -> None:
    run = next(c for c in found if c.label == "rkl α=0.3 β=1").first
    mean = {name: value["mean"] for name, value in run.metrics.items()}
    assert run.value("kl/weighted") == pytest.approx(0.3 * mean["kl/instruct"] + 0.7 * mean["kl/instruct_large"])
    centered = mean["reward_model"] - mean["reference/reward_model/instruct"]
    assert run.value("reward_model/centered") == pytest.approx(centered)
    # The same prompts on both sides: their own level is gone from the difference.
    assert run.per_prompt("reward_model/centered") == pytest.approx([centered] * PROMPTS)


def test_other_scores_than_the_results_are_not_used(scored: Ledger, tmp_path: Path) -> None:
    shutil.copytree(scored.run_folders()[0], tmp_path / "run")
    path = tmp_path / "run" / "evaluation.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    path.write_text("".join(json.dumps(row | {"gold": row["gold"] + 0.01}) + "\n" for row in rows))
    run = read_run(tmp_path / "run")
    assert run.per_prompt("gold") is None and run.per_prompt("length") is not None


def test_one_seed_has_an_interval_over_prompts(scored: Ledger, tmp_path: Path, undrawn: None) -> None:
    runs = [folder for folder in scored.run_folders() if "-s0-" in folder.name]
    text = (write_report(runs, tmp_path).parent / "report.md").read_text()
    assert "One seed: ± is the half width of the 95% interval over prompts" in text
    assert "nothing can be said about significance" in text


def test_published_numbers_follow_from_the_scores(found, tmp_path: Path) -> None:
    write_rows(rows_of(found), tmp_path / "summary.csv")
    write_scores(found, tmp_path / SCORES)
    count = len(read_rows(tmp_path / "summary.csv"))
    said = f"All {count} means and intervals of summary.csv follow from scores.csv.gz."
    assert check_rows(tmp_path / "summary.csv") == said
    again = tmp_path / "again"
    again.mkdir()
    write_scores(found, again / SCORES)
    assert (again / SCORES).read_bytes() == (tmp_path / SCORES).read_bytes()
    row = next(r for r in read_rows(tmp_path / "summary.csv") if r.metric == "gold" and r.role == "grid")
    assert row.prompts == PROMPTS and not math.isnan(row.degrees)
    text = gzip.decompress((tmp_path / SCORES).read_bytes()).decode().splitlines()
    index = next(i for i, line in enumerate(text) if f",{row.condition},sequence,–,0,gold," in line)
    head, _, values = text[index].rpartition(",")
    text[index] = f"{head},9 {values.partition(' ')[2]}"
    (tmp_path / SCORES).write_bytes(gzip.compress("\n".join(text).encode()))
    assert f"1 of {count} rows of summary.csv do not follow" in check_rows(tmp_path / "summary.csv")
    (tmp_path / SCORES).unlink()
    with pytest.raises(RequestError, match="must lie beside"):
        check_rows(tmp_path / "summary.csv")


def test_check_needs_no_torch_and_no_folder(found, tmp_path: Path, multiref, capsys) -> None:
    write_rows(rows_of(found[:2]), tmp_path / "results.csv")
    write_scores(found[:2], tmp_path / f"results.{SCORES}")
    assert multiref("report", "--check", tmp_path / "results.csv") == 0
    assert "follow from results.scores.csv.gz" in capsys.readouterr().out
    assert multiref("report") == 2
    code = (
        f"import sys; from pathlib import Path; from multiref_cli.reports.scores import check_rows;"
        f"print(check_rows(Path({str(tmp_path / 'results.csv')!r})), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("All ") and out.strip().endswith("False")


def test_the_tables_of_a_readme_are_made_again_from_its_files(found, tmp_path: Path, multiref, capsys) -> None:
    """Each table from its CSV, each CSV from its scores; what was edited by hand, or has no scores, is named."""
    write_rows(rows_of(found[:2]), tmp_path / "a.csv")
    write_scores(found[:2], tmp_path / f"a.{SCORES}")
    shutil.copy(tmp_path / "a.csv", tmp_path / "b.csv")
    names, readme = ("a.csv", "b.csv", "worlds.csv"), tmp_path / "README.md"
    readme.write_text("".join(f"{BEGIN.format(path=name)}\n{END}\n" for name in names))
    for name in names[:2]:
        update_readme(readme, tmp_path / name, name, README_METRICS)
    assert multiref("report", "--check", readme) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "The table of a.csv in README.md is what the file says." and said[1].startswith("All ")
    assert said[3] == "b.csv has no scores beside it: its numbers cannot be computed again."
    assert said[4] == "Nothing is published as worlds.csv yet." and len(said) == 5
    readme.write_text(readme.read_text().replace("alone", "together", 1))
    assert "is not what the file says" in check_readme(readme)[0]
    readme.write_text("nothing")
    with pytest.raises(RequestError, match="no results between marks"):
        check_readme(readme)
