"""Runs that train nothing: the start, the mixed reference, the best of several, measured as trained policies are."""

import csv
import os

import pytest

from multiref_cli.files import read_json, read_lines


def results(folder):
    return {name: one["mean"] for name, one in read_json(folder / "results.json")["metrics"].items()}


@pytest.fixture
def still(online):
    """Overrides of a small run that trains nothing."""
    return [o for o in online if not o.startswith(("algorithm.", "steps", "alpha"))] + ["algorithm=untrained"]


def test_the_start_is_scored_as_the_reference_that_it_is(place, tmp_path, multiref, still):
    assert multiref("train", *still, "run.dir=run", "--plain") == 0
    found = results(tmp_path / "run")
    assert found["toy_verifier"] == found["reference/toy_verifier/first"]
    assert found["kl/first"] == pytest.approx(0, abs=1e-4) and found["kl/second"] > 1
    assert read_json(tmp_path / "run" / "status.json")["state"] == "done"
    assert read_lines(tmp_path / "run" / "metrics.jsonl") == []
    assert multiref("eval", "run", "evaluation.prompts=3") == 0
    assert multiref("train", "--resume", "run") == 2  # it is done


def test_the_mixed_reference_at_a_corner_is_that_reference(place, tmp_path, multiref, still):
    assert multiref("train", *still, "algorithm.sampler=mixed", "alpha=0", "run.dir=run", "--plain") == 0
    found = results(tmp_path / "run")
    assert found["toy_verifier"] == found["reference/toy_verifier/second"]
    assert found["kl/second"] == pytest.approx(0, abs=1e-4)


def test_refs_mix_and_the_untrained_mix_are_the_same_numbers(place, tmp_path, multiref, still):
    gold = ["reward=toy_gold", "alpha=0.25"]
    assert multiref("train", *still, *gold, "algorithm.sampler=mixed", "run.dir=run", "--plain") == 0
    mixing = [o for o in still if o != "algorithm=untrained"] + ["steps=4"]
    assert multiref("refs", "mix", *mixing, *gold, "run.dir=mixed") == 0
    with open("mixed/scores.csv") as file:
        row = next(one for one in csv.DictReader(file) if (one["order"], one["alpha"]) == ("0.0", "0.25"))
    assert results(tmp_path / "run")["toy_gold"] == pytest.approx(float(row["mean"]))


def test_the_best_of_several_scores_higher_and_says_what_chose(place, tmp_path, multiref, still, monkeypatch):
    (tmp_path / "alphabet.py").write_text(
        "def first_letters(prompts, completions, **_):\n    return [ord((c or 'z')[0]) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    gold = ["reward=custom", "reward.terms.mine.function._target_=alphabet.first_letters", "alpha=0.5"]
    found = {}
    for count in (1, 8):
        run = f"run.dir=run{count}"
        assert multiref("train", *still, *gold, f"algorithm.best_of={count}", run, "--plain") == 0
        found[count] = results(tmp_path / f"run{count}")
    assert found[8]["custom"] > found[1]["custom"] + 1
    assert found[8]["kl/first"] == pytest.approx(1.2044415, abs=1e-3)  # log 8 - 7/8 above the candidates' 0
    notes = read_json(tmp_path / "run8" / "results.json")["notes"]
    assert any("best of 8 by custom" in one and "solution at hand" in one for one in notes)


def test_a_reward_model_chooses(place, tmp_path, multiref, still):
    chosen = ["algorithm.best_of=4", f"algorithm.selector={place}/judge", "reward=toy_gold"]
    assert multiref("train", *still, *chosen, "run.dir=run", "--plain") == 0
    notes = read_json(tmp_path / "run" / "results.json")["notes"]
    assert any("judge: the KL" in one and "solution" not in one for one in notes)
    assert f"selector {place}/judge" in read_json(tmp_path / "run" / "manifest.json")["inputs"]
    scored = [*chosen, f"evaluation.scorer.path={place}/judge"]
    assert multiref("train", *still, *scored, "run.dir=other") == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["algorithm.sampler=both"], "allowed: policy, mixed"),
        (["algorithm.selector=judge"], "give algorithm.best_of"),
        (["algorithm.best_of=2", "reward=none"], "needs a judge"),
        (["algorithm.best_of=0"], "algorithm.best_of is 0"),
        (["evaluation.prompts=0"], "evaluation.prompts must be above 0"),
        (["algorithm.sampler=mixed", "regularizer=js"], "samples one mixed reference"),
        (["algorithm.best_of=2", "algorithm.selector=/nowhere/at/all"], "does not exist"),
    ],
)
def test_what_is_refused(place, multiref, still, more, said, capsys):
    kept = [o for o in still if o.partition("=")[0] not in {one.partition("=")[0] for one in more}]
    assert multiref("train", *kept, *more, "run.dir=run") == 2
    assert said in capsys.readouterr().err and not os.path.exists("run")


def test_a_dry_run_prices_the_candidates(place, still):
    from multiref_cli.config.compose import compose
    from multiref_cli.runs.cards import here
    from multiref_cli.runs.price import price, rows_of, sizes_of
    from multiref_cli.runs.run import open_job
    from multiref_cli.tracking.progress import Silent

    def priced(count):
        job = open_job(compose([*still, f"algorithm.best_of={count}"]), Silent(), looking=True)
        return price(job.experiment, sizes_of(job.experiment, job), rows_of(job), here("cpu"))

    assert priced(1).training == priced(8).training == 0
    assert priced(8).evaluation > 1.5 * priced(1).evaluation > 0
