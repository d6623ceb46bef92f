"""Which number a text stands for, and where a response states its answer."""

from fractions import Fraction

import pytest

from multiref_cli.data.answers import final_answer, parse_math
from multiref_cli.data.numbers import parse_number

NUMBERS = {
    "72": 72,
    " 72. ": 72,
    "1,234": 1234,
    "1,234,567.50": Fraction("1234567.5"),
    "$1,234.50": Fraction("1234.5"),
    r"\$18": 18,
    "-$5": -5,
    "$-5": -5,
    "−5": -5,
    "+5": 5,
    "€ 3.20 per day": Fraction("3.2"),
    "50%": 50,
    r"50\%": 50,
    "72 clips": 72,
    "72 hope this helps": 72,
    "3/4": Fraction(3, 4),
    "-3/4": Fraction(-3, 4),
    "1 1/2 cups": Fraction(3, 2),
    r"\frac{3}{4}": Fraction(3, 4),
    r"\dfrac{3}{4}": Fraction(3, 4),
    r"12\text{ dollars}": 12,
    r"1{,}200": 1200,
    "2.5e3": 2500,
    ".5": Fraction(1, 2),
    "x = 3 + 4 = 7": 7,
    "20 m2": 20,
    "20 cm^2": 20,
    "**42**": 42,
    "007": 7,
}


@pytest.mark.parametrize("text, value", NUMBERS.items())
def test_numbers(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "none", "5 or 6", "3:30", "1/0", "4, 5, 6", "#", "x1", "9" * 600])
def test_no_number_or_more_than_one(text):
    assert parse_number(text) is None


def test_numbers_are_exact():
    assert parse_number("0.1") == Fraction(1, 10)
    assert parse_number("100000000000000000001") != parse_number("100000000000000000000")


@pytest.mark.parametrize(
    "text, answer",
    [
        ("so 48/2 = 24\n#### 72", "72"),
        ("#### 5\nno:\n#### 6 apples\nbye", "6 apples"),
        (r"hence \boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
        (r"\boxed{1} then \boxed{\text{a}}", r"\text{a}"),
        ("<reasoning>\n1\n</reasoning>\n<answer>\n72\n</answer>\n", "72"),
        ("<answer>1</answer> <answer>2</answer>", "2"),
        ("<answer>72", "72"),
        (r"#### 1 and \boxed{2}", r"1 and \boxed{2}"),
        ("the answer is 72.", None),
        (r"\boxed{72", None),
        ("####", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "text, form, answer",
    [
        ("The final answer is: 72. Bye.", "phrase", "72"),
        ("Therefore the answer is $3.50.", "phrase", "$3.50"),
        ("I have 3 and 4, so 12 apples", "last_number", "12"),
        ("nothing", "last_number", None),
    ],
)
def test_looser_forms_only_when_asked(text, form, answer):
    assert final_answer(text, (form,)) == answer
    assert final_answer(text) is None


def test_unknown_form():
    with pytest.raises(ValueError, match="hash, boxed"):
        final_answer("1", ("hsah",))


def test_parse_math():
    assert parse_math(r"\frac{3}{4}") and parse_math("(1, 2)") and not parse_math("")
