"""Rewards that check a response against the gold answer of its prompt, or against a form it should have."""

import re
import threading
from collections.abc import Sequence
from functools import lru_cache

from multiref_cli.data.answers import final_answer, parse_math, states_number
from multiref_cli.data.numbers import parse_number
from multiref_cli.rewards.sample import Sample, in_process, needs

_BLOCK = (
    r"<reasoning>{newline}(?:(?!</reasoning>).)*{newline}</reasoning>{gap}"
    r"<answer>{newline}(?:(?!</answer>).)*{newline}</answer>"
)
_STRICT = re.compile(_BLOCK.format(newline=r"\n", gap=r"\n") + r"\n?", re.DOTALL)
_SOFT = re.compile(_BLOCK.format(newline="", gap=r"\s*"), re.DOTALL)
# math-verify's limit for one comparison: one that takes longer costs its own sample alone.
COMPARISON_SECONDS = 2
_TOWER = re.compile(r"\^\s*[{(]?\s*[\d.]+\s*\^|\^\s*[{(]?\s*\d{5,}|\*\*\s*\(?\s*[\d.]+\s*\*\*|\d{5,}\s*!|!\s*!")
# Each tag with the line breaks that belong to it.
_TAGS = ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>")


def no_answer(sample: Sample) -> str | None:
    """A prompt without a gold answer."""
    return "missing answer" if sample.answer is None or not sample.answer.strip() else None


def no_number(sample: Sample) -> str | None:
    """A prompt without a gold answer that is a number."""
    return no_answer(sample) or (None if states_number(str(sample.answer)) else "the gold answer is no number")


def no_mathematics(sample: Sample) -> str | None:
    """A prompt without a gold answer that math-verify can read."""
    return None if no_number(sample) is None else no_answer(sample) or _unread(str(sample.answer))


def _unread(text: str) -> str | None:
    return "the gold answer does not parse" if _hangs(text) or not parse_math(text) else None


@needs(no_number)
@in_process
def final_number(
    samples: Sequence[Sample],
    forms: Sequence[str] = ("hash", "boxed", "xml"),
    correct: float = 1.0,
    wrong: float = 0.0,
    unstated: float = 0.0,
) -> list[float]:
    """Compare the number that a response states as its final answer with the gold answer, exactly.

    `1,234.50`, `$1234.5` and `2469/2` are one number; see `multiref_cli.data.numbers.parse_number`.

    Args:
        samples: (B,) responses whose prompts have a gold answer.
        forms: where an answer may be stated: `hash` (`#### 72`), `boxed`, `xml` (`<answer>72</answer>`), `phrase` ("the
            answer is 72"), `last_number`; the first form in which a number is stated counts.
        correct: reward of the right number.
        wrong: reward of another number.
        unstated: reward of a response that states no number.

    Returns:
        (B,) rewards.

    Raises:
        ValueError: a prompt has no gold answer, or one that is no number.
    """
    scores = []
    for sample in samples:
        gold = parse_number(_gold(sample))
        if gold is None:
            raise ValueError(f"the gold answer is no number: {sample.answer!r}")
        stated = final_answer(sample.completion, forms, states_number)
        number = parse_number(stated) if stated is not None else None
        scores.append(unstated if number is None else correct if number == gold else wrong)
    return scores


@needs(no_mathematics)
def math_equal(
    samples: Sequence[Sample], forms: Sequence[str] = ("boxed", "hash", "xml"), anywhere: bool = True
) -> list[float]:
    """Compare the answer of a response with the gold answer as mathematics (package math-verify).

    Args:
        samples: (B,) responses whose prompts have a gold answer, an expression or LaTeX.
        forms: where an answer may be stated, as in `final_number`.
        anywhere: let math-verify look for an answer in a response that states none in these forms.

    Returns:
        (B,) 1.0 where they are equal, else 0.0.

    Raises:
        ValueError: a prompt has no gold answer, or one that does not parse.
    """
    # math-verify's own limit is a SIGALRM; elsewhere than in a main thread the caller's limit alone holds.
    seconds = COMPARISON_SECONDS if threading.current_thread() is threading.main_thread() else None
    _warm_up()
    scores = []
    for sample in samples:
        text = _gold(sample)
        gold = parse_math(text)
        if not gold:
            raise ValueError(f"the gold answer does not parse: {sample.answer!r}")
        stated = final_answer(sample.completion, forms, lambda piece: _states_math(piece, seconds))
        scores.append(float(_equal(text, gold, stated, sample.completion if anywhere else "", seconds)))
    return scores


@lru_cache(maxsize=1)
def _warm_up() -> None:
    """The first comparison loads sympy and its grammar, which a limit of seconds is not meant for."""
    from math_verify import verify

    verify(parse_math("x^2 + 2x + 1"), parse_math(r"(x + \frac{2}{2})^2"), timeout_seconds=None)


def _states_math(text: str, seconds: int | None) -> bool:
    return states_number(text) or (not _hangs(text) and bool(parse_math(text, seconds=seconds)))


def _equal(text: str, gold: list, stated: str | None, response: str, seconds: int | None) -> bool:
    from math_verify import verify

    if stated is None:
        found = parse_math(response, True, seconds) if response and not _hangs(response) else []
    else:
        # Of plain numbers our own rule is right: math-verify reads `1, 234` as a pair and 50% as 1/2.
        numbers = parse_number(text), parse_number(stated)
        if None not in numbers:
            return numbers[0] == numbers[1]
        found = parse_math(stated, seconds=seconds)
    return bool(found) and verify(gold, found, timeout_seconds=seconds)


def _hangs(text: str) -> bool:
    """Whether a text holds a tower of powers or a huge exponent, over which sympy never comes back."""
    return bool(_TOWER.search(text))


@needs(no_answer)
@in_process
def exact_text(samples: Sequence[Sample], forms: Sequence[str] = ("xml", "hash", "boxed")) -> list[float]:
    """1 where the stated answer, or else the whole response, is the gold answer but for case and spaces, else 0.

    Args:
        samples: (B,) responses whose prompts have a gold answer.
        forms: where an answer may be stated, as in `final_number`.

    Returns:
        (B,) 0.0 or 1.0.

    Raises:
        ValueError: a prompt has no gold answer.
    """

    def plain(text: str) -> str:
        return " ".join(text.casefold().split())

    return [float(plain(final_answer(s.completion, forms) or s.completion) == plain(_gold(s))) for s in samples]


@needs(no_number)
@in_process
def xml_correct(samples: Sequence[Sample], correct: float = 2.0) -> list[float]:
    """First part of the five-part GSM8K reward: the number in `<answer></answer>` is the gold answer.

    Deviation from the usual recipe, which compares strings: numbers are compared, so `1,000` is 1000.

    Args:
        samples: (B,) responses whose prompts have a gold answer.
        correct: reward of the right number.

    Returns:
        (B,) `correct` or 0.
    """
    return final_number(samples, forms=("xml",), correct=correct)


@in_process
def xml_integer(samples: Sequence[Sample], integer: float = 0.5) -> list[float]:
    """Second part: what stands in `<answer></answer>` is a bare integer.

    Args:
        samples: (B,) responses.
        integer: reward of an integer.

    Returns:
        (B,) `integer` or 0.
    """
    stated = [final_answer(sample.completion, ("xml",)) for sample in samples]
    return [integer * bool(text and re.fullmatch(r"-?\d+", text)) for text in stated]


@in_process
def xml_strict_format(samples: Sequence[Sample], reward: float = 0.5) -> list[float]:
    """Third part: the response is a reasoning block and an answer block and nothing else, each tag on its own line.

    Deviation from the usual recipe, whose pattern stops at a line break: a block may have several lines.

    Args:
        samples: (B,) responses.
        reward: of the form.

    Returns:
        (B,) `reward` or 0.
    """
    return [reward * bool(_STRICT.fullmatch(sample.completion)) for sample in samples]


@in_process
def xml_soft_format(samples: Sequence[Sample], reward: float = 0.5) -> list[float]:
    """Fourth part: the response begins with a reasoning block that an answer block follows, whatever the line breaks.

    Args:
        samples: (B,) responses.
        reward: of the form.

    Returns:
        (B,) `reward` or 0.
    """
    return [reward * bool(_SOFT.match(sample.completion.lstrip())) for sample in samples]


@in_process
def xml_count(samples: Sequence[Sample], tag: float = 0.125, trailing: float = 0.001) -> list[float]:
    """Fifth part: partial credit for each of the four tags that appears exactly once on its own line.

    Args:
        samples: (B,) responses.
        tag: reward of each tag; four of them make 0.5.
        trailing: taken off for every character behind `</answer>`.

    Returns:
        (B,) rewards, below 0 for a response that runs on for long.
    """
    scores = []
    for sample in samples:
        text = "\n" + sample.completion.strip()
        found = sum(tag for mark in _TAGS if text.count(mark) == 1)
        behind = len(text.rpartition("</answer>")[2].strip()) if "</answer>" in text else 0
        scores.append(found - trailing * behind)
    return scores


def _gold(sample: Sample) -> str:
    if sample.answer is None:
        raise ValueError("the prompt has no gold answer")
    return sample.answer
