"""Tuning every arm of a sweep before it is compared: equal numbers of trials, in rounds, from a ledger of their own.

SWEEP/search/ is an ordinary sweep folder whose points are the trials; search.json in it says what is tuned, and
trials.jsonl what was tried. The settings of a round are a pure function of the rounds before it and are written before
they run, so that a search which is killed at any moment goes on with the same trials.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from multiref_cli.config.canonical import canonical
from multiref_cli.config.plain import digest, to_plain
from multiref_cli.config.schema import Experiment
from multiref_cli.config.sentences import nearest
from multiref_cli.config.weights import AUTO
from multiref_cli.errors import RequestError, RunError
from multiref_cli.evaluation.measures import scorers_among
from multiref_cli.files import read_lines, read_object, write_json, write_lines
from multiref_cli.sweeps.ledger import ENDED, Ledger
from multiref_cli.sweeps.metrics import metrics_of
from multiref_cli.sweeps.plan import Asked, Composer, Plan, arrange, ask
from multiref_cli.sweeps.request import Request, key_of
from multiref_cli.sweeps.sampling import Tried, check_sampler, random_settings, top_share, tpe_settings
from multiref_cli.sweeps.space import Axis, Search
from multiref_cli.tracking.rungs import Rungs, curve_value, read_pruned, rung_step, write_rungs

FOLDER, SETTINGS, TRIALS = "search", "search.json", "trials.jsonl"
# Where trials are looked at, as shares of their steps, and the share of the earlier ones among which one must be:
# the median rule (Golovin et al. 2017), and successive halving by three (Li et al. 2018, asynchronous).
_RUNGS = {"none": ((), 1.0), "median": ((0.25, 0.5, 0.75), 1 / 2), "halving": ((1 / 9, 1 / 3), 1 / 3)}
# Fewer earlier trials than this prune nothing.
_LEAST_EARLIER = 4
# By which rows of the data a run is measured.
_SPLIT = ("path", "source", "split", "held_out_path", "held_out_split")


@dataclass(frozen=True)
class Arm:
    """One condition that is tuned and then compared: `axes` are the tuned keys that its grid does not set itself."""

    id: str
    name: str
    asked: Asked
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Trial:
    """Settings of an arm, and what came of them.

    Attributes:
        arm: its id.
        number: among the trials of the arm, from 0.
        round: of the search, from 0.
        params: tuned key -> override value.
        points: names of its runs, one a seed.
        state: planned, done, pruned or failed.
        value: mean of the metric over seeds, None unless it is done.
        reached: of a pruned trial the step at which it ended, and its curve there.
        metric: that `value` is of.
    """

    arm: str
    number: int
    round: int
    params: dict[str, str]
    points: tuple[str, ...] = ()
    state: str = "planned"
    value: float | None = None
    reached: tuple[int, float] | None = None
    metric: str | None = None

    @property
    def tried(self) -> Tried:
        """What a sampler is told of it."""
        return Tried(self.params, self.value, self.reached)


@dataclass
class Tuning:
    """The search of a sweep: its settings, its arms, its folder, and what has been tried so far."""

    search: Search
    arms: tuple[Arm, ...]
    folder: Path
    trials: list[Trial] = field(default_factory=list)
    _composer: Composer = field(default_factory=Composer)

    @property
    def left(self) -> int:
        """Trials that are not ended, of all arms."""
        return sum(map(self.budget, self.arms)) - sum(trial.state != "planned" for trial in self.trials)

    def budget(self, arm: Arm) -> int:
        """Trials of an arm: one where it has nothing to tune."""
        return self.search.trials if arm.axes else 1

    def of(self, arm: Arm) -> list[Trial]:
        """The trials of an arm."""
        return [trial for trial in self.trials if trial.arm == arm.id]

    def best(self, arm: Arm) -> Trial | None:
        """The finished trial of an arm with the highest value, the earliest of equal ones; None without any."""
        done = [trial for trial in self.of(arm) if trial.value is not None]
        return max(done, key=lambda trial: (trial.value, -trial.number), default=None)

    def plan(self, trials: Sequence[Trial]) -> Plan:
        """The points of some trials; settings that several of them share are run once."""
        arms = {arm.id: arm for arm in self.arms}
        asked: dict[str, Asked] = {}
        for trial in trials:
            one = self.asked(arms[trial.arm], trial.params)
            asked.setdefault(one.experiment.condition_hash, one)
        return arrange(list(asked.values()), self.search.seeds)

    def asked(self, arm: Arm, params: dict[str, str], tuning: bool = True) -> Asked:
        """An arm at some settings: as a trial, or as it is reported."""
        overrides = joined(arm.asked.overrides, self.search.tuning if tuning else (), params)
        return replace(arm.asked, experiment=canonical(self._composer.compose(overrides)), overrides=overrides)

    def try_again(self) -> None:
        """Failed trials count as planned, so that their points are run again; those after them stay as they are."""
        ledger, ids = Ledger(self.folder), {line["name"]: line["id"] for line in Ledger(self.folder).planned()}
        failed = [trial for trial in self.trials if trial.state == "failed"]
        ledger.forget_failures((name, ids[name]) for trial in failed for name in trial.points if name in ids)
        self.trials = [replace(t, state="planned") if t.state == "failed" else t for t in self.trials]

    def chosen(self) -> list[Asked]:
        """Every arm at its own best settings.

        Raises:
            RunError: an arm has no finished trial.
        """
        found = []
        for arm in self.arms:
            best = self.best(arm)
            if best is None:
                raise RunError(
                    f"no trial of {arm.name} is done: all of them failed or were pruned; see {self.folder}/logs."
                )
            found.append(self.asked(arm, best.params, tuning=False))
        return found


def joined(overrides: Sequence[str], tuning: Sequence[str], params: dict[str, str]) -> tuple[str, ...]:
    """Overrides of an arm with those of trials and the tuned ones, each key once, the last one counting."""
    every = [*overrides, *tuning, *(f"{key}={value}" for key, value in params.items())]
    return tuple({key_of(text): text for text in every}.values())


def open_tuning(request: Request, choose: Callable[[Experiment], Any] | None = None) -> Tuning:
    """The search of a request with what its folder holds of it; nothing is written.

    Args:
        request: with a search.
        choose: as of `plan.make_plan`.

    Raises:
        RequestError: a tuned key that is compared too, grids that leave nothing to tune, a range that a run refuses,
            trials that would be measured on the reported rows, another search in the folder, or a missing library; one
            sentence.
    """
    search = request.search
    if search is None:
        raise ValueError("the request has no search")
    _check_keys(request, search)
    if search.trials > search.batch:  # with one batch everything is drawn at random
        check_sampler(search.sampler)
    arms = tuple(_arm(one, search) for one in ask(request, lambda e: _chosen_alpha(e, search, choose))[0])
    if not any(arm.axes for arm in arms):
        keys = " and ".join(f"search.space.{axis.key}" for axis in search.space)
        verb = "is" if len(search.space) == 1 else "are"
        raise RequestError(f"{keys} {verb} fixed by every grid: nothing is left to search; let a grid have it open.")
    tuning = Tuning(search, arms, request.folder / FOLDER)
    _check_ends(tuning)
    _check_metric(tuning)
    tuning.trials = _kept(tuning)
    return tuning


def tune(tuning: Tuning, execute: Callable[[Plan], None]) -> None:
    """Try settings until every arm has had its trials.

    Args:
        tuning: changed: its trials grow.
        execute: runs what is missing of a plan in `tuning.folder`.

    Raises:
        RunError: the launcher ended before a round did, or results lack the metric.
    """
    while True:
        if any(trial.state == "planned" for trial in tuning.trials):
            _place_rungs(tuning)
            execute(tuning.plan(tuning.trials))
        settle(tuning)
        more = proposals(tuning)
        if not more:
            return
        tuning.trials += more
        write_trials(tuning)


def write_trials(tuning: Tuning) -> None:
    """Write search.json and trials.jsonl, each in one piece."""
    search = tuning.search
    arms = [
        {"id": arm.id, "name": arm.name, "overrides": list(arm.asked.overrides), "tuned": [a.key for a in arm.axes]}
        for arm in tuning.arms
    ]
    write_json(tuning.folder / SETTINGS, {"address": search.address, **to_plain(search), "arms": arms})
    write_lines(tuning.folder / TRIALS, [asdict(trial) for trial in tuning.trials])


def proposals(tuning: Tuning) -> list[Trial]:
    """The next round: the next batch of every arm that has trials left."""
    search, found = tuning.search, []
    number = max((trial.round for trial in tuning.trials), default=-1) + 1
    for arm in tuning.arms:
        before = tuning.of(arm)
        wanted = range(len(before), min(len(before) + search.batch, tuning.budget(arm)))
        for trial, params in zip(wanted, _settings(search, arm, before, len(wanted))):
            one = Trial(arm.id, trial, number, params)
            names = [point.name for point in tuning.plan([one]).points]
            found.append(replace(one, points=tuple(names)))
    return found


def settle(tuning: Tuning) -> None:
    """Read what came of every trial.

    Raises:
        RunError: a trial is not ended, or its results lack the metric.
    """
    ledger, search = Ledger(tuning.folder), tuning.search
    ids = {line["name"]: line["id"] for line in ledger.planned()}
    for index, trial in enumerate(tuning.trials):
        states = [ledger.state(name, ids.get(name, "")) for name in trial.points]
        if any(state not in ENDED for state in states):
            raise RunError(f"some trials of the search in {tuning.folder} are not ended")
        ended = replace(trial, state="done", value=None, reached=None)
        if "failed" in states:
            ended = replace(ended, state="failed")
        elif "pruned" in states:
            told = [read_pruned(ledger.folder(name)) or {} for name in trial.points]
            steps = min(one["step"] for one in told if one)
            values = [one["value"] for one in told if one]
            ended = replace(ended, state="pruned", reached=(steps, math.fsum(values) / len(values)))
        else:
            measured = [_value(ledger.folder(name), search.metric) for name in trial.points]
            mean = math.fsum(value for _, value in measured) / len(measured)
            ended = replace(ended, metric=measured[0][0], value=mean)
        tuning.trials[index] = ended
    if tuning.trials:
        write_trials(tuning)


def tuned_keys(sweep: Path) -> tuple[str, ...]:
    """The keys that the search of a sweep tunes; none where it has no search."""
    content = read_object(sweep / FOLDER / SETTINGS) or {}
    return tuple(axis["key"] for axis in content.get("space", ()))


def _check_keys(request: Request, search: Search) -> None:
    from multiref_cli.config.compose import expand_axes

    if request.rivals is not None:
        raise RequestError(
            "rivals=true is for settings that are given: search tunes conditions alone; drop one of them."
        )
    tuned = {axis.key for axis in search.space}
    for text in request.common:
        if key_of(text) in tuned:
            raise RequestError(f"{key_of(text)} is tuned by search.space.{key_of(text)}; drop {text}, or the range.")
    for grid in request.grids:
        for key in expand_axes([*request.common, *grid])[0]:
            if key in tuned:
                raise RequestError(f"{key} is an axis that is compared and tuned: drop the axis, or the range.")
    for text in search.tuning:
        if key_of(text) in tuned:
            raise RequestError(f"search.tuning sets {text}, which is tuned: drop it, or the range.")


def _chosen_alpha(experiment: Experiment, search: Search, choose: Callable[[Experiment], Any] | None) -> Any:
    """Weights where alpha is a rule; `auto` reads beta, which must then not be tuned."""
    reads = [a.key for a in search.space if a.key == "beta" or a.key.startswith("regularizer.")]
    if experiment.rule == AUTO and reads:
        raise RequestError(f"alpha=auto is chosen for one {reads[0]}, which is tuned: give alpha=balanced, or numbers.")
    return experiment.evenly.alpha if choose is None else choose(experiment)


def _arm(asked: Asked, search: Search) -> Arm:
    """An arm; a key that its own grid sets stays as it is."""
    own = {key_of(text) for text in asked.overrides}
    axes = tuple(axis for axis in search.space if axis.key not in own)
    name = asked.experiment.condition
    if any(axis.key == "beta" for axis in axes):
        name = re.sub(r"-b[\d.e+-]+$", "", name)
    if asked.experiment.world:
        name += f"-w{asked.experiment.world}"
    return Arm(digest([asked.experiment.result_hash, [a.key for a in axes]]), name, asked, axes)


def _check_ends(tuning: Tuning) -> None:
    """Compose every arm at the ends of its ranges: what a run refuses is said before anything is written."""
    for arm in tuning.arms:
        low, high = ({axis.key: axis.ends()[end] for axis in arm.axes} for end in (0, 1))
        choices = [low | {axis.key: choice} for axis in arm.axes for choice in axis.choices]
        for params in [low, high, *choices]:
            trial = tuning.asked(arm, params).experiment
            if _rows(trial) == _rows(tuning.asked(arm, params, tuning=False).experiment):
                raise RequestError(
                    "trials would be measured on the rows that the report is about: give search.tuning another split, "
                    "such as search.tuning=data.held_out_split=dev, or search.tuning=evaluation.split=train."
                )


def _check_metric(tuning: Tuning) -> None:
    """Refuse a metric that the trials of an arm cannot have."""
    metric = tuning.search.metric
    if metric is None:
        return
    for arm in tuning.arms:
        experiment = tuning.asked(arm, {axis.key: axis.at(0.5) for axis in arm.axes}).experiment
        names, begun = metrics_of(experiment)
        if metric not in names and not metric.startswith(begun):
            shown = nearest(metric, names) or f"; it has {', '.join(names)}"
            raise RequestError(f"search.metric is {metric!r}, which no trial of {arm.name} will have{shown}.")


def _rows(experiment: Experiment) -> list[Any]:
    return [*(to_plain(getattr(experiment.data, name)) for name in _SPLIT), experiment.evaluation.split]


def _kept(tuning: Tuning) -> list[Trial]:
    """The trials that the folder holds.

    Raises:
        RequestError: they are of another search.
    """
    content = read_object(tuning.folder / SETTINGS)
    if content is None:
        return []
    rows = read_lines(tuning.folder / TRIALS)
    if content.get("address") != tuning.search.address and not _only_measured_otherwise(content, rows, tuning.search):
        raise RequestError(
            f"{tuning.folder} holds another search (other ranges, sampler, tuning or seeds): give another run.dir."
        )
    kept = [
        Trial(**{**row, "points": tuple(row["points"]), "reached": tuple(row["reached"]) if row["reached"] else None})
        for row in rows
    ]
    arms = {arm.id for arm in tuning.arms}
    return [trial for trial in kept if trial.arm in arms and trial.number < tuning.search.trials]


def _only_measured_otherwise(content: dict[str, Any], rows: Sequence[dict[str, Any]], search: Search) -> bool:
    """Whether a search differs in its metric or curve alone, by which nothing has been chosen or stopped so far."""
    unread = {"trials", "batch"}
    if all(row.get("value") is None for row in rows):
        unread.add("metric")
    if all(row.get("state") != "pruned" for row in rows):
        unread.add("curve")
    return all(content.get(key) == value for key, value in to_plain(search).items() if key not in unread)


def _settings(search: Search, arm: Arm, before: Sequence[Trial], count: int) -> list[dict[str, str]]:
    """The next settings of an arm: the first batch at random, the same in all arms; then as the sampler says."""
    if count == 0 or not arm.axes:
        return [{} for _ in range(count)]
    if search.sampler == "random" or len(before) < search.batch:
        return [random_settings(arm.axes, search.seed, len(before) + i) for i in range(count)]
    seed = int(digest([search.seed, arm.id, len(before)]), 16) % 2**31
    return tpe_settings(arm.axes, seed, [trial.tried for trial in before], count)


def _place_rungs(tuning: Tuning) -> None:
    """Say to the trials that have not ended what they must reach, from the rounds before theirs."""
    shares, top = _RUNGS[tuning.search.pruning]
    curve = tuning.search.curve
    if not shares or curve is None:
        return
    for arm in tuning.arms:
        trials = tuning.of(arm)
        for trial in trials:
            earlier = [one for one in trials if one.round < trial.round]
            if trial.state != "planned" or len(earlier) < _LEAST_EARLIER:
                continue
            for place, name in enumerate(trial.points):
                curves = [_curve(tuning.folder / one.points[place], curve, shares) for one in earlier]
                if not any(curves):
                    logged = read_lines(tuning.folder / earlier[0].points[place] / "metrics.jsonl")
                    there = ", ".join(sorted(set().union(*logged))) or "nothing"
                    raise RunError(
                        f"search.curve={curve} is in metrics.jsonl of no trial, which hold {there}; {_again('curve')}"
                    )
                least = [(s, [c[s] for c in curves if s in c]) for s in shares]
                enough = [(s, top_share(values, top)) for s, values in least if len(values) >= _LEAST_EARLIER]
                write_rungs(tuning.folder / name, Rungs(curve, tuple(enough)))


def _curve(folder: Path, metric: str, shares: Sequence[float]) -> dict[float, float]:
    """What the training curve of a run was worth at each rung that it reached."""
    rows, status = read_lines(folder / "metrics.jsonl"), read_object(folder / "status.json") or {}
    last = max((row.get("step", 0) for row in rows), default=0)
    steps = {share: rung_step(share, status.get("total", 0)) for share in shares}
    found = {share: curve_value(rows, metric, step) for share, step in steps.items() if step <= last}
    return {share: value for share, value in found.items() if value is not None}


def _again(key: str) -> str:
    return f"go on by the sweep's own command with search.{key}=ANOTHER and the same run.dir: what is trained is kept."


def _value(folder: Path, metric: str | None) -> tuple[str, float]:
    """The metric that a run is judged by, and its mean."""
    metrics = (read_object(folder / "results.json") or {}).get("metrics", {})
    name = metric or next(iter(reversed(scorers_among(metrics))), "score")
    if name not in metrics or metrics[name]["mean"] is None:
        there = ", ".join(sorted(metrics)) or "nothing"
        raise RunError(f"search.metric: {folder}/results.json holds no {name}; it holds {there}; {_again('metric')}")
    return name, float(metrics[name]["mean"])
