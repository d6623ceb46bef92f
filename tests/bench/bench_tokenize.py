"""Preference pairs of real text, from a .jsonl file to token ids, on one core and on two.

Run: python tests/bench/bench_tokenize.py --model FOLDER [--rows 6000 62000] [--before CHECKOUT] [--write]

Each measurement is a process of its own with an empty cache that may use so many cores, with as many threads. Seconds
of the processor are those of all its processes, imports included; the ids of all rows and the account of the rows must
be the same, bit for bit, whatever reads them. `--before` is a checkout of a version that reads with one process, to be
measured beside.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import DEFAULT_DATA, machine, texts, write

CORES = (1, 2)


def make_rows(folder: Path, path: Path, count: int) -> None:
    """The pairs of a sample, again and again, each time with another beginning of the question."""
    rows = texts(folder)
    with path.open("w") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            file.write(json.dumps({**row, "prompt": f"Question {number}. {row['prompt']}"}) + "\n")


def load(path: str, model: str) -> dict[str, object]:
    """Load the pairs with the package that this process imports."""
    from multiref_cli.config.schema import Data, Model
    from multiref_cli.data.preferences import load_preferences
    from multiref_cli.models.load import load_tokenizer

    tokenizer, start = load_tokenizer(Model(path=model)), time.monotonic()
    data = Data(name="b", path=path, held_out=0.0, max_prompt_tokens=512, max_completion_tokens=512)
    split = load_preferences(data, tokenizer)
    clock = time.monotonic() - start
    digest, tokens = hashlib.sha256(repr(vars(split.report)).encode()), 0
    for row in split.train:
        digest.update(repr(row).encode())
        tokens += len(row.prompt) + len(row.chosen) + len(row.rejected)
    return {"clock": clock, "rows": len(split.train), "tokens": tokens, "sha256": digest.hexdigest()}


def measure(path: Path, model: str, checkout: Path, cores: int) -> dict[str, float]:
    """Load in a process of its own; what it took, without the tokenizer's opening and this bench's own sum."""
    cache = tempfile.mkdtemp(prefix="multiref-tokens-")
    names = {"PYTHONPATH": str(checkout), "MULTIREF_CACHE": cache, "OMP_NUM_THREADS": str(cores)}
    code = f"import sys; sys.path[:0] = [{str(checkout)!r}, {str(Path(__file__).parent)!r}]\n"
    code += "import json, os, resource; from bench_tokenize import load, used; start = used()\n"
    code += f"os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}])\n"
    code += f"found = load({str(path)!r}, {model!r}); print(json.dumps({{**found, **used()}}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **names})
    shutil.rmtree(cache)
    return json.loads(done.stdout.splitlines()[-1])


def used() -> dict[str, float]:
    """Seconds of the processor of this process and its ended children, and MiB that each held at most."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(one.ru_utime + one.ru_stime for one in (own, others))
    return {"seconds": seconds, "MiB": own.ru_maxrss / 1024, "MiB of a helper": others.ru_maxrss / 1024}


def main() -> None:
    """Measures every version on every number of cores and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the tokenizer")
    parser.add_argument("--data", default=DEFAULT_DATA, help="folder with train*.jsonl")
    parser.add_argument("--rows", type=int, nargs="+", default=[6000, 62000])
    parser.add_argument("--before", help="a checkout of the version to compare with")
    parser.add_argument("--write", action="store_true", help="keep the figures in tests/bench/results")
    given = parser.parse_args()
    versions = {"before": Path(given.before)} if given.before else {}
    versions["now"] = Path(__file__).parents[2]
    facts, found, lines = machine(2), [], []
    for rows in given.rows:
        folder = Path(tempfile.mkdtemp(prefix="multiref-tokenize-"))
        make_rows(given.data, folder / "rows.jsonl", rows)
        kept = []
        for name, checkout in versions.items():
            for cores in CORES if name == "now" else CORES[:1]:
                one = measure(folder / "rows.jsonl", given.model, checkout, cores)
                kept.append({"version": name, "cores": cores, "asked": rows, "load": os.getloadavg()[0], **one})
                print(kept[-1], flush=True)
        assert len({one["sha256"] for one in kept}) == 1, "other rows"
        found += kept
        shutil.rmtree(folder)
    for one in found:
        speed = one["tokens"] / one["clock"]
        lines.append(
            f"| {one['asked']:,} | {one['cores']} | {one['version']} | {one['clock']:.0f} | {one['seconds']:.0f} | "
            f"{speed:,.0f} | {one['MiB']:.0f} + {one['MiB of a helper']:.0f} | {one['load']:.0f} |"
        )
    text = (
        f"# From a file of preference pairs to token ids\n\n{facts['sentence']}\n\n"
        "Pairs of real text, a chat template, prompts and responses of up to 512 tokens; every line gave the same "
        "rows, bit for bit. The clock runs for the loading alone; seconds of the processor are those of all processes "
        "from their start. The machine was busy with other work (its load beside): the clock is what it then took.\n\n"
        "| rows | cores | version | seconds | of the processor | kept tokens/s | peak MiB, + of one helper | load |\n"
        "|---:|---:|---|---:|---:|---:|---:|---:|\n" + "\n".join(lines) + "\n"
    )
    if given.write:
        write("bench_tokenize", {"machine": facts, "found": found}, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
