"""Loading a million preference pairs beside `datasets`; run: python tests/bench/bench_rows.py [--rows N] [--write]

Both read the same .jsonl file and end with the token ids of prompt, chosen and rejected response of every row, rendered
with the same chat template: multiref by `load_preferences`, `datasets` by `load_dataset` and `map` as TRL maps it (one
row a call, its three texts tokenized). One after the other, each in a process of its own, with a fresh cache: seconds
of one core, which a busy machine does not change, seconds by the clock, and peak resident memory, all of the whole
process, imports included, with the memory that it had before it read the first row.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def make_rows(path: Path, count: int) -> None:
    """Preference pairs of the embedded world's problems, their answers cut and repeated at random."""
    from multiref_cli.world import problems as toy

    generator = random.Random(0)
    texts = [(p.text, toy.solve(p, toy.Style(), generator)) for p in toy.problems(0, 1000)]
    with path.open("w") as file:
        for number in range(count):
            prompt, good = texts[number % len(texts)]
            bad = texts[generator.randrange(len(texts))][1] + " again"
            row = {"prompt": f"{number} plus {generator.randrange(10**6)}. {prompt}", "chosen": good, "rejected": bad}
            file.write(json.dumps({**row, "source": f"bench {number % 7}"}) + "\n")


def peak() -> float:
    """MiB that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load_multiref(path: Path, cache: Path) -> tuple[int, int]:
    """Rows, and all their ids."""
    from multiref_cli.config.schema import Data, Model
    from multiref_cli.data.preferences import load_preferences
    from multiref_cli.models.load import load_tokenizer
    from multiref_cli.world.worlds import SHIPPED

    tokenizer = load_tokenizer(Model(path=str(SHIPPED / "tokenizer")))
    print(json.dumps({"before": peak()}), flush=True)
    split = load_preferences(Data(name="bench", path=str(path), held_out=0.0), tokenizer)
    ids = sum(len(row.prompt) + len(row.chosen) + len(row.rejected) for row in split.train)
    return len(split.train), ids


def load_datasets(path: Path, cache: Path) -> tuple[int, int]:
    """Rows, and all their ids."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    from multiref_cli.world.worlds import SHIPPED

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "tokenizer")
    print(json.dumps({"before": peak()}), flush=True)

    def encode(row):
        """Ids of a row, as TRL's trainers make them."""
        messages = [{"role": "user", "content": row["prompt"]}]
        opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(opened, add_special_tokens=False)["input_ids"]
        found = {"prompt_ids": prompt}
        for name in ("chosen", "rejected"):
            turn = {"role": "assistant", "content": row[name]}
            whole = tokenizer.apply_chat_template([*messages, turn], tokenize=False)
            found[f"{name}_ids"] = tokenizer(whole, add_special_tokens=False)["input_ids"][len(prompt) :]
        return found

    data = load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache)).map(encode)
    lists = (data.data.column(name) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return len(data), sum(len(chunk.flatten()) for column in lists for chunk in column.chunks)


LOADERS = {"multiref": load_multiref, "datasets": load_datasets}


def one(name: str, path: Path, root: Path) -> dict[str, float]:
    """Load in a process of its own."""
    cache = root / f"cache-{name}"
    command = [sys.executable, __file__, "--one", name, "--path", str(path), "--cache", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(cache, ignore_errors=True)
    return {k: v for line in done.stdout.splitlines() if line.startswith("{") for k, v in json.loads(line).items()}


def main() -> None:
    """Measures both in turn and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--write", action="store_true", help="keep the figures in tests/bench/results")
    for inner in ("--one", "--path", "--cache"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        start = time.monotonic()
        rows, ids = LOADERS[given.one](Path(given.path), Path(given.cache))
        print(
            json.dumps(
                {
                    "rows": rows,
                    "ids": ids,
                    "seconds": time.process_time(),
                    "clock": time.monotonic() - start,
                    "MiB": peak(),
                }
            )
        )
        return
    from common import machine, write

    root = Path(tempfile.mkdtemp(prefix="multiref-rows-"))
    make_rows(root / "rows.jsonl", given.rows)
    size = (root / "rows.jsonl").stat().st_size / 2**20
    found = {name: one(name, root / "rows.jsonl", root) for name in LOADERS}
    shutil.rmtree(root)
    ours, theirs = found["multiref"], found["datasets"]
    assert ours["rows"] == theirs["rows"] == given.rows, found
    facts = machine(1)
    ratios = {key: ours[key] / theirs[key] for key in ("seconds", "clock", "MiB")}
    text = (
        f"# Loading {given.rows:,} preference pairs beside datasets\n\n{facts['sentence']}\n\n"
        f"A .jsonl file of {size:.0f} MiB, read, rendered and tokenized; peak resident memory of the whole process.\n\n"
        "| | seconds of one core | by the clock | peak MiB | before the first row, MiB |\n|---|---:|---:|---:|---:|\n"
        + "".join(
            f"| {n} | {v['seconds']:.1f} | {v['clock']:.1f} | {v['MiB']:.0f} | {v['before']:.0f} |\n"
            for n, v in found.items()
        )
        + f"| ratio | {ratios['seconds']:.2f} | {ratios['clock']:.2f} | {ratios['MiB']:.2f} | |\n"
    )
    if given.write:
        write("bench_rows", {"machine": facts, "rows": given.rows, "found": found, "ratios": ratios}, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
