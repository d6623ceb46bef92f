"""The report of sweeps: what was run, what came out, what may be concluded, and from where."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from multiref_cli.evaluation.crossed import estimate
from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports import figures
from multiref_cli.reports import metrics as measured
from multiref_cli.reports.collect import Condition, alpha_text, flat, telling
from multiref_cli.reports.comparisons import add_comparisons
from multiref_cli.reports.markup import slug
from multiref_cli.reports.metrics import heading, scorers
from multiref_cli.reports.page import Page
from multiref_cli.reports.samples import add_samples
from multiref_cli.reports.verdicts import Verdict, compare_job, series
from multiref_cli.reports.wording import listed, plus_minus
from multiref_cli.types import Figure

CONFIDENCE = 0.95


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


def titles(groups: Sequence[Sequence[Condition]], over_worlds: bool = False) -> list[str]:
    """The name of each job, and what it differs in from others of the same name.

    Args:
        groups: conditions of each job.
        over_worlds: each stands for the same job in all worlds.
    """
    names = [(job_without_world if over_worlds else job_name)(group[0]) for group in groups]
    aside = ("seed", "regularizer", "alpha", "beta", *["world"] * over_worlds)
    settings = [flat(group[0].experiment.content(*aside)) for group in groups]
    found = []
    for name, own in zip(names, settings):
        same = [one for other, one in zip(names, settings) if other == name]
        differing = [key for key in own if any(one.get(key) != own[key] for one in same)]
        told = ", ".join(f"{key.rpartition('.')[2]}={own[key]}" for key in telling(differing, same))
        found.append(f"{name} ({told})" if told else name)
    return found


def add_job(
    page: Page, found: list[Condition], stem: str = "", title: str = "", verdicts: Sequence[Verdict] | None = None
) -> Sequence[Verdict]:
    """Add one job: setting, tables of results, comparisons, figures; returns the comparisons.

    Args:
        page: to add to.
        found: conditions of the job.
        stem: what the names of its figures and tables begin with; empty: it is the only job of the page.
        title: of its section, where it is not the only one.
        verdicts: its comparisons, where they are made already.
    """
    verdicts = compared(found) if verdicts is None else verdicts
    level = 3 if stem else 2
    page.section((title or job_name(found[0])) if stem else "Setting").text(_setting(found))
    page.section("Results", level)
    _add_results(page, found, stem)
    if verdicts:
        page.section("Comparisons", level)
        seeds = max(len(condition.runs) for condition in found)
        add_comparisons(page, verdicts, f"{stem}-comparisons".strip("-"), seeds, CONFIDENCE)
    add_samples(page, found, f"{stem}-samples".strip("-"), level)
    if found[0].regularized:
        for metric in scorers(found):
            _add_figures(page, found, metric, stem, level)
    _add_curves(page, found, stem, level)
    return verdicts


def compared(found: Sequence[Condition]) -> list[Verdict]:
    """All comparisons of a job, one family."""
    return compare_job(found, scorers(found), CONFIDENCE) if found[0].regularized else []


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
    rates = {condition.experiment.optimizer.learning_rate for condition in found}
    rate = f"learning rate {rates.pop():g}" if len(rates) == 1 else "a learning rate of each condition's own"
    text = (
        f"Policy `{experiment.policy.path}`, data `{experiment.data.path}`, {steps}, "
        f"{rate}. {len(found)} conditions, {len(seeds)} "
        f"seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))}); each run is scored on n = {n} held-out prompts "
        f"× {experiment.evaluation.samples_per_prompt} samples at temperature "
        f"{experiment.evaluation.temperature:g}. The same seed sees the same prompts in the same order in every "
        "condition."
    )
    if first.regularized:
        named = ", ".join(f"`{r.name}` ({r.path})" for r in experiment.references)
        text += f" References in the order of α: {named}."
    notes = _notes(found)
    return text + ("\n\n" + "\n".join(f"- {note}" for note in notes) if notes else "")


def _notes(found: Sequence[Condition]) -> list[str]:
    """What runs noted; a note that not all conditions share says whose it is."""
    whose: dict[str, dict[str, None]] = {}
    for condition in found:
        for run in condition.runs:
            for note in run.results.get("notes") or []:
                whose.setdefault(note, {})[condition.label] = None
    return [note if len(own) == len(found) else f"{listed([*own])}: {note}" for note, own in whose.items()]


def _add_results(page: Page, found: list[Condition], stem: str) -> None:
    """Tables of scores, of held-out pairs, of objectives and distances."""
    names = measured.scores(found)
    untrained = _untrained(found, scorers(found))
    last = f"Untrained models: {CONFIDENCE:.0%} interval over prompts." if untrained else ""
    _add_table(page, found, names, f"{stem}-results".strip("-"), last, untrained)
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
    page: Page,
    found: list[Condition],
    names: list[str],
    name: str,
    last: str = "",
    untrained: Sequence[tuple[str, dict[str, str]]] = (),
) -> None:
    """One row a condition, above them one an untrained model; nothing where nothing was measured."""
    if not names:
        return
    metrics, twice = measured.distinct(found, names)
    estimators = any(condition.estimator != "–" for condition in found)
    headers = ["condition", "level, estimator" if estimators else "level", "seeds", *map(heading, metrics)]
    rows: list[list[Any]] = [
        [label, "–", "–", *(values.get(metric, "–") for metric in metrics)] for label, values in untrained
    ]
    noise = False
    for condition in in_order(found):
        how = condition.level + ("" if condition.estimator == "–" else f", {condition.estimator}")
        below = [measured.is_noise(condition, metric) for metric in metrics]
        noise |= any(below)
        cells = [plus_minus(condition.interval(m)) + "†" * b for m, b in zip(metrics, below)]
        rows.append([condition.label, how, len(condition.runs), *cells])
    parts = ["Means over seeds.", populations(found, metrics), measured.meaning(metrics), last, twice]
    parts += [measured.NOISE] if noise else []
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


def against_alpha(found: list[Condition], metric: str, stem: str = "") -> tuple[str, Figure | None, str]:
    """Name, figure and caption of a metric against the weight of the first of two references."""
    start = start_value(found[0], metric)
    return (
        slug(f"{stem}-{metric}-against-alpha".strip("-")),
        figures.metric_against_alpha(found, metric, metric, start.mean if start else None),
        f"{metric} against the weight of the first reference: mean over seeds. {populations(found, [metric])} "
        "Bands: each reference alone under the same score and β. Dotted: no penalty. Solid gray: before training.",
    )


def _add_figures(page: Page, found: list[Condition], metric: str, stem: str, level: int) -> None:
    """Figures of one metric, if there are any that the page does not have yet."""
    over_alpha = against_alpha(found, metric, stem)
    own = {r: reference_value(found[0], metric, r) for r in found[0].first.references}
    untrained = {name: value.mean for name, value in own.items() if value is not None}
    stem = f"{stem}-{metric}".strip("-")
    drawn = [
        over_alpha if not page.has(over_alpha[0]) else (over_alpha[0], None, ""),
        (
            f"{stem}-simplex",
            figures.simplex(found, metric, metric),
            f"{metric} over the weights of the three references, mean over seeds.",
        ),
        (
            f"{stem}-against-kl",
            figures.reward_against_divergence(found, metric, metric, untrained),
            f"{metric} against the distance from each reference: one point a condition, with the {CONFIDENCE:.0%} "
            "intervals of the table of results both ways. Hollow: one reference alone, in the color of its score.",
        ),
    ]
    _add_drawn(page, metric, drawn, level)


def _add_curves(page: Page, found: list[Condition], stem: str, level: int) -> None:
    drawn = [
        (
            f"{stem}-learning-curves".strip("-"),
            figures.learning_curves(_for_curves(found)),
            "Training metrics, smoothed over a tenth of the run: mean over seeds and its t interval. Of each line over "
            "α the condition in the middle is drawn, beside baselines of the first. Axes follow the arms that stay "
            "together; what leaves them is named.",
        ),
        (
            f"{stem}-disagreement".strip("-"),
            figures.disagreement(found) if found[0].regularized else None,
            "How much the references disagree at states that the policy visits (last quarter of training).",
        ),
    ]
    _add_drawn(page, "Training", drawn, level)


def _add_drawn(page: Page, title: str, drawn: Sequence[tuple[str, Figure | None, str]], level: int) -> None:
    """A section of those figures that there are."""
    there = [(name, figure, caption) for name, figure, caption in drawn if figure is not None]
    if there:
        page.section(title, level)
    for name, figure, caption in there:
        page.figure(name, figure, caption)


def _for_curves(found: list[Condition], most: int = 7) -> list[Condition]:
    lines = series(found)
    middles = [line.conditions[len(line.conditions) // 2] for line in lines]
    setting = middles[0].setting if middles else None
    return [*middles, *(c for c in found if c.role == "beta0" or (c.role == "single" and c.setting == setting))][:most]


def write_pending(page: Page, folders: Sequence[Path], read: Collection[Path] = ()) -> None:
    """Say which points of a sweep are missing from the report; those in `read` are not."""
    from multiref_cli.sweeps.ledger import Ledger

    for folder in folders:
        ledger = Ledger(folder)
        others = [point for point in ledger.planned() if ledger.folder(point["name"]) not in read]
        missing = [(point, ledger.state(point["name"], point["id"])) for point in others]
        missing = [(point, state) for point, state in missing if state != "done"]
        if missing:
            shown = "\n".join(f"- `{point['name']}`: {state}" for point, state in missing[:20])
            more = f"\n- and {len(missing) - 20} more" if len(missing) > 20 else ""
            page.text(f"**{len(missing)} points of `{folder.name}` are not in this report:**\n\n{shown}{more}")


def summary_line(found: Sequence[Condition]) -> str:
    """One sentence on what a report holds."""
    runs = sum(len(condition.runs) for condition in found)
    grid = [one for one in found if one.role == "grid" and one.weights and not one.experiment.adaptive_weights]
    alphas = {alpha_text(one.weights) for one in grid}
    return f"{runs} runs in {len(found)} conditions" + (f", {len(alphas)} values of α" if len(alphas) > 1 else "") + "."
