"""Rollout speed beside `generate()` on the embedded model's size; run: python tests/bench/bench_rollout.py

Both sides sample the same number of tokens from the same prompts on one thread, in CPU-seconds (the other core may be
busy); `generate()` gets its best ordinary settings (cache on). With --write the figures are kept in results/.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from common import machine
from transformers import Qwen2Config, Qwen2ForCausalLM

from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.transformers_engine import TransformersEngine

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS, REPEATS = 16, 8, 18, 26, 5
SIZES = {
    "d64": {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2},
    "d96": {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2},
}


def seconds(run) -> float:
    """The best of a few runs, after one to warm up."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def measure(size: dict, end_ids: tuple[int, ...]) -> dict:
    """Seconds and tokens a second of both decoders and `generate()`."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=88, num_hidden_layers=2, max_position_embeddings=256, **size)
    ).eval()
    prompts = torch.randint(3, 88, (PROMPTS, PROMPT_TOKENS))
    repeated = prompts.repeat_interleave(GROUP, 0)
    sampling = Sampling(max_new_tokens=NEW_TOKENS, end_ids=end_ids)

    def ours(lean: bool):
        engine = TransformersEngine(model, 0, lean_decoder=lean)
        return engine.generate(prompts.tolist(), GROUP, sampling, list(range(PROMPTS)))

    def theirs():
        return model.generate(
            repeated,
            attention_mask=torch.ones_like(repeated),
            do_sample=True,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=list(end_ids) or None,
            pad_token_id=0,
        )

    result = {"generate": seconds(theirs), "lean": seconds(lambda: ours(True)), "static": seconds(lambda: ours(False))}
    result["speedup_lean"] = result["generate"] / result["lean"]
    result["speedup_static"] = result["generate"] / result["static"]
    if not end_ids:
        result["tokens_per_second_lean"] = PROMPTS * GROUP * NEW_TOKENS / result["lean"]
    return result


def main() -> None:
    """Measures each size with and without end tokens and stores the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures in tests/bench/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        f"{name}{'_with_end' if ends else ''}": measure(size, ends)
        for name, size in SIZES.items()
        for ends in ((), (1, 2, 3, 4, 5, 6))
    }
    report = {
        "what": f"{PROMPTS} prompts x {GROUP} samples, {PROMPT_TOKENS} + {NEW_TOKENS} tokens, float32, CPU-s",
        "machine": machine(1),
        "results": results,
    }
    print(json.dumps(report, indent=1))
    if arguments.write:
        (Path(__file__).parent / "results" / "rollout.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
