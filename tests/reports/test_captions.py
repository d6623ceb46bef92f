"""Sentences of the README: what they say is what the published files say, whatever those say."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from multiref_cli.errors import RequestError
from multiref_cli.reports import captions
from multiref_cli.reports.captions import Judged, estimators, figure, judged, read_verdicts, write_verdicts
from multiref_cli.reports.collect import conditions, read_run
from multiref_cli.reports.published import read_rows, rows_of
from multiref_cli.reports.verdicts import compare_job
from multiref_cli.reports.worlds import read_claims
from multiref_cli.sweeps.ledger import Ledger

ROOT = Path(__file__).parents[2]


@pytest.fixture
def found(offline: Ledger):
    return conditions(read_run(folder) for folder in offline.run_folders())


def test_verdicts_survive_the_file(found, tmp_path: Path) -> None:
    made = compare_job(found, ["gold", "reward_model"])
    write_verdicts([("a job", one) for one in made], tmp_path / "verdicts.csv")
    again = read_verdicts(tmp_path / "verdicts.csv")
    assert [(one.metric, one.first, one.second, one.over_alpha) for one in again] == [
        (one.metric, one.first, one.second, one.over_alpha) for one in made
    ]
    assert [one.verdict for one in again] == [one.word().strip("*") for one in made]
    assert read_verdicts(tmp_path / "nothing.csv") == []
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RequestError, match="no file of verdicts"):
        read_verdicts(tmp_path / "other.csv")


def test_a_caption_names_the_ends_of_the_table_and_the_verdicts(found, tmp_path: Path) -> None:
    rows, made = rows_of(found), compare_job(found, ["gold"])
    write_verdicts([(rows[0].job, one) for one in made], tmp_path / "verdicts.csv")
    text = figure(rows, read_verdicts(tmp_path / "verdicts.csv"), "gold")
    grid = [row for row in rows if row.role == "grid" and row.metric == "gold"]
    for choose in (min, max):
        row = choose(grid, key=lambda one: one.interval.mean)
        assert f"{row.interval.mean:.3g} ({row.condition})" in text
    assert "3 seeds, 95 % intervals over seeds." in text and "untrained models 0.37 (instruct) to 0.57" in text
    over = [one for one in made if one.over_alpha]
    significant = text.split("significant: ")[1].split("not told apart")[0]
    for one in over:
        word = one.word().strip("*")
        pair = f"{one.first} {word} {one.second}" if word in ("above", "below") else f"{one.first} and {one.second}"
        assert pair in text and (one.first + f" {word} " + one.second in significant) == (word != "not significant")


def test_what_is_not_known_is_not_said() -> None:
    one = Judged("job", "gold", "regularizer", False, "a", "b", 0.1, "cannot be judged")
    assert "stands in the report" in judged([one], "other")
    assert judged([one], "gold").endswith("significant: none; not told apart: none; 1 cannot be judged.")
    many = [dataclasses.replace(one, first=f"a{i}", verdict="below", difference=-0.1) for i in range(20)]
    assert "significant: 20 pairs" in judged(many, "gold") and "averaged" not in judged(many, "gold")
    equal = [dataclasses.replace(one, kind="no penalty", verdict="not significant") for one in many]
    equal[7] = dataclasses.replace(equal[7], kind="regularizer")
    assert judged(equal, "gold").endswith("not told apart: a7 and b, 19 more pairs.")
    over = [*many, dataclasses.replace(many[0], over_alpha=True)]
    assert "averaged over α, significant: a0 below b (−0.1)" in judged(over, "gold")


def test_rivals_are_ranked_by_what_the_files_say(found) -> None:
    rows = rows_of(found)
    row = next(one for one in rows if one.role == "grid" and one.metric == "gold")

    def pair(second: str, difference: float, verdict: str, metric: str = "gold") -> Judged:
        return Judged(row.job, metric, "rival", False, row.condition, second, difference, verdict)

    made = [
        pair("best of 4", 0.5, "above", metric="reward_model"),  # the proxy is judged first, the gold reward last
        pair("best of 4 \u2020", -0.3, "below"),
        pair("b, untrained", 0.2, "above"),
        pair("the mix itself", -0.01, "not significant"),
        Judged(row.job, "gold", "regularizer", False, row.condition, "fkl", 0.1, "above"),
        Judged(row.job, "gold", "single reference", False, row.condition, "b alone", -0.2, "below"),
        Judged(row.job, "gold", "single reference", False, "another mix", "b alone", -0.2, "below"),
    ]
    text = captions.rivals(rows, made)
    assert f"{row.job}, by gold: {row.condition} ({row.interval.mean:.3g}) is number 4 of 5" in text
    assert (
        "significantly above it: best of 4 \u2020, b alone; below it: b untrained; not told apart: the mix itself."
        in text
    )
    assert "fkl" not in text and "by the score itself" in text and "reward_model" not in text
    without = captions.rivals(rows, [pair("a soup", 0.2, "above")])
    assert "is number 1 of 2; significantly above it: none" in without and "\u2020" not in without


def test_estimators_are_told_by_score_and_by_the_one_distance(found) -> None:
    rows = rows_of(found)
    text = estimators(rows, [], "gold")
    far = [row.interval.mean for row in rows if row.role == "grid" and row.metric == "kl/weighted"]
    numbers = re.search(r"Σ α KL: ([\d.]+) .*? to ([\d.]+) ", text).groups()
    assert [float(number) for number in numbers] == pytest.approx([min(far), max(far)], rel=5e-3)
    assert "Σ α KL" not in estimators([row for row in rows if row.metric != "kl/weighted"], [], "gold")


def test_captions_are_put_between_their_marks(tmp_path: Path) -> None:
    marks = "\n".join(
        captions.BEGIN.format(name=name, path=path) + "\nold\n" + captions.END
        for name, (path, _) in captions.CAPTIONS.items()
    )
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{marks}\nafter\n")
    assert captions.update_captions(readme) and not captions.update_captions(readme)
    text = readme.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert text.count("is not published yet") == len(captions.CAPTIONS)
    (tmp_path / "runs/published").mkdir(parents=True)
    (tmp_path / "runs/published/mixed.json").write_text('{"references": ["a", "b"]}')
    header = "order,alpha,mean,ci_low,ci_high,n,gain,gain_low,gain_high\n"
    lines = ["0,0,.5,.4,.6,9,0,0,0", "0,0.5,.4,.3,.5,9,-.1,-.2,.1", "0,1,.3,.2,.4,9,-.2,-.3,-.1"]
    (tmp_path / "runs/published/mixed.csv").write_text(header + "\n".join(lines) + "\n")
    assert captions.update_captions(readme)
    assert "Geometric mean: highest at α = 0.5, 0.400" in readme.read_text().replace("\n", " ")
    assert "not significant" in readme.read_text().replace("\n", " ")
    readme.write_text("none")
    with pytest.raises(RequestError, match="has no caption 'offline'"):
        captions.update_captions(readme)


def test_answers_follow_the_published_files(tmp_path: Path) -> None:
    """The claim over worlds of exact reverse KL against MRPO, the lowest estimator with its comparisons, scales."""
    published = tmp_path / "runs" / "published"
    published.mkdir(parents=True)
    for name in ("worlds.csv", "estimators.csv", "estimators.verdicts.csv"):
        shutil.copy(ROOT / "runs" / "published" / name, published / name)
    text = captions.answers(tmp_path)
    own = [one for one in read_claims(published / "worlds.csv") if one.over_alpha and one.kind == "regularizer"]
    claims = {one.metric: one.sentence.replace("-", "−") for one in own if "mrpo" in one.second}
    assert text.startswith(f"{claims['toy_gold']} {claims['toy_verifier']} Of "), "each job, by its most trusted score"
    assert claims["toy_gold"].startswith(
        "rkl (mean over 3 α) is below mrpo (mean over 3 α) on toy_gold in 5 of 5 worlds, significantly in 3; over "
        "worlds it is not significant (mean difference −0.0718, 95 % interval of this one alone [−0.102, −0.0421], "
        "corrected p = 0.08)."
    )
    assert claims["reward_model/standardized"] not in text
    rows = [r for r in read_rows(published / "estimators.csv") if r.role == "grid" and r.metric == "toy_verifier"]
    lowest = min(rows, key=lambda row: row.interval.mean)
    assert f"Of {len(rows)} ways to charge one penalty {lowest.condition} ends lowest" in text
    (scale,) = [one for one in read_verdicts(published / "estimators.verdicts.csv") if one.kind == "advantage scale"]
    assert f"is not told apart from {scale.second}" in text and scale.verdict == "not significant"
    # Another file, another sentence.
    lines = (published / "estimators.verdicts.csv").read_text().replace("advantage scale", "estimator")
    (published / "estimators.verdicts.csv").write_text(lines)
    assert "told apart from" not in captions.answers(tmp_path)
