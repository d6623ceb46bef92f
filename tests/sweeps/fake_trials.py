"""Trials that behave like runs and cost nothing: a curve of steps, a score with a known optimum in beta and rate."""

import hashlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from multiref_cli.config.schema import Experiment
from multiref_cli.errors import RunError
from multiref_cli.sweeps import plan as plans
from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.plan import Pass, Plan
from multiref_cli.sweeps.pool import run_local
from multiref_cli.sweeps.request import Request, parse_request
from multiref_cli.sweeps.search import Tuning, open_tuning, proposals, tune
from multiref_cli.sweeps.worker import Work, work_off
from multiref_cli.tracking.run_dir import RunDir
from multiref_cli.tracking.rungs import read_rungs, write_pruned

SPACE = ["search.space.beta=[0.01,10,log]", "search.space.optimizer.learning_rate=[1e-5,1e-2,log]"]
BASE = ["experiment=offline_toy", "baselines=false", "search.tuning=data.held_out_split=dev"]
STEPS = 20


def optimum(experiment: Experiment) -> tuple[float, float]:
    """log10 of the best beta and learning rate of an arm: one decade apart for every regularizer."""
    title = experiment.penalty.title.removesuffix("_token")
    place = {"rkl": 0.0, "fkl": -1.0, "mrpo": 0.5}[title]
    return place, -3.5 + place / 2


def score(experiment: Experiment) -> float:
    """1 at the optimum of the arm, less by the squared distance in decades, plus a little noise of the seed."""
    if experiment.beta == 0:
        return 0.0
    beta, rate = optimum(experiment)
    distance = (math.log10(experiment.beta) - beta) ** 2
    distance += (math.log10(experiment.optimizer.learning_rate) - rate) ** 2
    noise = int(hashlib.sha256(experiment.hash.encode()).hexdigest()[:8], 16) / 16**8 - 0.5
    return 1 - distance + float(os.environ.get("FAKE_NOISE", "0.02")) * noise


def run(experiment: Experiment, folder: Path, resume: bool, overrides: tuple[str, ...]) -> None:
    """A curve that rises to the score; it stops at a rung as the training loop does."""
    directory = RunDir(folder)
    if not resume:
        directory = RunDir.create(folder, "fake: true\n", list(overrides), {"command": "fake"})
    rungs, final = read_rungs(folder), score(experiment)
    directory.forget_after(0)
    if os.environ.get("FAKE_FAIL") and experiment.beta > 1:
        raise RunError("the loss is nan")
    for step in range(1, STEPS + 1):
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        directory.log({"step": step, "reward": final * step / STEPS})
        missed = rungs.missed(directory.metrics(), step, STEPS) if rungs and step < STEPS else None
        if missed is not None:
            write_pruned(folder, missed)
            directory.write_status("stopped", step, STEPS, str(missed))
            return
    value = {"mean": final, "ci_low": final, "ci_high": final, "n": 1}
    directory.write_results({"objective/toy_gold": value, "toy_gold": value}, experiment.hash, experiment.seed, "fake")
    directory.write_status("done", STEPS, STEPS)


def prepare(one: Pass) -> None:
    """Nothing is made."""


def request_of(folder: Path, *overrides: str) -> Request:
    """A sweep with a search over SPACE."""
    return parse_request([*BASE, *SPACE, *overrides, f"run.dir={folder}"])


def search(
    request: Request,
    workers: int = 0,
    again: Tuning | None = None,
    start: Callable[[Work, int], None] = lambda work, workers: run_local(work, workers, lambda: None),
) -> Tuning:
    """Run the search of a request with fake trials, in this process or in some others that `start` starts."""
    tuning = again or open_tuning(request)
    ledger = Ledger(tuning.folder)
    inner = replace(request, folder=tuning.folder, seeds=tuning.search.seeds)
    if not (tuning.folder / "sweep.yaml").is_file():
        ledger.write_plan(inner, Plan((), ()), {})

    def execute(plan: Plan) -> None:
        ledger.write_plan(inner, plan, {})
        if workers:
            import fake_trials  # under its own name, so that the workers can unpickle its functions

            functions = fake_trials.run, fake_trials.prepare
        else:
            functions = run, prepare
        work = Work(tuning.folder, plan, uuid.uuid4().hex, *functions, beat_seconds=0.5)
        start(work, workers) if workers else work_off(work)

    tune(tuning, execute)
    return tuning


def on_paper(tuning: Tuning) -> Tuning:
    """A search without a folder: every trial has its value at once."""
    arms = {arm.id: arm for arm in tuning.arms}
    while found := proposals(tuning):
        values = [score(tuning.asked(arms[one.arm], one.params).experiment) for one in found]
        tuning.trials += [replace(one, state="done", value=value) for one, value in zip(found, values)]
    return tuning


def told(folder: Path) -> list[dict]:
    """The lines of a search's trials."""
    return [json.loads(line) for line in (folder / "search" / "trials.jsonl").read_text().splitlines()]


if __name__ == "__main__":  # FOLDER WORKERS OVERRIDES...: a search in a process of its own, to be killed
    plans._check_parts = lambda experiments: None
    search(request_of(Path(sys.argv[1]), *sys.argv[3:]), int(sys.argv[2]))
