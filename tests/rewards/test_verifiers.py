"""Verifier rewards: numbers, mathematics, text, and the five-part reward by hand arithmetic."""

import threading

import pytest

from multiref_cli.rewards.sample import Sample
from multiref_cli.rewards.verifiers import (
    exact_text,
    final_number,
    math_equal,
    xml_correct,
    xml_count,
    xml_integer,
    xml_soft_format,
    xml_strict_format,
)

PROMPT = [{"role": "user", "content": "How many?"}]


def sample(completion, answer="1,234.50"):
    return Sample(PROMPT, completion, answer)


@pytest.mark.parametrize(
    "completion, score",
    [
        ("#### 1234.5", 1.0),
        ("#### $1,234.50 a month", 1.0),
        (r"\boxed{\frac{2469}{2}}", 1.0),
        ("<answer>1234.50</answer>", 1.0),
        ("#### 1234", -1.0),
        ("#### -1234.5", -1.0),
        ("it is 1234.5", -0.5),
        ("#### 1234.5 or 12", -0.5),
        ("", -0.5),
    ],
)
def test_final_number(completion, score):
    assert final_number([sample(completion)], wrong=-1.0, unstated=-0.5) == [score]


def test_forms_can_be_chosen():
    samples = [sample("the answer is 5.\n#### 6", "5")]
    assert final_number(samples) == [0.0]
    assert final_number(samples, forms=["phrase"]) == [1.0]
    assert final_number([sample("5 apples and 6 pears, so 11", "11")], forms=["last_number"]) == [1.0]


@pytest.mark.parametrize("answer, words", [(None, "no gold answer"), ("none", "no number: 'none'")])
def test_a_prompt_without_a_number_is_an_error(answer, words):
    with pytest.raises(ValueError, match=words):
        final_number([sample("#### 5", answer)])


@pytest.mark.parametrize(
    "gold, completion, score",
    [
        (r"\frac{1}{2}", r"so \boxed{0.5}", 1.0),
        (r"\frac{1}{2}", r"so \boxed{\frac{2}{4}}", 1.0),
        ("x^2+2x+1", r"\boxed{(x+1)^2}", 1.0),
        ("(1, 2)", r"\boxed{(1,2)}", 1.0),
        ("2", r"\boxed{3}", 0.0),
        ("2", "no answer", 0.0),
        ("2", "Therefore the final answer is $2$.", 1.0),
    ],
)
def test_math_equal(gold, completion, score):
    assert math_equal([sample(completion, gold)]) == [score]


def test_math_equal_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.extend(math_equal([sample(r"\boxed{0.5}", r"\frac{1}{2}")])))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_math_equal_needs_an_answer_that_parses():
    with pytest.raises(ValueError, match="does not parse"):
        math_equal([sample("2", r"\frac{1}{}")])


def test_exact_text():
    assert exact_text([sample("<answer> The  Hague</answer>", "the hague"), sample("paris", "the hague")]) == [1.0, 0.0]


GOOD = "<reasoning>\n1 + 1\n= 2\n</reasoning>\n<answer>\n2\n</answer>"


@pytest.mark.parametrize(
    "completion, parts",
    [
        # correct, integer, strict, soft, count
        (GOOD, (2.0, 0.5, 0.5, 0.5, 0.5)),
        (GOOD + "\n", (2.0, 0.5, 0.5, 0.5, 0.5)),
        (GOOD.replace("\n2\n", "\n3\n"), (0.0, 0.5, 0.5, 0.5, 0.5)),
        (GOOD.replace("\n2\n", "\n2.0\n"), (2.0, 0.0, 0.5, 0.5, 0.5)),
        ("<reasoning>1</reasoning> <answer>2</answer>", (2.0, 0.5, 0.0, 0.5, 0.0)),
        # Twenty characters behind the last tag: 0.5 - 20 * 0.001, and the strict form is gone.
        (GOOD + "\n" + "x" * 20, (2.0, 0.5, 0.0, 0.5, 0.48)),
        # The answer block twice: its two tags no longer count.
        (GOOD + "\n<answer>\n2\n</answer>", (2.0, 0.5, 0.0, 0.5, 0.25)),
        ("#### 2", (0.0, 0.0, 0.0, 0.0, 0.0)),
        ("", (0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_five_parts(completion, parts):
    functions = (xml_correct, xml_integer, xml_strict_format, xml_soft_format, xml_count)
    found = [function([sample(completion, "2")])[0] for function in functions]
    assert found == pytest.approx(list(parts))


def test_formats_take_linear_time_on_hostile_text():
    hostile = "<reasoning>\n" * 2000 + "</reasoning>\n" * 2000 + "<answer>" * 2000
    assert xml_strict_format([sample(hostile)]) == xml_soft_format([sample(hostile)]) == [0.0]
    assert final_number([sample("#" * 20000 + "1," * 20000, "1")]) == [0.0]
