"""Tiny random causal language models of several families."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 61

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "qwen2": {**SMALL, "intermediate_size": 48, "tie_word_embeddings": True},
    "llama": {**SMALL, "intermediate_size": 48, "tie_word_embeddings": False},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "cohere": {**SMALL, "intermediate_size": 48, "logit_scale": 0.25},
    "granite": {**SMALL, "intermediate_size": 48, "logits_scaling": 4.0},
    "gemma2": {**SMALL, "intermediate_size": 48, "head_dim": 8, "final_logit_softcapping": 3.0},
}


def build(family: str, seed: int = 0, vocab_size: int = VOCABULARY, **overrides):
    """A random model in evaluation mode; larger initial weights than usual, so that its distributions differ."""
    torch.manual_seed(seed)
    settings = {**FAMILIES[family], "vocab_size": vocab_size, "pad_token_id": 0, "eos_token_id": 0, **overrides}
    config = AutoConfig.for_model(family, initializer_range=0.3, **settings)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def make_model():
    """`build`, for tests that want a model of some family."""
    return build
