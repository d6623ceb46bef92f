"""A reward model judged on rows of right and wrong responses: beside a policy's results, and as a run's own result."""

import json
from pathlib import Path

import numpy as np
import pytest

from multiref_cli.config.schema import Model
from multiref_cli.files import read_json, read_lines
from multiref_cli.models.load import load_reward_model, load_tokenizer
from multiref_cli.rewards.model import RewardModelScorer
from multiref_cli.rewards.sample import Sample


@pytest.fixture
def rows(place):
    """Best-of-4 rows of the world's problems in two subsets, one of them unusable."""
    found = read_lines(place / "pairs.jsonl")[:12]
    lines = [
        {
            "id": str(i), "prompt": row["prompt"], "chosen": [row["chosen"]], "subset": ("even", "odd")[i % 2],
            "rejected": [found[(i + k) % 12]["rejected"] for k in range(3)],
        }
        for i, row in enumerate(found)
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*lines, {"prompt": "?", "chosen": []}]))
    return lines


def expected(folder, rows):
    """Subset -> how right every row is, response by response."""
    source = Model(path=str(folder))
    scorer = RewardModelScorer(load_reward_model(source), load_tokenizer(source))
    found = {"even": [], "odd": []}
    for row in rows:
        asked = [{"role": "user", "content": row["prompt"]}]
        right, *wrong = [scorer.score([Sample(asked, text)])[0] for text in (*row["chosen"], *row["rejected"])]
        found[row["subset"]].append(float(right > max(wrong)))
    return found


def test_the_scorer_of_a_run_is_judged_beside_its_results(place, multiref, offline, rows, monkeypatch):
    assert multiref("train", *offline, "evaluation.scorer_file=rows.jsonl", "run.dir=out") == 0
    truth, results = expected(place / "judge", rows), read_json(Path("out/results.json"))
    subsets = results["scorer"]["subsets"]
    assert {name: (one["mean"], one["n"]) for name, one in subsets.items()} == {
        name: (pytest.approx(np.mean(values)), 6) for name, values in truth.items()
    }
    assert 0 < results["scorer"]["all"]["mean"] < 1, "an expectation that cannot fail says nothing"
    assert [row["right"] for row in read_lines(Path("out/scorer.jsonl"))] == [
        value for pair in zip(truth["even"], truth["odd"]) for value in pair
    ]
    assert "1 rows of rows.jsonl cannot be used or are refused by the scorer's template" in results["notes"]
    assert "best_of" not in results["metrics"], "it says nothing of the policy"
    report = Path("out/report/report.md").read_text()
    assert "Reward model" in report and "judge on rows.jsonl: share of rows" in report
    manifest = read_json(Path("out/manifest.json"))
    assert manifest["scorer_file"] == results["scorer"]["sha256"]
    # Judged once per machine, also of a run that is scored again.
    monkeypatch.setattr("multiref_cli.runs.scorer_file.judge", lambda *_: pytest.fail("it is judged again"))
    assert multiref("eval", "out", "evaluation.prompts=2") == 0
    assert read_json(Path("out/results.json"))["scorer"] == results["scorer"]


def test_a_trained_reward_model_is_judged_and_judged_again(place, multiref, rows):
    given = ["algorithm=reward_model", "references=none", "regularizer=none", "data=jsonl", "evaluation=none"]
    given += [f"data.path={place}/pairs.jsonl", "data.held_out=0.2", f"policy.path={place}/one", "policy=folder"]
    given += ["hardware=cpu", "tracking=off", "steps=2", "algorithm.batch_pairs=8", "optimizer.learning_rate=1e-2"]
    assert multiref("train", *given, "evaluation.scorer_file=rows.jsonl", "run.dir=out") == 0
    truth, results = expected("out/policy", rows), read_json(Path("out/results.json"))
    assert results["metrics"]["best_of"]["mean"] == pytest.approx(np.mean([*truth["even"], *truth["odd"]]))
    assert results["metrics"]["best_of/odd"]["mean"] == pytest.approx(np.mean(truth["odd"]))
    assert {"mean", "ci_low", "ci_high", "n"} == set(results["metrics"]["best_of"])
    lines = Path("rows.jsonl").read_text().splitlines()
    Path("fewer.jsonl").write_text("\n".join(lines[:4]) + "\n")
    assert multiref("eval", "out", "evaluation.scorer_file=fewer.jsonl") == 0
    again = read_json(Path("out/results.json"))["metrics"]
    assert again["best_of"]["n"] == 4 and again["held_out_accuracy"] == results["metrics"]["held_out_accuracy"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["evaluation.scorer_file=none.jsonl"], "evaluation.scorer_file=none.jsonl: no such file"),
        (["evaluation.scorer_file=bad.jsonl"], "has no usable row (row 1: missing rejected)"),
        (
            ["evaluation.scorer_file=rows.jsonl", "evaluation.scorer=null"],
            "judges evaluation.scorer, and there is none",
        ),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_written(place, multiref, offline, rows, capsys, given, sentence):
    Path("bad.jsonl").write_text('{"prompt": "q", "chosen": "a"}\n')
    assert multiref("train", *offline, *given, "run.dir=out") == 2
    assert sentence in " ".join(capsys.readouterr().err.split()) and not Path("out").exists()
