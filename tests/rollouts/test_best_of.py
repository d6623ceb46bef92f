"""Best of N: which candidate is kept, and how far from its source that is, by enumeration."""

import itertools
import math

import pytest

from multiref_cli.rollouts.best_of import BestOf, excess
from multiref_cli.rollouts.engine import Completion, Sampling


class Counting:
    """Candidate g of a prompt is the id prompt + g."""

    exact_logps = True

    def generate(self, prompts, group_size, sampling, seeds):
        return [[Completion([ids[0] + g], [-1.0 - g], True) for g in range(group_size)] for ids in prompts]


def drawn(count, judge, group_size=1):
    found = BestOf(Counting(), count, judge).generate([[10], [20]], group_size, Sampling(), [0, 1])
    return [[one.ids[0] for one in group] for group in found]


def by(value):
    return lambda prompts, groups: [value(one.ids[0]) for group in groups for one in group]


def test_the_highest_of_each_block_is_kept():
    assert drawn(4, by(lambda i: -abs(i - 12))) == [[12], [20]]
    assert drawn(3, by(lambda i: i % 5), group_size=2) == [[12, 14], [22, 24]]


def test_the_first_of_equal_ones_is_kept_and_one_candidate_is_no_choice():
    assert drawn(4, by(lambda i: 0.0), group_size=2) == [[10, 14], [20, 24]]
    assert drawn(1, by(lambda i: -i), group_size=3) == [[10, 11, 12], [20, 21, 22]]


def test_a_group_of_one_prompt_never_meets_another_s_scores():
    seen = []

    def judge(prompts, groups):
        seen.append(([tuple(p) for p in prompts], [len(group) for group in groups]))
        return [0.0] * 3 + [1.0, 5.0, 2.0]

    assert drawn(3, judge) == [[10], [21]]
    assert seen == [([(10,), (20,)], [3, 3])]


@pytest.mark.parametrize(("probabilities", "scores"), [((0.5, 0.3, 0.2), (0, 1, 2)), ((0.25,) * 4, (1, 1, 0, 2))])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_its_divergence_is_at_most_the_excess(probabilities, scores, count):
    """Every outcome of N draws enumerated: KL(best of N || source) against log N - (N - 1) / N."""
    best = [0.0] * len(probabilities)
    for draw in itertools.product(range(len(probabilities)), repeat=count):
        chosen = max(range(count), key=lambda j: (scores[draw[j]], -j))
        best[draw[chosen]] += math.prod(probabilities[i] for i in draw)
    assert sum(best) == pytest.approx(1)
    divergence = sum(q * math.log(q / p) for q, p in zip(best, probabilities) if q > 0)
    assert divergence <= excess(count) + 1e-12
    assert excess(1) == 0 and excess(4) == pytest.approx(math.log(4) - 0.75)
