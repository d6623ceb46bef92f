"""Activations counted from a config, beside what autograd really keeps."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import pack
from multiref_cli.runs.memory import Shape, activation_bytes, shape_of

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def kept(layers: int, half: bool, checkpointed: bool) -> tuple[float, int]:
    """Bytes that autograd keeps of a pass besides parameters and their casts, and the tokens of the pass."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=50, num_hidden_layers=layers, attn_implementation="sdpa", **SIZES))
    model.train()
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    shapes = {tuple(p.shape) for p in model.parameters()} | {
        tuple(p.T.shape) for p in model.parameters() if p.ndim == 2
    }
    found = {}

    def keep(tensor):
        if tuple(tensor.shape) not in shapes:
            found[tensor.untyped_storage().data_ptr()] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    ids = torch.randint(3, 50, (6, 64), generator=torch.Generator().manual_seed(0)).tolist()
    packed = pack([one[:32] for one in ids], [[one[32:], one[20:]] for one in ids], 0, share_prompt=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        token_logps(model, packed).logps.sum()
    return float(sum(size for _, size in found.values())), packed.padded_tokens


@pytest.mark.parametrize("half", [False, True])
def test_a_layer_keeps_what_is_counted(half):
    """Measured as the difference of models of five and two layers, so that embedding and head drop out: within 15 %."""
    (more, tokens), (fewer, _) = kept(5, half, False), kept(2, half, False)
    counted = activation_bytes(Shape(3, 64, 256, 32), tokens, half, checkpointed=False, width=tokens // 6)
    assert counted == pytest.approx(more - fewer, rel=0.15)


def test_every_layer_keeps_the_mask_of_shared_prompts():
    """By hand: 2 layers, a row of 100 tokens, 4 bytes for each two of them; of bfloat16 2 bytes."""
    shape, without = Shape(2, 64, 256, 32), activation_bytes(Shape(2, 64, 256, 32), 100, False, False)
    assert activation_bytes(shape, 100, False, False, 100) - without == 2 * 100 * 100 * 4
    more = activation_bytes(shape, 100, True, False, 100) - activation_bytes(shape, 100, True, False)
    assert more == 2 * 100 * 100 * 2


def test_checkpointing_keeps_the_input_of_a_layer():
    (more, tokens), (fewer, _) = kept(5, False, True), kept(2, False, True)
    by_layer = activation_bytes(Shape(5, 64, 256, 32), tokens, False, True)
    by_layer -= activation_bytes(Shape(2, 64, 256, 32), tokens, False, True)
    assert by_layer == pytest.approx(more - fewer, rel=0.15)


def test_paper_sizes_by_hand():
    """Qwen2.5-0.5B: 4 x 4864 + 10 x 896 + 2 x 128 numbers of 2.5 bytes for 24 layers and 16,384 tokens: 26.25 GiB."""
    config = {"num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
    shape = shape_of(config | {"num_key_value_heads": 2})
    assert shape == Shape(24, 896, 4864, 128)
    assert activation_bytes(shape, 16384, True, False) / 2**30 == pytest.approx(26.25, abs=0.001)
    assert shape_of(config | {"head_dim": 100}) == Shape(24, 896, 4864, 1400)


@pytest.mark.parametrize("change", [{"hidden_size": None}, {"num_attention_heads": "x"}, {"num_experts": 8}])
def test_sizes_that_are_not_known_are_not_guessed(change):
    config = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    assert shape_of(config) == Shape(2, 8, 16, 8) and shape_of(config | change) is None
