"""Runs and sweeps that are killed again and again; run: python tests/bench/trial_kills.py [--kills 200] [--write]

A command is killed with SIGKILL at a random moment of its life and given again, as a user would, until so many kills
have struck; then it ends undisturbed. All that it left (every logged number, samples, results, the policy's bytes, its
files, times aside) must equal what the same command leaves that nobody disturbed. Five jobs: DPO from an empty
reference store, GRPO inside windows of two iterations, an embedded model, runs beside a process that prunes the store
without a pause, and a sweep whose workers and parents are killed. Counts by phase; exit code 1 if anything is wrong.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tiny import (
    Clock,
    again,
    difference,
    ended,
    finish,
    forked,
    fresh,
    left,
    make_world,
    offline,
    online,
    phase,
    report,
)

SHARES = {"dpo": 0.32, "grpo": 0.3, "embedded": 0.12, "prune": 0.14, "sweep": 0.12}


class Tally:
    """Counts by job and phase."""

    def __init__(self):
        self.counts: dict[str, Counter] = {}

    def add(self, row: str, *columns: str) -> None:
        """One more in some columns of a row."""
        self.counts.setdefault(row, Counter()).update(columns)


def disturb(job, overrides, root, kills, rng, tally, clock, every_store) -> None:
    """Kill runs of one job until so many kills have struck, comparing each finished one with an undisturbed one."""
    log, cache = root / f"{job}.log", root / f"cache-{job}"
    os.environ["MULTIREF_CACHE"] = str(fresh(cache))
    calm, wild = root / f"{job}-calm", root / f"{job}-wild"
    start = time.monotonic()
    assert finish(["train", *overrides, f"run.dir={calm}", "--plain"], log) == 0, log.read_text()[-2000:]
    life, right, struck = time.monotonic() - start, left(calm), 0
    while struck < kills and not clock.over:
        shutil.rmtree(wild, ignore_errors=True)
        if every_store:
            fresh(cache)
        seen: list[str] = []
        while True:
            pid = forked(again(wild, overrides), log)
            code = ended(pid, rng.uniform(0, life) if struck < kills and not clock.over else 300)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                if struck >= kills or clock.over:
                    tally.add(f"{job}: end", "hangs")
                    return
                struck += 1
                seen.append(phase(wild))
                tally.add(f"{job}: {seen[-1]}", "kills")
                continue
            if code != 0:
                # Killed behind the last write of all: there is nothing to go on with, and it says so.
                done = code == 2 and left_if_whole(wild) is not None
                if not done:
                    tally.add(f"{job}: {seen[-1] if seen else 'undisturbed'}", "stuck")
                    print(f"STUCK {job} {seen} code {code}: {log.read_text()[-600:]}", flush=True)
                    break
            found = left_if_whole(wild)
            differs = "unreadable" if found is None else difference(right, found)
            tally.add(f"{job}: {seen[-1] if seen else 'undisturbed'}", "right" if differs is None else "wrong")
            if differs is not None:
                print(f"WRONG {job} {seen}: {differs}", flush=True)
            break
        print(f"{job}: {struck} of {kills} kills", flush=True)


def left_if_whole(run):
    """What a run left, None where it is not whole."""
    try:
        return left(run)
    except (OSError, ValueError, KeyError):
        return None


def embedded(root, kills, rng, tally, clock) -> None:
    """Kill the making of an embedded model; its weights must be those of an undisturbed making."""
    from multiref_cli.config.compose import compose
    from multiref_cli.tracking.progress import Silent

    def make(cache):
        """Make one model and what it is made from, in a process of its own."""
        pid = os.fork()
        if pid == 0:
            os.environ["MULTIREF_CACHE"] = str(cache)
            code = 1
            try:
                from multiref_cli.runs.run import open_job

                open_job(compose(EMBEDDED), Silent())
                code = 0
            finally:
                os._exit(code)
        return pid

    def weights(cache):
        """Content of every file that lies where an embedded thing is kept."""
        files = (p for p in sorted(cache.glob("embedded/**/*")) if p.is_file() and p.suffix != ".lock")
        return {str(p.relative_to(cache)): p.read_bytes() for p in files if p.name != "made_by.json"}

    start = time.monotonic()
    assert ended(make(fresh(root / "calm-cache")), 900) == 0
    life, right, struck = time.monotonic() - start, weights(root / "calm-cache"), 0
    while struck < kills and not clock.over:
        cache = fresh(root / "wild-cache")
        while True:
            pid = make(cache)
            code = ended(pid, rng.uniform(0, life) if struck < kills and not clock.over else 900)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                struck += 1
                tally.add("embedded: making", "kills")
                continue
            tally.add("embedded: making", "stuck" if code else "right" if weights(cache) == right else "wrong")
            break
        print(f"embedded: {struck} of {kills} kills", flush=True)


# A world of its own, whose models are made on the spot: 80 steps of the smallest recipe.
EMBEDDED = ["experiment=offline_toy", "policy.path=toy:tiny_one", "references=toy_tiny", "world=3"]
EMBEDDED += ["data.path=toy:tiny_preferences", "evaluation.scorer=null", "tracking=off", "steps=1", "hardware=cpu"]


def beside_prune(overrides, root, kills, rng, tally, clock) -> None:
    """Kill runs beside a process that prunes the store without a pause."""
    log = root / "prune.log"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import time\n"
        "from multiref_cli.references.store import ReferenceStore\n"
        "while True:\n    ReferenceStore(Path(sys.argv[2]) / 'store').prune(everything=True); time.sleep(0.02)\n"
    )
    os.environ["MULTIREF_CACHE"] = str(fresh(root / "cache-prune"))
    arguments = [sys.executable, "-c", program, str(Path(__file__).parents[2]), str(root / "cache-prune")]
    with log.open("a") as out:
        pruning = subprocess.Popen(arguments, stdout=out, stderr=out)
    try:
        disturb("prune", overrides, root, kills, rng, tally, clock, every_store=False)
    finally:
        if pruning.poll() is not None:
            tally.add("prune: the pruning process", "stuck")
            print(log.read_text()[-1000:])
        pruning.kill()
        pruning.wait()


def sweep(overrides, root, kills, rng, tally, clock) -> None:
    """Kill workers and parents of a sweep of six points."""
    os.environ["MULTIREF_CACHE"] = str(fresh(root / "cache-sweep"))
    main = "import sys; sys.path.insert(0, sys.argv.pop(1)); from multiref_cli.cli.app import main; main()"
    grid = [*overrides, "regularizer=rkl,mrpo", "alpha=0.3", "seeds=1", "steps=24"]

    def start(folder):
        """The sweep as a user types it."""
        arguments = ["sweep", *grid, f"run.dir={folder}", "--workers", "2", "--plain", "--retry-failed"]
        with (root / "sweep.log").open("a") as out:
            return subprocess.Popen(
                [sys.executable, "-c", main, str(Path(__file__).parents[2]), *arguments], stdout=out, stderr=out
            )

    def points(folder):
        """What every point left."""
        found = {path.parent.name: left_if_whole(path.parent) for path in sorted(folder.glob("*/results.json"))}
        # A point has no report of its own.
        return {k: v and {n: one for n, one in v.items() if n != "files"} for k, v in found.items()}

    assert start(root / "sweep-calm").wait() == 0
    right, struck, wild = points(root / "sweep-calm"), 0, root / "sweep-wild"
    while struck < kills and not clock.over:
        shutil.rmtree(wild, ignore_errors=True)
        while True:
            process = start(wild)
            while process.poll() is None and struck < kills and not clock.over:
                time.sleep(rng.uniform(0.3, 8.0))
                victims = workers_at_work(wild)
                kind = "parent" if rng.random() < 0.4 else "worker"
                if process.poll() is None and (kind == "parent" or victims):
                    os.kill(process.pid if kind == "parent" else rng.choice(victims), signal.SIGKILL)
                    struck += 1
                    tally.add(f"sweep: {kind}", "kills")
            code = process.wait()
            if code == 0:
                same = points(wild) == right and (wild / "report" / "index.html").is_file()
                tally.add("sweep: end", "right" if same else "wrong")
                break
            if (
                code > 0
                and (struck >= kills or clock.over)
                and "killed twice" not in (root / "sweep.log").read_text()[-3000:]
            ):
                tally.add("sweep: end", "stuck")
                print((root / "sweep.log").read_text()[-1500:])
                return
        print(f"sweep: {struck} of {kills} kills", flush=True)


def workers_at_work(folder: Path) -> list[int]:
    """Processes that hold a point or a pass now."""
    found = []
    for path in (folder / ".sweep" / "claims").glob("*.json"):
        try:
            found.append(json.loads(path.read_text())["pid"])
        except (OSError, ValueError, KeyError):
            continue
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def trial(kills: int, seed: int, root: Path, jobs=tuple(SHARES), minutes=None) -> dict[str, dict[str, int]]:
    """Counts of so many kills in all."""
    rng, tally, world = random.Random(seed), Tally(), make_world(root / "world")
    whole, left_over = Clock(minutes), sum(SHARES[one] for one in jobs)
    for job in jobs:
        clock, left_over = whole.share(SHARES[job] / left_over), left_over - SHARES[job]
        count = max(1, round(kills * SHARES[job] / sum(SHARES[one] for one in jobs)))
        if job == "dpo":
            disturb(job, offline(world), root, count, rng, tally, clock, every_store=True)
        elif job == "grpo":
            disturb(job, online(world), root, count, rng, tally, clock, every_store=False)
        elif job == "embedded":
            embedded(root, count, rng, tally, clock)
        elif job == "prune":
            beside_prune(offline(world), root, count, rng, tally, clock)
        else:
            sweep(offline(world), root, count, rng, tally, clock)
    return {key: dict(value) for key, value in tally.counts.items()}


def main() -> None:
    """Disturbs, compares, counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default=",".join(SHARES))
    parser.add_argument("--minutes", type=float, help="end early, with the counts of what was done")
    parser.add_argument("--write", action="store_true", help="keep the figures in tests/bench/results")
    arguments = parser.parse_args()
    root, start = Path(tempfile.mkdtemp(prefix="multiref-kills-")), time.monotonic()
    counts = trial(arguments.kills, arguments.seed, root, tuple(arguments.jobs.split(",")), arguments.minutes)
    title = "Killed at random moments with SIGKILL, given again, compared with a run that nobody disturbed"
    code = report("trial_kills", title, counts, time.monotonic() - start, arguments.seed, arguments.write)
    print(f"folders and logs: {root}")
    sys.exit(code)


if __name__ == "__main__":
    main()
