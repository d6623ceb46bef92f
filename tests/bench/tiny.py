"""What the trials share: a tiny world in files, commands in forked processes, what a run left, and their reports."""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from common import machine, write  # noqa: E402

from multiref_cli.cli.app import app, run_guarded  # noqa: E402
from multiref_cli.tracking.progress import Heartbeat  # noqa: E402

torch.set_num_threads(1)
Heartbeat.__init__.__defaults__ = (0.02,)  # seconds between two states of a run: they tell where it was killed
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def make_world(folder: Path) -> Path:
    """Random models of 5 k parameters over the embedded tokenizer, preference pairs and prompts."""
    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_reward_model, new_causal_lm
    from multiref_cli.models.save import save_policy
    from multiref_cli.world import problems as toy
    from multiref_cli.world import tokenizer as toy_tokenizer

    spec = {"architecture": "qwen2", "max_position_embeddings": 128, "hidden_size": 16, "intermediate_size": 32}
    spec |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    folder.mkdir(parents=True)
    tokenizer = toy_tokenizer.tokenizer()
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = new_causal_lm(spec, tokenizer)
        with torch.no_grad():  # far enough apart for the mixed reference to differ from both
            for parameter in model.parameters():
                parameter.mul_(3.0)
        save_policy(model, tokenizer, folder / name)
    torch.manual_seed(2)
    save_policy(load_reward_model(Model(path=str(folder / "one")), trainable=True), tokenizer, folder / "judge")
    generator, problems = random.Random(0), toy.problems(0, 40)
    styles = {"chosen": toy.Style(), "rejected": toy.Style(slip=0.9, repeat=0.5)}
    pairs = [{"prompt": p.text, **{k: toy.solve(p, s, generator) for k, s in styles.items()}} for p in problems]
    for name, rows in (("pairs", pairs), ("prompts", toy.prompt_rows(problems))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def offline(world: Path) -> list[str]:
    """Overrides of a small DPO run: store, checkpoints, held-out pairs, samples, a reward model, a reward."""
    return [
        *("policy=folder", f"policy.path={world}/one", "references=pair", f"first={world}/one", f"second={world}/two"),
        *("data=jsonl", f"data.path={world}/pairs.jsonl", "data.held_out=0.2", "reward=toy_gold", "hardware=cpu"),
        *("tracking=off", "algorithm.batch_pairs=8", "steps=12", "beta=0.3", "optimizer.learning_rate=1e-3"),
        *("evaluation.prompts=6", "evaluation.max_new_tokens=8", f"evaluation.scorer.path={world}/judge"),
        *("evaluation.bootstrap=50", "hardware.checkpoint_every=3"),
    ]


def online(world: Path) -> list[str]:
    """Overrides of a small GRPO run of windows of two inner iterations, so that checkpoints lie inside of one."""
    return [
        *("experiment=online_toy", "policy=folder", f"policy.path={world}/one", "references=pair"),
        *(f"first={world}/one", f"second={world}/two", f"data.path={world}/prompts.jsonl", "data.held_out_split=null"),
        *("data.held_out=0.2", "tracking=off", "steps=12", "algorithm.batch_prompts=3", "rollout.group_size=4"),
        *("rollout.max_new_tokens=6", "evaluation.prompts=4", "evaluation.max_new_tokens=6"),
        *("evaluation.bootstrap=50", "algorithm.inner_iterations=2", "hardware.checkpoint_every=3", "hardware=cpu"),
    ]


def embedded(world: Path) -> list[str]:
    """Overrides of a small GRPO run in a world that is made first: its problems, tokenizer, and a model of 3 steps.

    The working directory gets the recipe of the model, as a user would write it.
    """
    recipe = Path("conf/experiment/embedded/tiny.yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(
        "# @package _global_\ndefaults:\n  - embedded/_base\n  - _self_\n"
        f"steps: 3\ndata: {{path: {world}/pairs.jsonl}}\nalgorithm: {{batch_rows: 8}}\n"
        "hardware: {checkpoint_every: 1}\npolicy: {new: {hidden_size: 16, intermediate_size: 32}}\n"
    )
    shared = [one for one in online(world) if not one.startswith(("policy", "first=", "data.path=", "data.max_rows"))]
    own = ["policy=folder", "policy.path=toy:tiny", "first=toy:tiny", "data.path=toy:prompts", "data.max_rows=40"]
    return [*shared, *own, "world=3", "steps=4"]


def command(arguments: list[str]) -> int:
    """A command in this process: its exit code."""
    return run_guarded(lambda: app([str(one) for one in arguments], standalone_mode=True))


def forked(arguments: list[str], log: Path, before=lambda: None) -> int:
    """A command in a process of its own that has everything imported: its id."""

    def work() -> int:
        before()
        return command(arguments)

    return forked_call(work, log)


def forked_call(work, log: Path) -> int:
    """A function in a process of its own, whose exit code it returns, with what it prints in a file: its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """The exit code of a forked command (negative: the signal that ended it), None if it still runs after a time."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


def finish(arguments: list[str], log: Path, seconds: float = 180.0) -> int | None:
    """Run a command to its end: its exit code, None where it hangs."""
    pid = forked(arguments, log)
    code = ended(pid, seconds)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return code


def again(run: Path, overrides: list[str]) -> list[str]:
    """What a user types after a stop: --resume where there is a run folder, else the command once more."""
    if (run / "config.yaml").is_file() and (run / "manifest.json").is_file():
        return ["train", "--resume", str(run), "--plain"]
    return ["train", *overrides, f"run.dir={run}", "--plain"]


def left(run: Path) -> dict[str, object]:
    """Everything that a run left, without times: numbers, logged lines, samples, the policy, and which files exist."""
    found: dict[str, object] = {}
    for name in ("metrics.jsonl", "samples.jsonl", "evaluation.jsonl", "pairs.jsonl"):
        if name == "pairs.jsonl" and not (run / name).exists():
            continue  # an online run has none
        rows = [json.loads(line) for line in (run / name).read_bytes().split(b"\n") if line]
        found[name] = [{k: v for k, v in r.items() if "time/" not in k and "per_second" not in k} for r in rows]
    found["results"] = json.loads((run / "results.json").read_text())
    found["state"] = json.loads((run / "status.json").read_text())["state"]
    found["policy"] = hashlib.sha256((run / "policy" / "model.safetensors").read_bytes()).hexdigest()
    inputs = json.loads((run / "manifest.json").read_text())["inputs"]
    found["inputs"] = sorted(inputs.values())
    names = {str(path.relative_to(run)) for path in run.rglob("*") if not path.name.startswith(".")}
    found["files"] = sorted(name for name in names if not name.startswith("logs"))
    found["temporaries"] = sorted(p.name for p in run.rglob(".*") if p.name != ".lock")
    return found


def difference(right: dict[str, object], found: dict[str, object]) -> str | None:
    """The first part in which two runs differ."""
    return next((key for key in right if right[key] != found.get(key)), None)


def phase(run: Path) -> str:
    """Where a run was when it was killed, as its files say."""
    try:
        status = json.loads((run / "status.json").read_text())
    except (OSError, ValueError):
        return "before the first step"
    if status["state"] == "done":
        return "report"
    if any((run / "checkpoints").glob(".step_*")):
        return "checkpoint write"
    told = str(status["message"]).split(":")[0].split(" of ")[0]
    return {"start": "before the first step"}.get(told, "reference store" if "reference" in told else told)


def in_process(arguments: list[str], seconds: int = 120) -> tuple[int | None, str]:
    """A command in this process, with what it printed; None where it did not end in time."""
    printed = io.StringIO()

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = command(arguments)
    except TimeoutError:
        return None, printed.getvalue()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return (None if "TimeoutError" in printed.getvalue() else code), printed.getvalue()


def run_trial(name: str, title: str, unit: str, trial, many: int, jobs: tuple[str, ...] = ()) -> None:
    """The command line of a trial: runs it, prints its counts, ends with code 0 where nothing but `right` was counted.

    Args:
        name: of the script, and of its files under results/.
        title: of its page.
        unit: what is counted: kills, cuts or cases.
        trial: (how many, seed, an empty folder, a clock; with `jobs`: which of them) -> counts by category.
        many: how many by default.
        jobs: parts that can be chosen.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument(f"--{unit}", type=int, default=many, dest="many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="end early, with the counts of what was done")
    parser.add_argument("--write", action="store_true", help="keep the figures in tests/bench/results")
    parser.add_argument("--add", action="store_true", help="keep them beside those that are there, with their sums")
    if jobs:
        parser.add_argument("--jobs", default=",".join(jobs))
    given = parser.parse_args()
    root, start = Path(tempfile.mkdtemp(prefix=f"multiref-{name}-")), time.monotonic()
    chosen = {"jobs": tuple(given.jobs.split(","))} if jobs else {}
    counts = trial(given.many, given.seed, root, Clock(given.minutes), **chosen)
    part = {"machine": machine(1), "seed": given.seed, "seconds": time.monotonic() - start, "counts": counts}
    before = Path(__file__).parent / "results" / f"{name}.json"
    parts = [*(json.loads(before.read_text())["parts"] if given.add and before.is_file() else []), part]
    text, total = page(title, parts)
    if given.write or given.add:
        write(name, {"parts": parts, "total": total}, text)
    else:
        print(text)
    print(f"folders and logs: {root}")
    sys.exit(int(any(value for column, value in total.items() if column not in (unit, "right"))))


def page(title: str, parts: list[dict]) -> tuple[str, dict[str, int]]:
    """Counts of all parts by category as Markdown, and their totals."""
    counts: dict[str, Counter] = {}
    for part in parts:
        for key, row in part["counts"].items():
            counts.setdefault(key, Counter()).update(row)
    columns = list(dict.fromkeys(column for row in counts.values() for column in row))
    total = {column: sum(row[column] for row in counts.values()) for column in columns}
    lines = [f"# {title}", ""]
    for part in parts:
        lines += [f"{part['machine']['sentence']} Seed {part['seed']}, {part['seconds'] / 60:.0f} minutes.", ""]
    lines += ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    rows = [*sorted(counts.items()), ("**all**", Counter(total))]
    lines += [f"| {key} | " + " | ".join(str(row[c]) for c in columns) + " |" for key, row in rows]
    return "\n".join(lines) + "\n", total


class Clock:
    """Seconds that a trial may take: it then ends early, and its counts are of what was done."""

    def __init__(self, minutes: float | None = None) -> None:
        self.end = time.monotonic() + 60 * minutes if minutes else float("inf")

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.end

    def share(self, part: float) -> "Clock":
        """A clock for a part of what is left."""
        inner = Clock(None)
        inner.end = min(self.end, time.monotonic() + part * (self.end - time.monotonic()))
        return inner


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
