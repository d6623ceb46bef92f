"""What the dry run says that runs take, beside what they took: memory over rest, and processor time.

    python tests/bench/trial_forecast.py [--data FOLDER] [--gsm8k FOLDER] [--smollm2 FOLDER] [--write]

Every run is one process with one thread, started as the command starts it. Memory is the most resident memory of the
process, and beside it that over what it had when its data and no model were open, against what is said without Python
and libraries; time is the processor's, so that other work of the machine does not count. The forecast measures the
machine's matrix products itself, in the same process, before the run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import common

WORKER = """
import json, resource, sys, time
import torch
from multiref_cli.config.compose import compose
from multiref_cli.runs.cards import here
from multiref_cli.runs.price import price, rows_of, sizes_of
from multiref_cli.runs.run import open_job, train

torch.set_num_threads(1)
experiment = compose(json.loads(sys.argv[1]))
from multiref_cli.tracking.progress import Silent
job = open_job(experiment, Silent())
sizes, rows = sizes_of(job.experiment, job), rows_of(job)
card = here("cpu")
said = price(job.experiment, sizes, rows, card)
used = lambda: resource.getrusage(resource.RUSAGE_SELF)
rest, began = used().ru_maxrss, used().ru_utime
train(experiment)
print(json.dumps({
    "said_bytes": said.total, "bytes": used().ru_maxrss * 1024,
    "said_of_models": said.total - said.process, "over_rest": (used().ru_maxrss - rest) * 1024,
    "said_seconds": said.training + said.evaluation + said.references, "seconds": used().ru_utime - began,
    "parameters": sizes.policy, "operations": card.operations, "tokens": said.tokens,
}))
"""


def another(folder, place):
    """A model of the same sizes with other weights, so that each reference has a pass of its own."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, place)
    weights = {name: 1.01 * value for name, value in load_file(Path(folder) / "model.safetensors").items()}
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


def runs(data, gsm8k, small, second, smollm2):
    """Name -> overrides."""
    common_part = ["hardware.device=cpu", "hardware.threads=1", "tracking=off", "evaluation.scorer=null"]
    pairs = ["data=ultrafeedback", f"data.path={data}", "data.max_completion_tokens=256", "data.max_rows=120"]
    words = ["data=gsm8k", f"data.path={gsm8k / 'train.jsonl'}", f"data.held_out_path={gsm8k / 'test.jsonl'}"]
    words += ["data.held_out_split=null", "reward=gsm8k", "data.max_rows=60"]
    two = f"references=[{{name: a, path: {small}}}, {{name: b, path: {second}}}]"
    tiny = ["policy=folder", f"policy.path={small}", two, "alpha=0.5"]
    offline = [
        *common_part,
        *pairs,
        "algorithm=dpo",
        "regularizer=rkl",
        "algorithm.batch_pairs=8",
        "optimizer.learning_rate=1e-5",
    ]
    online = [*common_part, *words, "algorithm=grpo", "regularizer=rkl", "algorithm.batch_prompts=4"]
    online += ["rollout.group_size=4", "optimizer.learning_rate=1e-6"]
    some = ["evaluation.prompts=16", "evaluation.max_new_tokens=64"]
    found = {
        "dpo 10 M, passes of 2,048": [*offline, *tiny, "steps=3", "algorithm.micro_tokens=2048", *some],
        "dpo 10 M, passes of 8,192": [
            *offline,
            *tiny,
            "steps=3",
            "algorithm.micro_tokens=8192",
            "evaluation.prompts=0",
        ],
        "grpo 10 M, exact": [*online, *tiny, "steps=2", "rollout.max_new_tokens=128", *some],
        "grpo 10 M, sampled": [
            *online,
            *tiny,
            "steps=2",
            "rollout.max_new_tokens=128",
            "regularizer.estimator=reward",
            "evaluation.prompts=0",
        ],
    }
    if smollm2:
        own = f"references=[{{name: a, path: {smollm2}}}]"
        large = ["policy=folder", f"policy.path={smollm2}", own, "evaluation.prompts=0", "data.max_rows=10"]
        few = ["algorithm.batch_pairs=2", "steps=2", "algorithm.micro_tokens=2048"]
        found["dpo SmolLM2-135M"] = [*offline, *large, *few]
        found["dpo SmolLM2-135M, gradient checkpointing"] = [
            *offline,
            *large,
            *few,
            "policy.gradient_checkpointing=true",
        ]
    return found


def main():
    """Run all; print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=common.DEFAULT_DATA)
    parser.add_argument("--gsm8k", type=Path, default=common.DEFAULT_DATA.parent / "gsm8k")
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M-Instruct, for two runs more")
    parser.add_argument("--write", action="store_true", help="write results/trial_forecast.{json,md}")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "data").mkdir()
        rows = "".join(json.dumps(row) + "\n" for row in common.texts(options.data)[:300])
        (Path(scratch) / "data/train.jsonl").write_text(rows)
        small = common.make_model(Path(scratch) / "model", common.make_tokenizer(options.data))
        second = another(small, Path(scratch) / "second")
        cases = runs(Path(scratch) / "data/train.jsonl", options.gsm8k, small, second, options.smollm2)
        for number, (name, overrides) in enumerate(cases.items()):
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MULTIREF_CACHE": f"{scratch}/cache{number}"}
            given = json.dumps([*overrides, f"run.dir={scratch}/run{number}"])
            command = [sys.executable, "-c", WORKER, given]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=scratch)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, found[name], flush=True)
    results = {"machine": common.machine(1), "runs": found}
    if options.write:
        common.write("trial_forecast", results, markdown(results))


def markdown(results):
    """The table for people."""
    lines = [
        "# What the dry run says, and what it took",
        "",
        results["machine"]["sentence"],
        "",
        "| run | memory said, MiB | measured | said over measured | without libraries | measured over rest "
        "| said over measured | time said, s | measured | said over measured |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in results["runs"].items():
        memory, seconds = one["said_bytes"] / one["bytes"], one["said_seconds"] / one["seconds"]
        models = one["said_of_models"] / one["over_rest"]
        lines.append(
            f"| {name} | {one['said_bytes'] / 2**20:.0f} | {one['bytes'] / 2**20:.0f} | {memory:.2f} "
            f"| {one['said_of_models'] / 2**20:.0f} | {one['over_rest'] / 2**20:.0f} | {models:.2f} "
            f"| {one['said_seconds']:.0f} | {one['seconds']:.0f} | {seconds:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
