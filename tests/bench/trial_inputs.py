"""Models, data, answers and requests as people bring them: each a small case with a right result. Prints right K of N.

    python tests/bench/trial_inputs.py [--gsm8k test.jsonl] [--only K4] [--out FILE]

Everything is built in a temporary folder: byte-level models of two layers, data files of a few rows. `--gsm8k` puts all
answers of that file into every phrasing of the answer table.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.common import machine
from tests.bench.inputs_beside import CASES
from tests.bench.inputs_world import World, build


def main() -> int:
    """Run every case, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started, lines, right, setting = time.time(), [], 0, machine(1)["sentence"]
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COLUMNS"] = "4000"  # no line of a table is broken
        os.environ["MULTIREF_CACHE"] = f"{folder}/cache"
        world = build(Path(folder))
        world.gsm8k = given.gsm8k.resolve() if given.gsm8k else None
        chosen = [case for case in CASES if case.kind.startswith(given.only)]
        for case in chosen:
            work = Path(folder) / "work"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            os.chdir(work)
            found = _result(case.check, world)
            right += found == "right"
            lines.append(f"| {case.kind} | {case.name} | {found} |")
            print(lines[-1], flush=True)
        os.chdir(home)
    last = f"right {right} of {len(chosen)}, {time.time() - started:.0f} s"
    print(last)
    if given.out:
        read = " with the answers of GSM8K" if given.gsm8k else ""
        said = f"`python tests/bench/trial_inputs.py`{read}: {last}."
        head = ["# Inputs as people bring them", "", setting, "", said, ""]
        given.out.write_text("\n".join([*head, "| kind | case | result |", "|---|---|---|", *lines]) + "\n")
    return 0 if right == len(chosen) else 1


def _result(check, world: World) -> str:
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            found = check(world)
    except AssertionError as error:
        return f"WRONG: {str(error)[:200] or traceback.extract_tb(error.__traceback__)[-1].line}"
    except Exception as error:  # a case that breaks is a wrong one; the others go on
        return f"WRONG: {type(error).__name__}: {str(error)[:200]}"
    return "right" if found is None else found


if __name__ == "__main__":
    raise SystemExit(main())
