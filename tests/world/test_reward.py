"""The gold reward of the embedded world, by hand."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from multiref_cli.rewards.combine import build_reward
from multiref_cli.rewards.sample import Sample
from multiref_cli.world.problems import problems, solve
from multiref_cli.world.reward import toy_correct, toy_gold

TEXT = "max has 8 books . then max burns 6 . then max borrows 3 . how many ?"
CONF = Path(__file__).parents[2] / "conf/reward/toy_gold.yaml"


def sample(completion):
    return Sample([{"role": "system", "content": "s"}, {"role": "user", "content": TEXT}], completion)


@pytest.mark.parametrize(
    "completion, gold",
    [
        ("8 - 6 = 2 ; 2 + 3 = 5 #### 5 glad to help", 1.5 + 2 + 2 + 2),
        ("8 - 6 = 2 ; 2 + 3 = 5 #### 5", 1.5 + 2 + 2),
        ("8 - 6 = 2 ; 2 + 3 = 6 #### 6", 2 + 2),
        ("8 - 6 = 2 ; 2 + 3 = 5", 2),
        ("8 - 6 = 2 #### 5", 1.5 + 2 + 1),
        # A step twice, and 19 tokens instead of 18.
        ("8 - 6 = 2 ; 8 - 6 = 2 ; 2 + 3 = 5 #### 5", 1.5 + 2 + 2 - 1.5 - 0.1),
        ("", 0),
    ],
)
def test_gold_by_hand(completion, gold):
    assert toy_gold([sample(completion)]) == [pytest.approx(gold)]


def test_correctness():
    assert toy_correct([sample("#### 5"), sample("#### 6"), sample("5")]) == [1.0, 0.0, 0.0]


def test_every_clean_solution_is_correct():
    found = problems(0, 100)
    assert toy_correct([Sample([{"role": "user", "content": p.text}], solve(p)) for p in found]) == [1.0] * 100


def test_config_states_the_defaults():
    reward = OmegaConf.merge(OmegaConf.load(CONF.with_name("_base.yaml")), OmegaConf.load(CONF))
    options = OmegaConf.to_container(reward.terms.gold.function)
    options.pop("_target_")
    defaults = {n: p.default for n, p in inspect.signature(toy_gold).parameters.items() if n != "samples"}
    assert options == defaults
    assert build_reward(reward)([sample("#### 5")]).total == toy_gold([sample("#### 5")])
