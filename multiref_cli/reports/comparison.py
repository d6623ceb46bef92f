"""The report of sweeps: what was run, what came out, what may be concluded, and from where."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports import figures
from multiref_cli.reports.collect import Condition, alpha_text, scorers
from multiref_cli.reports.comparisons import Verdict, compare_conditions, compare_over_alpha, series
from multiref_cli.reports.markup import slug
from multiref_cli.reports.page import Page, format_cell

CONFIDENCE = 0.95
# More sentences than this are left to the table, which has every comparison.
_SENTENCES = 40


def jobs(found: Sequence[Condition]) -> list[list[Condition]]:
    """Split conditions into jobs: comparisons make sense only where everything but regularizer, alpha, beta agrees."""
    groups: dict[Any, list[Condition]] = {}
    for condition in found:
        groups.setdefault((condition.algorithm, condition.rest), []).append(condition)
    return list(groups.values())


def stems(groups: Sequence[Sequence[Condition]]) -> list[str]:
    """What the files of each job begin with: nothing for one job, else its algorithm, numbered if several share it."""
    if len(groups) == 1:
        return [""]
    algorithms = [group[0].algorithm for group in groups]
    return [
        slug(name if algorithms.count(name) == 1 else f"{name}-{algorithms[: i + 1].count(name)}")
        for i, name in enumerate(algorithms)
    ]


def add_job(page: Page, found: list[Condition], stem: str) -> None:
    """Add one job: setting, table of results, figures, comparisons with plain sentences.

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
    if found[0].regularized:
        for metric in scorers(found):
            _add_metric(page, found, metric, stem, "###" if several else "##")
    _add_curves(page, found, stem, "###" if several else "##")


def in_order(found: Sequence[Condition]) -> list[Condition]:
    """Conditions as a table shows them: without penalty, each reference alone, then line by line over alpha."""
    baselines = [c for role in ("beta0", "single") for c in found if c.role == role]
    return [*baselines, *(c for line in series(found) for c in line.conditions)]


def start_value(condition: Condition, metric: str) -> Interval | None:
    """The policy's score before training: that of the reference which it starts from, on the same prompts."""
    experiment = condition.experiment
    own = [reference.name for reference in experiment.references if reference.path == experiment.policy.path]
    return reference_value(condition, metric, own[0]) if own else None


def reference_value(condition: Condition, metric: str, reference: str) -> Interval | None:
    """A reference's own score with the interval over prompts; the same in every run of a job."""
    for run in condition.runs:
        value = run.metrics.get(f"reference/{metric}/{reference}")
        if value is not None:
            return Interval(value["mean"], value["ci_low"], value["ci_high"], int(value["n"]))
    return None


def plus_minus(interval: Interval | None) -> str:
    """mean ± half width, rounded to what the interval supports; the mean alone for one seed."""
    if interval is None:
        return "–"
    if interval.n < 2:
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
    """Algorithm, data and references: what conditions of one job share."""
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
    names = scorers(found)
    seeds = max(len(condition.runs) for condition in found)
    headers = ["condition", "level, estimator", "seeds", *names]
    extra = [f"objective/{name}" for name in names if any(c.values(f"objective/{name}") for c in found)]
    extra += [name for name in ("preference_accuracy", "kl/mixed", "length") if any(c.values(name) for c in found)]
    headers += [name.replace("objective/", "J, ").replace("kl/mixed", "KL to mixed") for name in extra]
    rows: list[list[Any]] = []
    for label, values in _untrained(found, names):
        rows.append([label, "–", "–", *values, *["–"] * len(extra)])
    for condition in in_order(found):
        cells = [plus_minus(condition.interval(name)) for name in (*names, *extra)]
        how = condition.level + ("" if condition.estimator == "–" else f", {condition.estimator}")
        rows.append([condition.label, how, len(condition.runs), *cells])
    spread = f"± is the half width of the {CONFIDENCE:.0%} t interval" if seeds > 1 else "one seed: no interval"
    caption = f"Means over seeds; {spread}."
    if extra:
        caption += " J = score − β Σ α KL(π‖πᵢ), the objective that reverse KL maximizes, whatever the regularizer."
    if any(label for label, _ in _untrained(found, names)):
        caption += " Untrained models: bootstrap interval over prompts."
    page.table(headers, rows, caption, name=f"{stem}-results".strip("-"))


def _untrained(found: Sequence[Condition], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Rows for the references themselves; the one that training starts from is named as the start."""
    first, rows = found[0], []
    experiment = first.experiment
    for reference in first.first.references:
        values = [reference_value(first, name, reference) for name in names]
        if any(value is not None for value in values):
            path = next(r.path for r in experiment.references if r.name == reference)
            start = ", the start" if path == experiment.policy.path else ""
            rows.append((f"{reference}, untrained{start}", [plus_minus(value) for value in values]))
    return rows


def _add_metric(page: Page, found: list[Condition], metric: str, stem: str, heading: str) -> None:
    """Figures and conclusions for one metric."""
    page.text(f"{heading} {metric}")
    stem = f"{stem}-{metric}".strip("-")
    start = start_value(found[0], metric)
    drawn = figures.metric_against_alpha(found, metric, metric, start.mean if start else None)
    if drawn is not None:
        caption = (
            f"{metric} against the weight of the first reference: mean over seeds with {CONFIDENCE:.0%} t intervals. "
            "Bands: each reference alone under the same score and β. Dotted: no penalty. Solid gray: before training."
        )
        page.figure(f"{stem}-against-alpha", drawn, caption)
    drawn = figures.simplex(found, metric, metric)
    if drawn is not None:
        page.figure(f"{stem}-simplex", drawn, f"{metric} over the weights of the three references, mean over seeds.")
    _add_comparisons(page, found, metric, stem)
    own = {r: reference_value(found[0], metric, r) for r in found[0].first.references}
    untrained = {name: value.mean for name, value in own.items() if value is not None}
    drawn = figures.reward_against_divergence(found, metric, metric, untrained)
    if drawn is not None:
        caption = (
            f"{metric} against the distance from each reference: one point a condition, {CONFIDENCE:.0%} t intervals "
            "over seeds both ways. Hollow: one reference alone, in the color of its score."
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


def _add_comparisons(page: Page, found: list[Condition], metric: str, stem: str) -> None:
    over_alpha = compare_over_alpha(found, metric, CONFIDENCE)
    each = compare_conditions(found, metric, CONFIDENCE)
    if max(len(condition.runs) for condition in found) < 2:
        page.text("There is one seed: differences between conditions cannot be told from differences between seeds.")
    if over_alpha:
        # With one alpha a line both families are the same comparisons.
        which = "averaged over α" if len(each) > len(over_alpha) else "at each α"
        _add_verdicts(page, over_alpha, metric, which, f"{stem}-comparisons-over-alpha")
        _add_bootstrap(page, found, metric, stem)
    if len(each) > len(over_alpha):
        _add_verdicts(page, each, metric, "at each α", f"{stem}-comparisons-at-each-alpha")


def _add_verdicts(page: Page, verdicts: list[Verdict], metric: str, which: str, name: str) -> None:
    significant = [verdict for verdict in verdicts if verdict.word(CONFIDENCE) != "not significant"]
    count = f"{len(significant)} of {len(verdicts)} differences are significant"
    page.text(f"**Conclusions, {which}.** {count} after Holm's correction for all {len(verdicts)} comparisons.")
    shown = verdicts if len(verdicts) <= _SENTENCES else significant
    if len(shown) < len(verdicts):
        page.text("Those of the table's comparisons that are not named here are not significant.")
    if shown:
        page.text("\n".join(f"- {verdict.sentence(metric, CONFIDENCE)}" for verdict in shown))
    caption = (
        f"Paired differences of {metric} on common seeds, {which}, with {CONFIDENCE:.0%} t intervals. Effect: the "
        "difference in units of the seed spread (pooled standard deviation over seeds). P: share of pairs of runs in "
        "which the first is higher."
    )
    headers = ["first", "second", "kind", "difference", "effect", "P(first > second)", "p", "corrected p", "verdict"]
    page.table(headers, [_row(verdict) for verdict in verdicts], caption, name=name)


def _add_bootstrap(page: Page, found: list[Condition], metric: str, stem: str) -> None:
    lines = [line for line in series(found) if len(line.conditions) > 1]
    rows = [[line.label, len(line.conditions), _bounds(line.bootstrap(metric))] for line in lines]
    if rows:
        caption = f"{metric} averaged over α: {CONFIDENCE:.0%} stratified bootstrap (seeds drawn again within each α)."
        page.table(["regularizer", "alphas", "mean [low, high]"], rows, caption, name=f"{stem}-over-alpha")


def _bounds(interval: Interval | None) -> str:
    """mean [low, high]."""
    if interval is None:
        return "–"
    return f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]".replace("-", "−")


def _row(verdict: Verdict) -> list[Any]:
    one = verdict.comparison
    sides = [verdict.first, verdict.second, verdict.kind, _signed(one.difference)]
    numbers = [f"{value:.2g}" for value in (one.effect, one.improvement, one.p_value, verdict.adjusted_p)]
    return [*sides, *(number.replace("-", "−").replace("nan", "–") for number in numbers), verdict.word(CONFIDENCE)]


def _signed(interval: Interval) -> str:
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
