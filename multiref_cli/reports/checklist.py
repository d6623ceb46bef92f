"""A checklist for who wants to do it again: what was searched and chosen, what varies, what it cost, on which terms."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from multiref_cli.reports.collect import Condition, Run
from multiref_cli.reports.metrics import scorers
from multiref_cli.reports.page import Page
from multiref_cli.reports.search import searched
from multiref_cli.reports.varied import named, varied
from multiref_cli.reports.wording import listed
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.search import FOLDER
from multiref_cli.tracking.progress import duration
from multiref_cli.tracking.run_dir import read_choices

_BEGIN, _END = ("started", "resumed", "retried", "pass"), ("done", "failed", "stopped", "pass_done", "pass_failed")


def add_checklist(page: Page, found: Sequence[Condition], sweeps: Sequence[Path], folders: Sequence[Path]) -> None:
    """Add the checklist: one row a question, every answer read from the runs and from the sweeps' events.

    Args:
        page: to add to.
        found: all conditions of the page.
        sweeps: sweep folders.
        folders: everything that was asked for, for the choices of alpha in it.
    """
    runs = [run for condition in found for run in condition.runs]
    rows = [
        ["ranges searched", _ranges(found, sweeps)],
        ["how values were chosen", _chosen(found, sweeps, folders)],
        ["what differs between repetitions", _repetitions(runs)],
        ["what is held out", _held_out(found)],
        ["planned and not here", _missing(sweeps, {run.folder for run in runs})],
        ["compute", _compute(sweeps, runs)],
        ["code", _code(runs)],
        ["licenses of code", _licenses(runs)],
        ["terms of models and data", _terms(found)],
    ]
    page.section("Reproducibility checklist")
    page.table(["question", "answer"], rows, "Answered from the files of the runs and of the sweeps.", name="checklist")


def _ranges(found: Sequence[Condition], sweeps: Sequence[Path]) -> str:
    said = [named(varied(found), 20), *(made[0] for one in sweeps if (made := searched(one)) is not None)]
    return ", ".join(one for one in dict.fromkeys(said) if one) or "nothing: one condition"


def _chosen(found: Sequence[Condition], sweeps: Sequence[Path], folders: Sequence[Path]) -> str:
    said = [f"all {len(found)} conditions that finished are reported, none was left out by its result"]
    rules = {str(choice.get("rule")) for folder in folders for choice in read_choices(folder)}
    said += [f"alpha={rule} is computed from training prompts before any training" for rule in sorted(rules)]
    said += [made[1] for sweep in sweeps if (made := searched(sweep)) is not None]
    for sweep in sweeps:
        asked = Ledger(sweep).description().get("history") or []
        if len(asked) > 1:
            said.append(f"{sweep.name} was asked for {len(asked)} times with other axes; the last request is reported")
    return "; ".join(said) + "."


def _repetitions(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    new = any(run.experiment.policy.new is not None for run in runs)
    return (
        f"{len(seeds)} seed{'s' * (len(seeds) != 1)} ({listed([str(seed) for seed in seeds], 10)}): the order of "
        f"rows, sampling and dropout while training{', the first weights' * new}; rows, models to start from, and "
        "prompts and random numbers of the evaluation are the same for all."
    )


def _held_out(found: Sequence[Condition]) -> str:
    said = dict[str, None]()
    for condition in found:
        settings, experiment = condition.experiment.evaluation, condition.experiment
        n = condition.first.metrics.get("length", {}).get("n")
        if n is None:
            continue
        names = ", ".join(scorers([condition]))
        said[
            f"{experiment.data.name}: {int(n)} prompts × {settings.samples_per_prompt} samples at temperature "
            f"{settings.temperature:g}, scored by {names or 'nothing'}"
        ] = None
    return "; ".join(said) + "." if said else "no prompts are sampled."


def _missing(sweeps: Sequence[Path], read: set[Path]) -> str:
    states: Counter[str] = Counter()
    for sweep in sweeps:
        ledger = Ledger(sweep)
        for point in ledger.planned():
            known = ledger.folder(point["name"]) in read
            states["done" if known else ledger.state(point["name"], point["id"])] += 1
    missing = {state: count for state, count in states.items() if state != "done"}
    if not sweeps:
        return "runs were given one by one."
    if not missing:
        return f"nothing: all {states['done']} points are done."
    return ", ".join(f"{count} {state}" for state, count in missing.items()) + f" of {sum(states.values())} points."


def spent(events: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], int]:
    """Seconds of work by how it ended (done, failed, stopped, and passes made once), and attempts that were killed.

    An attempt lasts from its beginning to its end; one that was followed by another without an end was killed.
    """
    seconds, killed, begun = dict[str, float](), 0, dict[str, float]()
    for event in events:
        kind, name = str(event["kind"]), str(event["name"])
        if kind in _BEGIN:
            killed += name in begun
            begun[name] = float(event["at"])
        elif kind in _END and name in begun:
            ended = "passes made once" if kind.startswith("pass") else kind
            seconds[ended] = seconds.get(ended, 0.0) + float(event["at"]) - begun.pop(name)
    return seconds, killed


def _compute(sweeps: Sequence[Path], runs: Sequence[Run]) -> str:
    seconds, killed = dict[str, float](), 0
    for sweep in sweeps:
        for folder in (sweep, sweep / FOLDER):  # its points, and the trials of its search
            own, more = spent(Ledger(folder).events()[0] if folder.is_dir() else ())
            killed += more
            for ended, value in own.items():
                seconds[ended] = seconds.get(ended, 0.0) + value
    if not seconds:
        return "not recorded: runs outside of a sweep keep no times of failed attempts."
    words = {"done": "points that finished", "failed": "points that failed", "stopped": "attempts that were stopped"}
    parts = [f"{words.get(ended, ended)} {duration(value)}" for ended, value in seconds.items()]
    lost = f"; {killed} attempts were killed, their time is not known" if killed else ""
    machines = dict.fromkeys(_machine(run) for run in runs)
    return f"{duration(sum(seconds.values()))} of work: {', '.join(parts)}{lost}; on {listed([*machines])}."


def _machine(run: Run) -> str:
    hardware = run.manifest.get("hardware") or {}
    gpus = ", ".join(hardware.get("gpus") or [])
    return gpus or f"{hardware.get('processor', 'an unknown processor')}, {hardware.get('cores', '?')} cores"


def _code(runs: Sequence[Run]) -> str:
    commits = dict[str, None]()
    for run in runs:
        git = run.manifest.get("git") or {}
        text = str(git.get("commit") or "an installed package")[:20]
        commits[text[:12] + " with local changes" if git.get("dirty") else text if " " in text else text[:12]] = None
    return f"multiref, {'commit ' if any(' ' not in c for c in commits) else ''}{listed([*commits])}."


def _licenses(runs: Sequence[Run]) -> str:
    """Names, versions as the runs had them, and licenses as the installed packages state them."""
    found = dict[str, None]()
    for run in runs:
        for name, version in (run.manifest.get("versions") or {}).items():
            found[f"{name} {version}" + ("" if name == "python" else f" ({_license(name)})")] = None
    return ", ".join(found) + "." if found else "unknown."


def _license(package: str) -> str:
    """As the installed package states it, in a few words."""
    try:
        stated = metadata.metadata(package).json
    except metadata.PackageNotFoundError:
        return "not installed here"
    classified = [str(c).rpartition(" :: ")[2] for c in stated.get("classifier") or () if str(c).startswith("License")]
    text = str(stated.get("license_expression") or stated.get("license") or "")
    return text if 0 < len(text) <= 40 else ", ".join(classified) or "license not stated"


def _terms(found: Sequence[Condition]) -> str:
    """What the models' own cards say, as far as a run's card repeats it."""
    said = dict[str, None]()
    for condition in found:
        experiment = condition.experiment
        own = _card(condition.first.folder / "policy" / "README.md").get("license")
        for path in (experiment.policy.path, *(reference.path for reference in experiment.references)):
            if path.startswith("toy:"):
                said["toy: models are part of multiref"] = None
            elif path == experiment.policy.path and isinstance(own, str):
                said[f"{path}: {own}"] = None
            else:
                said[f"{path}: see its card"] = None
        data = experiment.data.path or experiment.data.name
        said["toy: data are part of multiref" if data.startswith("toy:") else f"data {data}: see its card"] = None
    return "; ".join(said) + "."


def _card(path: Path) -> dict[str, Any]:
    """The front matter of a model card; empty where there is none."""
    try:
        parts = path.read_text().split("---\n", 2)
        content = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
