"""Answers as people and models write them: what is right must be right, what is wrong must be wrong."""

import json

import pytest

from multiref_cli.rewards.sample import Sample
from multiref_cli.rewards.verifiers import final_number, math_equal

FORMS = ("hash", "boxed", "xml", "phrase")


def reward(response, gold):
    return final_number([Sample([], response, gold)], FORMS)[0]


# text -> the number that it stands for, in any unit
EQUAL = {
    "72": ["72", "72.", "72.0", "72.00", " 72 ", "**72**", "`72`", "$72$", "$72", r"\$72", "72 dollars", "72%", r"72\%",
           "+72", "072", "144/2", "144 / 2", r"\frac{144}{2}", r"\dfrac{144}{2}", r"\cfrac{144}{2}", "6*12", "6 * 12",
           r"6 \times 12", r"6 \cdot 12", "6 x 12", "6 × 12", "72 = 6*12", "6*12 = 72", "x = 72", "x = 6*12 = 72",
           "72 (6 boxes of 12)", "72 (because 6*12)", "72 (6*12)", "72!", "(72)", "|72|", "|-72|", "6 dozen",
           "6 dozens",
           "72 clips", "72 hope this helps", r"72\text{ clips}", r"\text{72}", "<b>72</b>", "about 72", "70 + 2",
           "100 - 28", "100 minus 28", "72 - as shown", "72 — as shown", r"\left(72\right)", "72 m2", "72 cm^2", "72m",
           r"72 \text{ cm}^2", "72 cm²", "72kg", "72 kg", "72g", r"72^\circ", "72°", "72 times", "7.2e1", "7.2E+1",
           r"7.2 \times 10^1", "2^3 * 9", r"\sqrt{5184}", "1 hour = 72 minutes", "72 a day", "USD 72", "€72", "72:"],
    "0.75": ["3/4", "3 / 4", r"\frac34", r"\frac{3}{4}", r"\frac3{4}", r"\frac{3}4", "¾", ".75", "0.750", r"\tfrac34"],
    "0.5": [r"\frac12", "½", "1/2", "2^{-1}", ".5"],
    "1.5": ["1 1/2", "1½", r"1\frac{1}{2}", r"1\frac12", "3/2", "1.5 cups", "1 1/2 cups"],
    "-5": ["minus 5", "negative 5", "-5", "−5", "– 5", "-$5", "$-5", "-10/2", r"-\frac{10}{2}", "5 - 10"],
    "1234": ["1,234", "1, 234", r"1{,}234", r"1\,234", "1 234", "1,234.00", "$1,234"],
    "10000": ["10 000", "10,000", "10k", "10K", "10 thousand", "10^4", "10^{4}", "1e4", "10⁴", "100 hundred"],
    "5000000": ["5 million", "$5 million", r"5\text{ million}", "5 million people", "5,000,000", "5 × 10^6"],
    "1024": ["2^{10}", "2^10", "2**10", r"2^{10} = 1024", "2¹⁰"],
    "2": [r"\sqrt{4}", "√4", r"\sqrt[3]{8}", r"\frac{2^3}{4}", "3 - 1"],
}  # fmt: skip
RIGHT = [(text, gold) for gold, texts in EQUAL.items() for text in texts]

# (text, a gold answer that a reader of single numbers would find in it)
WRONG = [
    ("2^{10}", "20"), ("2^10", "20"), ("2^{10}", "2"), ("10^2", "10"), ("2^3", "2"), (r"\sqrt{16}", "16"),
    (r"\sqrt{2}", "2"), (r"3\pi", "3"), ("3π", "3"), ("3 pi", "3"), ("3x", "3"), ("3 x", "3"), ("3x + 1", "3"),
    ("3x^2", "3"), ("3i", "3"), ("5 + x", "5"), ("x - 5", "-5"), ("x - 5", "5"), ("x + 5", "5"), ("5 million", "5"),
    (r"5\text{ million}", "5"), ("5k", "5"), ("5M", "5"), ("5B", "5"), ("2 dozen", "2"), ("minus 5", "5"),
    ("negative 5", "5"), ("x = 5 or x = 7", "7"), ("x = 5 or x = 7", "5"), ("x = 5, x = 7", "7"), ("5 or 6", "5"),
    ("5 or x", "5"), ("5, 6", "5"), ("5, 6", "56"), ("5 and 6", "6"), ("4, 5, 6", "6"), ("COVID-19", "-19"),
    ("COVID-19", "19"), ("x1", "1"), ("H2O", "2"), ("not 72", "72"), ("more than 72", "72"), ("less than 72", "72"),
    ("at least 72", "72"), ("> 72", "72"), (r"\pm 5", "5"), ("± 5", "5"), ("5-10", "-5"), ("5–10", "5"),
    ("12/25/2024", "12"), ("3:30", "3"), ("5 feet 3 inches", "5"), ("5 and a half", "5"), ("5 squared", "5"),
    ("1/0", "1"), ("5 = 6", "6"), ("5 = 6", "5"), ("(1, 2)", "1"), ("[1, 2]", "2"), ("9^{9^{9}}", "9"), ("1234", "123"),
    ("1,23", "123"), ("1.2.3", "1.2"), ("-72", "72"), ("72", "-72"), ("72.01", "72"), ("7.2", "72"), ("", "0"),
    ("none", "0"), ("between 5 and 6", "5"), ("Step 1: multiply", "1"), ("5!!5", "5"), ("2(3", "2"), ("5 + ", "6"),
    ("seventy", "7"), ("1e9999999", "1"), ("5 factorial", "5"), ("100%7", "100"), ("3 + 4i", "3"),
]  # fmt: skip

PLACES = ["#### {}", r"\boxed{{{}}}", "<answer>{}</answer>"]


def test_the_table_is_a_table():
    assert len(RIGHT) + len(WRONG) >= 200


@pytest.mark.parametrize("text, gold", RIGHT)
def test_right_is_right(text, gold):
    assert [reward(place.format(text), gold) for place in PLACES] == [1.0] * 3


@pytest.mark.parametrize("text, gold", WRONG)
def test_wrong_is_wrong(text, gold):
    assert [reward(place.format(text), gold) for place in PLACES] == [0.0] * 3


PHRASINGS = [
    "#### {}",
    "####{}",
    "####\n{}",
    "#### ${}.00",
    "#### {} (because 2*3)",
    "#### {} = 2*3",
    "#### **{}**",
    "#### Final answer\n\\boxed{{{}}}",
    "#### Step 1: multiply\n6*12\n#### Final answer\n\\boxed{{{}}}",
    "#### 1. Understand\nwe multiply\n#### Final answer\n{}",
    "\\boxed{{{}}}",
    "\\boxed {{{}}}",
    "$\\boxed{{{}}}$ so \\boxed{{}}",
    "\\boxed{{{}\\text{{ apples}}}}",
    "The answer is {}.",
    "The answer is: **{}**",
    "The final answer is ${}. Hope this helps.",
    "Final answer: {}",
    "Answer: {}",
    "**Answer:** {}",
    "**Final Answer**: {} apples",
    "<answer>{}</answer>",
    "<Answer>\n{}\n</Answer>",
    "The answer is $\\boxed{{{}}}$.",
]


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_every_answer_of_gsm8k_in_every_phrasing(phrasing, shared):
    lines = (shared / "gsm8k/test.jsonl").read_bytes().split(b"\n")
    golds = [json.loads(line)["answer"].rpartition("#### ")[2] for line in lines if line]
    samples = [Sample([], "We think. 3 + 4 = 7.\n" + phrasing.format(gold), gold) for gold in golds]
    others = [Sample([], sample.completion, str(int(sample.answer.replace(",", "")) + 1)) for sample in samples]
    assert len(golds) == 1319
    assert final_number(samples, FORMS) == [1.0] * 1319
    assert final_number(others, FORMS) == [0.0] * 1319


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


@pytest.mark.parametrize(
    "gold, stated, right",
    [
        (r"\frac{1}{2}", "0.5", 1.0), (r"\frac12", r"\frac{2}{4}", 1.0), ("x^2+2x+1", "(x+1)^2", 1.0),
        ("(1, 2)", "(1,2)", 1.0), ("(1, 2)", "(2,1)", 0.0), ("1,234", "1234", 1.0), ("1234", "1, 234", 1.0),
        ("1234", "1", 0.0), (r"3\pi", r"3 \pi", 1.0), (r"3\pi", "3", 0.0), ("3", r"3\pi", 0.0), ("2^{10}", "1024", 1.0),
        (r"\sqrt{2}", r"\frac{2}{\sqrt{2}}", 1.0), (r"\sqrt{2}", "1.41", 0.0), ("50", r"50\%", 1.0), ("x", "y", 0.0),
        ("20", "2^{10}", 0.0), ("5", r"5\text{ million}", 0.0), (r"\{1,2\}", r"\{2,1\}", 1.0), ("7", "x=5 or x=7", 0.0),
    ],
)  # fmt: skip
def test_mathematics(gold, stated, right):
    assert math_equal([Sample([], rf"so \boxed{{{stated}}}", gold)]) == [right]


def test_a_tower_of_powers_costs_its_own_sample_alone():
    samples = [
        Sample([], rf"\boxed{{{text}}}", "3x")
        for text in ("9^{9^{9}}", "3x", "9^9^9^9", "2^{99999999}", "(10000000!)!")
    ]
    assert math_equal(samples) == [0.0, 1.0, 0.0, 0.0, 0.0]
