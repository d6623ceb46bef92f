"""One reference or several? The best mix of a sweep against its best single reference, each chosen on other data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from pathlib import Path

import numpy as np

from multiref_cli.config.plain import digest
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.crossed import estimate
from multiref_cli.evaluation.selection import contest
from multiref_cli.evaluation.statistics import Interval
from multiref_cli.files import read_json, write_json
from multiref_cli.reports.collect import Condition
from multiref_cli.reports.job_section import titles
from multiref_cli.reports.metrics import heading, most_trusted, scorers
from multiref_cli.reports.page import Page
from multiref_cli.reports.table_file import pipe_table

# Of the interval of one world. That other data would choose another candidate is in no standard error: in simulated
# ties 12 % of 95 % intervals miss, 3 % of 99 % ones.
CONFIDENCE = 0.99
# From so many worlds on the difference is judged over worlds, by a 95 % t interval.
WORLDS = 3
# Read against each run's own references: another yardstick, shown beside the ones that are not.
OWN_YARDSTICK = "preference_accuracy"
# Beside a report: what was answered.
ANSWERS = "contest.json"
HEADERS = ("metric", "chosen mix", "chosen single reference", "difference", "answer")
SEVERAL, SINGLE, OPEN = "several", "single", "open"


@dataclass(frozen=True)
class Answer:
    """What one metric says, in one world or over several.

    Attributes:
        metric: name.
        worlds: number of them; 1 is a comparison over seeds and prompts, more a comparison over worlds.
        interval: best mix minus best single reference.
        mixes: label -> share of the judgments for which it was the chosen mix.
        singles: the same of single references.
    """

    metric: str
    worlds: int
    interval: Interval
    mixes: dict[str, float]
    singles: dict[str, float]

    @property
    def word(self) -> str:
        """several, single or open."""
        if self.interval.low > 0:
            return SEVERAL
        return SINGLE if self.interval.high < 0 else OPEN

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        mean, low, high, _ = self.interval
        level = "95 % interval over worlds" if self.worlds > 1 else f"{CONFIDENCE:.0%} interval".replace("%", " %")
        numbers = f"{mean:+.3g}, " + ("which has no interval" if isnan(low) else f"{level} [{low:+.3g}, {high:+.3g}]")
        counted = (len(self.mixes), "mix", "mixes"), (len(self.singles), "single reference", "single references")
        sides = " and ".join(f"the best of {n} {many}" if n > 1 else f"the only {one}" for n, one, many in counted)
        if self.word == OPEN:
            return (
                f"On {heading(self.metric)} it is undecided whether several references beat one: {sides} differ by "
                f"{numbers}."
            )
        winner = "several references beat one" if self.word == SEVERAL else "one reference beats several"
        return f"On {heading(self.metric)} {winner}: {sides} differ by {numbers}."


def answers(found: Sequence[Condition]) -> list[Answer]:
    """The answers of one job in one world: every score, then how pairs are ranked; none where nothing can be chosen.

    Args:
        found: conditions of the job.
    """
    singles = [one for one in found if one.role == "single"]
    mixes = [one for one in found if one.role == "grid" and len(one.experiment.active_references) > 1]
    if len(singles) < 2 or not mixes:
        return []
    made = []
    for metric in dict.fromkeys((*scorers(found), "ranking_accuracy", OWN_YARDSTICK)):
        tables = _tables([*mixes, *singles], metric)
        if tables is None:
            continue
        result = contest(tables[: len(mixes)], tables[len(mixes) :], CONFIDENCE)
        shares = [
            {one.label: float(share) for one, share in zip(side, chosen)}
            for side, chosen in ((mixes, result.first), (singles, result.second))
        ]
        made.append(Answer(metric, 1, result.comparison.difference, *shares))
    return made


def over_worlds(families: Sequence[Sequence[Answer]]) -> list[Answer]:
    """The answers of one job in several worlds as one a metric; each world is one observation."""
    found = []
    for metric in (one.metric for one in families[0]):
        own = [one for family in families for one in family if one.metric == metric]
        if len(own) == len(families):
            interval = estimate({world: one.interval.mean for world, one in enumerate(own)}).interval
            sides = [_mean([getattr(one, side) for one in own]) for side in ("mixes", "singles")]
            found.append(Answer(metric, len(own), interval, *sides))
    return found


def verdict(found: Sequence[Answer]) -> str:
    """One sentence: what the most trusted score says, and whether the yardstick of each run's own says otherwise."""
    scored = [one for one in found if one.metric not in ("ranking_accuracy", OWN_YARDSTICK)]
    named = {one.metric: one for one in scored or found}
    main = named[most_trusted(list(named))]
    own = next((one for one in found if one.metric == OWN_YARDSTICK), None)
    if own is None or own is main:
        return main.sentence
    if own.word == main.word:
        return f"{main.sentence} {heading(OWN_YARDSTICK).capitalize()}, read against each run's own, says the same."
    says = {SEVERAL: "that several beat one", SINGLE: "that one beats several", OPEN: "nothing"}[own.word]
    return f"{main.sentence} {heading(OWN_YARDSTICK).capitalize()}, read against each run's own, says {says}."


def add_contest(page: Page, jobs: Sequence[Sequence[Condition]]) -> dict[str, list[Answer]]:
    """Add a section for every job with mixes and single references that were scored prompt by prompt.

    Returns:
        What was answered, by the job's name.
    """
    families: dict[str, list[tuple[Sequence[Condition], list[Answer]]]] = {}
    for found in jobs:
        made = answers(found)
        if made:
            rest = found[0].experiment.content("seed", "regularizer", "alpha", "beta", "world")
            families.setdefault(digest(rest), []).append((found, made))
    several = [worlds for worlds in families.values() if len(worlds) >= WORLDS]
    single = [one for worlds in families.values() if len(worlds) < WORLDS for one in worlds]
    names = [*titles([worlds[0][0] for worlds in several], True), *titles([found for found, _ in single])]
    every = [over_worlds([made for _, made in worlds]) for worlds in several] + [made for _, made in single]
    told = {name: made for name, made in zip(names, every) if made}
    for name, made in told.items():
        page.section("One reference or several?" if len(told) == 1 else f"One or several: {name}")
        page.text(f"**{verdict(made)}**")
        caption = (
            "Best mix minus best single reference. Every seed and half of the prompts is judged by the candidate that "
            "was best on all other seeds and the other half, so that being chosen by luck counts for nothing; more "
            "candidates on one side still are more chances. In brackets: how often it was the chosen one."
        )
        page.table(HEADERS, [_row(one) for one in made], caption, "one-or-several")
    return told


def answers_table(told: Mapping[str, Sequence[Answer]]) -> str:
    """Every answer of every job as a Markdown table."""
    return pipe_table(["job", *HEADERS], ([job, *_row(one)] for job, found in told.items() for one in found))


def _row(one: Answer) -> list[str]:
    return [heading(one.metric), _most(one.mixes), _most(one.singles), _bounds(one.interval), one.word]


def write_answers(told: Mapping[str, Sequence[Answer]], path: Path) -> None:
    """Write what was answered of each job."""
    write_json(path, {job: [asdict(one) for one in found] for job, found in told.items()})


def read_answers(path: Path) -> dict[str, list[Answer]]:
    """Read what `write_answers` wrote.

    Raises:
        RequestError: another file.
    """
    try:
        return {
            job: [Answer(**{**one, "interval": _interval(one["interval"])}) for one in found]
            for job, found in (read_json(path) or {}).items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise RequestError(f"{path} holds no answers about one reference or several.") from error


def _tables(conditions: Sequence[Condition], metric: str) -> np.ndarray | None:
    """(M, S, P) scores on the seeds and prompts that all have; None where a choice apart is impossible."""
    scores = [one.by_seed(metric) for one in conditions]
    seeds = sorted(set.intersection(*(set(one) for one in scores)))
    shapes = {np.shape(one[seed]) for one in scores for seed in seeds}
    if len(seeds) < 2 or len(shapes) != 1 or not (shape := shapes.pop()) or shape[0] < 2:
        return None
    return np.array([[one[seed] for seed in seeds] for one in scores])


def _mean(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    labels = dict.fromkeys(label for one in shares for label in one)
    return {label: sum(one.get(label, 0.0) for one in shares) / len(shares) for label in labels}


def _most(shares: dict[str, float]) -> str:
    label = max(shares, key=lambda name: shares[name])
    return f"{label} ({shares[label]:.0%})"


def _interval(numbers: Sequence[float | None]) -> Interval:
    """As it was written: JSON has no NaN."""
    mean, low, high, n = (nan if number is None else number for number in numbers)
    return Interval(mean, low, high, int(n))


def _bounds(interval: Interval) -> str:
    if isnan(interval.low):
        return f"{interval.mean:+.3g}, no interval"
    return f"{interval.mean:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"
