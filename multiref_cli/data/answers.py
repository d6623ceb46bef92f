"""Final answers in text: where a response states its answer, and which number a piece of text stands for."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest

from multiref_cli.data.numbers import parse_number

FORMS = ("hash", "boxed", "xml", "phrase", "last_number")

_HASH = re.compile(r"####\s*([^\n#]+)(?:\n\s*([^\n#]+))?")
# `#### 1. Understand the problem` in the middle of a response is a heading.
_NUMBERED = re.compile(r"\(?\d{1,2}[.):]\s+[^\W\d]")
_XML = re.compile(r"<answer\s*>(.*?)(?:</answer\s*>|(?=<answer\s*>)|$)", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(
    r"\b(?:final\s+)?answer(?:\s+to\s+(?:the|this)\s+(?:question|problem))?[*_]*\s*(?:\bis\b|=|:)[:*_\s]*"
    r"([^\n]+?)(?:\.\s|\.?$)",
    re.IGNORECASE | re.MULTILINE,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LAST_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:/\d+)?|\.\d+)")
# More boxes than this are no answer, and reading each to its end would take quadratic time.
_BOXES = 20


def parse_math(text: str, anywhere: bool = False, seconds: int | None = None) -> list:
    """Parse an expression or LaTeX with math-verify.

    math-verify's own timeout is a SIGALRM, which works in the main thread alone; a caller who cannot trust the text
    runs this in a process that can be killed (rewards/worker.py).

    Args:
        text: `\\frac{3}{4}`, `0.75`, `(1, 2)`; or, with `anywhere`, a whole response.
        anywhere: look for the answer in running text.
        seconds: time limit, in the main thread only; None: no limit.

    Returns:
        What math-verify makes of it, several readings of one answer; empty if it cannot parse the text.
    """
    import logging

    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    whole = text if anywhere or "\\boxed" in text else f"${text.strip().strip('$')}$"
    found = parse(whole, parsing_timeout=seconds)
    # What it cannot parse it hands back as the text alone, which would make any gold answer a good one.
    return found if any(not isinstance(reading, str) for reading in found) else []


def final_answer(
    text: str, forms: Sequence[str] = ("hash", "boxed", "xml"), states: Callable[[str], bool] = bool
) -> str | None:
    """What a response states as its final answer.

    Args:
        text: the response.
        forms: where to look, in order: `hash` behind `####`, `boxed` inside `\\boxed{}`, `xml` inside
            `<answer></answer>`, `phrase` behind "answer is" or "answer:", `last_number` the last number of all.
        states: whether a piece of text can be an answer, such as `parse_number(piece) is not None`; what cannot (an
            empty box, a heading with `####`) is passed over.

    Returns:
        The stated answer, stripped: of the last place of each form the first one that states something, then of the
        places before them; None if there is no such place.

    Raises:
        ValueError: an unknown form.
    """
    for form in forms:
        if form not in FORMS:
            raise ValueError(f"unknown form of an answer: {form!r}; allowed: {', '.join(FORMS)}")
    places = zip_longest(*(_PLACES[form](text) for form in forms), fillvalue="")
    return next((place.strip() for place in chain(*places) if place.strip() and states(place.strip())), None)


def states_number(text: str) -> bool:
    """Whether a piece of text stands for one number."""
    return parse_number(text) is not None


def _hashes(text: str) -> Iterator[str]:
    for match in reversed(list(_HASH.finditer(text))):
        line, following = match.groups()
        if not (following and _NUMBERED.match(line)):
            yield line
        # A line of words is a heading; what it announces stands below.
        if following and not any(character.isdigit() for character in line):
            yield following


def _boxes(text: str) -> Iterator[str]:
    for match in reversed(list(_BOX.finditer(text))[-_BOXES:]):
        depth = 1
        for i in range(match.end(), len(text)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                yield text[match.end() : i]
                break


def _matches(pattern: re.Pattern) -> Callable[[str], Iterator[str]]:
    return lambda text: reversed(pattern.findall(text))


_PLACES: dict[str, Callable[[str], Iterator[str]]] = {
    "hash": _hashes,
    "boxed": _boxes,
    "xml": _matches(_XML),
    "phrase": _matches(_PHRASE),
    "last_number": lambda text: iter(_LAST_NUMBER.findall(text)[-1:]),
}
