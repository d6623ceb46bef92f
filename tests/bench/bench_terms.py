"""An online step towards three references by divergence and estimator, in CPU-seconds, and what each keeps alive.

    python tests/bench/bench_terms.py [--repeats 5] [--write]

Steps of every variant alternate in one process, on the same prompts: rollouts, reference passes, loss, gradient and
update of AdamW. Two models: a small one (hidden size 64, 2 layers, 512 ids) and a wider one (hidden size 192, 4 layers,
4,096 ids). Memory is that of tensors over the vocabulary alone, at 32,768 ids, counted at every operation that torch
dispatches, forward and backward: the most bytes alive at once, and the bytes moved for a token.
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import common
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from multiref_cli.algorithms.online import Online
from multiref_cli.algorithms.parts import Parts
from multiref_cli.config import schema
from multiref_cli.config.algorithms import GrpoSettings
from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.data.prompts import Prompt
from multiref_cli.models.columns import topk_token_divergence
from multiref_cli.models.logprobs import token_divergence, token_logps
from multiref_cli.models.packing import pack
from multiref_cli.references.live import LiveReferences
from multiref_cli.references.local import LocalReference
from multiref_cli.rewards.combine import RewardBatch
from multiref_cli.rollouts.transformers_engine import TransformersEngine

GROUP, PROMPTS, COUNT = 8, 2, 3
ORDERS = {"mean_order": 0, "score_order": 0}
JS = {"mean_order": None, "score_order": None, "terms": [schema.DivergenceTerm("jensen_shannon")]}
# Name -> level, estimator, regularizer. Every variant is compared with the first of its estimator.
VARIANTS = {
    "rkl exact": ("token", "exact", ORDERS),
    "js exact": ("token", "exact", JS),
    "fkl exact": ("token", "exact", {"mean_order": 1, "score_order": 1}),
    "rkl reward": ("sequence", "reward", ORDERS),
    "js reward": ("sequence", "reward", JS),
    "rkl k2": ("token", "k2", ORDERS),
    "js k2": ("token", "k2", JS),
    "rkl topk": ("token", "topk", ORDERS),
    "js topk": ("token", "topk", JS),
}
# Name -> hidden size, layers, ids, tokens of a prompt and of a response.
MODELS = {"small": (64, 2, 512, 16, 16), "wider": (192, 4, 4096, 16, 16)}


def model_of(seed, hidden, layers, ids):
    """A random Qwen2 whose head is its own."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=ids,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=256,
        eos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def stepper(name, sizes):
    """A function that takes one step of a variant."""
    level, estimator, orders = VARIANTS[name]
    hidden, layers, ids, prompt_tokens, new_tokens = sizes
    specs = [schema.ReferenceSpec(name=f"r{i}", path=f"r{i}") for i in range(COUNT)]
    config = schema.Experiment(
        algorithm=GrpoSettings(name="grpo", batch_prompts=PROMPTS),
        regularizer=schema.Regularizer(level=schema.Level[level], estimator=schema.Estimator[estimator], **orders),
        references=specs,
        alpha=[0.2, 0.3, 0.5],
        beta=0.1,
        rollout=schema.Rollout(group_size=GROUP, max_new_tokens=new_tokens),
    )
    model = model_of(0, hidden, layers, ids)
    frozen = [model_of(i + 1, hidden, layers, ids).eval().requires_grad_(False) for i in range(COUNT)]
    drawn = torch.randint(10, ids, (PROMPTS, prompt_tokens), generator=torch.Generator().manual_seed(0)).tolist()
    members = [LocalReference(spec, opener=lambda one=one: one) for spec, one in zip(specs, frozen)]
    parts = Parts(
        model=model,
        tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids))),
        prompts=[Prompt(tuple(p), [{"role": "user", "content": ""}], None, i) for i, p in enumerate(drawn)],
        end_ids=[],
        engine=TransformersEngine(model, 0),
        reward=lambda samples: RewardBatch([float(len(s.completion) % 7) for s in samples], {}),
        references=LiveReferences(config, members, [None] * COUNT),
    )
    algorithm, optimizer = Online(config, parts), torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(number):
        batch = algorithm.batch(number)
        optimizer.zero_grad()
        for micro in batch.micros:
            algorithm.loss(model, micro)[0].backward()
        optimizer.step()

    return step


def step_times(sizes, repeats):
    """Variant -> CPU-seconds of every step, the variants taking turns."""
    steps = {name: stepper(name, sizes) for name in VARIANTS}
    found = {name: [] for name in steps}
    for number in range(repeats + 1):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            steps[name](number)
            if number:  # the first one warms up
                found[name].append(time.process_time() - start)
    return found


class Alive(TorchDispatchMode):
    """Tensors over the vocabulary, parameters left out: the most bytes alive at once, and the bytes written."""

    def __init__(self, ids, models):
        super().__init__()
        self.ids, self.live, self.peak, self.written = ids, {}, 0, 0
        self.parameters = {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        from torch.multiprocessing.reductions import StorageWeakRef

        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == self.ids:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.parameters:
                    self.live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
                    self.written += storage.nbytes()
        self.live = {key: value for key, value in self.live.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def memory(ids=32_768, tokens=48):
    """Estimator -> megabytes over the vocabulary alive at once and written for a token, and CPU-seconds of a pass."""
    models = [model_of(seed, 64, 1, ids) for seed in range(COUNT + 1)]
    model, *references = models
    generator = torch.Generator().manual_seed(0)
    packed = pack([[1, 2, 3]], [torch.randint(5, ids, (2, tokens), generator=generator).tolist()], 0, True)
    terms = [Term(0.0, Mix(0.0, (0.2, 0.3, 0.5)))]
    passes = {
        "sampled (policy alone)": lambda: token_logps(model, packed, entropy=True).logps.sum(),
        "exact": lambda: token_divergence(model, references, terms, packed, entropy=True).divergence.sum(),
        **{
            f"topk, k = {k}": lambda k=k: topk_token_divergence(
                model, references, terms, packed, k, entropy=True
            ).divergence.sum()
            for k in (0, 16, 64)
        },
    }
    found = {}
    for name, run in passes.items():
        with Alive(ids, models) as counted:
            run().backward()
        times = []
        for _ in range(3):
            start = time.process_time()
            run().backward()
            times.append(time.process_time() - start)
        found[name] = {
            "peak_megabytes": counted.peak / 2**20,
            "written_megabytes_a_token": counted.written / 2**20 / (2 * tokens),
            "seconds": statistics.median(times),
        }
        print(name, found[name], flush=True)
    return found


def main():
    """Run all; print, or write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write results/bench_terms.{json,md}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = {}
    for name, sizes in MODELS.items():
        times = step_times(sizes, options.repeats)
        steps[name] = {}
        for variant, seconds in times.items():
            base = times[f"rkl {variant.split()[1]}"]
            ratio = statistics.median(a / b for a, b in zip(seconds, base))
            steps[name][variant] = {"seconds": statistics.median(seconds), "times_rkl": ratio}
            print(name, variant, steps[name][variant], flush=True)
    results = {"machine": common.machine(1), "repeats": options.repeats, "steps": steps, "memory": memory()}

    if options.write:
        common.write("bench_terms", results, markdown(results))


def markdown(results):
    """The tables for people."""
    lines = ["# Divergences and estimators online, three references", "", results["machine"]["sentence"], ""]
    lines += [
        f"CPU-seconds of a whole step ({PROMPTS} prompts x {GROUP} responses), medians of {results['repeats']}; beside "
        "it the median ratio to reverse KL under the same estimator, step by step.",
        "",
        "| | small: s | times rkl | wider: s | times rkl |",
        "|---|---|---|---|---|",
    ]
    small, wider = results["steps"]["small"], results["steps"]["wider"]
    for name in VARIANTS:
        a, b = small[name], wider[name]
        lines.append(
            f"| {name} | {a['seconds']:.3f} | {a['times_rkl']:.2f} | {b['seconds']:.3f} | {b['times_rkl']:.2f} |"
        )
    lines += [
        "",
        "Tensors over 32,768 ids, forward and backward, 96 tokens, entropy as a metric:",
        "",
        "| | MB alive at once | MB written a token | CPU-s |",
        "|---|---|---|---|",
    ]
    for name, one in results["memory"].items():
        written = one["written_megabytes_a_token"]
        lines.append(f"| {name} | {one['peak_megabytes']:.0f} | {written:.2f} | {one['seconds']:.2f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
