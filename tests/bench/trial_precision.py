"""What a few optimizer steps change of a real model's weights in every precision, beside float32.

    python tests/bench/trial_precision.py --model FOLDER [--steps 3] [--rate 1e-6]

Supervised steps on the same rows: the share of weights that change at all, the cosine of the update to that of float32,
and the ratio of their norms. FOLDER holds a causal model, such as SmolLM2-135M-Instruct.
"""

import argparse
import time
from pathlib import Path

import torch
from common import machine, write

from multiref_cli.config.schema import PRECISIONS, Model, Optimizer
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import pack
from multiref_cli.models.precision import Precision
from multiref_cli.training.optimizer import Optimizers

TEXTS = [f"{a} apples and {b} pears are {a + b} pieces of fruit in all." for a in range(2, 6) for b in (3, 7)]


def update(folder: str, name: str, steps: int, rate: float) -> tuple[dict[str, torch.Tensor], float]:
    """Parameter -> float32 change after some steps, and seconds a step."""
    precision = Precision(name, "cpu")
    model = load_causal_lm(Model(path=folder), "cpu", precision.parameters(adapted=False), trainable=True)
    tokenizer = load_tokenizer(Model(path=folder))
    before = {key: p.detach().float().clone() for key, p in model.named_parameters()}
    settings = Optimizer(learning_rate=rate, schedule="constant", warmup=0)
    optimizers = Optimizers(model, settings, steps, precision.kept)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    packed = pack([one[:2] for one in ids], [[one[2:]] for one in ids], 0, share_prompt=True)
    model.train()
    start = time.monotonic()
    for step in range(steps):
        with precision.autocast():
            loss = -token_logps(model, packed).logps.sum() / packed.mask.sum()
        loss.backward()
        optimizers.step(step)
    seconds = (time.monotonic() - start) / steps
    # What stands behind the parameters is what is trained: its rounding into them is for the forward pass alone.
    trained = {key: p for key, p in zip(before, optimizers.weights())}
    return {key: p - before[key] for key, p in trained.items()}, seconds


def main():
    """Measure every precision and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    plain, seconds = update(given.model, "float32", given.steps, given.rate)
    whole = torch.sqrt(sum(change.double().square().sum() for change in plain.values()))
    rows = []
    for name in PRECISIONS:
        found, each = (plain, seconds) if name == "float32" else update(given.model, name, given.steps, given.rate)
        changed = sum(int((change != 0).sum()) for change in found.values())
        norm = torch.sqrt(sum(change.double().square().sum() for change in found.values()))
        product = sum((change.double() * plain[key].double()).sum() for key, change in found.items())
        rows.append(
            {
                "precision": name,
                "weights changed": changed / sum(change.numel() for change in found.values()),
                "cosine to float32": float(product / (norm * whole)) if norm > 0 else 0.0,
                "norm over float32": float(norm / whole),
                "seconds a step": each,
            }
        )
    facts = machine(1)
    table = ["| precision | weights changed | cosine to float32 | norm over float32 | s a step |"]
    table.append("|---|---:|---:|---:|---:|")
    for row in rows:
        name, changed, cosine, ratio, each = row.values()
        table.append(f"| {name} | {changed:.2%} | {cosine:.4f} | {ratio:.4f} | {each:.1f} |")
    said = f"{Path(given.model).name}, {given.steps} steps of AdamW at {given.rate:g}, the same rows in each."
    text = "\n".join(["# Precision", "", said, "", *table, "", facts["sentence"], ""])
    write("trial_precision", {"machine": facts, "rows": rows}, text)


if __name__ == "__main__":
    main()
