"""Chunked log-probabilities against the plain computation: values, gradients, and what is never allocated."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multiref_cli.config.regularizer import Mix, Term
from multiref_cli.errors import RequestError
from multiref_cli.models.decoder import check_head, honours_shared_prompts, sharing_width
from multiref_cli.models.logprobs import normalizers, score_references, token_divergence, token_logps
from multiref_cli.models.packing import pack
from multiref_cli.objectives.divergence import amari_divergence
from multiref_cli.objectives.mixing import power_mean

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [3]]
COMPLETIONS = [[[1, 2, 3, 4], [9, 8]], [[7], [6, 5, 4, 3, 2, 1, 9]], [[11, 12, 13], [14, 15]]]
ORDERS = [-1.0, 0.0, 0.5, 1.0]


def plain_distributions(model, size=None, temperature=1.0):
    """(N, V) log-softmax of the model's own logits, one sequence at a time."""
    rows = []
    for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True):
        for one in group:
            logits = model(torch.tensor([prompt + one])).logits[0, :, :size] / temperature
            rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
    return torch.cat(rows)


def targets():
    return torch.tensor([token for group in COMPLETIONS for one in group for token in one])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same_gradients(given, expected, tolerance=1e-5):
    assert len(given) == len(expected)
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_equal_to_the_plain_way(make_model, family, share):
    """Values and gradients of log-probabilities and entropy, tied heads (qwen2, gpt2) and an untied one (llama)."""
    model = make_model(family)
    packed = pack(PROMPTS, COMPLETIONS, 0, share)
    weight = torch.randn(packed.mask.shape, generator=torch.Generator().manual_seed(1))
    result = token_logps(model, packed, chunk=3, entropy=True)
    given = gradients(model, (weight * result.logps).sum() + result.entropy.square().sum())
    plain = plain_distributions(model)
    logps, entropy = plain.gather(1, targets()[:, None])[:, 0], -(plain.exp() * plain).sum(-1)
    expected = gradients(model, (weight[packed.mask] * logps).sum() + entropy.square().sum())
    torch.testing.assert_close(result.logps[packed.mask], logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.entropy[packed.mask], entropy, rtol=1e-5, atol=1e-5)
    assert_same_gradients(given, expected)
    assert (result.logps[~packed.mask] == 0).all()


def test_groups_of_eight_shared_equal_separate(make_model):
    model = make_model("qwen2")
    generator = torch.Generator().manual_seed(0)
    group = [torch.randint(1, 60, (n,), generator=generator).tolist() for n in (1, 9, 4, 16, 7, 2, 12, 5)]
    results = [token_logps(model, pack([PROMPTS[1]], [group], 0, share)).logps for share in (True, False)]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["cohere", "granite", "gemma2"])
def test_scaled_and_capped_logits(make_model, family):
    model = make_model(family)
    check_head(model)
    result = token_logps(model, pack(PROMPTS, COMPLETIONS, 0, share_prompt=False), chunk=4)
    expected = plain_distributions(model).gather(1, targets()[:, None])[:, 0]
    torch.testing.assert_close(result.logps[result.logps != 0], expected, rtol=1e-5, atol=1e-5)


def test_the_chunk_size_changes_nothing(make_model):
    model, packed = make_model("llama"), pack(PROMPTS, COMPLETIONS, 0, True)
    whole, small = (token_logps(model, packed, chunk=chunk).logps for chunk in (1000, 1))
    torch.testing.assert_close(whole, small, rtol=1e-6, atol=1e-6)


def test_temperature(make_model):
    model, packed = make_model("llama"), pack(PROMPTS, COMPLETIONS, 0, False)
    expected = plain_distributions(model, temperature=0.7).gather(1, targets()[:, None])[:, 0]
    given = token_logps(model, packed, temperature=0.7).logps[packed.mask]
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_padding_of_the_head_is_cut_before_the_softmax(make_model):
    """A head padded from 61 to 64 ids gives what the model with 61 gives, and no gradient to the padding."""
    model = make_model("llama", vocab_size=64)
    packed = pack(PROMPTS, COMPLETIONS, 0, True)
    result = token_logps(model, packed, vocabulary=61, chunk=5)
    expected = plain_distributions(model, size=61).gather(1, targets()[:, None])[:, 0]
    torch.testing.assert_close(result.logps[packed.mask], expected, rtol=1e-5, atol=1e-5)
    result.logps.sum().backward()
    assert (model.lm_head.weight.grad[61:] == 0).all()
    assert (model.lm_head.weight.grad[:61] != 0).any()


def test_half_precision_reduces_in_float32(make_model):
    model = make_model("llama").bfloat16()
    packed = pack(PROMPTS, COMPLETIONS, 0, True)
    result = token_logps(model, packed)
    result.logps.sum().backward()
    assert result.logps.dtype == torch.float32
    assert model.lm_head.weight.grad.dtype == torch.bfloat16
    expected = plain_distributions(model.float()).gather(1, targets()[:, None])[:, 0]
    torch.testing.assert_close(result.logps[packed.mask], expected, rtol=0.05, atol=0.1)


def test_nothing_to_score_gives_zeros(make_model):
    result = token_logps(make_model("llama"), pack([[1, 2]], [[[], []]], 0, False), entropy=True)
    assert result.logps.shape == (2, 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("normalized", [False, True])
def test_divergence_equals_the_plain_sum(make_model, order, normalized):
    """sum_i alpha_i D_A(pi_i || pi), log F, entropy and reference values, with the gradient of plain autograd.

    Normalized: the same gradient, and the sum less its least value, which the normalized mixed reference has.
    """
    model, references = make_model("qwen2"), [make_model("llama", 1), make_model("gpt2", 2)]
    packed, weights = pack(PROMPTS, COMPLETIONS, 0, False), (0.3, 0.7)
    terms = [Term(order, Mix(order, weights))]
    result = token_divergence(model, references, terms, packed, entropy=True, normalized=normalized)
    given = gradients(model, result.divergence.sum() + result.logps.sum() + result.entropy.sum())
    policy = plain_distributions(model)
    frozen = torch.stack([plain_distributions(r).detach() for r in references])
    divergence = sum(w * amari_divergence(p, policy, order) for w, p in zip(weights, frozen, strict=True))
    entropy = -(policy.exp() * policy).sum(-1)
    expected = gradients(model, divergence.sum() + policy.gather(1, targets()[:, None]).sum() + entropy.sum())
    best = power_mean(frozen, torch.tensor(weights), order).log_softmax(-1)
    least = sum(w * amari_divergence(p, best, order) for w, p in zip(weights, frozen, strict=True))
    divergence = divergence - least if normalized else divergence
    torch.testing.assert_close(result.divergence[packed.mask], divergence, rtol=1e-5, atol=1e-5)
    assert_same_gradients(given, expected)
    log_f = power_mean(frozen, torch.tensor(weights), order).logsumexp(-1)
    torch.testing.assert_close(result.log_normalizers[0, packed.mask], log_f, rtol=1e-5, atol=1e-5)
    sampled = frozen.gather(2, targets()[None, :, None].expand(2, -1, 1))[..., 0]
    torch.testing.assert_close(result.reference_logps[:, packed.mask], sampled, rtol=1e-5, atol=1e-5)
    assert not result.reference_logps.requires_grad


def test_divergence_of_another_order_than_the_mean(make_model):
    """Harmonic mean with a reverse-KL score: KL(policy || normalized mixed reference)."""
    model, references = make_model("qwen2"), [make_model("llama", 1), make_model("llama", 2)]
    packed = pack(PROMPTS, COMPLETIONS, 0, False)
    terms, frozen = [Term(0.0, Mix(-1.0, (0.5, 0.5)))], torch.stack([plain_distributions(r) for r in references])
    mixed = power_mean(frozen.detach(), torch.tensor([0.5, 0.5]), -1.0)
    policy = plain_distributions(model)
    for normalized, target in ((True, mixed.log_softmax(-1)), (False, mixed)):
        result = token_divergence(model, references, terms, packed, normalized=normalized)
        expected = (policy.exp() * (policy - target)).sum(-1)
        torch.testing.assert_close(result.divergence[packed.mask], expected, rtol=1e-5, atol=1e-5)


def test_divergence_from_itself_is_zero(make_model):
    model, packed = make_model("qwen2"), pack(PROMPTS, COMPLETIONS, 0, True)
    result = token_divergence(model, [model, model], [Term(0.0, Mix(0.0, (0.4, 0.6)))], packed)
    assert result.divergence.abs().max() < 1e-5
    assert result.log_normalizers.abs().max() < 1e-5


def test_normalizers_of_a_list_of_mixes(make_model):
    references = [make_model("llama", 1, vocab_size=64), make_model("qwen2", 2)]
    packed = pack(PROMPTS, COMPLETIONS, 0, True)
    mixes = [
        Mix(0.0, (0.5, 0.5)),
        Mix(0.0, (0.9, 0.1)),
        Mix(-1.0, (0.5, 0.5)),
        Mix(1.0, (0.5, 0.5)),
        Mix(0.0, (0.0, 1.0)),
    ]
    logps, given = score_references(references, packed, mixes, vocabulary=61)
    assert all(torch.equal(a, b) for a, b in zip(given, normalizers(references, packed, mixes, 61), strict=True))
    frozen = torch.stack([plain_distributions(r, size=61).detach() for r in references])
    sampled = frozen.gather(2, targets()[None, :, None].expand(2, -1, 1))[..., 0]
    torch.testing.assert_close(logps[:, packed.mask], sampled, rtol=1e-5, atol=1e-5)
    for values, mix in zip(given, mixes, strict=True):
        expected = power_mean(frozen, torch.tensor(mix.weights), mix.order).logsumexp(-1)
        torch.testing.assert_close(values[packed.mask], expected, rtol=1e-5, atol=1e-5)
        assert (values[packed.mask] <= 1e-6).all()
    assert (given[3] == 0).all() and (given[4] == 0).all()


class LogitMemory(TorchDispatchMode):
    """Tensors over the vocabulary, parameters left out: the most bytes alive at once, and the most rows of one."""

    def __init__(self, model):
        super().__init__()
        self.vocabulary = model.config.vocab_size
        self.parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.live, self.peak, self.rows = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == self.vocabulary:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.parameters:
                    self.rows = max(self.rows, tensor.numel() // self.vocabulary)
                    self.live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: value for key, value in self.live.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def memory_of(model, run):
    with LogitMemory(model) as memory:
        run()
    return memory


WIDE = {"vocab_size": 50_001, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}


def test_no_tensor_over_the_vocabulary_has_all_positions(make_model):
    """V = 50,001 ids and 240 positions: the plain way holds them all, the chunked one 8 rows, forward and backward."""
    model = make_model("llama", **WIDE)
    packed = pack([[1, 2, 3]], [[list(range(1, 121)), list(range(200, 320))]], 0, True)
    chunked = memory_of(model, lambda: token_logps(model, packed, chunk=8, entropy=True).logps.sum().backward())
    assert chunked.rows == 8
    plain = memory_of(model, lambda: model(packed.input_ids).logits.log_softmax(-1).sum().backward())
    assert plain.rows == packed.input_ids.numel()
    assert chunked.peak < plain.peak / 4


def test_the_exact_divergence_needs_little_more_memory_than_the_sampled_path(make_model):
    """Peak of tensors over the vocabulary, default chunks, three references: at most 1.2 times the sampled path's."""
    model, *references = (make_model("llama", seed, **WIDE) for seed in range(4))
    packed = pack([[1, 2, 3]], [[list(range(1, 61)), list(range(200, 260))]], 0, True)
    sampled = memory_of(model, lambda: token_logps(model, packed).logps.sum().backward())
    terms = [Term(0.0, Mix(0.0, (0.2, 0.3, 0.5)))]
    exact = memory_of(model, lambda: token_divergence(model, references, terms, packed).divergence.sum().backward())
    assert exact.peak <= 1.2 * sampled.peak


def test_models_with_windows_are_not_shared(make_model):
    """A sliding window is lost under a mask of one's own, so such a model computes its prompts separately."""
    model = make_model("gemma2")
    assert (sharing_width(make_model("qwen2")), sharing_width(model)) == (32, None)
    with pytest.raises(RequestError, match="share_prompt=false"):
        token_logps(model, pack(PROMPTS, COMPLETIONS, 0, share_prompt=True))


def test_a_model_that_ignores_masks_is_found_out(make_model):
    model = make_model("llama")
    forward = model.model.forward
    model.model.forward = lambda attention_mask=None, **inputs: forward(**inputs)
    assert not honours_shared_prompts(model)


def test_an_unknown_transformation_of_the_logits_is_refused(make_model):
    model = make_model("cohere")
    model.logit_scale = 0.5  # not what its config says
    with pytest.raises(RequestError, match="transforms its logits"):
        check_head(model)
