"""A real model on two processes, by the command line alone: killed once, resumed with another number of them.

    python tests/bench/trial_processes.py --model FOLDER [--steps 4] [--precision bf16_mixed]

FOLDER holds a causal model with a chat template, such as SmolLM2-135M-Instruct. The second reference is the model after
a few SFT steps, DPO learns right sums from wrong ones, GRPO the same sums from their verifier with the exact penalty
towards both references. Each job runs on one process, on two, and on two with a kill -9 of the main process at half of
its steps and a resume on one; every logged number is compared with the run on one process.
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

from common import machine, write

ROOT = Path(__file__).parents[2]
START = "import sys; sys.argv[0] = 'multiref'; from multiref_cli.cli.app import main; main()"
COMPARED = ("loss", "gradient_norm", "accuracy", "reward", "kl/mixed", "penalty", "log_ratio/second")


def train(arguments, kill_at=None):
    """One command in a process of its own: seconds it took. With `kill_at`, killed once so many steps are logged."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START, "train", *map(str, arguments)]
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    if kill_at is not None:
        metrics = Path(next(str(one) for one in arguments if str(one).startswith("run.dir=")).partition("=")[2])
        while process.poll() is None and lines(metrics / "metrics.jsonl") < kill_at:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return time.monotonic() - start
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.monotonic() - start


def lines(path):
    """Lines of a file, 0 where it is not there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rows(folder):
    """The logged lines of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def worst(first, second):
    """Name -> largest difference of two runs' logged numbers, relative to the first where that is above 1."""
    found = {}
    for one, other in zip(rows(first), rows(second), strict=True):
        for name in COMPARED:
            if name in one:
                gap = abs(one[name] - other[name]) / max(1.0, abs(one[name]))
                found[name] = max(found.get(name, 0.0), gap)
    return found


def sums(count, seed):
    """Rows of a sum of two digits: prompt, right answer, wrong answer."""
    draw = random.Random(seed)
    pairs = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(count)]
    said = "What is {} + {}? Answer with the number alone."
    return [
        {"prompt": said.format(a, b), "chosen": str(a + b), "rejected": str(a + b + draw.choice((-2, -1, 1, 2)))}
        for a, b in pairs
    ]


def jobs(model, folder, steps, precision):
    """Overrides of both jobs, and of the SFT that makes the second reference."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums(64, 0)))
    shown = [{"prompt": row["prompt"], "completion": f"The answer is {row['chosen']}."} for row in sums(64, 1)]
    (folder / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
    asked = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in sums(64, 2)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    common = [
        *("policy=folder", f"policy.path={model}", "tracking=off", "hardware=cpu", f"hardware.precision={precision}"),
        *("evaluation=none", "hardware.checkpoint_every=1", f"hardware.cache_dir={folder}/cache", "data=jsonl"),
        *("optimizer.learning_rate=1e-5", f"steps={steps}", "data.held_out=0", "algorithm.micro_tokens=512"),
    ]
    pair = ["references=pair", f"first={model}", f"second={folder}/second/policy", "alpha=0.5"]
    second = [*common, "algorithm=sft", f"data.path={folder}/shown.jsonl", "algorithm.batch_rows=8"]
    return second, {
        "dpo": [*common, *pair, f"data.path={folder}/pairs.jsonl", "algorithm.batch_pairs=8"],
        "grpo": [
            *(*common, *pair, "algorithm=grpo", "regularizer=rkl_token", "beta=0.05", "reward=gsm8k"),
            *(f"data.path={folder}/asked.jsonl", "algorithm.batch_prompts=4", "rollout.group_size=4"),
            "rollout.max_new_tokens=16",
        ],
    }


def main():
    """Run both jobs three ways and write what they differ in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precision", default="bf16_mixed")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        second, both = jobs(Path(given.model).resolve(), folder, given.steps, given.precision)
        train([*second, f"run.dir={folder}/second"])
        found = {}
        for name, arguments in both.items():
            seconds = {}
            for count in (1, 2):
                where = [f"hardware.processes={count}", f"run.dir={folder}/{name}{count}"]
                seconds[count] = train([*arguments, *where])
            killed = folder / f"{name}-killed"
            train([*arguments, "hardware.processes=2", f"run.dir={killed}"], kill_at=given.steps // 2)
            logged = lines(killed / "metrics.jsonl")
            train(["--resume", killed, "hardware.processes=1"])
            one = folder / f"{name}1"
            found[name] = {
                "seconds": seconds,
                "steps when killed": logged,
                "two against one": worst(one, folder / f"{name}2"),
                "two, killed, then one against one": worst(one, killed),
                "one process": [{k: row[k] for k in COMPARED if k in row} for row in rows(one)],
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts = machine(1)
    text = [
        "# A real model on two processes, killed and resumed on one",
        "",
        f"{Path(given.model).name}, two references, {given.precision}, {given.steps} steps; largest difference of a "
        "logged number from the run on one process, relative where it is above 1.",
        "",
        "| job | number | one process, last step | two processes | two, killed, resumed on one |",
        "|---|---|---:|---:|---:|",
    ]
    for name, job in found.items():
        plain, resumed = job["two against one"], job["two, killed, then one against one"]
        for key in plain:
            last = job["one process"][-1][key]
            text.append(f"| {name} | {key} | {last:.5g} | {plain[key]:.2g} | {resumed[key]:.2g} |")
    for name, job in found.items():
        text.append("")
        text.append(
            f"{name}: {job['seconds'][1]:.0f} s on one process, {job['seconds'][2]:.0f} s on two, start-up included; "
            f"killed after {job['steps when killed']} logged steps."
        )
    write(
        f"trial_processes_{given.precision}", {"machine": facts, **found}, "\n".join([*text, "", facts["sentence"], ""])
    )


if __name__ == "__main__":
    main()
