"""A reference with tokens of its own, through a whole run: its win rate and bits per byte, by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

from multiref_cli.config.schema import Model
from multiref_cli.files import read_json, read_lines
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from tests.references.conftest import other_tokenizer, save_model


@pytest.fixture
def foreign(tmp_path):
    return Path(save_model(tmp_path / "foreign", other_tokenizer(), 4).path)


def bits(folder):
    """Bits of a response under a model, from the ids of its prompt and its own."""
    model = load_causal_lm(Model(path=str(folder)))

    def of(prompt, response):
        with torch.no_grad():
            logps = model(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        return -sum(float(logps[place, one]) for place, one in zip(places, response)) / math.log(2)

    return of


def test_win_rate_and_bits_per_byte_of_a_reference_with_other_tokens(place, foreign, multiref, offline):
    how = [*offline, f"second={foreign}", "alpha=0.5", "run.dir=out", "steps=1"]
    assert multiref("train", *how) == 0
    metrics = read_json(Path("out/results.json"))["metrics"]
    assert {f"win_rate/{scorer}/{name}" for scorer in ("toy_gold", "reward_model") for name in ("first", "second")} <= {
        *metrics
    }
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    held_out = [rows[row["row"] - 1] for row in read_lines(Path("out/pairs.jsonl"))]
    own, characters = load_tokenizer(Model(path=str(place / "one"))), load_tokenizer(Model(path=str(foreign)))
    sums = {"policy": 0.0, "first": 0.0, "second": 0.0}
    models = {"policy": Path("out/policy"), "first": place / "one", "second": foreign}
    scorers = {name: bits(folder) for name, folder in models.items()}
    for row in held_out:
        prompt = own.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
        )
        response = [*own(row["chosen"])["input_ids"], own.convert_tokens_to_ids("<|end|>")]
        for name in ("policy", "first"):
            sums[name] += scorers[name](prompt, response)
        spelled = characters(f"<turn>{row['prompt']}<end><turn>")["input_ids"]
        sums["second"] += scorers["second"](spelled, characters(f"{row['chosen']}<end>")["input_ids"])
    count = sum(len(row["chosen"].encode()) for row in held_out)
    for name, total in sums.items():
        found = metrics[f"bits_per_byte/{name}"]
        assert found["n"] == len(held_out) and math.isclose(found["mean"], total / count, rel_tol=1e-4)
        assert found["ci_low"] <= found["mean"] <= found["ci_high"]


def test_its_answers_are_read_in_its_own_tokens(place, foreign, multiref, online, monkeypatch):
    """The texts that are scored are made of characters, which no token of the policy spells."""
    from multiref_cli.evaluation.evaluate import Evaluator

    seen, samples = [], Evaluator.samples

    def noted(self, completions, foreign=None):
        found = samples(self, completions, foreign)
        if foreign is not None:
            seen.extend((one.completion, c.ids) for one, c in zip(found, [c for g in completions for c in g]))
        return found

    monkeypatch.setattr(Evaluator, "samples", noted)
    how = [*online, f"second={foreign}", "regularizer=rkl", "alpha=0.5", "run.dir=out", "steps=1"]
    assert multiref("train", *how) == 0
    metrics = read_json(Path("out/results.json"))["metrics"]
    assert "win_rate/toy_verifier/second" in metrics and not any(name.startswith("bits") for name in metrics)
    assert len(seen) == 4 * 2  # prompts by samples
    characters = load_tokenizer(Model(path=str(foreign)))
    for text, ids in seen:
        assert len(ids) <= 6 and text == characters.decode(ids, skip_special_tokens=True)


def test_runs_over_one_tokenizer_have_no_bits_per_byte(place, multiref, offline):
    assert multiref("train", *offline, "alpha=0.5", "run.dir=out", "steps=1") == 0
    assert not any(name.startswith("bits") for name in read_json(Path("out/results.json"))["metrics"])
