"""A sweep of real tiny runs that is killed again and again; run: python tests/bench/trial_kills.py [--kills 100]

Workers and the parent are killed with SIGKILL at random moments, the same command is run again, until so many kills
have struck; then the sweep is finished undisturbed. Every number of its metrics.jsonl (times aside) and results.json
must equal that of the same sweep that nobody disturbed. Prints one line a kill and a summary; exit code 1 if anything
differs.
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
from pathlib import Path

ONLINE = (
    "experiment=online_toy regularizer=rkl_token,fkl_token "
    "evaluation.prompts=8 rollout.group_size=4 algorithm.batch_prompts=4 algorithm.inner_iterations=2"
)
OFFLINE = "experiment=offline_toy evaluation.scorer=null evaluation.prompts=8 regularizer=rkl,mrpo"
COMMON = "tracking=off steps=24 hardware.checkpoint_every=4 alpha=0.3,0.7 seeds=3"


def command(job: str, folder: Path) -> list[str]:
    """The sweep as a user types it."""
    grid = {"online": ONLINE, "offline": OFFLINE}[job].split() + COMMON.split()
    main = "from multiref_cli.cli.app import main; main()"
    return [sys.executable, "-c", main, "sweep", *grid, f"run.dir={folder}", "--workers", "2", "--plain"]


def workers_at_work(folder: Path) -> list[int]:
    """Processes that hold a point or a pass now."""
    found = []
    for path in (folder / ".sweep" / "claims").glob("*.json"):
        try:
            found.append(json.loads(path.read_text())["pid"])
        except (OSError, ValueError, KeyError):
            continue
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def results(folder: Path) -> dict[str, object]:
    """Everything that a point left, without times."""
    found = {}
    for path in sorted(folder.glob("*/results.json")):
        rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        logged = [{k: v for k, v in row.items() if "time/" not in k and "per_second" not in k} for row in rows]
        found[path.parent.name] = (json.loads(path.read_text()), logged)
    return found


def disturb(job: str, calm: Path, folder: Path, kills: int, rng: random.Random, log: Path) -> tuple[int, int, bool]:
    """Run, kill, run again until so many kills have struck and the sweep is done; begin again if it is done too early.

    Returns:
        Workers killed, parents killed, whether every finished sweep has the undisturbed results.
    """
    struck, same = {"worker": 0, "parent": 0}, True
    while True:
        with log.open("a") as out:
            # What was killed twice within one launch has failed on purpose; --retry-failed takes it up again.
            process = subprocess.Popen([*command(job, folder), "--retry-failed"], stdout=out, stderr=out)
        while process.poll() is None and sum(struck.values()) < kills:
            time.sleep(rng.uniform(0.3, 6.0))
            kind, victims = "parent" if rng.random() < 0.4 else "worker", workers_at_work(folder)
            if process.poll() is None and (kind == "parent" or victims):
                os.kill(process.pid if kind == "parent" else rng.choice(victims), signal.SIGKILL)
                struck[kind] += 1
                print(f"kill {sum(struck.values())}: {kind}, {len(results(folder))} points done", flush=True)
        if process.wait() == 0:
            same &= results(calm) == results(folder)
            if sum(struck.values()) >= kills:
                return struck["worker"], struck["parent"], same
            shutil.rmtree(folder)


def main() -> None:
    """Disturbs a sweep of each job and compares it with an undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="in all, half of them in each job")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    root, rng = Path(tempfile.mkdtemp(prefix="multiref-kills-")), random.Random(arguments.seed)
    failed = False
    for job in ("online", "offline"):
        calm, wild, log = root / job / "calm", root / job / "wild", root / f"{job}.log"
        calm.parent.mkdir()
        with log.open("w") as out:
            subprocess.run(command(job, calm), check=True, stdout=out, stderr=subprocess.STDOUT)
        workers, parents, same = disturb(job, calm, wild, arguments.kills // 2, rng, log)
        failed |= not same
        verdict = "identical" if same else "DIFFERENT"
        print(f"{job}: {workers} workers and {parents} parents killed, {len(results(wild))} points: {verdict}")
    print(f"folders and logs: {root}")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
