"""Weights by a function of the stored log-probabilities: by hand, through a DPO run, and what is refused."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from multiref_cli.algorithms.dpo import row_weights, store_pairs
from multiref_cli.config.compose import compose
from multiref_cli.config.weights import Weighing
from multiref_cli.errors import RequestError
from multiref_cli.files import read_json
from multiref_cli.objectives.weighing import PairLogps, confidence, validation

SHIPPED = "multiref_cli.objectives.weighing"
ROWS = PairLogps(
    names=["a", "b"],
    chosen=torch.tensor([[-2.0, -8.0, -3.0], [-4.0, -4.0, -3.0]], dtype=torch.float64),
    rejected=torch.tensor([[-2.0, -8.0, -1.0], [-4.0, -4.0, -1.0]], dtype=torch.float64),
    lengths=torch.tensor([[2, 4, 2], [2, 4, 2]]),
    columns=[{}, {}, {}],
)


def test_the_shipped_ones_by_hand():
    """Validation: softmax of mean -13/3 and -11/3 over its temperature; confidence: of nats a token, pair by pair."""
    found = validation(ROWS, ROWS, temperature=2.0)
    assert found[0].item() == pytest.approx(1 / (1 + math.exp((13 / 3 - 11 / 3) / 2)))
    found = confidence(ROWS, ROWS)
    assert found.shape == (3, 2)
    assert found[:, 0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0.5])
    weighed = row_weights(Weighing(f"{SHIPPED}.validation", {"temperature": 2.0}), ROWS, ROWS)
    assert weighed.shape == (2, 3) and torch.equal(weighed[:, 0], weighed[:, 2])


def test_every_pair_is_mixed_with_its_own_weights():
    """log M = sum_i alpha_i log pi_i with the weights of the row, chosen and rejected alike."""
    experiment = compose(["experiment=offline_toy", f"alpha={{by: {SHIPPED}.confidence}}", "regularizer=rkl"])
    flat = [torch.stack([c, r], 1).flatten().tolist() for c, r in zip(ROWS.chosen, ROWS.rejected)]
    tokens = [[np.array([value]) for value in one] for one in flat]
    weights = row_weights(experiment.weighing, ROWS, ROWS)
    stored = store_pairs(experiment, tokens, None, weights=weights)
    torch.testing.assert_close(stored.mixed[0, 0], (weights * ROWS.chosen).sum(0))
    torch.testing.assert_close(stored.mixed[0, 1], (weights * ROWS.rejected).sum(0))


def test_a_run_with_a_function_of_ones_own(place, multiref, offline, figures, monkeypatch):
    """Constant weights are, bit for bit, the run with these weights; the report says what they are."""
    Path("mine.py").write_text("def fixed(rows, held_out, first=0.5):\n    return [first, 1 - first]\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    sys.modules.pop("mine", None)
    alpha = "alpha={by: mine.fixed, options: {first: 0.25}}"
    assert multiref("train", *offline, alpha, "steps=3", "run.dir=own", "--plain") == 0
    assert multiref("train", *offline, "alpha=0.25", "steps=3", "run.dir=plain", "--plain") == 0
    assert figures(Path("own")) == figures(Path("plain"))
    results = read_json(Path("own/results.json"))
    assert "-by_fixed_" in results["condition"]
    assert any("weights that mine.fixed makes in place of alpha" in note for note in results["notes"])
    assert "not a likelihood of any reward" in Path("own/report/report.md").read_text()
    assert multiref("train", *offline, "alpha={by: mine.gone}", "steps=3", "run.dir=x") == 2
    assert not Path("x").exists()


def test_names_hashes_and_what_is_refused():
    offline = ["experiment=offline_toy"]
    by, options = (
        f"alpha={{by: {SHIPPED}.confidence}}",
        f"alpha={{by: {SHIPPED}.confidence, options: {{temperature: 2}}}}",
    )
    plain, other = compose([*offline, by]), compose([*offline, options])
    assert plain.condition.startswith("dpo-rkl-by_confidence_") and plain.hash != other.hash
    for overrides, words in [
        (["experiment=online_toy", by], "give algorithm=dpo"),
        ([*offline, "regularizer=rkl_token", by], "level=sequence"),
        ([*offline, "regularizer=js", by], "one mean of the references"),
        ([*offline, "regularizer=mrpo_full", by], "one mean of the references"),
        ([*offline, by, "alpha_schedule={kind: linear, end: 0.5}"], "no weights that alpha_schedule"),
        ([*offline, "alpha={by: confidence}"], "give alpha={by: COLUMN"),
    ]:
        with pytest.raises(RequestError, match=words):
            compose(overrides)
    for function, words in [
        ("nowhere.at_all", "importing nowhere failed"),
        (f"{SHIPPED}.confidense", "did you mean confidence"),
        ("torch.zeros", "failed"),
        (f"{__name__}.too_many", r"gave the shape \(3,\); give \(2,\) or \(3, 2\)"),
        (f"{__name__}.too_large", "sum of 1"),
    ]:
        with pytest.raises(RequestError, match=words):
            row_weights(Weighing(function, {}), ROWS, ROWS)


def too_many(rows, held_out):
    """One weight too many."""
    return [0.2, 0.3, 0.5]


def too_large(rows, held_out):
    """Sums to two."""
    return [1.0, 1.0]
