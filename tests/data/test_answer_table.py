"""Answers as people and models write them: what is right must be right, what is wrong must be wrong."""

import pytest

from multiref_cli.rewards.sample import Sample
from multiref_cli.rewards.verifiers import final_number, math_equal

from .answer_cases import GOLDS, MATHEMATICS, PHRASINGS, RIGHT, WRONG

FORMS = ("hash", "boxed", "xml", "phrase")


def reward(response, gold):
    return final_number([Sample([], response, gold)], FORMS)[0]


PLACES = ["#### {}", r"\boxed{{{}}}", "<answer>{}</answer>"]


def test_the_table_is_a_table():
    assert len(RIGHT) + len(WRONG) >= 200


@pytest.mark.parametrize("text, gold", RIGHT)
def test_right_is_right(text, gold):
    assert [reward(place.format(text), gold) for place in PLACES] == [1.0] * 3


@pytest.mark.parametrize("text, gold", WRONG)
def test_wrong_is_wrong(text, gold):
    assert [reward(place.format(text), gold) for place in PLACES] == [0.0] * 3


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_answers_of_gsm8k_in_every_phrasing(phrasing):
    """All 1,319 of them: `tests/bench/trial_inputs.py --gsm8k test.jsonl`."""
    samples = [Sample([], "We think. 3 + 4 = 7.\n" + phrasing.format(gold), gold) for gold in GOLDS]
    others = [Sample([], sample.completion, str(int(sample.answer.replace(",", "")) + 1)) for sample in samples]
    assert final_number(samples, FORMS) == [1.0] * len(GOLDS)
    assert final_number(others, FORMS) == [0.0] * len(GOLDS)


@pytest.mark.parametrize(
    "response, gold, right",
    [
        ("The answer is not 72", "72", 0.0),
        ("<answer>71</answer> <answer></answer>", "71", 1.0),
        ("#### Conclusion\nIt follows.", "0", 0.0),
        ("#### Part 2\nno answer", "2", 0.0),
        (r"\boxed{72} or rather \boxed{73}", "72", 0.0),
        ("<answer>72", "72", 1.0),
        ("Answer is unknown. 72", "72", 0.0),
    ],
)
def test_places(response, gold, right):
    assert reward(response, gold) == right


@pytest.mark.parametrize("gold, stated, right", MATHEMATICS)
def test_mathematics(gold, stated, right):
    assert math_equal([Sample([], rf"so \boxed{{{stated}}}", gold)]) == [right]


def test_a_tower_of_powers_costs_its_own_sample_alone():
    samples = [
        Sample([], rf"\boxed{{{text}}}", "3x")
        for text in ("9^{9^{9}}", "3x", "9^9^9^9", "2^{99999999}", "(10000000!)!")
    ]
    assert math_equal(samples) == [0.0, 1.0, 0.0, 0.0, 0.0]
