"""One GRPO step beside TRL's GRPOTrainer on the same 10 M model; run: python tests/bench/bench_grpo_step.py

16 sequences of 64 prompt and 64 new tokens (2 prompts x 8), vocabulary 4,096, float32, one thread, AdamW. Each variant
runs in a process of its own, so that its peak memory is its own. Times are CPU-seconds: the other core may be
busy. With --write the figures are kept in results/.
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from common import machine

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS, VOCABULARY, STEPS = 2, 8, 64, 64, 4096, 3
VARIANTS = {
    "trl_k1": None,
    "k1_reward": (1, "sequence", "reward"),
    "k1_k3": (1, "token", "k3"),
    "k2_reward": (2, "sequence", "reward"),
    "k2_k3": (2, "token", "k3"),
    "k2_exact": (2, "token", "exact"),
}


def model_of(seed: int):
    """The 10 M model: hidden 320, 6 layers, untied head."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def prompts_of() -> list[list[int]]:
    """The same prompts for everybody."""
    import torch

    return torch.randint(10, VOCABULARY, (PROMPTS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0)).tolist()


def reward_of(ids) -> float:
    """Something cheap."""
    return float(sum(ids) % 11)


def run_ours(count: int, level: str, estimator: str):
    """A function that takes one step and returns its times."""
    import torch

    from multiref_cli.algorithms.online import Online
    from multiref_cli.algorithms.parts import Parts
    from multiref_cli.config import schema
    from multiref_cli.config.algorithms import GrpoSettings
    from multiref_cli.data.prompts import Prompt
    from multiref_cli.references.live import LiveReferences
    from multiref_cli.references.local import LocalReference
    from multiref_cli.rewards.combine import RewardBatch
    from multiref_cli.rollouts.transformers_engine import TransformersEngine

    names = ["a", "b"][:count]
    specs = [schema.ReferenceSpec(name=n, path=n) for n in names]
    config = schema.Experiment(
        algorithm=GrpoSettings(name="grpo", batch_prompts=PROMPTS),
        regularizer=schema.Regularizer(
            mean_order=0, score_order=0, level=schema.Level[level], estimator=schema.Estimator[estimator]
        ),
        references=specs,
        alpha=[1 / count] * count,
        beta=0.1,
        rollout=schema.Rollout(group_size=GROUP, max_new_tokens=NEW_TOKENS),
    )
    model = model_of(0)
    frozen = [model_of(i).eval().requires_grad_(False) for i in range(count)]
    members = [LocalReference(spec, opener=lambda one=one: one) for spec, one in zip(specs, frozen)]
    parts = Parts(
        model=model,
        tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids))),
        prompts=[Prompt(tuple(p), [{"role": "user", "content": ""}], None, i) for i, p in enumerate(prompts_of())],
        end_ids=[],
        engine=TransformersEngine(model, 0),
        reward=lambda samples: RewardBatch([reward_of(map(int, s.completion.split())) for s in samples], {}),
        references=LiveReferences(config, members, [None] * count),
    )
    algorithm, optimizer = Online(config, parts), torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(number: int) -> dict[str, float]:
        start = time.perf_counter()
        batch = algorithm.batch(number)
        optimizer.zero_grad()
        for micro in batch.micros:
            algorithm.loss(model, micro)[0].backward()
        optimizer.step()
        found = {"step": time.perf_counter() - start}
        return found | {name.removeprefix("time/"): batch.metrics[name] for name in ("time/rollout", "time/score")}

    return step


def run_trl():
    """The same with TRL's GRPOTrainer, by its own generation, scoring and loss."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    folder = tempfile.mkdtemp()
    model_of(0).save_pretrained(folder)
    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="w2"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [" ".join(f"w{i}" for i in prompt) for prompt in prompts_of()]
    trainer = GRPOTrainer(
        model=folder,
        reward_funcs=lambda completion_ids, **rest: [reward_of(ids) for ids in completion_ids],
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},
            beta=0.1,
            use_bias_correction_kl=False,
            loss_type="grpo",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            logging_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>"),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-5)

    def step(number: int) -> dict[str, float]:
        start = time.perf_counter()
        inputs = trainer._generate_and_score_completions([{"prompt": t} for t in texts for _ in range(GROUP)])
        scored = time.perf_counter() - start
        assert int(inputs["completion_mask"].sum()) == PROMPTS * GROUP * NEW_TOKENS
        optimizer.zero_grad()
        trainer._compute_loss(trainer.model, inputs).backward()
        optimizer.step()
        return {"step": time.perf_counter() - start, "rollout_and_score": scored}

    return step


def measure(variant: str) -> dict[str, float]:
    """Best of a few steps after one to warm up, and the process's peak memory above its imports."""
    import torch

    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # also for the times that the algorithm itself reports
    settings = VARIANTS[variant]
    step = run_trl() if settings is None else run_ours(*settings)
    step(0)
    times = [step(number) for number in range(1, 1 + STEPS)]
    best = copy.copy(min(times, key=lambda found: found["step"]))
    best["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {name: round(value, 3) for name, value in best.items()}


def main() -> None:
    """Runs every variant in its own process and stores the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", nargs="?", choices=list(VARIANTS), help="measure this one only, in this process")
    parser.add_argument("--write", action="store_true", help="keep the figures in tests/bench/results")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant)))
        return
    results = {}
    for variant in VARIANTS:
        done = subprocess.run(
            [sys.executable, __file__, variant],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        results[variant] = json.loads(done.stdout.strip().splitlines()[-1])
        print(variant, results[variant], flush=True)
    report = {
        "what": f"{PROMPTS} prompts x {GROUP} samples, {PROMPT_TOKENS} + {NEW_TOKENS} tokens, 10 M parameters, CPU-s",
        "machine": machine(1),
        "results": results,
    }
    if arguments.write:
        (Path(__file__).parent / "results" / "grpo_step.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
