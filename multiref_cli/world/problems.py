"""Mini-GSM: a small world of word problems with chain-of-thought answers, generated from seeds and nothing else.

A problem reads `max has 8 books . then max burns 6 . then max borrows 3 . how many ?` and its solution
`8 - 6 = 2 ; 2 + 3 = 5 #### 5`. Corpora carry arithmetic slips, a verb split and differences of style on purpose, so
that a policy trained on them has something to gain and another reference something to give.
"""

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

NAMES = ["max", "ada", "tom", "eva", "ben", "mia", "leo", "zoe", "sam", "amy", "dan", "joy", "kim", "lee", "ned", "una"]
OBJECTS = [
    "books",
    "pens",
    "cups",
    "hats",
    "keys",
    "maps",
    "nuts",
    "figs",
    "toys",
    "jars",
    "bags",
    "rings",
    "cards",
    "coins",
    "shells",
    "stamps",
]
PLUS = ["buys", "finds", "wins", "gets", "borrows", "earns", "picks", "makes", "adds", "collects"]
MINUS = ["burns", "loses", "sells", "eats", "gives", "breaks", "drops", "lends", "wastes", "trades"]
# Every other verb of each kind: what the reference called "math" has seen.
HALF = (*PLUS[::2], *MINUS[::2])
ALL = (*PLUS, *MINUS)
CLOSINGS = ("hope this helps", "glad to help", "have a nice day")

_PROBLEM = re.compile(r"(?P<name>\w+) has (?P<start>\d+) (?P<thing>\w+) \. (?P<steps>.*)how many \?")
_STEP = re.compile(r"then \w+ (\w+) (\d+) \.")
_EQUATION = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
_ANSWER = re.compile(r"#### (\d+)(?!\d)")


@dataclass(frozen=True)
class Problem:
    """A start amount and one or two changes to it, each a (verb, amount)."""

    name: str
    thing: str
    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The problem as the user writes it."""
        changes = "".join(f"then {self.name} {verb} {amount} . " for verb, amount in self.steps)
        return f"{self.name} has {self.start} {self.thing} . {changes}how many ?"

    @property
    def answer(self) -> int:
        """The amount left after every change."""
        return self.start + sum(amount if verb in PLUS else -amount for verb, amount in self.steps)


@dataclass(frozen=True)
class Style:
    """How the answers of a corpus are written; every field is a probability.

    Args:
        slip: of a wrong result, for each step.
        courtesy: of closing words.
        skip: of leaving out the steps of a solution.
        repeat: of writing one step twice.
        incomplete: of ending before the answer mark.
    """

    slip: float = 0.0
    courtesy: float = 0.0
    skip: float = 0.0
    repeat: float = 0.0
    incomplete: float = 0.0


@dataclass(frozen=True)
class Qualities:
    """What a response to a problem is worth, quality by quality, before weighting.

    Args:
        correct: 1 if the only final answer is the right one, else 0.
        complete: 1 if the response has one answer mark with a number behind it, and then at most closing words.
        steps: share of the steps of the problem that are written out (their arithmetic may be wrong), 0 to 1.
        courtesy: 1 if the response ends in closing words.
        repeated: number of steps written more than once.
        words: length in tokens of the toy tokenizer (a digit is a token).
    """

    correct: float
    complete: float
    steps: float
    courtesy: float
    repeated: float
    words: int


def problems(
    seed: int, n: int, verbs: Sequence[str] = ALL, two_steps: float = 0.7, exclude: Iterable[str] = ()
) -> list[Problem]:
    """Draw n different problems whose amounts never fall below zero.

    Args:
        seed: the same seed gives the same problems.
        n: how many.
        verbs: the verbs that may appear, of PLUS and MINUS.
        two_steps: probability of a second change.
        exclude: texts of problems that must not appear, such as those of another split.

    Returns:
        n problems with different texts, none of them in `exclude`.
    """
    generator = random.Random(f"mini-gsm/{seed}")
    seen, found = set(exclude), list[Problem]()
    while len(found) < n:
        problem = _draw_problem(generator, verbs, 2 if generator.random() < two_steps else 1)
        if problem.text not in seen:
            seen.add(problem.text)
            found.append(problem)
    return found


def _draw_problem(generator: random.Random, verbs: Sequence[str], length: int) -> Problem:
    while True:
        steps = tuple((generator.choice(list(verbs)), generator.randint(1, 9)) for _ in range(length))
        problem = Problem(generator.choice(NAMES), generator.choice(OBJECTS), generator.randint(2, 9), steps)
        amounts = [replace(problem, steps=steps[: i + 1]).answer for i in range(length)]
        if min(amounts) >= 0:
            return problem


def parse_problem(text: str) -> Problem:
    """Read a problem back from its text.

    Args:
        text: as written by `Problem.text`.

    Returns:
        The problem.

    Raises:
        ValueError: the text is no problem of this world.
    """
    match = _PROBLEM.fullmatch(text.strip())
    steps = tuple((verb, int(amount)) for verb, amount in _STEP.findall(match["steps"])) if match else ()
    if match is None or not steps or any(verb not in ALL for verb, _ in steps):
        raise ValueError(f"not a mini-GSM problem: {text!r}")
    return Problem(match["name"], match["thing"], int(match["start"]), steps)


def solve(problem: Problem, style: Style = Style(), generator: random.Random | None = None) -> str:
    """Write a chain-of-thought answer to a problem, in a style.

    A slip makes one result wrong by 1, 2 or 3; later steps go on from the wrong result, as a person would.

    Args:
        problem: what to solve.
        style: probabilities of slips and of differences of style; the default is clean and bare.
        generator: source of randomness, needed unless every probability is 0 or 1.

    Returns:
        The text of the answer, such as `8 - 6 = 2 ; 2 + 3 = 5 #### 5`.
    """
    generator = generator or random.Random(0)
    amount, equations = problem.start, []
    for verb, change in problem.steps:
        sign = "+" if verb in PLUS else "-"
        result = amount + change if sign == "+" else max(amount - change, 0)
        if generator.random() < style.slip:
            wrong = [result + error for error in (-3, -2, -1, 1, 2, 3) if result + error >= 0]
            result = generator.choice(wrong)
        equations.append(f"{amount} {sign} {change} = {result}")
        amount = result
    # Each draw happens whatever the others gave, so that two styles differ only where their probabilities do.
    skip, repeat, incomplete, courtesy = (generator.random() for _ in range(4))
    twice, closing = generator.randrange(len(equations)), generator.choice(CLOSINGS)
    if repeat < style.repeat:
        equations.insert(twice, equations[twice])
    parts = [] if skip < style.skip else [" ; ".join(equations)]
    if incomplete >= style.incomplete or not parts:
        parts.append(f"#### {amount}")
    if courtesy < style.courtesy:
        parts.append(closing)
    return " ".join(parts)


def assess(problem: Problem, response: str) -> Qualities:
    """Measure the qualities of a response that the gold reward weighs (world/reward.py).

    Args:
        problem: the problem that was asked.
        response: the text of the answer, closing words included.

    Returns:
        One value per quality.
    """
    text = " ".join(response.split())
    closing = next((words for words in CLOSINGS if text.endswith(words)), "")
    body = text.removesuffix(closing).rstrip()
    answers = _ANSWER.findall(body)
    complete = len(answers) == 1 and body.count("####") == 1 and body.endswith(f"#### {answers[0]}")
    written = [("+" if sign == "+" else "-", int(change)) for _, sign, change, _ in _EQUATION.findall(body)]
    wanted = [("+" if verb in PLUS else "-", change) for verb, change in problem.steps]
    left, shown = list(written), 0
    for step in wanted:
        if step in left:
            left.remove(step)
            shown += 1
    equations = [match.group(0) for match in _EQUATION.finditer(body)]
    return Qualities(
        correct=float(complete and int(answers[0]) == problem.answer),
        complete=float(complete),
        steps=shown / len(wanted),
        courtesy=float(bool(closing)),
        repeated=float(len(equations) - len(set(equations))),
        words=len(re.findall(r"\d|[^\s\d]+", text)),
    )


def prompt_rows(problems: Sequence[Problem]) -> list[dict]:
    """Rows of `prompt` and `answer`, for the online job and for evaluation."""
    return [{"prompt": problem.text, "answer": str(problem.answer)} for problem in problems]


def corpus_rows(problems: Sequence[Problem], style: Style, seed: int) -> list[dict]:
    """Rows of `prompt` and `completion`, for supervised fine-tuning.

    Args:
        problems: one row each.
        style: how the answers are written.
        seed: of the slips and of the style.

    Returns:
        One row per problem.
    """
    rows = []
    for problem in problems:
        generator = random.Random(f"mini-gsm/{seed}/{problem.text}")
        rows.append({"prompt": problem.text, "completion": solve(problem, style, generator)})
    return rows


def preference_rows(
    prompts: Sequence[str], responses: Sequence[tuple[str, str]], rewards: Sequence[tuple[float, float]], seed: int
) -> list[dict]:
    """Label pairs of responses by the Bradley-Terry model of a gold reward.

    P(first is chosen) = sigmoid(r(first) - r(second)) (arXiv 2502.01203, Section 3); a pair of equal or empty texts is
    left out, since no preference can be told from it.

    Args:
        prompts: (N,) texts of the problems.
        responses: (N,) two responses to each.
        rewards: (N,) gold rewards of both, in nats of the Bradley-Terry model.
        seed: of the labels; the label of a pair depends on its texts and on the seed alone.

    Returns:
        At most N rows of `prompt`, `chosen`, `rejected`, `gold_chosen` and `gold_rejected`.
    """
    rows = []
    for prompt, pair, gold in zip(prompts, responses, rewards, strict=True):
        first, second = (text.strip() for text in pair)
        if first == second or not first or not second:
            continue
        chance = random.Random(f"bradley-terry/{seed}/{prompt}\n{first}\n{second}").random()
        chosen = 0 if chance < 1 / (1 + math.exp(gold[1] - gold[0])) else 1
        rows.append(
            {
                "prompt": prompt,
                "chosen": (first, second)[chosen],
                "rejected": (first, second)[1 - chosen],
                "gold_chosen": gold[chosen],
                "gold_rejected": gold[1 - chosen],
            }
        )
    return rows
