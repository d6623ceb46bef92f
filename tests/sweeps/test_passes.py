"""What points share is done once, by a pass that loads what it works with and nothing else."""

from multiref_cli.references.local import LocalReference
from multiref_cli.runs import judge
from multiref_cli.sweeps.launch import prepare_pass
from multiref_cli.sweeps.plan import make_plan
from multiref_cli.sweeps.request import parse_request


def refuse(*_, **__):
    raise AssertionError("nothing in a pass needs this")


def test_a_pass_that_draws_samples_loads_no_scorer_and_draws_once(place, offline, monkeypatch):
    """Its points compare with samples of both references; the judge that scores them is theirs to load."""
    monkeypatch.setattr(judge, "load_reward_model", refuse)
    plan = make_plan(parse_request([*offline, "alpha=0.3,0.7", "seeds=1", "baselines=false"]))
    assert all(one.experiment.compares_samples for one in plan.passes)
    drawn, generate = [], LocalReference.generate
    monkeypatch.setattr(
        LocalReference, "generate", lambda self, *a, **k: drawn.append(self.name) or generate(self, *a, **k)
    )
    for one in plan.passes:
        prepare_pass(one)
    assert sorted(drawn) == ["first", "second"]
    for one in plan.passes:
        prepare_pass(one)
    assert len(drawn) == 2
