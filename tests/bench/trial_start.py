"""How far a bf16_mixed policy is from its own start as a reference that computes in another precision or layout.

    python tests/bench/trial_start.py --model FOLDER --pairs FILE.jsonl [--count 16]

Log-probabilities of whole chosen and rejected responses, before any step: a reference that computed as the policy does
would differ by 0. FOLDER holds a causal model, such as SmolLM2-135M-Instruct; its weights are rounded to bfloat16
first, as those of most published models are. FILE.jsonl has rows with prompt, chosen and rejected.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from common import machine, write

from multiref_cli.config.schema import Model, ReferenceSpec
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import pack
from multiref_cli.models.precision import Precision
from multiref_cli.references.local import LocalReference

LONGEST_PROMPT, LONGEST_RESPONSE = 192, 96


def rows_of(file, tokenizer, count):
    """Token ids of the first pairs whose prompt fits: prompt, (chosen, rejected)."""
    found = []
    for line in Path(file).read_text().splitlines():
        row = json.loads(line)
        said = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"]
        responses = [tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("chosen", "rejected")]
        if len(prompt) <= LONGEST_PROMPT and len(found) < count:
            found.append((prompt, tuple(one[:LONGEST_RESPONSE] for one in responses)))
    return found


def sums(ask, rows, share):
    """(rows, 2) log-probabilities of chosen and rejected in nats; `ask` gives those of the tokens of packed rows."""
    packed = [pack([prompt], [responses], 0, share_prompt=share) for prompt, responses in rows]
    with torch.no_grad():
        return torch.stack([ask(one).float().reshape(2, -1).sum(1) for one in packed]).double()


def main():
    """Measure every pairing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--count", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(Model(path=given.model))
        load_causal_lm(Model(path=given.model), dtype="bfloat16").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        rows = rows_of(given.pairs, tokenizer, given.count)
        policy = load_causal_lm(Model(path=folder), dtype="float32", trainable=True)

        def own(packed):
            with Precision("bf16_mixed").autocast():
                return token_logps(policy, packed).logps

        start, table = sums(own, rows, True), []
        for kind in ("bf16_mixed", "bfloat16", "float32"):
            reference = LocalReference(ReferenceSpec(name="start", path=folder), dtype=kind)
            size = sum(p.numel() * p.element_size() for p in reference.model.parameters())
            for share in (True, False):
                off = sums(reference.token_logps, rows, share) - start
                facts = {"reference": kind, "prompt": "shared" if share else "once a response"}
                facts |= {"mean": float(off.mean()), "deviation": float(off.std())}
                facts |= {"of the margin": float((off[:, 0] - off[:, 1]).std()), "MiB": size / 2**20}
                table.append(facts)
    facts = machine(1)
    tokens = sum(len(one) for _, responses in rows for one in responses) / (2 * len(rows))
    text = ["# A start beside itself", ""]
    text += [f"{Path(given.model).name}, {len(rows)} pairs of {given.pairs.rpartition('/')[2]}, {tokens:.0f} tokens a"]
    text[-1] += " response, prompts shared by the policy; nats of a whole response, reference minus policy."
    text += ["", "| reference computes in | prompt computed | mean | standard deviation | of chosen - rejected | MiB |"]
    text += ["|---|---|---:|---:|---:|---:|"]
    for row in table:
        kind, prompt, *numbers, size = row.values()
        text.append(f"| {kind} | {prompt} | {' | '.join(f'{number:+.3f}' for number in numbers)} | {size:.0f} |")
    text += ["", facts["sentence"], ""]
    write("trial_start", {"machine": facts, "rows": table}, "\n".join(text))


if __name__ == "__main__":
    main()
