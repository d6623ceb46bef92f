"""The README's sentences about results: each a function of published files, put between marks as the tables are."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from multiref_cli.errors import RequestError
from multiref_cli.files import read_json
from multiref_cli.reports.comparisons import Judged, judged
from multiref_cli.reports.contest import read_answers, verdict
from multiref_cli.reports.metrics import heading, most_trusted
from multiref_cli.reports.mixed import conclusions, read_scores
from multiref_cli.reports.published import Row, read_rows
from multiref_cli.reports.regime_words import YARDSTICKS, read_regimes, sentence, sentences
from multiref_cli.reports.table_file import read_table, write_table
from multiref_cli.reports.tuned import change, kept, read_found
from multiref_cli.reports.verdicts import Verdict
from multiref_cli.reports.worlds import read_claims

VERDICTS = "verdicts.csv"
WORLDS, ESTIMATORS = "runs/published/worlds.csv", "runs/published/estimators.csv"
RIVALS = "runs/published/rivals.csv"
EMBEDDED, TUNED = "runs/published/embedded.csv", "runs/published/tuned.csv"
SEVERAL = "runs/published/several.contest.json"
SMOLLM, SMOLLM_SUMS = "runs/published/smollm.csv", "runs/published/smollm_sums.csv"
REGIMES = "runs/published/regimes.cells.csv"
# What the online job is judged by.
SCORE = "toy_verifier"
# What sums are judged by.
SUMS = "reasoning_gym"
COLUMNS = ("job", "metric", "kind", "over_alpha", "first", "second", "difference", "low", "high", "p", "verdict")
BEGIN, END = "<!-- caption {name}: made by multiref from {path}; do not edit -->", "<!-- caption end -->"


def write_verdicts(found: Iterable[tuple[str, Verdict]], path: Path) -> None:
    """Write verdicts.csv: one row a comparison of a job, numbers with six significant digits."""
    write_table(path, COLUMNS, (_written(job, one) for job, one in found))


def _written(job: str, one: Verdict) -> list[Any]:
    interval = one.comparison.difference
    numbers = [f"{x:.6g}" for x in (interval.mean, interval.low, interval.high, one.adjusted_p)]
    names = [job, one.metric, one.kind, int(one.over_alpha), one.first, one.second]
    return [*names, *numbers, one.word().strip("*")]


def read_verdicts(path: Path) -> list[Judged]:
    """Read what `write_verdicts` wrote; nothing where there is no such file.

    Raises:
        RequestError: another file.
    """
    if not path.is_file():
        return []
    return [
        Judged(
            *(row["job"], row["metric"], row["kind"], row["over_alpha"] == "1", row["first"], row["second"]),
            *(float(row["difference"]), row["verdict"]),
        )
        for row in read_table(path, "file of verdicts", COLUMNS)
    ]


def levels(rows: Sequence[Row], metric: str) -> str:
    """Where a metric begins and ends: untrained models, without penalty, one reference alone, several."""
    parts = [
        f"{role} {_span([row for row in rows if row.role == key and row.metric == metric])}"
        for key, role in (
            ("untrained", "untrained models"),
            ("beta0", "without a penalty"),
            ("single", "towards one reference alone"),
            ("grid", "towards several"),
        )
        if any(row.role == key and row.metric == metric for row in rows)
    ]
    return f"{heading(metric)}: {'; '.join(parts)}."


def figure(rows: Sequence[Row], found: Sequence[Judged], metric: str) -> str:
    """Caption of a figure of a metric against alpha."""
    own = [row for row in rows if row.metric == metric]
    jobs = {row.job for row in own}
    seeds = max((row.interval.n for row in own if row.role != "untrained"), default=0)
    over = "seeds and prompts" if any(row.prompts for row in own if row.role != "untrained") else "seeds"
    said = (
        f"{', '.join(sorted(jobs))}: {heading(metric)} against α, the weight of the first reference; {seeds} seeds, "
        f"95 % intervals over {over}."
    )
    return f"{said} {levels([row for row in rows if row.job in jobs], metric)} {judged(found, metric)}"


def estimators(rows: Sequence[Row], found: Sequence[Judged], metric: str) -> str:
    """How ways to estimate one penalty end at the same beta, in score and in distance."""
    own = [row for row in rows if row.role == "grid"]
    distance = [row for row in own if row.metric == "kl/weighted"]
    far = f" {heading('kl/weighted')}: {_span(distance)}." if distance else ""
    return f"At the same β, {levels(own, metric)}{far} {judged(found, metric)}"


def rivals(rows: Sequence[Row], found: Sequence[Judged]) -> str:
    """Of every job where its mix ranks on its most trusted score, and what of all else is told apart from it."""
    parts, chosen = [], False
    for job in dict.fromkeys(one.job for one in found if one.kind == "rival"):
        own = [one for one in found if one.job == job and one.kind in ("rival", "single reference", "no penalty")]
        rivals = [one for one in own if one.kind == "rival"]
        metric = most_trusted(list(dict.fromkeys(one.metric for one in rivals)))
        for mix in dict.fromkeys(one.first for one in rivals):
            pairs = [one for one in own if one.first == mix and one.metric == metric]
            above = sum(one.difference < 0 for one in pairs)
            groups = {word: [one.second for one in pairs if one.verdict == word] for word in ("below", "above")}
            rest = [one.second for one in pairs if one.verdict not in groups]
            value = next(
                (f" ({r.interval.mean:.3g})" for r in rows if (r.job, r.condition, r.metric) == (job, mix, metric)), ""
            )
            parts.append(
                f"{job}, by {heading(metric)}: {mix}{value} is number {above + 1} of {len(pairs) + 1}; significantly "
                f"above it: {_listed(groups['below'])}; below it: {_listed(groups['above'])}; not told apart: "
                f"{_listed(rest)}."
            )
            chosen = chosen or any("\u2020" in one.second for one in pairs)
    legend = " \u2020: chosen among the candidates by the score itself, with the solution at hand." if chosen else ""
    return f"One mix against its rivals, on the same prompts. {' '.join(parts)}{legend}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.replace(", untrained", " untrained") for name in names) or "none"


def answers(root: Path) -> str:
    """Does reverse KL reach MRPO over worlds, which estimator ends lowest, what does scaling advantages cost.

    Each job answers by its most trusted score.
    """
    found = read_claims(root / WORLDS) if (root / WORLDS).is_file() else []
    pairs = [one for one in found if one.over_alpha and one.kind == "regularizer" and "mrpo" in one.second]
    trusted = {job: most_trusted([one.metric for one in pairs if one.job == job]) for job in {one.job for one in pairs}}
    claims = [one for one in pairs if one.metric == trusted[one.job]]
    rows = [row for row in read_rows(root / ESTIMATORS) if row.role == "grid" and row.metric == SCORE]
    judgments = [one for one in read_verdicts((root / ESTIMATORS).with_suffix(f".{VERDICTS}")) if one.metric == SCORE]
    lowest = min(rows, key=lambda row: row.interval.mean)
    others = [one for one in judgments if lowest.condition in (one.first, one.second)]
    below = [one for one in others if one.verdict == ("below" if one.first == lowest.condition else "above")]
    scales = [one for one in judgments if one.kind == "advantage scale"]
    words = {"above": "significantly above", "below": "significantly below", "not significant": "not told apart from"}
    return " ".join(
        [
            *(one.sentence.replace("-", "−") for one in claims),
            f"Of {len(rows)} ways to charge one penalty {lowest.condition} ends lowest ({lowest.interval.mean:.3g}), "
            f"significantly below {len(below)} of the {len(others)} it is compared with.",
            *(
                f"{one.first} is {words.get(one.verdict, 'not to be judged against')} {one.second} "
                f"({one.difference:+.2g}).".replace("-", "−")
                for one in scales
            ),
        ]
    )


def _span(rows: Sequence[Row]) -> str:
    low, high = (choose(rows, key=lambda row: row.interval.mean) for choose in (min, max))
    if low is high:
        return _value(low)
    return f"{_value(low)} to {_value(high)}"


def _value(row: Row) -> str:
    return f"{row.interval.mean:.3g} ({row.condition.removesuffix(', untrained')})"


def _of_job(metric: str, make: Callable[[Sequence[Row], Sequence[Judged], str], str]) -> Callable[[Path], str]:
    return lambda path: make(read_rows(path), read_verdicts(path.with_suffix(f".{VERDICTS}")), metric)


def _mixed(path: Path) -> str:
    """What the mixed references are worth before any training."""
    facts = read_json(path.with_suffix(".json")) or {}
    first, second = facts["references"]
    told = " ".join(conclusions(read_scores(path), (first, second)))
    return (
        f"The mixed references of {first} and {second} themselves, sampled token by token without any training. {told}"
    )


def _tuned(path: Path, orders: bool) -> str:
    """What is left of the conclusions at hand-set settings when every arm is tuned; with the orders of all arms."""
    hand = path.parents[2] / EMBEDDED
    before, after = (read_verdicts(one.with_suffix(f".{VERDICTS}")) for one in (hand, path))
    found = read_found(path.with_suffix(".search.csv"))
    return change(read_rows(hand), read_rows(path), before, after, found) if orders else kept(before, after, found)


def _several(path: Path) -> str:
    """Whether several references beat one, job by job."""
    return " ".join(f"{job}: {verdict(found)}" for job, found in read_answers(path).items())


def _regimes_by_score(path: Path) -> str:
    """Which regularizer wins where by the score alone, the first of the yardsticks."""
    return sentence([cell for cell in read_regimes(path) if cell.yardstick == next(iter(YARDSTICKS))])


def _smollm(path: Path) -> str:
    """Whether several references beat one for a real language model, offline and online."""
    online = path.parents[2] / SMOLLM_SUMS
    parts = [_several(path.with_suffix(".contest.json")), _scorer(path)]
    return " ".join([*parts, _several(online.with_suffix(".contest.json"))] if online.is_file() else parts)


def _smollm_pairs(path: Path) -> str:
    """Levels and comparisons of a real language model, score by score."""
    rows, found = read_rows(path), read_verdicts(path.with_suffix(f".{VERDICTS}"))
    compared = {one.metric for one in found}
    said = [
        f"{levels(rows, one)} {judged(found, one) if one in compared else ''}".strip()
        for one in ("reward_model", "ranking_accuracy")
    ]
    return " ".join([*said, _scorer(path)])


def _sums(path: Path) -> str:
    """The same model on sums: whether two references beat one, levels and comparisons."""
    rows, found = read_rows(path), read_verdicts(path.with_suffix(f".{VERDICTS}"))
    return f"{_several(path.with_suffix('.contest.json'))} {levels(rows, SUMS)} {judged(found, SUMS)}"


def _scorer(path: Path) -> str:
    """How well the reward model behind published scores tells right from wrong."""
    measured = (read_json(path.with_suffix(".scorer.json")) or {})["metrics"]["held_out_accuracy"]
    accuracy = f"{measured['mean']:.3f} [{measured['ci_low']:.3f}, {measured['ci_high']:.3f}]"
    return f"The reward model puts the preferred response of {accuracy} of {measured['n']} held-out pairs first."


def _laboratory(path: Path) -> str:
    """What the laboratory saw of the rates in n."""
    from multiref_cli.theory.studies.sample_complexity import rates

    metrics = (read_json(path) or {})["metrics"]
    return rates({name.removeprefix("sample_complexity/"): value for name, value in metrics.items()})


# Name of a caption -> the file that it is made from, under the README's folder, and how.
CAPTIONS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "offline": (EMBEDDED, _of_job("reward_model", figure)),
    "online": (EMBEDDED, _of_job(SCORE, figure)),
    "estimators": (ESTIMATORS, _of_job(SCORE, estimators)),
    "mixed": ("runs/published/mixed.csv", _mixed),
    "answers": (ESTIMATORS, lambda path: answers(path.parents[2])),
    "rivals": (RIVALS, lambda path: rivals(read_rows(path), read_verdicts(path.with_suffix(f".{VERDICTS}")))),
    "regimes": (REGIMES, lambda path: sentences(read_regimes(path))),
    "regimes score": (REGIMES, _regimes_by_score),
    "several": (SEVERAL, _several),
    "smollm": (SMOLLM, _smollm),
    "smollm pairs": (SMOLLM, _smollm_pairs),
    "smollm sums": (SMOLLM_SUMS, _sums),
    "tuned": (TUNED, lambda path: _tuned(path, orders=False)),
    "tuned orders": (TUNED, lambda path: _tuned(path, orders=True)),
    "laboratory": ("runs/published/sample-complexity.json", _laboratory),
}


def caption(root: Path, name: str) -> str:
    """The caption as it stands in the README, in italics; that nothing is published, where the file is not there."""
    path, make = CAPTIONS[name]
    text = make(root / path) if (root / path).is_file() else f"`{path}` is not published yet."
    return textwrap.fill(f"*{text}*", 120, break_long_words=False, break_on_hyphens=False)


def update_captions(readme: Path, *more: Path) -> bool:
    """Put every caption between its marks in the README or in one of the other pages; says whether anything changed.

    Args:
        readme: lies where the paths of published files begin.
        more: further pages, such as topics of `multiref help`.

    Raises:
        RequestError: marks are missing.
    """
    pages = {page: page.read_text() for page in (readme, *more)}
    changed = False
    for name, (path, _) in CAPTIONS.items():
        begin = BEGIN.format(name=name, path=path)
        page = next((page for page, text in pages.items() if END in text.partition(begin)[2]), None)
        if page is None:
            raise RequestError(f"{readme} has no caption {name!r}: put '{begin}' and '{END}' where it belongs.")
        before, _, behind = pages[page].partition(begin)
        new = f"{before}{begin}\n{caption(readme.parent, name)}\n{behind[behind.index(END) :]}"
        changed = changed or new != pages[page]
        pages[page] = new
    for page, text in pages.items():
        if text != page.read_text():
            page.write_text(text)
    return changed
