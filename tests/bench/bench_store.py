"""The reference store on a data set: time to build, to open again, to verify; size on disk; beside a plain padded pass.

python tests/bench/bench_store.py [--data FOLDER] [--pairs 100] [--threads 1] [--write]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import common


def plain_pass(folder, pairs):
    """Seconds of the usual way: pairs in their order, eight sequences a batch, padded, logits in full."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = time.perf_counter()
    sums = []
    for first in range(0, len(pairs), 4):
        rows = [(p, r) for p, *both in pairs[first : first + 4] for r in both]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p + r) for p, r in rows], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(p + r)) for p, r in rows], batch_first=True)
        with torch.no_grad():
            logps = model(ids, attention_mask=mask).logits.log_softmax(-1)
        for row, (prompt, response) in enumerate(rows):
            steps = logps[row, len(prompt) - 1 : len(prompt) + len(response) - 1]
            sums.append(float(steps.gather(1, torch.tensor(response)[:, None]).sum()))
    return time.perf_counter() - start, sums


def main():
    """Build, open again, verify; print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=common.DEFAULT_DATA)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write results/bench_store.{json,md}")
    options = parser.parse_args()
    import torch

    from multiref_cli.config.schema import ReferenceSpec
    from multiref_cli.references.base import references_of
    from multiref_cli.references.store import ReferenceStore, Scoring, Sequence

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = common.make_tokenizer(options.data)
        folder = common.make_model(Path(scratch) / "model", tokenizer)
        pairs = common.real_pairs(options.data, tokenizer, options.pairs, 256, 256)
        sequences = [Sequence(p, r) for p, *both in pairs for r in both]
        store = ReferenceStore(Path(scratch) / "store", Scoring(tokenizer, len(tokenizer)))
        spec = ReferenceSpec(path=folder, name="reference")
        plain_seconds, plain_sums = plain_pass(folder, pairs)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            sums, counts = store.sums(references_of([spec])[0], sequences)
            seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        checks = store.verify()
        verify_seconds = time.perf_counter() - start
        (entry,) = store.list()
        results = {
            "machine": common.machine(options.threads),
            "responses": len(sequences),
            "scored_tokens": int(counts.sum()),
            "build_seconds": seconds[0],
            "reuse_seconds": min(seconds[1:]),
            "plain_pass_seconds": plain_seconds,
            "verify_seconds": verify_seconds,
            "verify": checks[0].text,
            "mebibytes": entry.bytes / 2**20,
            "largest_difference_of_a_sum": max(abs(a - b) for a, b in zip(sums, plain_sums)),
        }
    print(json.dumps(results, indent=1))
    if options.write:
        common.write("bench_store", results, markdown(results))


def markdown(results):
    """The table for people."""
    rows = [
        ("build: model opened, every response scored, written", f"{results['build_seconds']:.2f} s"),
        (
            "the same responses in a plain padded pass, without opening the model",
            f"{results['plain_pass_seconds']:.2f} s",
        ),
        ("reuse: fingerprint, checksum, memory map, sums", f"{results['reuse_seconds']:.3f} s"),
        ("verify: checksum, 3 responses computed again", f"{results['verify_seconds']:.2f} s"),
        ("on disk", f"{results['mebibytes']:.2f} MiB"),
        (
            "largest difference of a response's sum from the plain pass",
            f"{results['largest_difference_of_a_sum']:.1e} nats",
        ),
    ]
    head = f"{results['responses']} responses, {results['scored_tokens']:,} scored tokens, a model of 10 M parameters."
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return f"# Reference store\n\n{results['machine']['sentence']}\n\n{head}\n\n| | |\n|---|---|\n{table}\n"


if __name__ == "__main__":
    main()
