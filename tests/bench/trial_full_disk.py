"""Runs and sweeps on a disk that is full again and again; run as root: python tests/bench/trial_full_disk.py [--write]

A file system in memory of a few KiB holds cache, store and run folder. A command is given, runs out of room, must end
with one sentence and exit code 1 or 2, gets a little more room, and is given again, until it is done: so every file is
at some time the one that does not fit. What it leaves must equal what a run leaves that always had room. Three jobs:
DPO, GRPO, and a sweep with its report. Counts by what could not be written.
"""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tiny import Clock, again, difference, finish, fresh, left, make_world, offline, online, run_trial

STEP = (8, 96)  # KiB of room that is made each time, at least and at most


def size(disk: Path, kib: int, options: str = "") -> None:
    """Make the file system, or give it another size."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options}size={kib}k", "tmpfs", str(disk)], check=True)


def what(last: str) -> str:
    """The kind of file that a sentence names."""
    found = re.search(r"(\S+) cannot be (?:written|made)", last)
    name = Path(found[1]).name if found else "no room for workers" if "no room is left" in last else "no file named"
    return re.sub(r"[0-9a-f]{12,}|\d{4,}", "N", name)


def fill(job: str, arguments, done, root: Path, rng: random.Random, counts: dict, clock: Clock) -> bool:
    """Give a command again and again with a little more room each time; whether it ended well."""
    disk, log, kib = root / "disk", root / f"{job}.log", 4 * rng.randint(2, 6)
    disk.mkdir(exist_ok=True)
    size(disk, kib)
    try:
        while not clock.over:
            log.write_text("")
            code = finish(arguments(disk), log)
            said = log.read_text()
            if code == 0 or (code == 2 and done(disk)):
                return done(disk)
            last = (said.strip().splitlines() or [""])[-1]
            row = counts.setdefault(f"{job}: {what(last)}", Counter())
            sentence = last.startswith("multiref: ") or "points failed" in said or "failed; after mending" in said
            bare = "MULTIREF_DEBUG" in said or "Traceback" in said.split("multiref: ")[-1]
            verdict = "hangs" if code is None else "right" if code in (1, 2) and sentence and not bare else "tracebacks"
            row.update(["tries", verdict])
            if verdict != "right":
                print(f"{verdict.upper()} {job} {kib} KiB, code {code}: {said[-1200:]}", flush=True)
            kib += 4 * rng.randint(STEP[0] // 4, STEP[1] // 4)
            size(disk, kib, "remount,")
        return True
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def trial(tries: int, seed: int, root: Path, clock: Clock) -> dict[str, dict[str, int]]:
    """Counts of all three jobs, as often as it takes for so many tries."""
    rng, world, counts = random.Random(seed), make_world(root / "world"), {}
    total = lambda: sum(row["tries"] for row in counts.values())  # noqa: E731
    short = ["steps=4", "hardware.checkpoint_every=2", "evaluation.prompts=3"]
    rights = {}
    while total() < tries and not clock.over:
        for job, overrides in (("dpo", [*offline(world), *short]), ("grpo", [*online(world), *short])):
            if job not in rights:
                os.environ["MULTIREF_CACHE"] = str(fresh(root / "calm-cache"))
                calm = root / f"{job}-calm"
                assert finish(again(calm, overrides), root / "calm.log") == 0, (root / "calm.log").read_text()[-2000:]
                rights[job] = left(calm)
            os.environ["MULTIREF_CACHE"] = str(root / "disk" / "cache")
            found = {}

            def done(disk: Path, found=found) -> bool:
                """Whether the run is whole; what it left is kept, the disk goes."""
                found["left"] = left(disk / "run") if (disk / "run" / "report" / "index.html").is_file() else {}
                return bool(found["left"])

            def arguments(disk: Path, overrides=overrides) -> list[str]:
                return again(disk / "run", overrides)

            fill(job, arguments, done, root, rng, counts, clock)
            if not clock.over:
                differs = difference(rights[job], found.get("left", {}))
                counts.setdefault(f"{job}: end", Counter())["right" if differs is None else "wrong"] += 1
                if differs is not None:
                    print(f"WRONG {job}: {differs}", flush=True)
        grid = [*offline(world), *short, "regularizer=rkl,mrpo", "alpha=0.3", "baselines=false"]

        def sweep(disk: Path, grid=grid) -> list[str]:
            return ["sweep", *grid, f"run.dir={disk}/sweep", "--workers", "1", "--plain", "--retry-failed"]

        def reported(disk: Path) -> bool:
            return (disk / "sweep" / "report" / "index.html").is_file()

        well = fill("sweep", sweep, reported, root, rng, counts, clock)
        if not clock.over:
            counts.setdefault("sweep: end", Counter())["right" if well else "wrong"] += 1
    return {key: dict(value) for key, value in counts.items()}


if __name__ == "__main__":
    if os.geteuid():
        sys.exit("a file system is mounted for this: run it as root")
    heading = "A full disk: one sentence, a little more room, the same command again"
    run_trial("trial_full_disk", heading, "tries", trial, 100)
