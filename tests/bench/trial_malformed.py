"""Inputs that are wrong in every way; run: python tests/bench/trial_malformed.py [--cases 1000] [--write]

Hostile overrides, rows, model folders, run folders, sweep folders and stores, made from a fixed seed. Right is: exit
code 2 or 1 with one sentence on the last line and, for a request, nothing written; or, where a part can be spared (a
row, a store entry, a damaged status), the same numbers as without the damage. Everything else is counted as what it
is: accepted silently, a traceback or a raw exception, a hang, a file written by a refusal. Counts by kind.
"""

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

from tiny import Clock, finish, fresh, in_process, left, make_world, offline, run_trial

WRONG = ["nan", "inf", "-inf", "-1", "1e308", "-1e308", "[1,2]", "{a:1}", "many", "null", "1.5", "''", "true"]
NUMBERS = [
    *("beta", "steps", "epochs", "seed", "optimizer.learning_rate", "optimizer.epsilon", "optimizer.weight_decay"),
    *("optimizer.warmup", "optimizer.max_gradient_norm", "optimizer.betas", "algorithm.batch_pairs"),
    *("algorithm.micro_tokens", "algorithm.label_smoothing", "data.held_out", "data.max_rows", "data.split_seed"),
    *("data.max_prompt_tokens", "data.max_completion_tokens", "evaluation.prompts", "evaluation.bootstrap"),
    *("evaluation.samples_per_prompt", "evaluation.temperature", "evaluation.top_p", "evaluation.max_new_tokens"),
    *("rollout.top_k", "rollout.min_p", "rollout.group_size", "hardware.threads", "hardware.log_every"),
    *("hardware.checkpoint_every", "hardware.keep_checkpoints", "regularizer.mean_order", "regularizer.score_order"),
    *("regularizer.score_clip", "reward.timeout_seconds", "reward.terms.gold.weight", "alpha"),
]
TEXTS = [
    *("hardware.device=abc", "hardware.dtype=int8", "optimizer.name=sgd", "optimizer.schedule=step", "algorithm=ppo"),
    *("regularizer=rlk", "data=none_such", "policy.path=/nowhere/at/all", "data.path=/nowhere.jsonl", "typo=1"),
    *(
        "beta",
        "=",
        "beta==1",
        "regularizer.level=word",
        "evaluation.split=all",
        "data.prompt_template=x",
        "run.name=../x",
    ),
    *("run.name=/etc/x", f"run.name={'x' * 300}", f"run.dir={'y' * 300}", "references=none_such", "first=/nowhere"),
    *("reward.terms.gold.function._target_=os.nothing", "reward.terms.gold.function._target_=nowhere.f"),
    *("reward.terms.gold.function._target_=os.path", "reward.terms.gold.function.unknown=1", "data.columns=3"),
    *("data.bad_rows=keep", "regularizer.estimator=k9", "tracking.mode=loud", "evaluation.scorer.path=/nowhere"),
    *("policy.lora.rank=0", "data.held_out_split=test", "algorithm.loss=hinge", "regularizer.states=other"),
    *("hardware.device=gpu:0", "hardware.reference_device=tpu", "policy.new={architecture:nothing}", "alpha=[]"),
]
# Of these some may stand: what a key takes by its schema, with the values that it takes.
ALLOWED = {
    "null": {"steps", "data.max_rows", "hardware.threads"},
    "1.5": {
        *("beta", "epochs", "optimizer.warmup", "optimizer.max_gradient_norm", "optimizer.weight_decay"),
        *("evaluation.temperature", "regularizer.mean_order", "regularizer.score_order", "regularizer.score_clip"),
        *("reward.timeout_seconds", "reward.terms.gold.weight", "optimizer.learning_rate"),
    },
    "-1": {"regularizer.mean_order", "regularizer.score_order", "reward.terms.gold.weight"},
}


def damaged(content: bytes, how: str, rng: random.Random) -> bytes:
    """A file's content, spoiled."""
    size = len(content)
    if how == "empty":
        return b""
    if how == "cut":
        return content[: rng.randrange(max(size, 1))]
    if how == "zeroed":
        start = rng.randrange(max(size, 1))
        return content[:start] + b"\0" * min(4096, size - start) + content[start + 4096 :]
    if how == "flipped" and size:
        place = rng.randrange(size)
        return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    if how == "garbage":
        return rng.randbytes(rng.randrange(1, 500))
    if how == "deep":
        return b"[" * 50_000
    return b'{"state": ["x"], "step": "many", "metrics": 3, "overrides": 7, "host": {}}'


HOW = ["empty", "cut", "zeroed", "flipped", "garbage", "deep", "other JSON"]


class Trial:
    """A place with a world, a finished run, a stopped run, a finished sweep and a store, whole copies of each."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.rng, self.counts = root, random.Random(seed), {}
        self.world = make_world(root / "world")
        self.overrides = [*offline(self.world), "steps=4", "hardware.checkpoint_every=2", "evaluation.prompts=3"]
        os.environ["MULTIREF_CACHE"] = str(fresh(root / "cache"))
        os.chdir(fresh(root / "here"))
        for arguments in (
            ["train", *self.overrides, f"run.dir={root}/run"],
            ["sweep", *self.overrides, f"run.dir={root}/sweep", "regularizer=rkl,mrpo", "alpha=0.3", "--workers", "1"],
        ):
            assert finish([*arguments, "--plain"], root / "log", 600) == 0, (root / "log").read_text()[-2000:]
        self.right = left(root / "run")

    def judge(self, kind: str, code: int | None, said: str, accepted: bool, written: bool = False) -> None:
        """Count one case; `accepted`: exit code 0 is right for it."""
        last = (said.strip().splitlines() or [""])[-1]
        row = self.counts.setdefault(kind, Counter())
        row["cases"] += 1
        if code is None:
            verdict = "hangs"
        elif "Traceback (most recent" in said or "MULTIREF_DEBUG=1 shows where" in said:
            verdict = "raw exceptions"
        elif code == 0 and not accepted:
            verdict = "accepted silently"
        elif code not in (0, 1, 2) or (code and not last.strip()):
            verdict = "without a sentence"
        elif code == 2 and written:
            verdict = "refused but written"
        else:
            verdict = "right"
        row[verdict] += 1
        if verdict != "right":
            print(f"{verdict.upper()} {kind} ({code}): {said[:200]} ... {said.strip()[-400:]}", flush=True)

    def request(self, kind: str, arguments: list[str], accepted: bool) -> None:
        """A command that must write nothing in the working directory."""
        before = sorted(Path().rglob("*"))
        code, said = in_process(arguments)
        said = f"{arguments[-3:]}\n{said}"
        self.judge(kind, code, said, accepted, sorted(Path().rglob("*")) != before)

    def override(self, number: int) -> None:
        """One hostile override on the command line."""
        rng = self.rng
        if rng.random() < 0.3:
            given, fine = TEXTS[number % len(TEXTS)], False
        else:
            key, text = rng.choice(NUMBERS), rng.choice(WRONG)
            given = f"{key}={text}"
            fine = key in ALLOWED.get(text, ())
            fine |= key == "epochs" and text in ("null",)  # steps are given
        command = rng.choice([["train"], ["sweep"]])
        self.request("overrides", [*command, *self.overrides, "reward=toy_gold", given, "--dry-run"], fine)

    def row(self, number: int) -> None:
        """A data file with bad rows among good ones: they are dropped and counted, or the file is refused."""
        rng, good = self.rng, (self.world / "pairs.jsonl").read_bytes().split(b"\n")[:20]
        bad = rng.choice(
            [
                *(b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe{}", b"{}" * 3, b'{"prompt": 3}', b"[" * 9000),
                *(b'{"prompt": "a", "chosen": "b"}', b'{"prompt": "a", "chosen": null, "rejected": "c"}'),
                *(b'{"prompt": "", "chosen": "b", "rejected": "c"}', b'{"prompt": "a", "chosen": 1, "rejected": []}'),
                *(b'{"prompt": "a", "chosen": "b", "rejected": "b"}', b'{"prompt": NaN, "chosen": "b", "rejected": 1}'),
                b'{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}',
                b'{"prompt": "' + b"x " * 5000 + b'", "chosen": "b", "rejected": "c"}',
                b'{"prompt": {"role": "user"}, "chosen": "b", "rejected": "c"}',
                b'{"prompt": [{"role": "user", "content": 7}], "chosen": "b", "rejected": "c"}',
                b"1" * 6000,
            ]
        )
        count, path = rng.randint(1, 3), self.root / "rows.jsonl"
        lines = [*good, *[bad] * count]
        rng.shuffle(lines)
        path.write_bytes(b"\n".join(lines) + b"\n")
        code, said = in_process(["train", *self.overrides, f"data.path={path}", "--dry-run"])
        told = f"20 of {20 + count} rows kept" in said if bad.strip() else "20 of 20 rows kept" in said
        self.judge("rows", code, said, accepted=told)

    def model(self, number: int) -> None:
        """A damaged file of a model's folder."""
        folder, rng = self.root / "model", self.rng
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.world / "one", folder)
        path = rng.choice([p for p in sorted(folder.iterdir()) if p.is_file()])
        how = rng.choice([one for one in HOW if one != "flipped"])
        path.write_bytes(damaged(path.read_bytes(), how, rng))
        run = self.root / "model-run"
        shutil.rmtree(run, ignore_errors=True)
        arguments = ["train", *self.overrides, f"policy.path={folder}", f"first={folder}", f"run.dir={run}", "--plain"]
        code, said = in_process([*arguments, "steps=1", "evaluation=none"])
        spared = path.name in ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")
        spared |= path.suffix == ".safetensors" and how == "zeroed"  # numbers like any others
        self.judge(f"models: {path.suffix[1:]}", code, said, accepted=spared or how == "cut")

    def run(self, number: int) -> None:
        """A damaged file of a run: of a finished one for report and eval, of a stopped one for --resume."""
        folder, rng = self.root / "wild", self.rng
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "run", folder)
        names = [p for p in sorted(folder.glob("*")) if p.is_file() and p.name != ".lock"]
        path = rng.choice([*names, folder / "policy" / "model.safetensors", folder / "policy" / "config.json"])
        how, command = rng.choice(HOW), rng.choice(["report", "report", "resume", "stopped"])
        if command == "stopped":
            status = json.loads((folder / "status.json").read_text())
            (folder / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
            (folder / "results.json").unlink()
            path = path if path.exists() else folder / "metrics.jsonl"
        path.write_bytes(damaged(path.read_bytes(), how, rng))
        arguments = ["report", str(folder)] if command == "report" else ["train", "--resume", str(folder), "--plain"]
        code, said = in_process(arguments)
        accepted = True
        if code == 0 and command != "report":
            try:
                found = left(folder)
                accepted = all(found[key] == self.right[key] for key in ("results", "policy", "metrics.jsonl"))
            except (OSError, ValueError, KeyError) as error:
                accepted, said = False, f"{said}\nleft: {error!r}"
            accepted |= path.name == "metrics.jsonl" and "line" in said
        self.judge(f"runs: {command}", code, said, accepted)

    def checkpoint(self, number: int) -> None:
        """A damaged checkpoint: the one before is taken, and the numbers are the same."""
        folder, rng = self.root / "wild", self.rng
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "run", folder)
        checkpoints = self.checkpoints()
        for path in checkpoints:
            shutil.copy(path, folder / "checkpoints" / path.name)
        newest = folder / "checkpoints" / checkpoints[-1].name
        newest.write_bytes(damaged(newest.read_bytes(), rng.choice(HOW), rng))
        (folder / "results.json").unlink()
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
        code, said = in_process(["train", "--resume", str(folder), "--plain"])
        same = code == 0 and all(left(folder)[key] == self.right[key] for key in ("results", "policy"))
        self.judge("checkpoints", code, said, accepted=same)

    def checkpoints(self) -> list[Path]:
        """The checkpoints of the run, kept by a run of the same config that is stopped before it deletes them."""
        kept = self.root / "kept"
        if not kept.exists():
            from multiref_cli.runs import run as runs

            folder, discard = self.root / "keeper", runs.discard_checkpoints
            runs.discard_checkpoints = lambda path: shutil.copytree(path, kept)
            try:
                assert in_process(["train", *self.overrides, f"run.dir={folder}", "--plain"])[0] == 0
            finally:
                runs.discard_checkpoints = discard
        return sorted(kept.glob("step_*.pt"))

    def sweep(self, number: int) -> None:
        """A damaged file of a sweep: its report names or rebuilds it, its other points stay."""
        folder, rng = self.root / "wild-sweep", self.rng
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "sweep", folder)
        names = ["sweep.yaml", "plan.jsonl", "events.jsonl", ".sweep/inputs.json", ".sweep/claims/stray.json"]
        points = [p.parent for p in sorted(folder.glob("*/results.json"))]
        names += [
            f"{rng.choice(points).name}/{n}" for n in ("results.json", "config.yaml", "status.json", "manifest.json")
        ]
        path, how = folder / rng.choice(names), rng.choice(HOW)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged(path.read_bytes() if path.exists() else b"{}", how, rng))
        code, said = in_process(["report", str(folder)])
        self.judge("sweeps: report", code, said, accepted=True)

    def store(self, number: int) -> None:
        """A damaged entry of the store: built again, and the run has the same numbers."""
        store, rng, run = self.root / "cache" / "store", self.rng, self.root / "wild"
        files = [p for p in sorted(store.glob("*/*")) if p.is_file()]
        path = rng.choice(files)
        if rng.random() < 0.15:
            (store / f"stray{number}").write_bytes(b"\0")
        path.write_bytes(damaged(path.read_bytes(), rng.choice(HOW), rng))
        if rng.random() < 0.5:
            code, said = in_process(rng.choice([["refs", "list"], ["refs", "verify"]]))
            self.judge("store: list, verify", code, said, accepted=True)
            return
        shutil.rmtree(run, ignore_errors=True)
        code, said = in_process(["train", *self.overrides, f"run.dir={run}", "--plain"])
        same = code == 0 and all(left(run)[key] == self.right[key] for key in ("results", "policy"))
        self.judge("store: train", code, said, accepted=same)

    def command(self, number: int) -> None:
        """Wrong arguments of every command."""
        Path("file").write_text("kept")
        run = str(self.root / "run")
        lines = (
            "report;report nowhere;report file;report . --out file;eval nowhere;eval file;train --resume nowhere;"
            "train --resume file;train --resume .;sweep --resume nowhere;sweep --launcher cloud;list nothing;"
            "refs prune --older-than -1;refs prune --older-than nan;report RUN --against no.csv;list regularizer no;"
            "theory n=3;theory study=nothing;report --check no.csv;refs mix alpha=2;sweep seeds=-1;sweep seeds=x;"
            "train run.dir=file;train run.dir=file/x;sweep run.dir=file;refs build algorithm=sft;sweep sweep=nothing;"
            "train --resume RUN beta=1;eval RUN beta=1;sweep baselines=perhaps;sweep launcher.x=1"
        )
        cases = [line.replace("RUN", run).split() for line in lines.split(";")]
        self.request("commands", cases[number % len(cases)], accepted=False)


SHARES = {"override": 0.55, "row": 0.1, "model": 0.06, "run": 0.1, "checkpoint": 0.03, "sweep": 0.05, "store": 0.06}
SHARES["command"] = 0.05


def trial(cases: int, seed: int, root: Path, clock: Clock, jobs=tuple(SHARES)) -> dict[str, dict[str, int]]:
    """Counts of so many malformed inputs, the kinds of input in turn."""
    made, home = Trial(root, seed), Path.cwd()
    shares = {kind: SHARES[kind] / sum(SHARES[one] for one in jobs) for kind in jobs}
    due = dict.fromkeys(shares, 0.0)
    done = dict.fromkeys(shares, 0)
    try:
        for number in range(cases):
            due = {kind: due[kind] + share for kind, share in shares.items()}
            kind = max(due, key=lambda one: due[one])
            due[kind] -= 1
            getattr(made, kind)(done[kind])
            done[kind] += 1
            if number % 50 == 49:
                print(f"{number + 1} of {cases} cases", flush=True)
            if clock.over:
                break
    finally:
        os.chdir(home)
    return {key: dict(value) for key, value in sorted(made.counts.items())}


if __name__ == "__main__":
    heading = "Malformed inputs: refused in one sentence, spared, or built again"
    run_trial("trial_malformed", heading, "cases", trial, 1000, tuple(SHARES))
