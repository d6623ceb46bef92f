"""Frozen models that compute in bf16_mixed: as float32 parameters under autocast, in half of their memory."""

import pytest
import torch

from multiref_cli.config.schema import Model, ReferenceSpec
from multiref_cli.config.terms import Mix
from multiref_cli.models.load import load_causal_lm, new_causal_lm
from multiref_cli.models.logprobs import normalizers, token_logps
from multiref_cli.models.packing import pack
from multiref_cli.models.precision import Precision
from multiref_cli.models.save import save_policy
from multiref_cli.references.local import LocalReference
from multiref_cli.world.tokenizer import tokenizer as toy_tokenizer

FAMILIES = {
    "llama": {"num_key_value_heads": 2, "rms_norm_eps": 1e-6},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt_neox": {},  # layer norms, and biases everywhere
}


@pytest.fixture(params=FAMILIES)
def bfloat16_model(request, tmp_path):
    """A model whose files are in bfloat16, as most that are published."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    spec = {"architecture": request.param, "max_position_embeddings": 64, **sizes, **FAMILIES[request.param]}
    save_policy(new_causal_lm(spec, toy_tokenizer(), dtype="bfloat16"), toy_tokenizer(), tmp_path / "model")
    return Model(path=str(tmp_path / "model"))


def test_a_mixed_reference_of_bfloat16_files_is_half_as_large_and_the_same_to_the_bit(bfloat16_model):
    packed = pack([[5, 6, 7], [8, 9]], [([1, 2, 3], [4, 4]), ([2, 2, 1, 5],)], 0, True)
    whole = load_causal_lm(bfloat16_model, dtype="float32")
    reference = LocalReference(ReferenceSpec(name="a", path=bfloat16_model.path), dtype="bf16_mixed")
    with Precision("bf16_mixed").autocast():
        expected = token_logps(whole, packed).logps
    assert torch.equal(reference.token_logps(packed), expected)
    assert torch.equal(token_logps(reference.model, packed).logps, expected)  # whoever asks it
    mix = Mix(-1.0, (0.5, 0.5))
    with Precision("bf16_mixed").autocast():
        (mixed,) = normalizers([whole, whole], packed, [mix])
    assert torch.equal(normalizers([reference.model] * 2, packed, [mix])[0], mixed)
    assert not torch.equal(token_logps(load_causal_lm(bfloat16_model, dtype="bfloat16"), packed).logps, expected)
    assert _bytes(reference.model) < 0.6 * _bytes(whole)
    changed = LocalReference(ReferenceSpec(name="a", path=bfloat16_model.path, update={"ema": 0.5}), dtype="bf16_mixed")
    assert _bytes(changed.model) == _bytes(whole)  # what moves is not rounded


def _bytes(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def test_a_mixed_reference_of_float32_files_stays_float32(make_model, tmp_path):
    save_policy(make_model("llama"), toy_tokenizer(), tmp_path / "model")
    opened = load_causal_lm(Model(path=str(tmp_path / "model")), dtype="bf16_mixed")
    assert {p.dtype for p in opened.parameters()} == {torch.float32}


def test_a_model_whose_numbers_would_be_others_stays_float32(tmp_path):
    """Gemma multiplies its embeddings by the root of its width, 5.657, rounded to their weights' type, 5.65625."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    spec = {"architecture": "gemma", "max_position_embeddings": 64, "num_key_value_heads": 1, "head_dim": 16, **sizes}
    save_policy(new_causal_lm(spec, toy_tokenizer(), dtype="bfloat16"), toy_tokenizer(), tmp_path / "model")
    model = Model(path=str(tmp_path / "model"))
    packed = pack([[5, 6, 7], [8, 9]], [([1, 2, 3], [4, 4]), ([2, 2, 1, 5],)], 0, True)
    with Precision("bf16_mixed").autocast():
        expected = token_logps(load_causal_lm(model, dtype="float32"), packed).logps
    reference = LocalReference(ReferenceSpec(name="a", path=model.path), dtype="bf16_mixed")
    assert torch.equal(reference.token_logps(packed), expected)
    assert {p.dtype for p in reference.model.parameters()} == {torch.float32}
