"""The model card of a run: facts of the run folder, front matter as the Hub reads it, untrusted text as text."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from multiref_cli.config.compose import compose
from multiref_cli.files import read_json
from multiref_cli.runs.card import card, front_matter

HUB = ["policy=folder", "policy.path=Qwen/Qwen2.5-0.5B-Instruct", "data=jsonl", "data.path=openai/gsm8k"]


def parsed(text):
    """(front matter, body) of a card, as huggingface_hub reads it."""
    from huggingface_hub import ModelCard

    read = ModelCard(text)
    return read.data.to_dict(), read.text


def test_a_run_has_a_card_of_its_own_facts(place, multiref, offline, capsys):
    arguments = [*offline, "alpha=0.4", "regularizer=rkl", "run.dir=out"]
    assert multiref("train", *arguments) == 0, capsys.readouterr().err
    weights = Path("out/policy/model.safetensors").read_bytes()
    head, body = parsed(Path("out/policy/README.md").read_text())
    assert head["library_name"] == "transformers" and head["tags"] == ["multiref", "dpo", "kl-regularization"]
    assert "base_model" not in head and "license" not in head and "datasets" not in head  # nothing here is on the Hub
    manifest, results = (read_json(Path(f"out/{name}.json")) for name in ("manifest", "results"))
    assert f"| `first` | 0.4 | `{place}/one`, sha256 {manifest['references']['first'][:12]} |" in body
    assert f"| `second` | 0.6 | `{place}/two`, sha256 {manifest['references']['second'][:12]} |" in body
    assert f"| start | `{place}/one`, sha256 {manifest['policy'][:12]} |" in body
    assert "| beta | 0.3 of reward per nat |" in body and "| steps | 5 of 8 rows |" in body
    assert "Theorem 5.1 of arXiv 2502.01203" in body and "2502.01203}" in body
    assert f"sha256 {manifest['data']['sha256'][:12]}" in body
    gold = results["metrics"]["toy_gold"]
    row = f"| `toy_gold` | {gold['mean']:.4g} | {gold['ci_low']:.4g} to {gold['ci_high']:.4g} | {gold['n']} |"
    assert row in body and body.count("95 % interval") == 1
    assert "multiref train" in body and "alpha=0.4" in body and f"multiref {manifest['versions']['multiref']}" in body
    assert all(f"* {note}" in body.replace("\\", "") for note in results["notes"])

    assert multiref("eval", "out", "evaluation.prompts=3") == 0  # another evaluation, its figures in the card
    again = read_json(Path("out/results.json"))["metrics"]["toy_gold"]
    text = Path("out/policy/README.md").read_text()
    assert f"| `toy_gold` | {again['mean']:.4g} |" in text and again["n"] == 3 and row not in text
    assert Path("out/policy/model.safetensors").read_bytes() == weights

    Path("out/policy/README.md").unlink()  # of a run before there were cards
    assert multiref("train", "--resume", "out") == 0
    assert Path("out/policy/README.md").read_text() == text
    assert multiref("train", "--resume", "out") == 2  # done, nothing is missing


def test_the_hub_is_told_of_what_it_has(tmp_path, monkeypatch):
    asked = compose(HUB)
    monkeypatch.setattr("multiref_cli.runs.card.resolve", lambda *_, **__: tmp_path)
    assert front_matter(asked) == {
        "base_model": "Qwen/Qwen2.5-0.5B-Instruct",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["multiref", "dpo", "kl-regularization"],
        "datasets": ["openai/gsm8k"],
    }
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlanguage: [en]\n---\n# A model\n")
    found = front_matter(asked)
    assert (found["license"], found["license_name"]) == ("other", "own") and "language" not in found


@pytest.mark.parametrize(
    "text", ["", "no front matter", "---\n[\n---\n", "---\n- a\n---\n", "---\nlicense: {a: b}\n---"]
)
def test_a_start_that_says_nothing_of_its_terms_gives_none(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert "license" not in front_matter(compose([*HUB, f"policy.path={tmp_path}"]))


def test_names_and_notes_are_text(tmp_path):
    asked = compose(["references=[{name: a, path: x/y}, {name: b, path: x/z}]", "algorithm=dpo"])
    strange = "</td><script>alert(1)</script> | `x` **bold** [a](http://e.vil)\n# heading\x1b[2J\u202e"
    asked = replace(asked, data=replace(asked.data, path=strange))
    results = {"metrics": {strange: {"mean": 1.0, "ci_low": 0.0, "ci_high": 2.0, "n": 3}}, "notes": [strange]}
    manifest = {"data": {"rows": strange, "sha256": "0" * 64}, "versions": {"multiref": strange}}
    text = card(asked, manifest, results, ["data.system_prompt=```\n# heading\n```"], 3)
    head, body = parsed(text)
    assert "datasets" not in head
    assert [line for line in body.splitlines() if line.startswith("# ")].count("# heading") == 1  # within the fence
    assert "````bash\n" in body and "\x1b" not in text and "\u202e" not in text
    outside = [line for line in body.splitlines() if line.startswith("* ")]
    assert outside and "<script>" not in outside[0] and r"\*\*bold\*\*" in outside[0] and r"\[a\]" in outside[0]
    rows = [line for line in body.splitlines() if line.startswith("| ``</td>")]
    assert len(rows) == 1 and len(re.split(r"(?<!\\)\|", rows[0])) == 6  # four cells, whatever the name holds


def test_the_card_of_each_kind_of_run():
    one = {"mean": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 9}
    asked, results = compose(["experiment=online_toy"]), {"metrics": {"toy_verifier": one}}
    online = card(asked, {}, results, ["experiment=online_toy"], 7)
    assert "| reward | `toy_verifier` |" in online and "multiref train experiment=online_toy" in online
    assert "estimator" in online and "| `toy_verifier` | 0.5 | 0.4 to 0.6 | 9 |" in online
    routed = "alpha={by: level, weights: {one: instruct, two: [0.5, 0.5]}}"
    text = card(compose(["experiment=offline_toy", routed]), {}, {}, [], 7)
    assert "weight by `level`" in text and "one: 1, two: 0.5" in text and "Nothing was measured." in text
    adaptive = card(compose(["experiment=offline_toy", "regularizer=mrpo_full"]), {}, {}, [], 7)
    assert "| `instruct` | made of each pair |" in adaptive
    scorer = card(compose(["experiment=embedded/reward_model"]), {}, {}, [], 7)
    assert yaml.safe_load(scorer.split("---")[1])["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification" in scorer and "## References" not in scorer
    new = card(compose(["experiment=embedded/instruct"]), {}, {}, [], 7)
    assert "trained from a new model" in new and "random weights, `{" in new
