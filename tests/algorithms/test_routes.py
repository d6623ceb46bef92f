"""Weights by a column of the data: a one-hot map is the single-reference run on those rows, in DPO and online."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multiref_cli.algorithms.dpo import Dpo, store_pairs
from multiref_cli.config import schema
from multiref_cli.config.compose import compose
from multiref_cli.config.weights import routes_of
from multiref_cli.data.preferences import Pair
from multiref_cli.errors import RequestError
from multiref_cli.files import read_json, read_lines
from tests.algorithms.test_grpo import PROMPTS, algorithm_of, config_of, take_step, tiny, token
from tests.local import live

LENGTHS = [(5, 9), (3, 2), (12, 12), (1, 7)]
VALUES = ["math", "code", "math", "code"]
PAIRS = [Pair((1,), (2,) * won, (2,) * lost, [], "", "", 0, {"domain": v}) for (won, lost), v in zip(LENGTHS, VALUES)]
ONE_HOT = {"by": "domain", "weights": {"math": [1.0, 0.0], "code": "instruct_large"}}
SOFT = {"by": "domain", "weights": {"math": 0.25, "code": [0.9, 0.1]}}


def dpo_of(alpha, regularizer: str) -> Dpo:
    """DPO on stored numbers drawn at random, the same for every alpha."""
    experiment = replace(compose(["experiment=offline_toy", f"regularizer={regularizer}"]), alpha=alpha)
    generator = np.random.default_rng(0)
    tokens = [[-generator.exponential(2.0, n) for pair in LENGTHS for n in pair] for _ in range(2)]
    names = [one.name for one in experiment.references]
    used = [tokens[names.index(one.name)] for one in experiment.active_references]
    routes = [experiment.route_of(pair.extra) for pair in PAIRS]
    return Dpo(experiment, PAIRS, store_pairs(experiment, used, None, routes=routes), None)


@pytest.mark.parametrize("regularizer", ["rkl", "fkl", "js", "chipo"])
def test_dpo_of_a_map_is_that_of_its_weights_on_their_rows(regularizer):
    policy = torch.from_numpy(np.random.default_rng(1).normal(-20, 5, (2, 4)))
    for alpha, parts in ((ONE_HOT, ([1.0, 0.0], [0.0, 1.0])), (SOFT, ([0.25, 0.75], [0.9, 0.1]))):
        routed = dpo_of(alpha, regularizer)
        assert routed._by_route([0, 1, 2, 3]) == [[0, 2], [1, 3]]
        for rows, weights in zip(([0, 2], [1, 3]), parts):
            own = routed.loss_of(policy[:, rows], rows, 4)
            plain = dpo_of(weights, regularizer).loss_of(policy[:, rows], rows, 4)
            assert torch.equal(own[0], plain[0])
            shared = own[1].means().keys() & plain[1].means().keys()
            assert "accuracy" in shared and all(own[1].means()[key] == plain[1].means()[key] for key in shared)


SETTINGS = {
    "exact": token("exact"),
    "k2": token("k2"),
    "reward": {"estimator": schema.Estimator.reward},
    "js": {"mean_order": None, "score_order": None, "terms": [schema.DivergenceTerm("jensen_shannon")]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_online_a_map_has_the_gradient_of_its_weights_on_their_rows(name):
    """Where all prompts have one value, that of its weights; of two values the sum of both shares."""

    def gradient(alpha, columns):
        config = config_of(regularizer=SETTINGS[name], alpha=alpha)
        algorithm = algorithm_of(config, reward=lambda samples: [0.0] * len(samples), penalized=False)
        models = {"a": tiny(1), "b": tiny(2)}
        algorithm.parts.references = live(config, [models[one.name] for one in config.active_references])
        prompts = algorithm.parts.prompts
        algorithm.parts.prompts = [replace(one, extra={"domain": v}) for one, v in zip(prompts, columns)]
        return take_step(algorithm, 0)

    weights = {"by": "domain", "weights": {"x": [1.0, 0.0], "y": [0.0, 1.0]}}
    same, single = gradient(weights, ["y"] * PROMPTS), gradient([0.0, 1.0], [None] * PROMPTS)
    torch.testing.assert_close(same[1], single[1], rtol=1e-5, atol=1e-7)
    assert same[0]["loss"] == pytest.approx(single[0]["loss"], rel=1e-6)
    mixed, first = gradient(weights, ["x", "y"] * (PROMPTS // 2)), gradient([1.0, 0.0], [None] * PROMPTS)
    assert not torch.allclose(mixed[1], single[1]) and not torch.allclose(mixed[1], first[1])
    turned = gradient({"by": "domain", "weights": {"y": [1.0, 0.0], "x": [0.0, 1.0]}}, ["x", "y"] * (PROMPTS // 2))
    torch.testing.assert_close(mixed[1] + turned[1], first[1] + single[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "words"),
    [
        ({"by": "domain"}, "give alpha={by: COLUMN"),
        ({"by": "", "weights": {"a": 0.5}}, "name of a column"),
        ({"by": "domain", "weights": {}}, "no values"),
        ({"by": "domain", "weights": {"a": "nobody"}}, "allowed: one, two"),
        ({"by": "domain", "weights": {"a": [0.5, 0.6]}}, "must sum to 1"),
        ({"by": "domain", "weights": {"a": 1.5}}, "between 0 and 1"),
    ],
)
def test_a_map_that_says_nothing_usable_is_refused(alpha, words):
    with pytest.raises(RequestError, match=words):
        routes_of(alpha, ["one", "two"])


def test_from_the_command_line(place, multiref, offline, capsys):
    """Scores of each group, a report, unknown values refused with their list, before anything is written."""
    rows = read_lines(place / "pairs.jsonl")
    routed = [json.dumps(row | {"domain": ["math", "code"][i % 2]}) for i, row in enumerate(rows)]
    Path("routed.jsonl").write_text("\n".join(routed) + "\n")
    alpha = "alpha={by: domain, weights: {math: 0.3, code: second}}"
    kept = [text for text in offline if not text.startswith(("data.path", "evaluation.scorer"))]
    arguments = [*kept, "data.path=routed.jsonl", "steps=2", "run.name=r"]
    assert multiref("train", *arguments, alpha.replace("code", "prose")) == 2
    said = capsys.readouterr().err
    assert "no weights for code (20 rows)" in said and "has math, prose" in said and not Path("runs/r").exists()
    assert multiref("train", *arguments, "regularizer=multi_dpo", alpha) == 2
    assert "take one alpha for all rows" in capsys.readouterr().err
    assert multiref("train", *arguments, alpha, "--plain") == 0
    found = read_json(Path("runs/r/results.json"))
    groups = [found["metrics"][f"toy_gold/domain={value}"] for value in ("math", "code")]
    assert sum(one["n"] for one in groups) == found["metrics"]["toy_gold"]["n"]
    assert found["condition"].startswith("dpo-rkl-by_domain_")
    assert "domain{code:0,1;math:0.3,0.7}" in Path("runs/r/report/report.md").read_text()
