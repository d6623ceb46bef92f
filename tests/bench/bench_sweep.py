"""What a sweep costs beside its points, and what a second worker brings; run: python tests/bench/bench_sweep.py (7 min)

Machinery: points that do nothing but write a run's files, on one worker. Efficiency: the same real tiny online points
on one worker and on two (each worker one thread), in turn, beginning and end of the processes left out; efficiency is
the time of one worker over twice the time of two. With --write the figures are kept in results/.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, write

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

import fake_points

from multiref_cli.sweeps.ledger import Ledger
from multiref_cli.sweeps.worker import work_off

POINTS, ROUNDS = 300, 3
GRID = (
    "experiment=online_toy tracking=off steps=20 regularizer=rkl_token "
    "alpha=0.2,0.4,0.6,0.8 seeds=4 baselines=false evaluation.prompts=128"
)


def machinery(root: Path) -> float:
    """Milliseconds a point."""
    points = [fake_points.point(f"p{i}", 1) for i in range(POINTS)]
    start = time.perf_counter()
    work_off(fake_points.work(root / "fake", points))
    return (time.perf_counter() - start) / POINTS * 1e3


def real(folder: Path, workers: int) -> float:
    """Seconds from the first start of a point to the last end of one."""
    shutil.rmtree(folder, ignore_errors=True)
    main = "from multiref_cli.cli.app import main; main()"
    command = [sys.executable, "-c", main, "sweep", *GRID.split(), f"run.dir={folder}", "--workers", str(workers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    events = Ledger(folder).events()[0]
    starts = [e["at"] for e in events if e["kind"] == "started"]
    return max(e["at"] for e in events if e["kind"] == "done") - min(starts)


def main() -> None:
    """Measures both and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures in tests/bench/results")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="multiref-bench-"))
    each = machinery(root)
    real(root / "warm", 2)
    pairs = [(real(root / "one", 1), real(root / "two", 2)) for _ in range(ROUNDS)]
    efficiency = [one / (2 * two) for one, two in pairs]
    facts = machine(1)
    results = {"machine": facts, "milliseconds_a_point": each, "seconds": pairs, "efficiency": efficiency}
    middle = sorted(efficiency)[ROUNDS // 2]
    text = (
        f"# Sweep machinery\n\n{facts['sentence']}\n\n| | |\n|---|---|\n"
        f"| claim, events, files and states of a point that does nothing ({POINTS} points) | {each:.1f} ms |\n"
        f"| efficiency of two workers on 16 real tiny points, median of {ROUNDS} | {middle:.2f} "
        f"({min(efficiency):.2f} to {max(efficiency):.2f}) |\n"
    )
    shutil.rmtree(root)
    if arguments.write:
        write("bench_sweep", results, text)
    else:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
