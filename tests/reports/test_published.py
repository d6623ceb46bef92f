"""Committed results: written, read, compared, and turned into the README's table."""

import dataclasses
import math
from pathlib import Path

import pytest

from multiref_cli.errors import RequestError
from multiref_cli.evaluation.statistics import Interval, student_t_cdf, student_t_quantile
from multiref_cli.reports.collect import conditions, read_run
from multiref_cli.reports.published import (
    BEGIN,
    END,
    Check,
    compare_with,
    conclusions,
    read_rows,
    readme_table,
    rows_of,
    update_readme,
    verdict,
    write_rows,
)
from multiref_cli.reports.report import write_report
from multiref_cli.sweeps.ledger import Ledger


@pytest.fixture
def found(offline: Ledger):
    return conditions(read_run(folder) for folder in offline.run_folders())


def test_rows_survive_the_file(found, tmp_path: Path) -> None:
    rows = rows_of(found, "make reproduce")
    write_rows(rows, tmp_path / "results.csv")
    again = read_rows(tmp_path / "results.csv")
    assert [row.key for row in again] == [row.key for row in rows]
    for old, new in zip(rows, again):
        assert new.interval == pytest.approx(old.interval, rel=1e-5)
        assert (new.commit, new.command) == ("0123456789ab", "make reproduce")
        assert new.hardware == "some processor, AVX2, 2 cores" and new.versions == "python 3.11.7, torch 2.13.0"
        started = "policy cdcdcdcdcdcd, instruct cdcdcdcdcdcd, instruct_large efefefefefef, scorer 121212121212"
        assert new.started_from == f"{started}, data abababababab" and old.started_from == new.started_from
    # 2 untrained models x 2 scorers; 13 conditions x (2 scorers, length, one centered, 2 objectives, KL to 2, weighted,
    # mixed).
    assert len(rows) == 4 + 13 * 10


def test_the_same_results_are_within(found) -> None:
    checks = compare_with(rows_of(found), found)
    assert {check.word for check in checks} == {"agrees"}
    drawn = conclusions(checks, found)
    assert len(drawn) == 2 * 27 and all(one.committed == one.new for one in drawn)
    assert verdict(checks, drawn).startswith(f"The reproduction holds: {len(checks)} of {len(checks)} means agree")
    assert verdict(checks, drawn).endswith("; 54 of 54 conclusions are the same, 0 reversed.")


def test_what_moved_is_named(found) -> None:
    rows = rows_of(found)
    index = next(i for i, r in enumerate(rows) if (r.condition, r.metric) == ("rkl α=0.5 β=1", "gold"))
    rows[index] = dataclasses.replace(rows[index], interval=Interval(0.1, 0.09, 0.11, 3))
    rows.append(dataclasses.replace(rows[0], condition="chi2 α=0.5 β=1"))
    rows.append(dataclasses.replace(rows[index], interval=Interval(0.1, float("nan"), float("nan"), 1)))
    checks = compare_with(rows, found)
    assert checks[index].word == "**differs**"
    assert [check.word for check in checks[-2:]] == ["not run", "no interval"]
    text = verdict(checks)
    assert text.startswith("The reproduction does not hold") and "1 committed rows were not run" in text
    assert "1 differ after Holm's correction (rkl α=0.5 β=1 on gold)" in text
    assert verdict(checks[-1:]).startswith("Nothing can be said")


def test_a_difference_is_judged_by_the_errors_of_both(found) -> None:
    """Half widths 4.303 over three seeds: errors 1 and 1, four degrees; 2 apart is t = 1.414, p = .230."""
    old = rows_of(found)[10]
    half = student_t_quantile(0.975, 2)
    old = dataclasses.replace(old, interval=Interval(1.0, 1 - half, 1 + half, 3))
    new = dataclasses.replace(old, interval=Interval(3.0, 3 - half, 3 + half, 3))
    assert Check(old, new).p_value == pytest.approx(2 * student_t_cdf(-math.sqrt(2), 4))
    assert Check(old, new).word == "agrees"
    far = dataclasses.replace(old, interval=Interval(6.0, 6 - half, 6 + half, 3))
    assert Check(old, far).word == "**differs**"
    crossed = dataclasses.replace(old, prompts=500, degrees=10.0)
    assert crossed.error == pytest.approx((half / student_t_quantile(0.975, 10), 10))


def test_readme_is_made_from_the_file(found, tmp_path: Path) -> None:
    write_rows(rows_of(found, "make reproduce"), tmp_path / "results.csv")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN.format(path='results.csv')}\nbefore\n{END}\n\nend\n")
    assert update_readme(readme, tmp_path / "results.csv", "results.csv", ["gold", "objective/gold"])
    text = readme.read_text()
    assert text.startswith("# Title\n") and text.endswith(f"{END}\n\nend\n") and "before" not in text
    table = readme_table(read_rows(tmp_path / "results.csv"), ["gold", "objective/gold"])
    assert table in text and "| condition | level, estimator | seeds | gold | J, gold |" in table
    assert "| instruct, untrained | – | – | 0.370 ± 0.020 | – |" in table
    assert "Commit `0123456789ab`, `make reproduce`" in table
    assert not update_readme(readme, tmp_path / "results.csv", "results.csv", ["gold", "objective/gold"])
    readme.write_text("no markers")
    with pytest.raises(RequestError, match="no results to replace"):
        update_readme(readme, tmp_path / "results.csv", "results.csv")


def test_report_says_what_agrees(offline: Ledger, found, tmp_path: Path, undrawn: None) -> None:
    write_rows(rows_of(found), tmp_path / "results.csv")
    index = write_report([offline.path], tmp_path / "out", tmp_path / "results.csv")
    text = (index.parent / "report.md").read_text()
    assert "## Against committed results" in text and "134 of 134 means agree" in text
    assert (tmp_path / "out" / "summary.csv").read_text() == (tmp_path / "results.csv").read_text()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        read_rows(tmp_path / "nothing.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RequestError, match="its columns must be"):
        read_rows(tmp_path / "other.csv")


def test_report_command_compares(offline: Ledger, found, tmp_path: Path, undrawn: None, multiref, capsys) -> None:
    write_rows(rows_of(found)[:10], tmp_path / "results.csv")
    assert multiref("report", offline.path, "--out", tmp_path / "out", "--against", tmp_path / "results.csv") == 0
    assert "The reproduction holds: 10 of 10 means agree" in capsys.readouterr().out
    assert multiref("report", offline.path, "--against", tmp_path / "nothing.csv") == 2
