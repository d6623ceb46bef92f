"""Preference training: names of one run, what is said of the loss, and how held-out pairs are judged."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from multiref_cli.algorithms.dpo import Dpo, notes, store_pairs
from multiref_cli.config.canonical import canonical, identity
from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Experiment, Level
from multiref_cli.data.preferences import Pair
from multiref_cli.files import read_json, read_lines

LENGTHS = [(5, 9), (3, 2), (12, 12), (1, 7)]
PAIRS = [Pair((1,), (2,) * chosen, (2,) * other, [], "", "", 0) for chosen, other in LENGTHS]


@cache
def _composed(regularizer: str) -> Experiment:
    return compose(["experiment=offline_toy", f"regularizer={regularizer}"])


def _experiment(regularizer: str, alpha: float) -> Experiment:
    return replace(_composed(regularizer), alpha=alpha)


def _loss_and_gradient(regularizer: str, alpha: float) -> tuple[torch.Tensor, torch.Tensor, dict]:
    experiment = _experiment(regularizer, alpha)
    generator = np.random.default_rng(0)
    lengths = [length for pair in LENGTHS for length in pair]
    tokens = [[-generator.exponential(2.0, n) for n in lengths] for _ in range(2)]
    active = [one for one, weight in zip(tokens, experiment.weights) if weight > 0]
    policy = torch.from_numpy(generator.normal(-20, 5, (2, 4))).requires_grad_()
    objective = Dpo(experiment, PAIRS, store_pairs(experiment, active, None), None)
    loss, metrics = objective.loss_of(policy, [0, 1, 2, 3], 4)
    loss.backward()
    return loss.detach(), policy.grad, metrics.means()


@pytest.mark.parametrize("alpha", [1, 0])
@pytest.mark.parametrize("regularizer", ["mrpo", "mrpo_ctro", "mrpo_ctro_adaptive", "mrpo_arwc", "multi_dpo"])
def test_with_one_reference_it_is_the_plain_run_bit_for_bit(regularizer, alpha):
    experiment, plain = _experiment(regularizer, alpha), _experiment("rkl", alpha)
    assert canonical(experiment) == plain and identity(experiment) == identity(plain)
    for own, other in zip(_loss_and_gradient(regularizer, alpha), _loss_and_gradient("rkl", alpha)):
        assert own == other if isinstance(own, dict) else torch.equal(own, other)


def test_with_two_references_none_is_another():
    losses = {
        name: float(_loss_and_gradient(name, 0.4)[0])
        for name in ("rkl", "mrpo", "mrpo_ctro", "mrpo_ctro_adaptive", "mrpo_arwc", "multi_dpo")
    }
    assert len(set(losses.values())) == 6
    for name in losses:
        assert canonical(_experiment(name, 0.4)) == _experiment(name, 0.4)


def test_a_sum_of_losses_over_tokens_stays_what_it_is():
    """Its loss reads whole responses; the same at level=token sums tokens, in another order."""
    single = _experiment("multi_dpo", 1)
    assert canonical(replace(single, regularizer=replace(single.penalty, level=Level.token))).penalty.multi_loss


def test_what_the_loss_sees_is_said_where_evaluation_measures_something_else():
    def said(regularizer: str, alpha: float = 0.4) -> str:
        return " ".join(notes(_experiment(regularizer, alpha)))

    assert "CTRO has clipped" in said("mrpo_ctro") and "ARWC" not in said("mrpo_ctro")
    assert "ARWC makes from each pair in place of alpha" in said("mrpo_arwc")
    assert "no mix of them" in said("multi_dpo") and "references as they are" in said("multi_dpo")
    assert "exact only while none is cut off" in said("chi2") and said("chi2") == said("chi2", 1)
    assert said("rkl") == said("mrpo") == said("mrpo_ctro", 1) == ""


def test_held_out_pairs_are_judged_as_plain_passes_judge_them(place, multiref, offline):
    from transformers import AutoModelForCausalLM

    from multiref_cli.runs.run import open_job
    from multiref_cli.tracking.progress import Silent

    arguments = [*offline, "alpha=0.3", "evaluation.prompts=0"]
    assert multiref("train", *arguments, "run.dir=out") == 0
    rows, metrics = read_lines(Path("out/pairs.jsonl")), read_json(Path("out/results.json"))["metrics"]
    job = open_job(compose(arguments), Silent())
    models = [AutoModelForCausalLM.from_pretrained(path) for path in ("out/policy", place / "one", place / "two")]

    def logp(model, prompt, response):
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1, : job.vocabulary].double().log_softmax(-1)
        return float(logits.gather(-1, torch.tensor(response)[:, None]).sum())

    expected = []
    for pair in job.data.held_out:
        chosen, rejected = ([logp(m, pair.prompt, one) for m in models] for one in (pair.chosen, pair.rejected))
        implicit = [p - 0.3 * a - 0.7 * b for p, a, b in (chosen, rejected)]
        per_token = chosen[0] / len(pair.chosen), rejected[0] / len(pair.rejected)
        judged = [implicit[0] > implicit[1], chosen[0] > rejected[0], per_token[0] > per_token[1]]
        names = ("preference_accuracy", "ranking_accuracy", "ranking_accuracy_per_token")
        expected.append({"row": pair.row, **dict(zip(names, map(float, judged)))})
    assert rows == expected
    for name in names:
        assert metrics[name]["mean"] == pytest.approx(np.mean([row[name] for row in rows]))
    logged = read_lines(Path("out/metrics.jsonl"))[-1]
    assert {"log_ratio/mixed", "log_ratio/first", "log_ratio/second"} <= set(logged)
    assert not any(name.startswith("kl/") for name in logged)


@pytest.mark.parametrize("precision", ["float32", "bf16_mixed", "bf16"])
def test_a_start_that_is_not_the_stored_one_is_refused_however_it_rounds(
    place, multiref, offline, capsys, monkeypatch, precision
):
    """Preferred responses off by 0.4 nats move the first loss by less than rounding in bfloat16 was once allowed to."""
    arguments = [*offline, "alpha=0.3", "evaluation=none", "steps=1", f"hardware.precision={precision}"]
    assert multiref("train", *arguments, "run.dir=out") == 0
    check = Dpo.check_start

    def shifted(self, model, start, progress):
        self.stored.references[start, 0] += 0.4
        check(self, model, start, progress)

    monkeypatch.setattr(Dpo, "check_start", shifted)
    assert multiref("train", *arguments, "run.dir=again") == 1
    assert "the loss before the first step is" in capsys.readouterr().err


def test_what_rounding_does_to_the_first_loss_is_by_hand():
    """Every log-probability 0.1 nats off at the second look: beta is 1, the margins are off by 0.2 either way."""
    experiment = replace(_experiment("rkl", 1), beta=1.0)
    tokens = [[-np.ones(n) for pair in LENGTHS for n in pair]]
    objective = Dpo(experiment, PAIRS, store_pairs(experiment, tokens, None), None)
    logps, rows = objective.stored.references[0], [0, 1, 2, 3]
    objective._computed = lambda model, parts, share: logps + 0.1
    assert objective._rounding(None, logps, logps, rows) == pytest.approx(np.log1p(np.exp(0.2)) - np.log(2))
    objective._computed = lambda model, parts, share: logps
    assert objective._rounding(None, logps, logps, rows) == 0
