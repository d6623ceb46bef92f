"""`rivals=true`: which rivals a plan holds, which it leaves out and why, and what becomes of them in a report."""

import csv
import json
import re
import shutil

import pytest

from multiref_cli.errors import RequestError
from multiref_cli.files import read_json, read_lines
from multiref_cli.reports.collect import Run, conditions, read_run
from multiref_cli.reports.job_section import jobs
from multiref_cli.reports.page import Page
from multiref_cli.reports.rivals import add_rivals, compare_rivals, costs, figure, ranked, rivals_of
from multiref_cli.sweeps.plan import make_plan
from multiref_cli.sweeps.request import Rivals, parse_request

MERGES = ("soup of the references", "towards the soup of the references alone", "task arithmetic 0.4")


def plan(overrides, *more):
    return make_plan(parse_request([*overrides, *more]))


def rivals(found):
    return {point.experiment.rival: point for point in found.points if point.role == "rival"}


def test_all_rivals_of_an_online_job(place, online):
    found = plan(online, "alpha=0.5", "rivals=true", "rivals.best_of=4", "seeds=2")
    assert found.left_out == ()
    assert set(rivals(found)) == {
        "soup of the references",
        "towards the soup of the references alone (rkl_token)",
        "task arithmetic 0.4",
        "best of 4 from first",
        "mixed reference α=0.5",
        "best of 4 from the mixed reference α=0.5",
        "SFT on reference samples α=0.5",
    }
    counts = {point.experiment.rival: 0 for point in found.points}
    for point in found.points:
        counts[point.experiment.rival] += 1
    trained = {"towards the soup of the references alone (rkl_token)", "SFT on reference samples α=0.5"}
    assert {name for name, count in counts.items() if count == 2} == trained  # the others have nothing that a seed does
    assert counts[None] == 6 and found.count("rival") == 7
    task = rivals(found)["task arithmetic 0.4"].experiment.policy
    assert (task.weights, task.base.path, [one.path for one in task.models]) == (
        [0.4],
        f"{place}/one",
        [f"{place}/two"],
    )


def test_without_the_key_a_plan_is_what_it_was(place, online):
    before, after = plan(online, "alpha=0.3,0.5"), plan(online, "alpha=0.3,0.5", "rivals=true")
    names = [point.name for point in after.points if point.role != "rival"]
    assert names == [point.name for point in before.points] and rivals(before) == {}


def test_one_rival_of_all_weights_where_it_reads_none(place, online):
    names = set(rivals(plan(online, "regularizer=rkl_token,mrpo_token", "alpha=0.3,0.5", "rivals=true")))
    assert {name for name in names if name.startswith("best of 8 from first")} == {"best of 8 from first"}
    mixed = {name for name in names if name.startswith("mixed")}
    assert mixed == {f"mixed reference α={a}{order}" for a in ("0.3", "0.5") for order in ("", " order -1")}
    assert len([name for name in names if name.startswith("SFT")]) == 2


def test_an_offline_job_chooses_by_a_reward_model_of_its_own(place, offline):
    missing = plan(offline, "alpha=0.5", "rivals=true")
    assert not any(name.startswith("best of") for name in rivals(missing))
    assert (
        len(missing.left_out) == 1
        and "best of 8: left out, algorithm=dpo is trained by no reward" in missing.left_out[0]
    )
    shutil.copytree(place / "judge", "selector")
    found = rivals(plan(offline, "alpha=0.5", "rivals=true", "rivals.selector=./selector"))
    assert found["best of 8 from first"].experiment.algorithm.selector == "./selector"
    with pytest.raises(RequestError, match="is the reward model that the evaluation scores with"):
        plan(offline, "alpha=0.5", "rivals=true", f"rivals.selector={place}/judge")
    sft = found["SFT on reference samples α=0.5"].experiment
    assert sft.reads_samples and sft.rollout.max_new_tokens == 8 and not sft.algorithm.rewarded


def test_what_cannot_be_merged_or_mixed_is_left_out_in_a_sentence(place, online, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(place / "two", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    given = [o for o in online if not o.startswith("second=")] + [f"second={other}", "alpha=0.5", "rivals=true"]
    found = plan(given)
    assert not any(name.startswith(MERGES) for name in rivals(found)) and len(rivals(found)) == 4
    assert len(found.left_out) == 1 and "intermediate_size is 32 in the config of one and 48" in found.left_out[0]
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    a, b = sorted(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(content))
    found = plan([*given, "regularizer=rkl", "regularizer.estimator=reward"])
    assert set(rivals(found)) == {"best of 8 from first"}
    assert sum("second has another tokenizer" in one for one in found.left_out) == 2


def test_embedded_references_of_two_widths_have_no_soup(place):
    found = plan(["sweep=rivals_embedded"])
    assert [one.partition(":")[0] for one in found.left_out].count("Online") == 1
    assert sum("hidden_size" in one for one in found.left_out) == 2
    assert not any(name.startswith(MERGES) for name in rivals(found))
    runs = [Run(place, one.experiment, {"seed": one.seed, "metrics": {}}, {}) for one in found.points]
    labels = [one.label for one in conditions(runs) if one.role == "rival"]
    assert labels.count("mixed reference α=0.5") == 2  # one a job: each stands in its own table


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["rivals=yes please"], "allowed: true, false"),
        (["rivals=true", "rivals.best_of=1"], "from 2 to 1000000"),
        (["rivals=true", "rivals.best=3"], "no key 'rivals.best'"),
        (["rivals.best_of=3"], "belong to rivals=true"),
        (["rivals=true", "rivals.selector=[a]"], "give the path of a reward model"),
    ],
)
def test_what_is_refused(more, said):
    with pytest.raises(RequestError, match=said):
        parse_request(more)


def test_a_file_says_it_too(tmp_path, monkeypatch):
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text("# Mine, with rivals.\nrivals: {best_of: 3}\n")
    monkeypatch.chdir(tmp_path)
    assert parse_request(["sweep=mine"]).rivals == Rivals(best_of=3)
    assert parse_request(["sweep=mine", "rivals=false"]).rivals is None
    assert parse_request(["rivals=true"]).rivals == Rivals()


@pytest.mark.slow
def test_a_sweep_with_rivals_through_the_command_line(place, online, multiref, tmp_path, capsys):
    """Every rival runs, is in results.csv under its own name, is ranked, and is not run again by a resume."""
    small = [o for o in online if not o.startswith(("steps", "alpha"))] + ["steps=1", "alpha=0.5", "rivals=true"]
    sweep = [*small, "rivals.best_of=2", "seeds=2", "run.dir=sweep", "--workers", "1", "--plain"]
    assert multiref("sweep", *sweep, "--dry-run") == 0
    assert "7 rivals" in capsys.readouterr().out and not (tmp_path / "sweep").exists()
    assert multiref("sweep", *sweep) == 0
    folder = tmp_path / "sweep"
    planned = read_lines(folder / "plan.jsonl")
    stamps = {one["name"]: (folder / one["name"] / "results.json").stat().st_mtime_ns for one in planned}
    with open(folder / "results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["role"] == "rival"]
    assert {row["condition"] for row in rows} >= {"soup of the references", "mixed reference α=0.5"}
    page = (folder / "report" / "report.md").read_text()
    assert "One mix against its rivals" in page and "best of 2 from first †" in page
    with open(folder / "report" / "verdicts.csv") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    # Against one mix on one score: 7 rivals and 2 untrained here, 2 references alone among the job's own comparisons.
    assert kinds.count("rival") == 9 and kinds.count("single reference") == 2
    assert multiref("sweep", "--resume", "sweep", "--workers", "1", "--plain") == 0
    assert stamps == {one["name"]: (folder / one["name"] / "results.json").stat().st_mtime_ns for one in planned}
    found = conditions(read_run(folder / one["name"]) for one in planned)
    _check_ranking(found)
    assert read_json(folder / planned[0]["name"] / "results.json")["condition"] == planned[0]["condition"]


def _check_ranking(found):
    (group,) = jobs(found)
    own = rivals_of(group, found)
    assert len(own) == 7 and all(one.role != "rival" for one in group)
    entries = ranked(group, own, "toy_verifier")
    means = [entry.interval.mean for entry in entries]
    assert means == sorted(means, reverse=True) and len(entries) == 12
    prices = {entry.label: costs(entry) for entry in entries}
    assert prices["best of 2 from the mixed reference α=0.5 †"] == [0, 2, 2]
    assert prices["rkl_token α=0.5 β=1"] == [12, 1, 1]  # one step of 3 prompts x 4 responses
    assert prices["SFT on reference samples α=0.5"] == [12, 1, 1] and prices["first, untrained"] == [0, 1, 1]
    for _, verdict in compare_rivals(group, own, ["toy_verifier"]):
        entry = next(one for one in entries if one.label == verdict.second)
        mix = next(one for one in entries if one.label == verdict.first)
        assert verdict.comparison.difference.mean == pytest.approx(mix.interval.mean - entry.interval.mean, abs=1e-9)


def test_a_job_is_ranked_by_the_most_trusted_score(place, tmp_path):
    """The reward model finds the contrary of what the gold reward says: ranking and figure are by the latter."""
    runs = []
    for number, one in enumerate(plan(["sweep=rivals_embedded", "seeds=2"]).points):
        offline = one.experiment.data.name == "toy_preferences"
        scores = {"toy_gold": 1.0 + number, "reward_model": -float(number)} if offline else {"toy_verifier": 0.5}
        values = scores | {f"objective/{name}": value for name, value in scores.items()}
        metrics = {name: {"mean": value, "n": 9} for name, value in values.items()}
        runs.append(Run(tmp_path / str(number), one.experiment, {"seed": one.seed, "metrics": metrics}, {}))
    found = conditions(runs)
    group = next(group for group in jobs(found) if "toy_gold" in group[0].first.metrics)
    page = Page("t")
    add_rivals(page, [(group, [])], found, [])
    page.write(tmp_path / "page")
    text = (tmp_path / "page" / "report.md").read_text()
    assert "Ranked by toy_gold." in text and "| seeds | toy_gold | reward_model |" in text
    ranking = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    own = rivals_of(group, found)
    assert [line.split(" | ")[1] for line in ranking] == [one.label for one in ranked(group, own, "toy_gold")]
    assert ranked(group, own, "reward_model")[0].label == ranking[-1].split(" | ")[1]
    (axes,) = figure([(group, own)]).axes
    assert axes.get_xlabel() == "toy_gold"
