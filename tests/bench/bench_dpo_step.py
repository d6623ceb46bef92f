"""A DPO step beside TRL's DPOTrainer: same 10 M-parameter model, same pairs, same optimizer, one run.

    python tests/bench/bench_dpo_step.py [--data FOLDER] [--steps 6] [--threads 1] [--write]

Two length mixes of four pairs each: (a) 128 tokens in every sequence, (b) the prompts and responses of an UltraFeedback
sample, cut to 256 tokens each. Each contender lives in a process of its own; the steps alternate, so that whatever else
the machine does meets both, and the figure to look at is the ratio. TRL computes its one reference in the step, as it
does by default (and once more with precompute_ref_log_probs); multiref reads it from its store. The first loss and the
updated weights are compared, so both do the same work.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import common

PAIRS = 4
BETA, LEARNING_RATE = 0.1, 1e-5
CONTENDERS = ("trl", "trl_stored", "multiref")


class MultirefStep:
    """One optimizer step, from stored reference log-probabilities."""

    def __init__(self, folder, batches, scratch):
        import torch

        from multiref_cli.config.schema import ReferenceSpec
        from multiref_cli.models.load import load_causal_lm
        from multiref_cli.models.packing import sharing_pays
        from multiref_cli.references.base import references_of
        from multiref_cli.references.store import ReferenceStore, Scoring, Sequence

        tokenizer = common.load_tokenizer(folder)
        reference = ReferenceSpec(path=folder, name="start")
        pairs = [pair for batch in batches for pair in batch]
        sequences = [Sequence(p, r) for p, *both in pairs for r in both]
        store = ReferenceStore(Path(scratch) / "store", Scoring(tokenizer, len(tokenizer)))
        stored = torch.tensor(store.sums(references_of([reference])[0], sequences)[0]).reshape(-1, PAIRS, 2)
        self.stored = {tuple(map(id, batch)): values for batch, values in zip(batches, stored)}
        self.model = load_causal_lm(reference, trainable=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        lengths = [[len(c), len(r)] for _, c, r in pairs]
        self.share = sharing_pays([len(p) for p, _, _ in pairs], lengths, self.model.config.hidden_size)
        self.batches = batches

    def step(self, number):
        """Loss of batch `number`, after which the weights are updated."""
        import torch

        from multiref_cli.models.logprobs import token_logps
        from multiref_cli.models.packing import micro_batches, pack, row_length
        from multiref_cli.objectives.preference import implicit_reward, preference_loss

        batch = self.batches[number]
        stored, total = self.stored[tuple(map(id, batch))], 0.0
        lengths = [row_length(len(p), (len(c), len(r)), self.share) for p, c, r in batch]
        for rows in micro_batches(lengths, max_tokens=8192, rows=1 if self.share else 2):
            packed = pack([batch[i][0] for i in rows], [batch[i][1:] for i in rows], 0, self.share)
            policy = token_logps(self.model, packed).logps.sum(-1, dtype=torch.float64).reshape(-1, 2)
            reward = implicit_reward(policy, stored[rows], BETA, 0.0, 0.0)
            loss = preference_loss(reward[:, 0], reward[:, 1]).sum() / PAIRS
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


class TrlStep:
    """The same step by DPOTrainer: its collator, its loss, its reference."""

    precompute = False

    def __init__(self, folder, batches, scratch):
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM
        from trl import DPOConfig, DPOTrainer

        config = DPOConfig(
            output_dir=str(Path(scratch) / "trl"),
            per_device_train_batch_size=PAIRS,
            beta=BETA,
            learning_rate=LEARNING_RATE,
            max_length=None,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            precompute_ref_log_probs=self.precompute,
            disable_tqdm=True,
        )
        rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), map(list, p))) for b in batches for p in b]
        words = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * PAIRS)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if self.precompute:
            reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            for row, both in zip(rows, _plain_sums(reference, rows)):
                row |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), both))
        self.trainer = DPOTrainer(
            model, args=config, train_dataset=words, processing_class=common.load_tokenizer(folder)
        )
        collate = self.trainer.data_collator
        self.batches = [collate(rows[i : i + PAIRS]) for i in range(0, len(rows), PAIRS)]
        self.model = self.trainer.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self.trainer.current_gradient_accumulation_steps = 1

    def step(self, number):
        """Loss of batch `number`, after which the weights are updated."""
        import torch

        loss = self.trainer.training_step(self.model, dict(self.batches[number]))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)


class TrlStoredStep(TrlStep):
    """The same with the reference's log-probabilities computed before."""

    precompute = True


def _plain_sums(model, rows):
    import torch

    for row in rows:
        both = []
        for name in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([row["prompt_ids"] + row[name]])
            with torch.no_grad():
                logps = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1].log_softmax(-1)
            both.append(float(logps.gather(1, ids[0, len(row["prompt_ids"]) :, None]).sum()))
        yield both


def work(kind, folder, batches, threads, pipe):
    """A contender's process: one step per message; the time, the loss and the most memory it needed over its rest."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        contender = {"trl": TrlStep, "trl_stored": TrlStoredStep, "multiref": MultirefStep}[kind](
            folder, batches, scratch
        )
        memory = common.PeakMemory()
        pipe.send("ready")
        while (number := pipe.recv()) is not None:
            start = time.perf_counter()
            loss = contender.step(number)
            pipe.send((time.perf_counter() - start, loss))
        weights = torch.cat([p.detach().flatten() for p in contender.model.parameters()])
        pipe.send((memory.stop(), float(weights.double().norm()), weights[::9973].tolist()))


def compare(folder, batches, threads):
    """Alternating steps of all contenders over the same batches; the first batch warms up."""
    context, pipes, workers = multiprocessing.get_context("spawn"), {}, []
    for kind in CONTENDERS:
        pipes[kind], there = context.Pipe()
        workers.append(context.Process(target=work, args=(kind, folder, batches, threads, there)))
        workers[-1].start()
        pipes[kind].recv()
    seconds, losses, ends = {k: [] for k in CONTENDERS}, {k: [] for k in CONTENDERS}, {}
    for number in range(len(batches)):
        for kind in CONTENDERS if number % 2 else CONTENDERS[::-1]:
            pipes[kind].send(number)
            taken, loss = pipes[kind].recv()
            losses[kind].append(loss)
            if number > 0:
                seconds[kind].append(taken)
    for kind, worker in zip(CONTENDERS, workers):
        pipes[kind].send(None)
        ends[kind] = pipes[kind].recv()
        worker.join()
    return summary(batches, seconds, losses, ends)


def summary(batches, seconds, losses, ends):
    """Times, ratios, memory, and how far the results of the contenders lie apart."""
    ours = "multiref"
    rows = {}
    for kind in CONTENDERS:
        ratios = [a / b for a, b in zip(seconds[kind], seconds[ours])]
        rows[kind] = {
            "median_seconds": statistics.median(seconds[kind]),
            "total_seconds": sum(seconds[kind]),
            "times_multiref": sum(seconds[kind]) / sum(seconds[ours]),
            "times_multiref_range": [min(ratios), max(ratios)],
            "peak_memory_mib": ends[kind][0],
            "largest_loss_difference": max(abs(a - b) for a, b in zip(losses[kind], losses[ours])),
            "largest_weight_difference": max(abs(a - b) for a, b in zip(ends[kind][2], ends[ours][2])),
        }
    lengths = [len(p) + len(r) for batch in batches for p, *both in batch for r in both]
    padded = sum(max(len(p) + len(r) for p, *both in batch for r in both) * 2 * PAIRS for batch in batches)
    return {
        "steps": len(batches) - 1,
        "mean_length": statistics.mean(lengths),
        "padded_over_real": padded / sum(lengths),
        "contenders": rows,
    }


def main():
    """Run both mixes and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=common.DEFAULT_DATA, help="folder with UltraFeedback-like train*.jsonl"
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mix", choices=["equal", "real", "both"], default="both")
    parser.add_argument("--write", action="store_true", help="write results/bench_dpo_step.{json,md}")
    options = parser.parse_args()
    results = {"machine": common.machine(options.threads)}
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = common.make_tokenizer(options.data)
        folder = common.make_model(Path(scratch) / "model", tokenizer)
        mixes = {
            "equal": lambda: common.equal_pairs(PAIRS * (options.steps + 1), 64, 64),
            "real": lambda: common.real_pairs(options.data, tokenizer, PAIRS * (options.steps + 1), 256, 256),
        }
        for name, make in mixes.items():
            if options.mix in (name, "both"):
                pairs = make()
                batches = [pairs[i : i + PAIRS] for i in range(0, len(pairs), PAIRS)]
                results[name] = compare(folder, batches, options.threads)
                print(json.dumps(results[name], indent=1), flush=True)
    if options.write:
        common.write("bench_dpo_step", results, markdown(results))


def markdown(results):
    """The table for people."""
    lines = ["# DPO step beside TRL 1.16.0", "", results["machine"]["sentence"], ""]
    for name in ("equal", "real"):
        if name in results:
            one = results[name]
            lines += [
                f"## {name} lengths: 4 pairs a step, {one['mean_length']:.0f} tokens a sequence on average, "
                f"{one['padded_over_real']:.2f} padded tokens per real one, {one['steps']} steps",
                "",
                "| | seconds a step (median) | times multiref | per step, from to | peak memory over rest, MiB |",
                "|---|---|---|---|---|",
            ]
            for kind, row in one["contenders"].items():
                low, high = row["times_multiref_range"]
                lines.append(
                    f"| {kind} | {row['median_seconds']:.3f} | {row['times_multiref']:.2f} | {low:.2f} to {high:.2f} "
                    f"| {row['peak_memory_mib']:.0f} |"
                )
            worst = max(row["largest_loss_difference"] for row in one["contenders"].values())
            lines += ["", f"Largest difference of any step's loss: {worst:.1e}.", ""]
    lines += ["trl computes its reference in the step, trl_stored has its log-probabilities from before.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
