"""Runs and sweeps that are killed again and again; run: python tests/bench/trial_kills.py [--kills 200] [--write]

A command is killed with SIGKILL at a random moment of a random one of its phases and given again, as a user would,
until so many kills have struck; then it ends undisturbed. All that it left (every logged number, samples, results, the
policy's bytes, its files, times aside) must equal what the same command leaves that nobody disturbed. Five jobs: DPO
from an empty reference store, GRPO inside windows of two iterations, GRPO of a model that is made first, runs beside a
process that prunes the store without a pause, and a sweep whose workers and parents are killed. Counts by phase; exit
code 1 if anything is wrong. With TMPDIR in memory (/dev/shm) it takes half of the time.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from tiny import (
    Clock,
    again,
    difference,
    embedded,
    ended,
    forked,
    forked_call,
    fresh,
    left,
    make_world,
    offline,
    online,
    phase,
    run_trial,
)

SHARES = {"dpo": 0.32, "grpo": 0.28, "embedded": 0.14, "prune": 0.14, "sweep": 0.12}
SECONDS = 300.0  # after which a command counts as hanging


class Tally:
    """Counts by job and phase."""

    def __init__(self):
        self.counts: dict[str, Counter] = {}

    def add(self, row: str, *columns: str) -> None:
        """One more in some columns of a row."""
        self.counts.setdefault(row, Counter()).update(columns)


class Disturber:
    """Kills commands and judges what they leave; one for a whole trial."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.rng, self.tally = root, random.Random(seed), Tally()

    def kill(self, pid: int) -> None:
        """End a process without a word."""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def strike(self, pid: int, look, phases: dict[str, float]) -> int | None:
        """Wait for a random moment of a random phase; the exit code where the command ended before, None when it came.

        Args:
            pid: of the command.
            look: says in which phase it is.
            phases: seconds that each lasts.
        """
        rare = [name for name in ("making a model", "checkpoint write") if name in phases]
        targets = sorted(phases) + 4 * rare
        target, moment, late = self.rng.choice(targets), float("inf"), time.monotonic() + SECONDS
        while time.monotonic() < min(moment, late):
            if moment == float("inf") and look() == target:
                moment = time.monotonic() + self.rng.uniform(0, phases[target])
            code = ended(pid, 0)
            if code is not None:
                return code
            time.sleep(0.0005 if target == "checkpoint write" else 0.01)
        return None

    def runs(self, job: str, overrides: list[str], kills: int, clock: Clock, cold: bool) -> None:
        """Kill runs of one job until so many kills have struck; `cold`: each from an empty cache."""
        log, cache = self.root / f"{job}.log", self.root / f"cache-{job}"
        os.environ["MULTIREF_CACHE"] = str(fresh(cache))
        calm, wild = self.root / f"{job}-calm", self.root / f"{job}-wild"
        phases = {"checkpoint write": 0.002} | self.phases(
            forked(again(calm, overrides), log), lambda: where(job, calm, cache)
        )
        right, struck = left(calm), 0
        print(f"{job}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items()), flush=True)
        while struck < kills and not clock.over:
            shutil.rmtree(wild, ignore_errors=True)
            if cold:
                fresh(cache)
            seen: list[str] = []
            while True:
                pid, striking = forked(again(wild, overrides), log), struck < kills and not clock.over
                code = self.strike(pid, lambda: where(job, wild, cache), phases) if striking else ended(pid, SECONDS)
                if code is None:
                    self.kill(pid)
                    if not striking:
                        self.tally.add(f"{job}: end", "hangs")
                        return
                    struck += 1
                    seen.append(where(job, wild, cache))
                    self.tally.add(f"{job}: {seen[-1]}", "kills")
                    continue
                self.tally.add(f"{job}: {seen[-1] if seen else 'not struck'}", verdict(job, code, right, wild, log))
                break
            print(f"{job}: {struck} of {kills} kills, {', '.join(seen)}", flush=True)

    def phases(self, pid: int, look) -> dict[str, float]:
        """Seconds of each phase of a command that nobody disturbs."""
        found, before, code = dict[str, float](), time.monotonic(), None
        while (code := ended(pid, 0)) is None:
            now, name = time.monotonic(), look()
            found[name], before = found.get(name, 0.0) + now - before, now
            time.sleep(0.01)
        assert code == 0, f"{pid} ended with {code}"
        return found

    def beside_prune(self, overrides: list[str], kills: int, clock: Clock) -> None:
        """Kill runs beside a process that prunes the store without a pause."""
        log, store = self.root / "prune-store.log", self.root / "cache-prune" / "store"

        def prune() -> None:
            from multiref_cli.references.store import ReferenceStore

            while True:
                ReferenceStore(store).prune(everything=True)
                time.sleep(0.02)

        pruning = forked_call(prune, log)
        try:
            self.runs("prune", overrides, kills, clock, cold=False)
        finally:
            if ended(pruning, 0) is None:
                self.kill(pruning)
            else:
                self.tally.add("prune: the pruning process", "stuck")
                print(log.read_text()[-1000:], flush=True)

    def sweep(self, overrides: list[str], kills: int, clock: Clock) -> None:
        """Kill workers and parents of a sweep of four points."""
        os.environ["MULTIREF_CACHE"] = str(fresh(self.root / "cache-sweep"))
        log, calm, wild, struck = self.root / "sweep.log", self.root / "sweep-calm", self.root / "sweep-wild", 0

        def start(folder: Path) -> int:
            """The sweep as a user types it."""
            grid = [*overrides, "regularizer=rkl,mrpo", "alpha=0.3", "seeds=1", f"run.dir={folder}"]
            return forked(["sweep", *grid, "--workers", "2", "--plain", "--retry-failed"], log)

        begun = time.monotonic()
        assert ended(start(calm), SECONDS) == 0, log.read_text()[-2000:]
        life, right = time.monotonic() - begun, points(calm)
        print(f"sweep: {life:.1f} s undisturbed, {len(right)} points", flush=True)
        while struck < kills and not clock.over:
            shutil.rmtree(wild, ignore_errors=True)
            failures = 0
            while True:
                parent, code = start(wild), None
                while code is None and struck < kills and not clock.over:
                    code = ended(parent, self.rng.uniform(0.3, life / 2))
                    kind, victims = "parent" if self.rng.random() < 0.4 else "worker", workers_at_work(wild)
                    if code is None and (kind == "parent" or victims):
                        os.kill(parent if kind == "parent" else self.rng.choice(victims), signal.SIGKILL)
                        struck += 1
                        self.tally.add(f"sweep: {kind}", "kills")
                code = ended(parent, SECONDS) if code is None else code
                if code is None:
                    self.kill(parent)
                    self.tally.add("sweep: end", "hangs")
                    return
                if code == 0:
                    same = points(wild) == right and (wild / "report" / "index.html").is_file()
                    self.tally.add("sweep: end", "right" if same else "wrong")
                    break
                failures += code > 0  # a point whose worker was killed twice without a checkpoint is given again
                if failures > 5:
                    self.tally.add("sweep: end", "stuck")
                    print(log.read_text()[-1500:], flush=True)
                    return
            print(f"sweep: {struck} of {kills} kills", flush=True)


def where(job: str, run: Path, cache: Path) -> str:
    """In which phase a run was killed."""
    if any(cache.glob("embedded/world_*/.*.making")):
        return "making a model"
    found = phase(run)
    newest = max((int(path.stem[5:]) for path in run.glob("checkpoints/step_*.pt")), default=0)
    return "train, inside a window" if job == "grpo" and found == "train" and newest % 2 else found


def verdict(job: str, code: int, right: dict[str, object], run: Path, log: Path) -> str:
    """right, wrong or stuck, of a run that ended."""
    try:
        differs = difference(right, left(run))
    except (OSError, ValueError, KeyError) as error:
        differs = f"{type(error).__name__}: {error}"
    # Killed behind the last write of all: there is nothing to go on with, and it says so.
    found = "right" if differs is None and code in (0, 2) else "wrong" if code == 0 else "stuck"
    if found != "right":
        print(f"{found.upper()} {job} code {code}, {differs}: {log.read_text()[-600:]}", flush=True)
    return found


def points(folder: Path) -> dict[str, object]:
    """What every point of a sweep left; a point has no report of its own."""
    found = {}
    for path in sorted(folder.glob("*/results.json")):
        try:
            found[path.parent.name] = {key: value for key, value in left(path.parent).items() if key != "files"}
        except (OSError, ValueError, KeyError) as error:
            found[path.parent.name] = repr(error)
    return found


def workers_at_work(folder: Path) -> list[int]:
    """Processes that hold a point or a pass now."""
    found = []
    for path in (folder / ".sweep" / "claims").glob("*.json"):
        try:
            found.append(json.loads(path.read_text())["pid"])
        except (OSError, ValueError, KeyError):
            continue
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def trial(kills: int, seed: int, root: Path, clock: Clock, jobs=tuple(SHARES)) -> dict[str, dict[str, int]]:
    """Counts of so many kills in all."""
    disturber, world = Disturber(root, seed), make_world(root / "world")
    os.chdir(fresh(root / "here"))
    shares = {job: SHARES[job] / sum(SHARES[one] for one in jobs) for job in jobs}
    rest = 1.0
    for job, share in shares.items():
        count, part = max(1, round(kills * share)), clock.share(share / rest)
        rest -= share
        if job == "dpo":
            disturber.runs(job, offline(world), count, part, cold=True)
        elif job == "grpo":
            disturber.runs(job, online(world), count, part, cold=False)
        elif job == "embedded":
            disturber.runs(job, embedded(world), count, part, cold=True)
        elif job == "prune":
            disturber.beside_prune(offline(world), count, part)
        else:
            disturber.sweep(offline(world), count, part)
    return {key: dict(value) for key, value in disturber.tally.counts.items()}


if __name__ == "__main__":
    heading = "Killed at random moments with SIGKILL, given again, compared with a run that nobody disturbed"
    run_trial("trial_kills", heading, "kills", trial, 200, tuple(SHARES))
