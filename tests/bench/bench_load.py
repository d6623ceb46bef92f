"""What large logs and large sweeps cost; run: python tests/bench/bench_load.py [--write]

The report of one run with 10^4, 10^5 and 10^6 logged lines, and a sweep of 1,000 and of 10,000 points: points that do
nothing through the ledger; planning; a resume that finds all of them finished (fabricated ones, each with the files
that a run leaves); their report. Each in a process of its own, in seconds of one core and peak resident memory, which a
machine that is busy with other things does not change.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parents[1] / "sweeps")]

LINES, POINTS = (10**4, 10**5, 10**6), (1000, 10_000)
FIXED = ["experiment=offline_toy", "tracking=off", "baselines=false", "regularizer=rkl"]
PROMPTS = 16
NAMES = ("toy_gold", "objective/toy_gold", "length", "kl/instruct", "kl/instruct_large", "kl/weighted")


def request(folder: Path, points: int):
    """A sweep of 10 alphas, 10 seeds and as many values of beta as it takes."""
    from multiref_cli.sweeps.request import parse_request

    alphas = ",".join(f"0.{number}" for number in range(1, 10)) + ",0.95"
    betas = ",".join(f"{0.01 * number:g}" for number in range(1, points // 100 + 1))
    return parse_request([*FIXED, f"alpha={alphas}", f"beta={betas}", "seeds=10", f"run.dir={folder}"])


def plan(folder: Path, points: int) -> None:
    """Expand the sweep and write its plan."""
    from multiref_cli.sweeps.ledger import Ledger
    from multiref_cli.sweeps.plan import make_plan

    asked = request(folder, points)
    made = make_plan(asked)
    assert len(made.points) == points
    Ledger(folder).write_plan(asked, made, {})


def finish(folder: Path, points: int) -> None:
    """Fabricate what every point leaves; not measured."""
    import random

    from multiref_cli.runs.run import config_text
    from multiref_cli.sweeps.plan import make_plan

    rng = random.Random(0)
    manifest = json.dumps({"command": "multiref sweep", "started_at": "now", "inputs": {"data": "0" * 64}})
    for one in make_plan(request(folder, points)).points:
        run = folder / one.name
        run.mkdir()
        placed = replace(one.experiment, run=replace(one.experiment.run, dir=str(run)))
        (run / "config.yaml").write_text(config_text(placed))
        rows = [{"prompt": f"p{i}", **{name: rng.gauss(1, 1) for name in NAMES}} for i in range(PROMPTS)]
        (run / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        means = {name: sum(row[name] for row in rows) / PROMPTS for name in NAMES}
        found = {name: {"mean": m, "ci_low": m - 0.1, "ci_high": m + 0.1, "n": PROMPTS} for name, m in means.items()}
        results = {"metrics": found, "config_hash": one.id, "seed": one.seed, "condition": one.condition, "notes": []}
        (run / "results.json").write_text(json.dumps(results))
        (run / "manifest.json").write_text(manifest)
        (run / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "loss": {1 / i}}}\n' for i in range(1, 31)))
        status = {"state": "done", "step": 30, "total": 30, "updated_at": time.time(), "message": ""}
        (run / "status.json").write_text(json.dumps(status))


def resume(folder: Path, points: int) -> None:
    """What `sweep --resume` does where everything is finished: plan, look at every point, nothing to run."""
    from multiref_cli.sweeps.launch import run_sweep
    from multiref_cli.sweeps.ledger import Ledger
    from multiref_cli.sweeps.plan import make_plan
    from multiref_cli.sweeps.watch import Watcher

    ledger, made = Ledger(folder), make_plan(request(folder, points))
    watcher = Watcher(ledger, made)
    assert watcher.snapshot().counts["done"] == points
    run_sweep(ledger, made, "local", 1, {}, lambda: None)


def report(folder: Path, points: int) -> None:
    """The report of a run, or of all points of a sweep."""
    from multiref_cli.reports.report import write_report

    write_report([folder])


def ledger(folder: Path, points: int) -> None:
    """Points that do nothing but write a run's files, on one worker."""
    import fake_points

    from multiref_cli.sweeps.worker import work_off

    work_off(fake_points.work(folder.with_name("fake"), [fake_points.point(f"p{i}", 1) for i in range(points)]))


def log(folder: Path, lines: int) -> None:
    """Fabricate a finished run with so many logged lines; not measured."""
    plan(folder, 100)
    finish(folder, 100)
    run = next(path for path in sorted(folder.iterdir()) if path.is_dir() and (path / "config.yaml").is_file())
    with (run / "metrics.jsonl").open("w") as file:
        for i in range(1, lines + 1):
            row = {"step": i, "loss": 1 / i, "accuracy": 1 - 1 / i, "gradient_norm": 1.0, "reward_margin": i**0.5}
            file.write(json.dumps(row) + "\n")
    run.rename(folder / "one")


PARTS = {one.__name__: one for one in (plan, finish, resume, report, ledger, log)}


def measure(part: str, folder: Path, count: int) -> tuple[float, float]:
    """Seconds of one core and peak MiB of a part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--count", str(count)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return tuple(json.loads(printed.splitlines()[-1]))


def main() -> None:
    """Measures all of it and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="*", default=POINTS)
    parser.add_argument("--lines", type=int, nargs="*", default=LINES)
    parser.add_argument("--write", action="store_true", help="keep the figures in tests/bench/results")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        PARTS[given.part](Path(given.folder), given.count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([time.process_time(), peak]))
        return
    from common import machine, write

    root, found = Path(tempfile.mkdtemp(prefix="multiref-load-")), []
    os.environ["MULTIREF_CACHE"] = str(root / "cache")
    for count in given.lines:
        measure("log", root / f"log{count}", count)
        found.append(("report of one run", f"{count:,} lines", *measure("report", root / f"log{count}" / "one", count)))
        shutil.rmtree(root / f"log{count}")
        print(found[-1], flush=True)
    for count in given.points:
        for title, part in (
            ("nothing through the ledger", "ledger"),
            ("plan", "plan"),
            ("", "finish"),
            ("resume, all finished", "resume"),
            ("report of a sweep", "report"),
        ):
            seconds, peak = measure(part, root / f"sweep{count}", count)
            if title:
                found.append((title, f"{count:,} points", seconds, peak))
                print(found[-1], flush=True)
        shutil.rmtree(root / f"sweep{count}")
        shutil.rmtree(root / "fake")
    shutil.rmtree(root)
    facts = machine(1)
    text = f"# Large logs and large sweeps\n\n{facts['sentence']}\n\nSeconds of one core, imports included.\n\n"
    text += "| | | seconds | peak MiB |\n|---|---|---:|---:|\n"
    text += "".join(f"| {what} | {of} | {seconds:.1f} | {peak:.0f} |\n" for what, of, seconds, peak in sorted(found))
    if given.write:
        write("bench_load", {"machine": facts, "found": found}, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
