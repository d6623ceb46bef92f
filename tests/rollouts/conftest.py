"""Tiny random models that rollouts are drawn from."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 40
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def build(name: str):
    """A model whose next-token distributions are far from uniform."""
    torch.manual_seed(0)
    model = {
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**BASE)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**BASE, head_dim=16)),
        "llama": lambda: LlamaForCausalLM(
            LlamaConfig(**BASE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=LLAMA3)
        ),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**BASE, sliding_window=8)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
            )
        ),
    }[name]()
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def qwen2():
    """The family of the embedded models."""
    return build("qwen2")


@pytest.fixture(scope="session")
def make_model():
    """The function that builds a model by name."""
    return build
