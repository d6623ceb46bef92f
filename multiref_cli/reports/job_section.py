"""The report of sweeps: what was run, what came out, what may be concluded, and from where."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiref_cli.evaluation.crossed import estimate
from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports import figures
from multiref_cli.reports import metrics as measured
from multiref_cli.reports.collect import Condition, alpha_text
from multiref_cli.reports.markup import slug
from multiref_cli.reports.metrics import heading, scorers
from multiref_cli.reports.page import Page, format_cell
from multiref_cli.reports.verdicts import Verdict, compare_job, series

CONFIDENCE = 0.95
# More sentences than this are left to the table, which has every comparison.
_SENTENCES = 40


def jobs(found: Sequence[Condition]) -> list[list[Condition]]:
    """Split conditions into jobs: comparisons make sense only where all but regularizer, alpha, beta, scale agrees.

    Rivals belong to the job that they are compared with (`rivals.rivals_of`).
    """
    groups: dict[Any, list[Condition]] = {}
    for condition in found:
        if condition.role != "rival":
            groups.setdefault(condition.shared, []).append(condition)
    return list(groups.values())


def stems(groups: Sequence[Sequence[Condition]]) -> list[str]:
    """What the files of each job begin with: nothing for one job, else algorithm (and world), numbered if shared."""
    if len(groups) == 1:
        return [""]
    worlds = {group[0].experiment.world for group in groups}
    algorithms = [
        group[0].algorithm + (f"-world-{group[0].experiment.world}" if len(worlds) > 1 else "") for group in groups
    ]
    return [
        slug(name if algorithms.count(name) == 1 else f"{name}-{algorithms[: i + 1].count(name)}")
        for i, name in enumerate(algorithms)
    ]


def add_job(page: Page, found: list[Condition], stem: str) -> list[Verdict]:
    """Add one job: setting, table of results, figures, comparisons with plain sentences; returns the comparisons.

    Args:
        page: to add to.
        found: conditions of the job.
        stem: what the names of its figures and tables begin with; empty: it is the only job of the page.
    """
    several = bool(stem)
    page.text(f"## {job_name(found[0]) if several else 'Setting'}").text(_setting(found))
    if not several:
        page.text("## Results")
    _add_results(page, found, stem)
    verdicts = compare_job(found, scorers(found), CONFIDENCE) if found[0].regularized else []
    if found[0].regularized:
        for metric in scorers(found):
            _add_metric(page, found, metric, verdicts, stem, "###" if several else "##")
    _add_curves(page, found, stem, "###" if several else "##")
    return verdicts


def in_order(found: Sequence[Condition]) -> list[Condition]:
    """Conditions as a table shows them: without penalty, each reference alone, then line by line over alpha."""
    baselines = [c for role in ("beta0", "single") for c in found if c.role == role]
    return [*baselines, *(c for line in series(found) for c in line.conditions)]


def start_value(condition: Condition, metric: str) -> Interval | None:
    """The policy's score before training: that of the reference which it starts from, on the same prompts."""
    start = condition.experiment.start
    return reference_value(condition, metric, start) if start else None


def reference_value(condition: Condition, metric: str, reference: str) -> Interval | None:
    """A reference's own score with the interval over its n prompts; the same in every run of a job."""
    name = f"reference/{metric}/{reference}"
    for run in condition.runs:
        scores, value = run.per_prompt(name), run.metrics.get(name)
        if scores is not None:
            return estimate({run.seed: scores}).interval._replace(n=len(scores))
        if value is not None:
            return Interval(value["mean"], value["ci_low"], value["ci_high"], int(value["n"]))
    return None


def plus_minus(interval: Interval | None) -> str:
    """mean ± half width, rounded to what the interval supports; the mean alone where there is no interval."""
    if interval is None:
        return "–"
    if math.isnan(interval.half_width):
        return format_cell(interval.mean)
    decimals = _decimals(interval.half_width)
    return f"{interval.mean:.{decimals}f} ± {interval.half_width:.{decimals}f}".replace("-", "−")


def _decimals(half: float) -> int:
    """Two significant digits of the half width."""
    if half <= 0:
        return 3
    digits = 0
    while half < 10 and digits < 6:
        half *= 10
        digits += 1
    return digits


def job_name(condition: Condition) -> str:
    """Algorithm, data, references, and the world if it is not the shipped one: what conditions of one job share."""
    world = condition.experiment.world
    return f"{job_without_world(condition)}, world {world}" if world else job_without_world(condition)


def job_without_world(condition: Condition) -> str:
    """The name of a job that is run in several worlds."""
    name = f"{condition.experiment.algorithm.title} on {condition.experiment.data.name}"
    return f"{name} with {' + '.join(condition.first.references)}" if condition.regularized else name


def _setting(found: Sequence[Condition]) -> str:
    first, experiment = found[0], found[0].experiment
    seeds = sorted({run.seed for condition in found for run in condition.runs})
    n = first.first.metrics.get("length", {}).get("n", "?")
    steps = f"{experiment.steps} steps" if experiment.steps else f"{experiment.epochs:g} epochs"
    text = (
        f"Policy `{experiment.policy.path}`, data `{experiment.data.path}`, {steps}, learning rate "
        f"{experiment.optimizer.learning_rate:g}. {len(found)} conditions, {len(seeds)} "
        f"seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))}); each run is scored on n = {n} held-out prompts "
        f"× {experiment.evaluation.samples_per_prompt} samples at temperature "
        f"{experiment.evaluation.temperature:g}. The same seed sees the same prompts in the same order in every "
        "condition."
    )
    if first.regularized:
        named = ", ".join(f"`{r.name}` ({r.path})" for r in experiment.references)
        text += f" References in the order of α: {named}."
    notes = dict.fromkeys(n for c in found for run in c.runs for n in run.results.get("notes") or [])
    return text + ("\n\n" + "\n".join(f"- {note}" for note in notes) if notes else "")


def _add_results(page: Page, found: list[Condition], stem: str) -> None:
    """Tables of scores, of held-out pairs, of objectives and distances."""
    names = measured.scores(found)
    untrained = _untrained(found, scorers(found))
    extra: list[list[Any]] = [
        [label, "–", "–", *(values.get(name, "–") for name in names)] for label, values in untrained
    ]
    last = f"Untrained models: {CONFIDENCE:.0%} interval over prompts." if untrained else ""
    _add_table(page, found, names, f"{stem}-results".strip("-"), last, extra)
    _add_names(page, found)
    _add_table(page, found, measured.rankings(found), f"{stem}-pairs".strip("-"))
    others = [*measured.objectives(found), *measured.distances(found), *measured.mixes(found)]
    _add_table(page, found, others, f"{stem}-distances".strip("-"))


def _add_names(page: Page, found: Sequence[Condition]) -> None:
    """Conditions that were asked for under several names, each with all of them."""
    several = [c for c in in_order(found) if len(c.names) > 1]
    if several:
        page.text(
            "With one reference these regularizers are the same run, bit for bit; it was trained once:\n\n"
            + "\n".join(f"- {c.label}: {', '.join(f'`{name}`' for name in c.names)}" for c in several)
        )


def _add_table(
    page: Page, found: list[Condition], metrics: list[str], name: str, last: str = "", extra: Sequence[list[Any]] = ()
) -> None:
    """One row a condition; nothing where nothing was measured."""
    if not metrics:
        return
    headers = ["condition", "level, estimator", "seeds", *map(heading, metrics)]
    rows = list(extra)
    for condition in in_order(found):
        how = condition.level + ("" if condition.estimator == "–" else f", {condition.estimator}")
        cells = [plus_minus(condition.interval(metric)) for metric in metrics]
        rows.append([condition.label, how, len(condition.runs), *cells])
    parts = ["Means over seeds.", populations(found, metrics), measured.meaning(metrics), last]
    page.table(headers, rows, " ".join(part for part in parts if part), name=name)


def populations(found: Sequence[Condition], metrics: Sequence[str]) -> str:
    """Say what the intervals of some metrics were made from, and so of what population they speak."""
    kinds: dict[str, list[str]] = {}
    for metric in metrics:
        estimates = [condition.estimate(metric) for condition in found]
        for over in dict.fromkeys(one.over for one in estimates if one is not None):
            kinds.setdefault(over, []).append(heading(metric))
    said = []
    for over, names in kinds.items():
        where = "" if len(kinds) == 1 else f" for {', '.join(dict.fromkeys(names))}"
        said.append(f"{_POPULATION[over].format(confidence=CONFIDENCE, where=where)}.")
    return " ".join(said)


_POPULATION = {
    "seeds and prompts": "± is the half width of the {confidence:.0%} interval over seeds and prompts{where}: it "
    "speaks of other seeds and of other prompts of this kind",
    "seeds": "± is the half width of the {confidence:.0%} t interval over seeds alone{where}: it speaks of other "
    "seeds on these very prompts",
    "prompts": "One seed{where}: ± is the half width of the {confidence:.0%} interval over prompts; how much another "
    "seed would differ is unknown",
    "nothing": "One seed{where}: no interval",
}


def _untrained(found: Sequence[Condition], names: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Scores of the references themselves; the one that training starts from is named as the start."""
    first, rows = found[0], []
    experiment = first.experiment
    for reference in first.first.references:
        values = {name: reference_value(first, name, reference) for name in names}
        if any(value is not None for value in values.values()):
            path = next(r.path for r in experiment.references if r.name == reference)
            start = ", the start" if path == experiment.policy.path else ""
            rows.append((f"{reference}, untrained{start}", {name: plus_minus(value) for name, value in values.items()}))
    return rows


def _add_metric(
    page: Page, found: list[Condition], metric: str, verdicts: list[Verdict], stem: str, heading: str
) -> None:
    """Figures and conclusions for one metric; `verdicts` are those of the whole job."""
    page.text(f"{heading} {metric}")
    stem = f"{stem}-{metric}".strip("-")
    start = start_value(found[0], metric)
    drawn = figures.metric_against_alpha(found, metric, metric, start.mean if start else None)
    if drawn is not None:
        caption = (
            f"{metric} against the weight of the first reference: mean over seeds. {populations(found, [metric])} "
            "Bands: each reference alone under the same score and β. Dotted: no penalty. Solid gray: before training."
        )
        page.figure(f"{stem}-against-alpha", drawn, caption)
    drawn = figures.simplex(found, metric, metric)
    if drawn is not None:
        page.figure(f"{stem}-simplex", drawn, f"{metric} over the weights of the three references, mean over seeds.")
    _add_comparisons(page, found, metric, verdicts, stem)
    own = {r: reference_value(found[0], metric, r) for r in found[0].first.references}
    untrained = {name: value.mean for name, value in own.items() if value is not None}
    drawn = figures.reward_against_divergence(found, metric, metric, untrained)
    if drawn is not None:
        caption = (
            f"{metric} against the distance from each reference: one point a condition, with the {CONFIDENCE:.0%} "
            "intervals of the table of results both ways. Hollow: one reference alone, in the color of its score."
        )
        page.figure(f"{stem}-against-kl", drawn, caption)


def _add_curves(page: Page, found: list[Condition], stem: str, heading: str) -> None:
    page.text(f"{heading} Training")
    drawn = figures.learning_curves(_for_curves(found))
    if drawn is not None:
        caption = (
            "Training metrics, smoothed over a tenth of the run: mean over seeds and its t interval. Of each line over "
            "α the condition in the middle is drawn, beside baselines of the first."
        )
        page.figure(f"{stem}-learning-curves".strip("-"), drawn, caption)
    drawn = figures.disagreement(found) if found[0].regularized else None
    if drawn is not None:
        caption = "How much the references disagree at states that the policy visits (last quarter of training)."
        page.figure(f"{stem}-disagreement".strip("-"), drawn, caption)


def _for_curves(found: list[Condition], most: int = 7) -> list[Condition]:
    lines = series(found)
    middles = [line.conditions[len(line.conditions) // 2] for line in lines]
    setting = middles[0].setting if middles else None
    return [*middles, *(c for c in found if c.role == "beta0" or (c.role == "single" and c.setting == setting))][:most]


def _add_comparisons(page: Page, found: list[Condition], metric: str, verdicts: list[Verdict], stem: str) -> None:
    if max(len(condition.runs) for condition in found) < 2:
        page.text("There is one seed: differences between conditions cannot be told from differences between seeds.")
    for which, over_alpha in (("averaged over α", True), ("at each α", False)):
        shown = [one for one in verdicts if one.metric == metric and one.over_alpha == over_alpha]
        if shown:
            name = f"{stem}-comparisons-{'over' if over_alpha else 'at-each'}-alpha"
            _add_verdicts(page, shown, sum(not math.isnan(one.adjusted_p) for one in verdicts), metric, which, name)


def _add_verdicts(page: Page, verdicts: list[Verdict], family: int, metric: str, which: str, name: str) -> None:
    """Sentences and table of some comparisons; `family`: how many the correction is for."""
    significant = [verdict for verdict in verdicts if verdict.word(CONFIDENCE) in ("**above**", "**below**")]
    count = f"{len(significant)} of {len(verdicts)} differences are significant"
    page.text(
        f"**Conclusions, {which}.** {count} after Holm's correction for all {family} comparisons that this job's "
        "conditions and scores allow: one family."
    )
    shown = verdicts if len(verdicts) <= _SENTENCES else significant
    if len(shown) < len(verdicts):
        page.text("Those of the table's comparisons that are not named here are not significant.")
    if shown:
        page.text("\n".join(f"- {verdict.sentence(CONFIDENCE)}" for verdict in shown))
    prompts = any(verdict.comparison.prompts for verdict in verdicts)
    caption = (
        f"Differences of {metric} paired by seed{' and prompt' if prompts else ''}, {which}, with {CONFIDENCE:.0%} "
        f"intervals for {'other seeds and prompts' if prompts else 'other seeds on these prompts'}. The spread over "
        "seeds is the residual that all conditions with a penalty share once what a seed does to all of them is taken "
        "away; comparisons with β = 0, and pairs that vary more than the others (F test, .10), have their own. Effect: "
        "the difference in units of the seed spread (pooled standard deviation over seeds, Hedges' factor). P: share "
        "of pairs of runs in which the first is higher."
    )
    headers = ["first", "second", "kind", "difference", "effect", "P(first > second)", "p", "corrected p", "verdict"]
    page.table(headers, [_row(verdict) for verdict in verdicts], caption, name=name)


def _row(verdict: Verdict) -> list[Any]:
    one = verdict.comparison
    sides = [verdict.first, verdict.second, verdict.kind, signed(one.difference)]
    numbers = [f"{value:.2g}" for value in (one.effect, one.improvement, one.p_value, verdict.adjusted_p)]
    return [*sides, *(number.replace("-", "−").replace("nan", "–") for number in numbers), verdict.word(CONFIDENCE)]


def signed(interval: Interval) -> str:
    """mean ± half width with its sign."""
    text = plus_minus(interval)
    return f"+{text}" if interval.mean > 0 else text


def write_pending(page: Page, folders: Sequence[Path]) -> None:
    """Say which points of a sweep are missing from the report."""
    from multiref_cli.sweeps.ledger import Ledger

    for folder in folders:
        ledger = Ledger(folder)
        missing = [(p, ledger.state(p["name"], p["id"])) for p in ledger.planned()]
        missing = [(point, state) for point, state in missing if state != "done"]
        if missing:
            shown = "\n".join(f"- `{point['name']}`: {state}" for point, state in missing[:20])
            more = f"\n- and {len(missing) - 20} more" if len(missing) > 20 else ""
            page.text(f"**{len(missing)} points of `{folder.name}` are not in this report:**\n\n{shown}{more}")


def summary_line(found: Sequence[Condition]) -> str:
    """One sentence on what a report holds."""
    runs = sum(len(condition.runs) for condition in found)
    alphas = {alpha_text(condition.weights) for condition in found if condition.role == "grid" and condition.weights}
    return f"{runs} runs in {len(found)} conditions" + (f", {len(alphas)} values of α" if len(alphas) > 1 else "") + "."
