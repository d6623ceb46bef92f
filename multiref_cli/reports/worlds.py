"""What holds in general: the comparisons of one job in several embedded worlds, each a replicate of the experiment."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiref_cli.config.plain import digest
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.crossed import estimate
from multiref_cli.evaluation.statistics import Interval, holm, student_t_cdf
from multiref_cli.reports.collect import STANDARDIZED, Condition
from multiref_cli.reports.job_section import job_without_world, jobs, plus_minus
from multiref_cli.reports.metrics import centered, heading, scorers
from multiref_cli.reports.page import Page
from multiref_cli.reports.published import origin
from multiref_cli.reports.table_file import pipe_table, read_table, write_table
from multiref_cli.reports.verdicts import Verdict, compare_job

COLUMNS = (
    *("job", "metric", "kind", "over_alpha", "first", "second"),
    *("worlds", "differences", "verdicts", "mean", "low", "high", "adjusted_p", "holds"),
    *("commit", "hardware", "versions", "started_from", "command"),
)
# In how many worlds a difference is significant with one sign, and in none with the other.
ALL, MOST, SOME, ONE, NONE, OPPOSITE = "all", "most", "some", "one", "none", "opposite"
_PHRASES = {
    ALL: "hold in all",
    MOST: "in most",
    SOME: "in some, half or fewer",
    ONE: "in one",
    NONE: "in none",
    OPPOSITE: "are significant both ways",
}


@dataclass(frozen=True)
class Claim:
    """One comparison in several worlds.

    Args:
        differences: world -> first minus second.
        verdicts: world -> above, below, not significant or cannot be judged, corrected within the world.
        adjusted_p: of the mean difference over worlds, corrected for all claims of the job.
        origin: commit, hardware, versions, what was started from in each world, and command.
    """

    job: str
    metric: str
    kind: str
    over_alpha: bool
    first: str
    second: str
    differences: dict[int, float]
    verdicts: dict[int, str]
    adjusted_p: float = math.nan
    origin: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def interval(self) -> Interval:
        """Mean difference over worlds with its 95 % t interval: it speaks of other worlds made by the same recipes."""
        return estimate(self.differences).interval

    @property
    def p_value(self) -> float:
        """Two-sided, of the mean difference over worlds; NaN where there is no spread or one world."""
        found = estimate(self.differences)
        if math.isnan(found.standard_error) or found.standard_error <= 1e-12 * abs(found.interval.mean):
            return math.nan
        return 2 * student_t_cdf(-abs(found.interval.mean) / found.standard_error, found.degrees)

    @property
    def holds(self) -> str:
        """In how many worlds it is significant: all, most (more than half), some, one, none; opposite: both ways."""
        above, below = (sum(word == one for word in self.verdicts.values()) for one in ("above", "below"))
        count, worlds = max(above, below), len(self.verdicts)
        if above and below:
            return OPPOSITE
        if count in (0, 1) and worlds > count:
            return ONE if count else NONE
        return ALL if count == worlds else MOST if 2 * count > worlds else SOME

    @property
    def sentence(self) -> str:
        """What may be said of it, in each world and over worlds."""
        mean, low, high, worlds = self.interval
        side = "above" if mean > 0 else "below"
        same = sum(math.copysign(1, one) == math.copysign(1, mean) for one in self.differences.values() if one)
        significant = sum(word == side for word in self.verdicts.values())
        text = f"{self.first} is {side} {self.second} on {heading(self.metric)} in {same} of {worlds} worlds"
        text += f", significantly in {significant}"
        other = sum(word in ("above", "below") for word in self.verdicts.values()) - significant
        text += f" and significantly the other way in {other}" if other else ""
        if math.isnan(self.adjusted_p):
            return f"{text}; over worlds it cannot be judged."
        judged = "significant" if self.adjusted_p < 0.05 else "not significant"
        numbers = f"mean difference {mean:+.3g}, 95 % interval of this one alone [{low:+.3g}, {high:+.3g}]"
        return f"{text}; over worlds it is {judged} ({numbers}, corrected p = {self.adjusted_p:.2g})."


def claims(found: Sequence[Condition]) -> list[list[Claim]]:
    """The comparisons that two or more worlds share, job by job; one Holm correction over worlds a job."""
    families: dict[str, list[list[Condition]]] = {}
    for group in jobs(found):
        rest = group[0].experiment.content("seed", "regularizer", "alpha", "beta", "world")
        families.setdefault(digest(rest), []).append(group)
    made = [_claims(sorted(groups, key=_world)) for groups in families.values() if len(groups) > 1]
    return [one for one in made if one]


def _world(group: Sequence[Condition]) -> int:
    return group[0].experiment.world


def _claims(groups: Sequence[Sequence[Condition]]) -> list[Claim]:
    """Claims of one job, `groups` being its conditions world by world."""
    together: dict[tuple[str, ...], dict[int, Verdict]] = {}
    for group in groups:
        for one in compare_job(group, compared(group)):
            together.setdefault((one.metric, one.kind, one.first, one.second), {})[_world(group)] = one
    found = []
    for (metric, kind, first, second), by_world in together.items():
        if len(by_world) < len(groups):
            continue
        differences = {world: one.comparison.difference.mean for world, one in by_world.items()}
        verdicts = {world: one.word().strip("*") for world, one in by_world.items()}
        over_alpha = next(iter(by_world.values())).over_alpha
        job = job_without_world(groups[0][0])
        found.append(Claim(job, metric, kind, over_alpha, first, second, differences, verdicts, origin=_origin(groups)))
    return _corrected(found)


def compared(group: Sequence[Condition]) -> list[str]:
    """What worlds are compared on: a trained reward model's score in standard deviations of the start's, its own unit.

    Each world has its own reward model, whose zero and unit are arbitrary.
    """
    own = [name for name in centered(group) if all(one.values(f"{name}{STANDARDIZED}") for one in group)]
    return [f"{name}{STANDARDIZED}" if name in own else name for name in scorers(group)]


def _origin(groups: Sequence[Sequence[Condition]]) -> dict[str, str]:
    """Where the runs of all worlds come from; what they share is said once."""
    manifests = {_world(group): group[0].first.manifest for group in groups}
    found = {world: origin(manifest) for world, manifest in manifests.items()}
    same = {name: "; ".join(dict.fromkeys(one[name] for one in found.values())) for name in ("commit", "hardware")}
    same["versions"] = "; ".join(dict.fromkeys(one["versions"] for one in found.values()))
    same["started_from"] = "; ".join(f"world {world}: {one['started_from']}" for world, one in found.items())
    same["command"] = "; ".join(dict.fromkeys(str(one.get("command", "unknown")) for one in manifests.values()))
    return same


def _corrected(found: Sequence[Claim]) -> list[Claim]:
    adjusted = holm([one.p_value for one in found])
    return [Claim(**{**vars(one), "adjusted_p": p}) for one, p in zip(found, adjusted)]


def summary(found: Sequence[Claim]) -> str:
    """One sentence: how many comparisons of one metric hold in all worlds, in most, in one, in none."""
    worlds = list(found[0].differences)
    counts = {kind: sum(one.holds == kind for one in found) for kind in _PHRASES}
    parts = [f"{count} {_PHRASES[kind]}" for kind, count in counts.items() if count]
    text = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    general = sum(one.adjusted_p < 0.05 for one in found)
    where = f"in {len(worlds)} worlds ({', '.join(map(str, worlds))})"
    counted = f"Of {len(found)} comparisons on {heading(found[0].metric)} {where}, {text}"
    return f"{counted}; {general} are significant over worlds."


def add_worlds(page: Page, found: Sequence[Condition], confidence: float = 0.95) -> list[Claim]:
    """Add what holds over worlds, where there are several; returns the claims of all jobs."""
    families = claims(found)
    if not families:
        return []
    page.text(
        "## Over worlds\n\nEach world has its own problems, models and preference pairs, made by the same recipes "
        "from another seed. What is claimed in general is claimed over worlds: an interval over worlds speaks of "
        "other worlds, one within a world of that world alone."
    )
    for number, family in enumerate(families):
        page.text(f"### {family[0].job}")
        for metric in dict.fromkeys(one.metric for one in family):
            own = [one for one in family if one.metric == metric]
            page.text(summary(own))
            for over_alpha, which in ((True, "averaged over α"), (False, "at each α")):
                shown = [one for one in own if one.over_alpha == over_alpha]
                if shown:
                    caption = (
                        f"Differences of {heading(metric)}, {which}: in each world, with its verdict there (+ above, "
                        "− below, · not significant, corrected within the world), and their mean with its "
                        f"{confidence:.0%} t interval over worlds, not corrected. p: of the mean, with Holm's "
                        "correction for all comparisons of this job."
                    )
                    worlds = [f"world {world}" for world in shown[0].differences]
                    headers = ["first", "second", *worlds, "over worlds", "corrected p", "holds in"]
                    name = f"worlds-{number + 1}-{metric}-{'over' if over_alpha else 'at-each'}-alpha"
                    page.table(headers, [_cells(one) for one in shown], caption, name=name)
            page.text("\n".join(f"- {one.sentence}" for one in own if one.over_alpha))
    return [one for family in families for one in family]


def _cells(one: Claim) -> list[str]:
    marks = {"above": "+", "below": "−"}
    cells = [
        f"{difference:+.3g} {marks.get(one.verdicts[world], '·')}".replace("-", "−")
        for world, difference in one.differences.items()
    ]
    p = "–" if math.isnan(one.adjusted_p) else f"{one.adjusted_p:.2g}"
    return [one.first, one.second, *cells, plus_minus(one.interval), p, one.holds]


def write_claims(found: Iterable[Claim], path: Path) -> None:
    """Write worlds.csv: one row a claim, its differences with nine digits, from which the other numbers follow."""
    write_table(path, COLUMNS, map(_written, found))


def _written(one: Claim) -> list[Any]:
    names = [one.job, one.metric, one.kind, int(one.over_alpha), one.first, one.second]
    numbers = [f"{value:.6g}" for value in (*one.interval[:3], one.adjusted_p)]
    lists = [
        " ".join(map(str, one.differences)),
        " ".join(f"{value:.9g}" for value in one.differences.values()),
        "; ".join(one.verdicts.values()),
    ]
    return [*names, *lists, *numbers, one.holds, *(one.origin.get(key, "") for key in COLUMNS[-5:])]


def read_claims(path: Path) -> list[Claim]:
    """Read what `write_claims` wrote; mean, interval and p follow from the differences again.

    Raises:
        RequestError: no such file, another one, or one whose numbers do not follow from its differences.
    """
    rows = read_table(path, "CSV of claims over worlds", COLUMNS)
    found: dict[str, list[Claim]] = {}
    for row in rows:
        worlds = [int(world) for world in row["worlds"].split()]
        differences = dict(zip(worlds, map(float, row["differences"].split())))
        verdicts = dict(zip(worlds, row["verdicts"].split("; ")))
        names = (row["job"], row["metric"], row["kind"], bool(int(row["over_alpha"])), row["first"], row["second"])
        known = {key: row[key] for key in COLUMNS[-5:]}
        found.setdefault(row["job"], []).append(Claim(*names, differences, verdicts, origin=known))
    made = [one for family in found.values() for one in _corrected(family)]
    for one, row in zip(made, rows):
        if any(
            not math.isclose(new, float(row[name]), rel_tol=2e-4, abs_tol=1e-7)
            for name, new in zip(("mean", "low", "high"), one.interval)
        ):
            raise RequestError(
                f"{path}: the interval of {one.first} against {one.second} does not follow from its row."
            )
    return made


def worlds_table(found: Sequence[Claim]) -> str:
    """Claims averaged over alpha as Markdown, each metric with its computed sentence (all claims counted)."""
    parts = []
    for job in dict.fromkeys(one.job for one in found):
        parts.append(f"**{job}**")
        for metric in dict.fromkeys(one.metric for one in found if one.job == job):
            own = [one for one in found if (one.job, one.metric) == (job, metric)]
            shown = [one for one in own if one.over_alpha] or own
            headers = [
                "first",
                "second",
                *(f"world {world}" for world in own[0].differences),
                "over worlds",
                "corrected p",
                "holds in",
            ]
            parts += [summary(own), pipe_table(headers, map(_cells, shown), right=range(2, len(headers) - 1))]
    if found:
        told = found[0].origin
        parts.append(
            f"Commit `{told.get('commit')}`, `{told.get('command')}`, on {told.get('hardware')}. + above, − below, "
            "· not significant within the world (Holm's correction); over worlds: mean difference ± half of its 95 % t "
            "interval over worlds, not corrected; corrected p: of that mean, with Holm's correction for all "
            "comparisons of the job."
        )
    return "\n\n".join(parts)
