"""Runs that lose their power; run: python tests/bench/trial_power_cuts.py [--cuts 200] [--write]

A run ends at a random one of its system calls that make files last (fsync, rename), or at a random moment. Then the
disk is given the worst that a file system may leave: what was never synced is cut, emptied or zeroed, and renames in
folders that were not synced afterwards are undone, each by the toss of a coin. The command is given again. What it
leaves in the end must equal what a run leaves that nobody disturbed. Counts by what was damaged; exit code 1 if
anything is wrong.
"""

import json
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

from tiny import Clock, again, difference, ended, finish, forked, fresh, left, make_world, offline, online, run_trial


def recording(journal: Path, shadow: Path, last: int):
    """Make this process write down what it made durable, keep what renames replace, and die at one of these calls."""
    number = 0
    out = journal.open("a")
    fsync, replace = os.fsync, os.replace

    def count():
        """One more call; the last one never returns."""
        nonlocal number
        number += 1
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(*words):
        """Write a line that outlives this process."""
        out.write(json.dumps([str(word) for word in words]) + "\n")
        out.flush()

    def recorded_fsync(descriptor):
        """Sync, and say of what."""
        count()
        fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        tell("folder" if os.path.isdir(path) else "file", path, os.fstat(descriptor).st_size)

    def recorded_replace(source, target, **_):
        """Rename, keeping what was there."""
        count()
        kept = shadow / str(number)
        if os.path.isdir(target):
            shutil.copytree(target, kept)
        elif os.path.exists(target):
            shutil.copy2(target, kept)
        replace(source, target)
        tell("rename", os.path.abspath(source), os.path.abspath(target), kept if kept.exists() else "")

    os.fsync, os.replace, os.rename = recorded_fsync, recorded_replace, recorded_replace


def cut(roots: list[Path], journal: Path, rng: random.Random, before: set[str]) -> list[str]:
    """Leave of some folders what a power cut may leave; says what was damaged."""
    durable: dict[str, int] = {}
    pending: list[tuple[str, str, str]] = []
    for line in journal.read_text().splitlines():
        kind, *words = json.loads(line)
        if kind == "file":
            durable[words[0]] = int(words[1])
        elif kind == "folder":
            pending = [one for one in pending if str(Path(one[1]).parent) != words[0]]
        else:
            source, target, kept = words
            for path in [p for p in durable if p == source or p.startswith(f"{source}/")]:
                durable[target + path[len(source) :]] = durable.pop(path)
            pending.append((source, target, kept))
    done = []
    for source, target, kept in reversed(pending):
        if rng.random() < 0.5 or not os.path.exists(target):
            continue
        if not os.path.exists(source):
            os.rename(target, source)
        if kept:
            (shutil.copytree if os.path.isdir(kept) else shutil.copy2)(kept, target)
        done.append("renames")
    for path in (p for root in roots if root.exists() for p in sorted(root.rglob("*"))):
        if not path.is_file() or str(path) in before or path.name.endswith(".lock"):
            continue
        safe, size = durable.get(str(path), 0), path.stat().st_size
        if size <= safe or rng.random() < 0.3:
            continue
        content, how = path.read_bytes(), rng.choice(["cut", "emptied", "zeroed"])
        keep = {"cut": rng.randint(safe, size), "emptied": safe, "zeroed": safe}[how]
        path.write_bytes(content[:keep] + (b"\0" * (size - keep) if how == "zeroed" else b""))
        done.append(how)
    return done


def one(job, overrides, root, rng, right, calls, counts) -> None:
    """One power cut of one run."""
    run, cache = root / f"{job}-wild", root / f"{job}-cache"
    shutil.rmtree(run, ignore_errors=True)
    journal, shadow, log = root / "journal", fresh(root / "shadow"), root / f"{job}.log"
    journal.write_text("")
    if job == "dpo":
        fresh(cache)
    before = {str(path) for path in cache.rglob("*")}
    os.environ["MULTIREF_CACHE"] = str(cache)
    last = rng.randint(1, calls) if rng.random() < 0.7 else 10**9
    pid = forked(["train", *overrides, f"run.dir={run}", "--plain"], log, lambda: recording(journal, shadow, last))
    if ended(pid, 300 if last < 10**9 else rng.uniform(0.2, 6.0)) is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    damage = cut([run, cache], journal, rng, before)
    row = f"{job}: " + (" and ".join(sorted(set(damage))) or "nothing was pending")
    counts.setdefault(row, Counter())["cuts"] += 1
    code = finish(again(run, overrides), log)
    try:
        differs = difference(right, left(run))
    except (OSError, ValueError, KeyError) as error:
        differs = f"{type(error).__name__}: {error}"
    already = code == 2 and differs is None  # cut behind the last write of all
    verdict = "hangs" if code is None else "right" if (code == 0 or already) and differs is None else None
    if verdict is None:
        bare = "MULTIREF_DEBUG=1" in log.read_text()[-3000:] or "Traceback" in log.read_text()[-3000:]
        verdict = "silently different" if code == 0 else "tracebacks" if bare else "stuck"
        print(f"{verdict.upper()} {job} {damage} code {code} {differs}: {log.read_text()[-500:]}", flush=True)
    counts[row][verdict] += 1


def trial(cuts: int, seed: int, root: Path, clock: Clock) -> dict[str, dict[str, int]]:
    """Counts of so many power cuts, half of them of DPO from an empty store, half of GRPO."""
    rng, world, counts = random.Random(seed), make_world(root / "world"), {}
    for job, overrides in (("dpo", offline(world)), ("grpo", online(world))):
        part = clock.share(0.5 if job == "dpo" else 1.0)
        overrides = [*overrides, "steps=6", "hardware.checkpoint_every=2"]
        calm, journal = root / f"{job}-calm", root / f"{job}-calls"
        os.environ["MULTIREF_CACHE"] = str(fresh(root / f"{job}-cache"))
        journal.write_text("")
        shadow, log = fresh(root / "shadow"), root / f"{job}.log"
        arguments = ["train", *overrides, f"run.dir={calm}", "--plain"]
        pid = forked(arguments, log, lambda: recording(journal, shadow, 10**9))  # noqa: B023
        assert ended(pid, 600) == 0, log.read_text()[-2000:]
        calls = sum('["rename"' in line or '["fi' in line or '["fo' in line for line in journal.open())
        right = left(calm)
        for number in range(cuts // 2):
            if part.over:
                break
            one(job, overrides, root, rng, right, calls, counts)
            if number % 10 == 9:
                print(f"{job}: {number + 1} of {cuts // 2} cuts", flush=True)
    return {key: dict(value) for key, value in counts.items()}


if __name__ == "__main__":
    heading = "Power cuts: what was not synced is lost, the command is given again, compared with an undisturbed run"
    run_trial("trial_power_cuts", heading, "cuts", trial, 200)
