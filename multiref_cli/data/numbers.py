"""Which number a piece of text stands for, exactly: thousands, units, fractions, LaTeX, powers, roots, scale words."""

import ast
import math
import re
from fractions import Fraction

_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[-+]?\d{1,3}(?![a-z\d]))?|\.\d+", re.IGNORECASE)
_PLAIN = re.compile(rf"[-+]?\s*(?:{_NUMBER.pattern})(?:\s*/\s*\d+)?", re.IGNORECASE)
_SCALES = {
    **{"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
    **{"dozen": 12, "k": 10**3},
}
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8"}
_ROOTS = {"2": "√", "3": "∛"}
_FUNCTIONS = {"√": "square_root", "∛": "cube_root", "¦": "absolute"}
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

# Rewritten in this order; what is left then is digits, operators, words and punctuation.
_REWRITES: list[tuple[re.Pattern, str]] = [
    (re.compile(pattern, re.IGNORECASE), by)
    for pattern, by in [
        (r"[−‒–]", "-"),
        (r"</?[a-z][a-z ]*/?>", " "),
        (r"\\[!,;:()\[\]]|\\ |\\(?:q?quad|left|right|displaystyle|boxed)(?![a-z])|\u00a0|\u202f|\u2009", " "),
        (r"(?<=\d)\s*\{,\}\s*(?=\d{3})", ","),
        (r"\\(?:text|mathrm|mbox|textbf|mathbf|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°|\\?%", " "),
        (r"\\?[$€£¥₹¢]|\b(?:USD|EUR|GBP)\b", " "),
        (r"(?<=\d)\s*/\s*(?=[^\W\d_]{2})", " per "),
        (r"\\(?:times|cdot)(?![a-z])|[×·⋅]|(?<=\d)\s*x\s*(?=\d)|(?<=[\d)])\s*\*(?=\s*[\d(])", " * "),
        (r"\\div(?![a-z])|÷", "/"),
        (r"\\(?:approx|simeq)(?![a-z])|[≈≅]", "="),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\[dtc]?frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\[dtc]?frac\s*\{[^{}]*\})\s*(\d)(?!\d)", r"\1{\2}"),
        (r"(?<=\d)\s*_\s*\{?\s*\d+\s*\}?", r" \\ "),  # of another base
        (r"√\s*(\d+)", r"\\sqrt{\1}"),
        (r"\bsqrt\s*\(", "√("),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        # The exponent of a unit (cm^2) is part of its name.
        (r"([^\W\d_]\s*)\^\s*(?:\{\s*-?\d+\s*\}|-?\d)", r"\1"),
        (r"\b(step|part|section|case|question|problem|option|exercise|chapter|version)\s*#?\d+\b", r"\1"),
        (r"(?<![\w)])(?:minus|negative)\s+(?=[\d.(\\])", "-"),
        (r"(?<=\d)\s+minus\s+(?=\d)", " - "),
    ]
]
_FRACTION = re.compile(r"(?<![\w.])(\d+)?\s*\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\s*(?:\[(\d)\])?\s*\{([^{}]*)\}")
_MIXED = re.compile(r"(?<![\d./,])(\d+)\s+(\d+\s*/\s*\d+)(?![\d/])")
_COMMENT = re.compile(r"(.*\S)\s+\(([^()]*)\)[\s.]*", re.DOTALL)
# A digit inside a word (m2, x1, COVID-19) belongs to a unit or a name, not to the answer.
_IN_WORD = re.compile(r"(?<!\d)[^\W\d]\w*\d\w*|(?<=\d)(?!e[-+]?\d)[^\W\d]+\d\w*|[^\W\d_]{2,}-\d+", re.IGNORECASE)
# What makes of a number another one, or no answer at all.
_REFUSED = re.compile(
    r"(?i:\bor\b|\beither\b|\bn[o']t\b|\bpi\b|\b(?:squared|cubed|factorial)\b|\d\s*(?:and\s+)?(?:a\s+)?half\b|"
    r"\b(?:less|more|fewer|greater|over|under|above|below|at least|at most|up to)\s+(?:than\s+)?(?=[-\d])|"
    r"\b(?:half|thirds?|quarters?|twice|thrice|double|triple|times|plus|by|roots?|power)\s+(?:of\s+)?(?=[-\d.(])|"
    r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|lg|exp|abs)\s*(?=[-\d.(]))|"
    r"[\\<>≤≥≠±π∞]|"
    # A variable beside a number: 3x, 3 x, 2 + x, x - 5; a single letter that is a unit stands behind its number.
    r"[\d)]\s*,?\s*(?![eE][-+]?\d)[b-fijknopqr-uw-z](?![^\W\d_])(?<!\d[gmslhd])|\d\s*[-+*/^]\s*[^\W\d_](?![^\W\d_])|"
    r"(?<![^\W\d_])(?!(?<=\d)[eE][-+]\d)[^\W\d_]\s*[-+*/^]\s*\d|[^\W\d_]\s+-\s+\d|\d[MBT]\b"
)
_SCALE = re.compile(rf"(?<=[\d)])\s*({'|'.join(_SCALES)})s?\b(?!\s*[-/])", re.IGNORECASE)


def parse_number(text: str) -> Fraction | None:
    """The one number that a text stands for, exactly.

    Thousands separators, signs, currency, units, percent signs, decimals, fractions (`3/4`, `1 1/2`, `\\frac{3}{4}`),
    powers, products, exact roots and scale words (`5 million`) are understood. Units and percent signs are left out,
    not converted: `50%` and `50 apples` are both 50. Of an equation the last side that is a plain number counts, or
    else its last side; a remark in parentheses behind the answer is left out.

    Args:
        text: such as `$1,234.50 per month`.

    Returns:
        The number; None where there is none or more than one, since an answer that offers several is no answer, and
        where something stands beside it that changes it and is not understood (`3x`, `5 or so`, `2\\pi`).
    """
    if len(text) > 500:
        return None
    sides = [side for side in _rewritten(text).split("=") if side.strip()]
    values = [_side(side) for side in sides]
    if not sides or any(value is None for value in values[1:]):
        return None
    plain = [v for side, v in zip(sides, values) if v is not None and _PLAIN.fullmatch(side.strip(" .,;:!?*_`'\""))]
    if len(set(plain)) > 1:
        return None
    return plain[0] if plain else values[-1]


def _rewritten(text: str) -> str:
    text = re.sub(r"[₀-₉]+", lambda m: "_" + m[0].translate(_SUBSCRIPTS), text)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    for character, fraction in _VULGAR.items():
        text = text.replace(character, f" {fraction}")
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    for _ in range(4):  # from the innermost braces outwards
        text = _ROOT.sub(lambda m: f" {_ROOTS.get(m[1] or '2', '?')}({m[2]})", _FRACTION.sub(_mixed, text))
    return text.replace("{", "(").replace("}", ")")


def _mixed(match: re.Match) -> str:
    fraction = f"(({match[2]})/({match[3]}))"
    return f"({match[1]}+{fraction})" if match[1] else f" {fraction}"


def _side(text: str) -> Fraction | None:
    """One side of an equation: a number or an expression among words."""
    remark = _COMMENT.fullmatch(text)
    if remark and re.search(r"\bor\b\W*\d", remark[2], re.IGNORECASE):
        return None
    if remark and (re.search(r"[^\W\d_]", remark[2]) or _side(remark[2]) == _side(remark[1])):
        text = remark[1]
    text = _IN_WORD.sub(" ~ ", text)
    # The scale is read after the words around it were judged, so that 5k is no variable.
    scaled = _SCALE.sub(lambda m: f" * {_SCALES[m[1].lower()]}", text)
    scaled = _SCALE.sub(lambda m: f" * {_SCALES[m[1].lower()]}", scaled)
    if _REFUSED.search(scaled):
        return None
    pieces = [
        piece
        for piece in re.split(r"(?!(?<=\d)e[-+]?\d)[^\W\d_]+|[—~]", scaled, flags=re.IGNORECASE)
        if re.search(r"\d", piece)
    ]
    return _value(pieces[0]) if len(pieces) == 1 else None


def _value(text: str) -> Fraction | None:
    text = re.sub(r"^(?:[\s,;:!?*_`'\"#\[\]]|\.(?!\d))+|[\s.,;:!?*_`'\"#\[\]-]+$", "", text)
    if re.fullmatch(r"[\d.]+-[\d.]+|\d+/\d+/\d+", text):
        return None  # a range, or a date
    if re.fullmatch(r"[-+]?\d{1,3}(?:,? \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "").replace(",", "")
    text = re.sub(r"^\|(.*)\|$", r"¦(\1)", text)
    text = text[: len(text) - max(0, text.count(")") - text.count("("))] if text.endswith(")") else text
    numbers: list[Fraction] = []

    def name(match: re.Match) -> str:
        numbers.append(Fraction(match[0].replace(",", "")))
        return f"n{len(numbers) - 1}"

    try:
        written = _NUMBER.sub(name, _MIXED.sub(r"(\1+\2)", text)).replace("^", "**")
        for sign, function in _FUNCTIONS.items():
            written = written.replace(f"{sign}(", f"{function}(")
        return _evaluate(ast.parse(written.strip(), mode="eval").body, numbers)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.AST, numbers: list[Fraction]) -> Fraction:
    """Value of an expression of numbers; ValueError where it is none, or not rational."""
    match node:
        case ast.Name(id=name):
            return numbers[int(name[1:])]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_evaluate(inner, numbers)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _evaluate(inner, numbers)
        case ast.Call(func=ast.Name(id="absolute"), args=[inner]):
            return abs(_evaluate(inner, numbers))
        case ast.Call(func=ast.Name(id="square_root"), args=[inner]):
            return _root(_evaluate(inner, numbers), 2)
        case ast.Call(func=ast.Name(id="cube_root"), args=[inner]):
            return _root(_evaluate(inner, numbers), 3)
        case ast.BinOp(left=left, op=operator, right=right):
            return _operate(operator, _evaluate(left, numbers), _evaluate(right, numbers))
    raise ValueError("no expression of numbers")


def _operate(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.Pow() if right.denominator == 1 and abs(right) <= 1000 and left.numerator.bit_length() <= 64:
            return left ** int(right)
    raise ValueError("no operation on exact numbers")


def _root(value: Fraction, degree: int) -> Fraction:
    if value < 0 or value.numerator.bit_length() > 1000:
        raise ValueError("no exact root")
    parts = [round(part ** (1 / degree)) if degree > 2 else math.isqrt(part) for part in value.as_integer_ratio()]
    root = Fraction(*parts)
    if root**degree != value:
        raise ValueError("no exact root")
    return root
