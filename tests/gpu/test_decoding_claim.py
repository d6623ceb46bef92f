"""Claim: the lean decoder is faster than generate(), and CUDA graphs are faster than it."""

from importlib.util import find_spec

import torch

from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from tests.gpu.parts import record, seconds


def test_tokens_a_second(scale):
    prompts, group, length = scale.choose(32, 2), 8, scale.choose(256, 6)
    model = scale.model(dtype=torch.bfloat16 if scale.real else torch.float32)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, scale.config["vocab_size"], (prompts, scale.choose(128, 5)), generator=generator).tolist()
    engines = {"lean": TransformersEngine(model, 0), "forward": TransformersEngine(model, 0, lean_decoder=False)}
    if scale.real:
        engines["graphs"] = TransformersEngine(model, 0, cuda_graphs=True)
    sampling, rates = Sampling(max_new_tokens=length), {}
    for name, engine in engines.items():
        taken = seconds(lambda e=engine: e.generate(ids, group, sampling, list(range(prompts))), scale.device, 1)
        rates[name] = prompts * group * length / taken
    rates |= _vllm(scale, model, ids, group, sampling)
    record("decoding, tokens a second", **rates)
    assert all(rate > 0 for rate in rates.values())
    if scale.real:
        assert rates["lean"] > rates["forward"] and rates["graphs"] > rates["lean"]


def _vllm(scale, model, ids, group, sampling):
    """Rate of vLLM on the same model, where it is installed."""
    if not scale.real or find_spec("vllm") is None:
        return {}
    import tempfile

    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        engine = LLM(folder, skip_tokenizer_init=True, dtype="bfloat16", gpu_memory_utilization=0.4, max_model_len=1024)
        params = SamplingParams(n=group, max_tokens=sampling.max_new_tokens, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": one} for one in ids]
        taken = seconds(lambda: engine.generate(inputs, params, use_tqdm=False), scale.device, 1)
    return {"vllm": len(ids) * group * sampling.max_new_tokens / taken}
