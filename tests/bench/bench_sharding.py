"""What each of two processes holds and takes, its models whole or divided, measured and counted.

    python tests/bench/bench_sharding.py --model FOLDER [--steps 4]

FOLDER holds a causal model with a chat template. GRPO with the exact penalty towards two live references (the model and
a copy of it) runs through the command line on two CPU processes, once with hardware.sharding=none and once with full.
Measured: memory of each process while steps are taken (polled; file pages, which processes share, left out), and its
peak over the whole run, with start and the saving of the policy; bytes of a checkpoint; the logged numbers of one way
beside those of the other. Counted: bytes of weights, gradients, moments and references a process. glibc is told to give
every large block back when it is freed: else it keeps what layers that come and go leave behind.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import machine, write
from safetensors import safe_open
from trial_processes import ROOT, START, lines, sums, worst

GIB = 2**30


def status(process, key):
    """Bytes of an entry of /proc/PID/status, 0 where the process is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(key)), 0)


def processes(parent):
    """The parent and its children."""
    try:
        return [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]
    except OSError:
        return [parent]


class Watch(threading.Thread):
    """Polls the memory of a run's processes: while steps are taken, and the peak of each."""

    def __init__(self, parent, metrics, steps):
        super().__init__(daemon=True)
        self.parent, self.metrics, self.steps = parent, metrics, steps
        self.training, self.peak, self.checkpoint, self.over = {}, {}, 0, False

    def run(self):
        """Until told that the run is over."""
        while not self.over:
            done = lines(self.metrics)
            for rank, process in enumerate(processes(self.parent)):
                self.peak[rank] = max(self.peak.get(rank, 0), status(process, "VmHWM"))
                if 1 <= done < self.steps:
                    self.training[rank] = max(self.training.get(rank, 0), status(process, "RssAnon"))
            written = self.metrics.parent.glob("checkpoints/step_*/*.distcp")
            kept = [*self.metrics.parent.glob("checkpoints/step_*.pt"), *written]
            self.checkpoint = max(self.checkpoint, sum(path.stat().st_size for path in kept if path.exists()))
            time.sleep(0.02)


def train(arguments, folder, steps):
    """One run: memory of every process while steps are taken and at its peak, bytes of a checkpoint."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-c", START, "train", *map(str, arguments), f"run.dir={folder}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid, folder / "metrics.jsonl", steps)
    watch.start()
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    watch.over = True
    watch.join()
    return {
        "while steps are taken, bytes a process": list(watch.training.values()),
        "peak, bytes a process": list(watch.peak.values()),
        "checkpoint, bytes": watch.checkpoint,
    }


def parameters(folder):
    """Number of parameters in a folder, each counted once."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)


def counted(count, size):
    """Bytes of a process in float32, by what they are, where `size` processes divide them (1: each holds all)."""
    part = 4 * count / size
    return {"weights": part, "gradients": part, "moments": 2 * part, "references": 2 * part}


def arguments(model, folder, steps):
    """Overrides of the job."""
    asked = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in sums(64, 2)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    shutil.copytree(model, folder / "second")
    return [
        *("policy=folder", f"policy.path={model}", "tracking=off", "hardware=cpu", "evaluation=none", "data=jsonl"),
        *(f"data.path={folder}/asked.jsonl", f"hardware.cache_dir={folder}/cache", "optimizer.learning_rate=1e-5"),
        *("references=pair", f"first={model}", f"second={folder}/second", "alpha=0.5", "algorithm=grpo", "beta=0.05"),
        *("regularizer=rkl_token", "reward=gsm8k", "algorithm.batch_prompts=4", "rollout.group_size=4"),
        *("rollout.max_new_tokens=16", f"steps={steps}", "data.held_out=0", "algorithm.micro_tokens=512"),
    ]


def main():
    """Run the job on two processes, its models whole and divided, and write what each held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        job = arguments(given.model.resolve(), folder, given.steps)
        found, count = {}, parameters(given.model)
        for name, size in (("none", 1), ("full", 2)):
            more = ["hardware.processes=2", f"hardware.sharding={name}"]
            found[name] = train([*job, *more], folder / name, given.steps)
            found[name]["counted, bytes a process"] = counted(count, size)
        gap = max(worst(folder / "none", folder / "full").values())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts = machine(1)
    text = [
        "# What a process holds, models whole or divided",
        "",
        f"{given.model.name}, {count / 1e6:.1f} M parameters, float32, AdamW, GRPO with the exact penalty towards two "
        f"live references, {given.steps} steps on two CPU processes; GiB a process, main process first. Largest "
        f"difference of a logged number: {gap:.1g}, relative where it is above 1. Whole "
        "references lie in file pages as they were opened, which the third column leaves out and the fourth counts.",
        "",
        "| hardware.sharding | weights, gradients, moments, references, counted | private, while steps are taken | "
        "peak, with start and saving | a checkpoint |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, one in found.items():
        held = sum(one["counted, bytes a process"].values()) / GIB
        taken, peak = (
            " and ".join(f"{value / GIB:.2f}" for value in one[key])
            for key in ("while steps are taken, bytes a process", "peak, bytes a process")
        )
        text.append(f"| {name} | {held:.2f} | {taken} | {peak} | {one['checkpoint, bytes'] / GIB:.2f} |")
    write(
        "bench_sharding",
        {"machine": facts, "largest difference": gap, **found},
        "\n".join([*text, "", facts["sentence"], ""]),
    )


if __name__ == "__main__":
    main()
