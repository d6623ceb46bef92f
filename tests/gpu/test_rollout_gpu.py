"""Decoding on a GPU: CUDA graphs replay what the eager decoder computes, also after rows have left."""

import itertools
import random

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.transformers_engine import TransformersEngine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]


def test_cuda_graphs_give_the_same_tokens_as_the_eager_decoder():
    """Same uniforms, same float32 logits up to rounding: the same completions, and log-probs to 1e-4."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=90, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, **sizes
    )
    model = Qwen2ForCausalLM(config).cuda().eval()
    numbers = random.Random(0)
    prompts = [[numbers.randrange(3, 90) for _ in range(numbers.randint(2, 20))] for _ in range(8)]
    sampling = Sampling(max_new_tokens=60, end_ids=(1, 2))
    eager, graphs = (
        TransformersEngine(model, 0, cuda_graphs=flag).generate(prompts, 4, sampling, list(range(8)))
        for flag in (False, True)
    )
    for first, second in zip(itertools.chain(*eager), itertools.chain(*graphs)):
        assert first.ids == second.ids
        assert first.logps == pytest.approx(second.logps, abs=1e-4)
    assert any(one.finished for one in itertools.chain(*eager))
