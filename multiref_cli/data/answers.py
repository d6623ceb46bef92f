"""Final answers in text: where a response states its answer, and which number a piece of text stands for."""

import re
from collections.abc import Sequence
from fractions import Fraction

FORMS = ("hash", "boxed", "xml", "phrase", "last_number")

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_VALUE = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)\s+(?=\d+/\d))?(?P<number>{_NUMBER})(?:/(?P<below>\d+(?:\.\d+)?))?"
    r"(?:e(?P<power>[-+]?\d{1,3})(?![a-z]))?",
    re.IGNORECASE,
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")
_IN_WORD = re.compile(r"(?<!\d)[^\W\d]\w*\d\w*|(?<=\d)(?!e[-+]?\d)[^\W\d]+\d\w*", re.IGNORECASE)
_CURRENCY = re.compile(r"\\?[$€£¥₹]|\b(?:USD|EUR|GBP)\b")
_HASH = re.compile(r"####[ \t]*([^\n#]+)")
_XML = re.compile(r"<answer>(.*?)(?:</answer>|<answer>|$)", re.DOTALL)
_PHRASE = re.compile(r"(?:final answer|answer) (?:is|=)\s*:?\s*([^\n]+?)(?:\.\s|\.?$)", re.IGNORECASE | re.MULTILINE)


def parse_number(text: str) -> Fraction | None:
    """The one number that a text stands for, exactly.

    Thousands separators, signs, currency, units, percent signs, decimals, fractions (`3/4`, `1 1/2`, `\\frac{3}{4}`)
    and powers of ten are understood; of an equation the part behind the last `=` counts. Units and percent signs are
    left out, not converted: `50%` and `50 apples` are both 50.

    Args:
        text: such as `$1,234.50 per month`.

    Returns:
        The number; None where there is none or more than one, since an answer that offers several is no answer.
    """
    if len(text) > 500:
        return None
    text = text.replace("−", "-").replace("–", "-").replace("\\!", "").replace("{,}", ",").replace("\\,", "")
    text = _LATEX_TEXT.sub(r" \1 ", _LATEX_FRACTION.sub(r" \1/\2 ", text))
    text = _CURRENCY.sub("", text).rpartition("=")[2]
    # A digit inside a word (m2, x1) belongs to a unit or a name, not to the answer.
    text = _IN_WORD.sub(" ", re.sub(r"\^\{?\d\}?", "", text))
    found = list(_VALUE.finditer(text))
    return _value(found[0]) if len(found) == 1 else None


def _value(match: re.Match) -> Fraction | None:
    below = Fraction(match["below"] or 1)
    if below == 0:
        return None
    value = Fraction(match["number"].replace(",", "")) / below + Fraction(match["whole"] or 0)
    value *= Fraction(10) ** int(match["power"] or 0)
    return -value if match["sign"] == "-" else value


def parse_math(text: str, anywhere: bool = False) -> list:
    """Parse an expression or LaTeX with math-verify, without its timeout.

    math-verify's own timeout is a SIGALRM, which works in the main thread alone; a caller who cannot trust the text
    runs this in a process that can be killed (rewards/worker.py).

    Args:
        text: `\\frac{3}{4}`, `0.75`, `(1, 2)`; or, with `anywhere`, a whole response.
        anywhere: look for the answer in running text.

    Returns:
        What math-verify makes of it, several readings of one answer; empty if it cannot parse the text.
    """
    import logging

    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    whole = text if anywhere or "\\boxed" in text else f"${text.strip().strip('$')}$"
    found = parse(whole, parsing_timeout=None)
    # What it cannot parse it hands back as the text alone, which would make any gold answer a good one.
    return found if any(not isinstance(reading, str) for reading in found) else []


def final_answer(text: str, forms: Sequence[str] = ("hash", "boxed", "xml")) -> str | None:
    """What a response states as its final answer.

    Args:
        text: the response.
        forms: where to look, the first form that is found counts: `hash` behind the last `####`, `boxed` inside the
            last `\\boxed{}`, `xml` inside the last `<answer></answer>`, `phrase` behind the last "answer is",
            `last_number` the last number of all.

    Returns:
        The stated answer, stripped; None if it is stated in none of these forms.

    Raises:
        ValueError: an unknown form.
    """
    for form in forms:
        if form not in FORMS:
            raise ValueError(f"unknown form of an answer: {form!r}; allowed: {', '.join(FORMS)}")
        found = _boxed(text) if form == "boxed" else _last(form, text)
        if found and found.strip():
            return found.strip()
    return None


def _last(form: str, text: str) -> str | None:
    if form == "last_number":
        numbers = list(_VALUE.finditer(text.replace("−", "-")))
        return numbers[-1].group(0) if numbers else None
    pattern = {"hash": _HASH, "xml": _XML, "phrase": _PHRASE}[form]
    found = pattern.findall(text)
    return found[-1] if found else None


def _boxed(text: str) -> str | None:
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    depth, begin = 0, text.index("{", start)
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[begin + 1 : i]
    return None
