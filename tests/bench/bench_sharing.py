"""When does computing a prompt once for all its responses pay? Time of forward and backward, shared over separate.

    python tests/bench/bench_sharing.py [--hidden 320] [--layers 6] [--threads 1]

Prints for several lengths the measured ratio (below 1: sharing is faster) and whether `sharing_pays` would share.
"""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from multiref_cli.models.decoder import hidden_states
from multiref_cli.models.packing import pack, sharing_pays

CASES = [
    (16, 64, 2),
    (32, 256, 2),
    (64, 64, 2),
    (64, 128, 2),
    (128, 128, 2),
    (128, 256, 2),
    (256, 256, 2),
    (32, 128, 8),
    (64, 64, 8),
    (128, 64, 8),
    (128, 128, 8),
    (256, 128, 8),
]


def seconds(model, packed, repetitions):
    """The best time of forward and backward through the decoder."""
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        hidden_states(model, packed).sum().backward()
        best = min(best, time.perf_counter() - start)
    return best


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("hidden", 320), ("layers", 6), ("threads", 1), ("repetitions", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
        use_sliding_window=False,
    )
    model = AutoModelForCausalLM.from_config(config)
    print("prompt response group  shared/separate  rule shares")
    for prompt, response, group in CASES:
        ids = [torch.randint(0, 512, (prompt,)).tolist()], [torch.randint(0, 512, (group, response)).tolist()]
        rows = [pack(*ids, 0, share) for share in (True, False)]
        for packed in rows:
            seconds(model, packed, 1)
        shared, separate = zip(*[[seconds(model, packed, 1) for packed in rows] for _ in range(options.repetitions)])
        rule = sharing_pays([prompt], [[response] * group], options.hidden)
        print(f"{prompt:6} {response:8} {group:5} {min(shared) / min(separate):16.2f}  {rule}")


if __name__ == "__main__":
    main()
