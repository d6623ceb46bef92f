"""`multiref refs mix` on the tiny world: its files, its corners, what it refuses."""

import csv
import json
import os

import pytest
from filelock import FileLock


@pytest.fixture
def mixing(world):
    """Overrides of a small mix."""
    return [
        "policy=folder", f"policy.path={world}/one", "references=pair", f"first={world}/one", f"second={world}/two",
        "data=jsonl", f"data.path={world}/prompts.jsonl", "data.held_out=0.5", "reward=toy_gold",
        "evaluation.prompts=6", "evaluation.max_new_tokens=6", "evaluation.bootstrap=50", "run.dir=mixed",
    ]  # fmt: skip


def test_mix_writes_scores_and_report(place, multiref, mixing, capsys):
    assert multiref("refs", "mix", *mixing, "alpha=0.25,0.5") == 0
    with open("mixed/scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(float(r["order"]), float(r["alpha"])) for r in rows] == [
        (order, alpha) for order in (0, 1, -1) for alpha in (0, 0.25, 0.5, 1)
    ]
    ends = {(r["alpha"], r["mean"], r["ci_low"], r["ci_high"]) for r in rows if r["alpha"] in ("0.0", "1.0")}
    assert len(ends) == 2  # single references are the same under every mean
    assert {r["n"] for r in rows} == {"6"}
    for row in rows:
        best = max(float(mean) for _, mean, *_ in ends)
        assert float(row["gain"]) == pytest.approx(float(row["mean"]) - best, abs=1e-9)
    with open("mixed/mixed.json") as file:
        facts = json.load(file)
    assert facts["references"] == ["first", "second"] and facts["score"] == "toy_gold"
    with open("mixed/report/report.md") as file:
        assert "first" in file.read()
    assert "geometric" in capsys.readouterr().out
    assert multiref("refs", "mix", *mixing) == 2  # the folder exists
    assert "run.dir" in capsys.readouterr().err


def test_two_processes_on_one_folder(place, multiref, mixing, capsys):
    folders = {"mixed": ["refs", "mix", *mixing], "lab": ["theory", "study=exact_solutions", "run.dir=lab"]}
    for folder, arguments in folders.items():
        os.mkdir(folder)
        with FileLock(f"{folder}/.lock"):
            assert multiref(*arguments) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said == f"multiref: another process works in {folder}; wait for its end, or stop it."
        assert os.listdir(folder) == [".lock"]


def test_mix_beyond_a_reference(place, multiref, mixing):
    """Negative weights under the geometric mean alone; the same weights are refused without being asked for."""
    small = ["regularizer=extrapolate", "evaluation.prompts=2", "evaluation.max_new_tokens=3"]
    assert multiref("refs", "mix", *mixing, *small, "alpha=-0.5,0.5") == 0
    with open("mixed/scores.csv") as file:
        found = [(float(r["order"]), float(r["alpha"])) for r in csv.DictReader(file)]
    assert found == [(0, -0.5), (0, 0), (0, 0.5), (0, 1)]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("alpha=1.5", "between 0 and 1"),
        ("alpha=half", "alpha=half"),
        ("seed=1,2", "seed has several values"),
        ("references=toy_trio", "this config has 3"),
        ("reward=none", "reward=NAME"),
    ],
)
def test_mix_refuses(place, multiref, mixing, override, said, capsys):
    kept = [text for text in mixing if override.partition("=")[0] != text.partition("=")[0]]
    if override.startswith("references="):
        kept = [text for text in kept if not text.startswith(("first=", "second="))]
    assert multiref("refs", "mix", *kept, override) == 2
    assert said in capsys.readouterr().err


def test_mix_refuses_references_with_other_tokenizers(place, multiref, mixing, tmp_path, capsys):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(place / "two", other)
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = sorted(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(content))
    for level in ("rkl", "rkl_token"):
        kept = [text for text in mixing if not text.startswith("second=")]
        assert multiref("refs", "mix", *kept, f"second={other}", f"regularizer={level}") == 2
        assert "another tokenizer" in capsys.readouterr().err
