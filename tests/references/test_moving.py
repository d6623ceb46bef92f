"""References that follow the policy: the arithmetic, what stands still bitwise, resumes across a move, refusals."""

import copy
import os
from types import SimpleNamespace

import pytest
import torch

from multiref_cli.config.schema import Model, ReferenceSpec, Update
from multiref_cli.errors import RequestError
from multiref_cli.models.load import load_causal_lm
from multiref_cli.references.moving import Moving


def member(weights, update, dtype=torch.float32, name="a"):
    """A reference with one row of weights."""
    model = torch.nn.Linear(len(weights), 1, bias=False)
    model.weight.data = torch.tensor([weights], dtype=dtype)
    return SimpleNamespace(name=name, model=model, spec=ReferenceSpec(path="x", name=name, update=update))


def policy(weights):
    return member(weights, None).model


def row(one):
    return one.model.weight.detach().float().tolist()[0]


def test_an_average_by_hand():
    one = member([1.0, 0.0], Update(ema=0.75, every=2))
    moving = Moving([one])
    for step in range(2):
        moving.follow(step, policy([5.0, 4.0]))
    assert row(one) == [1.0, 0.0]  # nothing is due before step 2
    moving.follow(2, policy([5.0, 4.0]))
    assert row(one) == [2.0, 1.0]
    moving.follow(3, policy([9.0, 9.0]))
    moving.follow(4, policy([2.0, -3.0]))
    assert row(one) == [2.0, 0.0]


def test_a_reset_is_the_policy_and_no_other_reference_moves():
    one, still = member([1.0, 0.0], Update(reset=3)), member([7.0, 8.0], None, name="b")
    moving = Moving([one, still])
    moving.follow(3, policy([0.1, 0.2]))
    assert torch.equal(one.model.weight, policy([0.1, 0.2]).weight) and row(still) == [7.0, 8.0]
    assert list(moving.state_dict()) == ["a"]


def test_an_average_of_bfloat16_is_kept_in_float32():
    """A thousandth of a difference of 1 is less than bfloat16 can add to 1: rounded every time it would never move."""
    one = member([1.0], Update(ema=0.999), dtype=torch.bfloat16)
    moving = Moving([one])
    for step in range(1, 400):
        moving.follow(step, policy([2.0]))
    assert row(one)[0] == pytest.approx(2 - 0.999**399, abs=0.01)
    state = copy.deepcopy(moving.state_dict())
    other = member([1.0], Update(ema=0.999), dtype=torch.bfloat16)
    again = Moving([other])
    again.load_state_dict(state)
    for which in (moving, again):
        which.follow(400, policy([2.0]))
    assert torch.equal(moving.state_dict()["a"]["weight"], again.state_dict()["a"]["weight"])


def test_an_adapter_of_the_policy_counts_merged(place):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(load_causal_lm(Model(path=f"{place}/one"), trainable=True), config)
    one = SimpleNamespace(
        name="a", model=load_causal_lm(Model(path=f"{place}/two")), spec=ReferenceSpec(path="x", update=Update(reset=1))
    )
    Moving([one]).follow(1, adapted)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = adapted(ids).logits
    assert torch.allclose(one.model(ids).logits, expected, atol=1e-5)
    assert not torch.allclose(load_causal_lm(Model(path=f"{place}/one"))(ids).logits, expected, atol=1e-3)


def test_another_shape_is_refused():
    with pytest.raises(RequestError, match="reference a cannot follow the policy"):
        Moving([member([1.0, 2.0], Update(reset=1))]).follow(1, policy([1.0, 2.0, 3.0]))


@pytest.fixture
def moving(online, world):
    """Overrides of a small online run whose second reference moves as it is told."""
    kept = [o for o in online if not o.startswith(("references", "first", "second", "steps"))] + ["steps=6"]

    def run(update, *more):
        spec = f", update: {update}" if update else ""
        both = f"references=[{{name: first, path: {world}/one}}, {{name: second, path: {world}/two{spec}}}]"
        return [*kept, both, "alpha=0.5", "evaluation=none", "optimizer.learning_rate=0.05", *more]

    return run


@pytest.mark.parametrize("more", [[], ["regularizer.estimator=k2"], ["policy.lora.rank=2"]])
def test_a_run_after_a_reset_is_at_no_distance(place, tmp_path, multiref, figures, moving, more):
    if any("lora" in one for one in more):
        pytest.importorskip("peft")
    assert multiref("train", *moving("{reset: 3}", *more), "run.dir=run", "--plain") == 0
    far = [one["kl/second"] for one in figures(tmp_path / "run")]
    assert min(far[:3]) > 0.5 and abs(far[3]) < 1e-4 and abs(far[5]) > 1e-3


def test_an_average_with_all_on_itself_is_bitwise_still(place, tmp_path, multiref, figures, moving):
    assert multiref("train", *moving("{ema: 1, every: 1}"), "run.dir=one", "--plain") == 0
    assert multiref("train", *moving(None), "run.dir=still", "--plain") == 0
    assert multiref("train", *moving("{ema: 0.5, every: 1}"), "run.dir=half", "--plain") == 0
    assert figures(tmp_path / "one") == figures(tmp_path / "still") != figures(tmp_path / "half")


@pytest.mark.slow
@pytest.mark.parametrize("update", ["{reset: 4}", "{ema: 0.6, every: 2}"])
def test_a_resume_across_a_move_is_bitwise(place, tmp_path, multiref, figures, moving, killed_train, update):
    more = ["steps=12", "algorithm.inner_iterations=2", "hardware.checkpoint_every=1"]
    given = [o for o in moving(update, *more) if o != "steps=6"]
    assert multiref("train", *given, "run.dir=whole", "--plain") == 0
    killed_train([*given, f"run.dir={tmp_path}/killed"], tmp_path / "killed", 6)
    assert multiref("train", "--resume", "killed", "--plain") == 0
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")


@pytest.mark.slow
def test_every_process_moves_its_own_copy(place, tmp_path, multiref, figures, moving):
    more = ["hardware.processes=2", "hardware.threads=1"]
    for name, given in (("two", more), ("one", [])):
        assert multiref("train", *moving("{reset: 3}", *given), f"run.dir={name}", "--plain") == 0
    two, one = (
        [[row[k] for k in ("kl/first", "kl/second", "loss")] for row in figures(tmp_path / n)] for n in ("two", "one")
    )
    for a, b in zip(two, one):
        assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.parametrize(
    ("update", "more", "said"),
    [
        ("{reset: 3, ema: 0.5}", [], "{reset: STEPS}, or {ema: SHARE, every: STEPS}"),
        ("{reset: 3, every: 2}", [], "{reset: STEPS}, or {ema: SHARE, every: STEPS}"),
        ("{ema: 1.5}", [], "must be from 0 to 1"),
        ("{reset: 0}", [], "it must be from 1 to"),
        ("{reset: 3}", ["algorithm.inner_iterations=2"], "give a multiple of 2"),
        ("{reset: 3}", ["regularizer=fkl_reference_states"], "reads what is stored"),
        ("{rest: 3}", [], "no key"),
    ],
)
def test_what_is_refused(place, multiref, moving, update, more, said, capsys):
    assert multiref("train", *moving(update, *more), "run.dir=run") == 2
    assert said in capsys.readouterr().err and not os.path.exists("run")


def test_the_store_is_of_references_that_stand_still(place, multiref, offline, capsys):
    kept = [o for o in offline if not o.startswith(("references", "first", "second"))]
    both = f"references=[{{name: a, path: {place}/one}}, {{name: b, path: {place}/two, update: {{reset: 5}}}}]"
    assert multiref("train", *kept, both, "alpha=0.5", "run.dir=run") == 2
    said = capsys.readouterr().err
    assert "reference b: update" in said and "algorithm=dpo reads what is stored" in said and not os.path.exists("run")


def test_a_reference_of_another_shape_cannot_follow(place, multiref, online, tmp_path, capsys):
    kept = [o for o in online if not o.startswith(("references", "first", "second"))]
    both = f"references=[{{name: a, path: {place}/one}}, {{name: b, path: toy:math, update: {{reset: 5}}}}]"
    assert multiref("train", *kept, both, "alpha=0.5", "run.dir=run") == 2
    assert "reference b cannot follow the policy" in capsys.readouterr().err and not os.path.exists("run")
