"""The output head before and after: bytes that it moves and seconds that it takes, a token, in one run.

    python tests/bench/bench_head.py [--before 3ef9be3] [--tokens 24] [--repeats 3] [--write]

A one-layer policy and references of hidden size 64 over 151,936 ids, so that nearly all of the time is the head's.
`dpo` is the log-probability of each token, `sampled` that with the entropy as a metric, `exact` the divergence over the
whole vocabulary from K references with the entropy as a metric; forward and backward pass each. Bytes are counted at
every operation that torch dispatches: what it reads and what it writes, matrix products apart. Operations that are
several passes inside (logsumexp) count as these, those that touch a few elements (gather, scatter) as these elements;
what is done once a pass to tensors of the head's own shape is left out. Each version lives in a process of its own and
steps alternate. Values and gradients of both are compared with those of the version before in float64.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import common

ROOT = Path(__file__).parents[2]
VOCABULARY, HIDDEN = 151_936, 64
MATRIX = ("mm", "addmm", "addmm_", "bmm", "linear", "baddbmm")
# Passes over its input that an operation is inside: the largest, the difference, its exponential in place, the sum.
INSIDE = {"logsumexp": 6}


def cases():
    """Name -> (number of references, order of the mean, order of the score); no references: the sampled path."""
    exact = {f"exact rkl, K = {k}": (k, 0.0, 0.0) for k in (1, 2, 3)}
    others = {"exact fkl, K = 2": (2, 1.0, 1.0), "exact chi2, K = 2": (2, -1.0, -1.0)}
    return {"dpo": (0, None, None), "sampled": (0, None, None)} | exact | others | {"exact mrpo, K = 2": (2, -1.0, 0.0)}


def make_models(count):
    """Random Qwen2 models of one layer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(Qwen2ForCausalLM(config).eval())
    return found


def traffic():
    """A dispatch mode that counts the bytes of all operations but views: `moved`, and `matrix` for matrix products."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def size(values):
        return sum(one.numel() * one.element_size() for one in tree_leaves(values) if isinstance(one, torch.Tensor))

    class Traffic(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.moved = self.matrix = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            result = function(*args, **kwargs)
            name = function.__name__.split(".")[0]
            shapes = {tuple(one.shape) for one in tree_leaves((result, args)) if isinstance(one, torch.Tensor)}
            if name not in MATRIX and (VOCABULARY, HIDDEN) in shapes:
                return result
            if function.is_view or name in ("detach", "empty", "empty_like", "new_empty", "_to_copy_view"):
                return result
            read, written = size(args) + size({k: v for k, v in kwargs.items() if k != "out"}), size(result)
            if name in ("zeros", "zeros_like", "new_zeros", "fill_", "zero_", "full", "ones_like"):
                read = 0
            elif name in ("gather", "nll_loss_forward"):
                read = written
            elif name == "nll_loss_backward":
                read = 0
            elif name in ("scatter_add_", "scatter_", "scatter"):
                read, written = 3 * size(args[2:]), 0
            elif name == "scatter_add":
                read, written = size(args[0]), written
            elif name in INSIDE:
                read = INSIDE[name] * size(args[:1])
            if name in MATRIX:
                self.matrix += read + written
            else:
                self.moved += read + written
            return result

    return Traffic()


class Case:
    """One way through the head, forward and backward."""

    def __init__(self, name, models, tokens):
        import torch

        from multiref_cli.models.packing import pack

        self.name, self.policy = name, models[0]
        count, mean, score = cases()[name]
        self.references = models[1 : 1 + count]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, VOCABULARY, (tokens + 1,), generator=generator).tolist()
        self.packed = pack([ids[:1]], [[ids[1:]]], 0, False)
        self.weights = torch.randn(1, tokens, generator=generator)
        self.terms = []
        if count:
            from multiref_cli.config.regularizer import Mix, Term

            alphas = {1: (1.0,), 2: (0.3, 0.7), 3: (0.2, 0.3, 0.5)}[count]
            self.terms = [Term(score, Mix(mean, alphas))]

    def run(self):
        """Values (a sum of each result) and the gradient of the head's weight."""
        from multiref_cli.models.logprobs import token_divergence, token_logps

        self.policy.zero_grad()
        if self.references:
            found = token_divergence(self.policy, self.references, self.terms, self.packed, entropy=True)
            loss = (self.weights * found.logps).sum() + 0.1 * found.divergence.sum()
            values = [found.logps, found.divergence, found.entropy, *found.log_normalizers]
        else:
            found = token_logps(self.policy, self.packed, entropy=self.name == "sampled")
            loss, values = (self.weights * found.logps).sum(), [found.logps]
            values += [] if found.entropy is None else [found.entropy]
        loss.backward()
        return [one.detach().flatten().tolist() for one in values], self.policy.lm_head.weight.grad


def work(tokens):
    """A version's process: a case's name in, its figures out, line by line."""
    import torch

    torch.set_num_threads(1)
    models = make_models(4)
    for line in sys.stdin:
        request = json.loads(line)
        case = Case(request["case"], models, tokens)
        if request["into"]:
            for model in models:
                model.to(torch.float64 if request["double"] else torch.float32)
            with traffic() as counted:
                values, gradient = case.run()
            torch.save([values, gradient], request["into"])
            answer = {"moved": counted.moved / tokens, "matrix": counted.matrix / tokens}
        else:
            start = time.perf_counter()
            case.run()
            answer = {"seconds": (time.perf_counter() - start) / tokens}
        print(json.dumps(answer), flush=True)


def start(folder, tokens):
    """A process that imports the package from a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--work", "--tokens", str(tokens)]
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ask(process, **request):
    """One answer of a process."""
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def compare(before, tokens, repeats):
    """Figures of both versions for every case."""
    versions, found = {"before": start(before, tokens), "after": start(ROOT, tokens)}, {}
    for case in cases():
        ask(versions["before"], case=case, into=f"{before}/judge", double=True)
        counts = {n: ask(one, case=case, into=f"{before}/{n}", double=False) for n, one in versions.items()}
        seconds = {name: [] for name in versions}
        for number in range(repeats):
            for name in list(versions)[:: 1 if number % 2 else -1]:
                seconds[name].append(ask(versions[name], case=case, into=None)["seconds"])
        found[case] = row(counts, seconds) | {f"{n}_off": off(before, n) for n in versions}
        print(case, json.dumps(found[case]), flush=True)
    for one in versions.values():
        one.stdin.close()
        one.wait()
    return found


def row(counts, seconds):
    """One case's figures."""
    unit = VOCABULARY * 4
    first, second = counts["before"], counts["after"]
    return {
        "units_before": first["moved"] / unit,
        "units_after": second["moved"] / unit,
        "times_less": first["moved"] / second["moved"],
        "megabytes_before": first["moved"] / 2**20,
        "megabytes_after": second["moved"] / 2**20,
        "matrix_megabytes_after": second["matrix"] / 2**20,
        "milliseconds_before": 1000 * statistics.median(seconds["before"]),
        "milliseconds_after": 1000 * statistics.median(seconds["after"]),
        "times_faster": statistics.median(a / b for a, b in zip(seconds["before"], seconds["after"])),
    }


def off(folder, name):
    """Largest errors beside float64: of a value over its size (at least 1), of the gradient over its largest entry."""
    import torch

    (values, gradient), (judged, true) = (torch.load(f"{folder}/{one}") for one in (name, "judge"))
    pairs = [(a, b) for x, y in zip(values, judged) for a, b in zip(x, y)]
    value = max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)
    return {"value": value, "gradient": float((gradient - true).abs().max() / true.abs().max())}


def main():
    """Run all cases; print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="3ef9be3", help="commit to compare with")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write results/bench_head.{json,md}")
    options = parser.parse_args()
    if options.work:
        return work(options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", options.before, "multiref_cli", "conf"], capture_output=True, check=True
        )
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        found = compare(folder, options.tokens, options.repeats)
    results = {"machine": common.machine(1), "before": options.before, "tokens": options.tokens, "cases": found}
    if options.write:
        common.write("bench_head", results, markdown(results))
    return None


def markdown(results):
    """The table for people."""
    lines = [
        "# The output head, before and after",
        "",
        results["machine"]["sentence"]
        + f" Before: commit {results['before']}. {VOCABULARY} ids, hidden size {HIDDEN}, "
        f"{results['tokens']} tokens a pass, forward and backward; entropy as a metric except for dpo.",
        "",
        "One unit is the bytes of one row of logits in float32; matrix products are left out.",
        "",
        "Errors are those beside float64: of a value over its size or 1, of the head's gradient over its largest.",
        "",
        "| | units a token before | after | times less | ms a token before | after | times faster "
        "| error of a value before | after | of the gradient before | after |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in results["cases"].items():
        lines.append(
            f"| {name} | {one['units_before']:.1f} | {one['units_after']:.1f} | {one['times_less']:.1f} "
            f"| {one['milliseconds_before']:.2f} | {one['milliseconds_after']:.2f} | {one['times_faster']:.1f} "
            f"| {one['before_off']['value']:.1e} | {one['after_off']['value']:.1e} "
            f"| {one['before_off']['gradient']:.1e} | {one['after_off']['gradient']:.1e} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
