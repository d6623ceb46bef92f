"""The transformers engine: log-probs and tokens against the model itself, distribution, seeds, ends, errors."""

import itertools
import random

import pytest
import torch

from multiref_cli.errors import RequestError
from multiref_cli.rollouts import lean
from multiref_cli.rollouts.engine import Sampling, sampling_of
from multiref_cli.rollouts.factory import build_engine, words_on
from multiref_cli.rollouts.sampling import draw, uniforms
from multiref_cli.rollouts.transformers_engine import TransformersEngine

VOCABULARY = 40
LEAN = ["qwen2", "qwen3", "llama"]
OTHERS = ["mistral", "gpt2"]


def random_prompts(count: int) -> list[list[int]]:
    """Prompts of different lengths."""
    numbers = random.Random(0)
    return [[numbers.randrange(2, VOCABULARY) for _ in range(numbers.randint(2, 17))] for _ in range(count)]


@torch.no_grad()
def reference_decode(model, prompt, seed: int, sample: int, sampling: Sampling) -> tuple[list[int], list[float]]:
    """One completion by running the whole model anew for every token."""
    numbers, ids, logps = uniforms(seed, sample + 1, sampling.max_new_tokens)[sample], [], []
    for t in range(sampling.max_new_tokens):
        logits = model(torch.tensor([list(prompt) + ids])).logits[:, -1]
        token, logp = draw(logits, numbers[t : t + 1], sampling)
        ids.append(token.item())
        logps.append(logp.item())
        if ids[-1] in sampling.end_ids:
            break
    return ids, logps


@pytest.mark.parametrize("name", LEAN + OTHERS)
def test_tokens_and_log_probs_are_the_models_own(name, make_model):
    """Every completion equals a token-by-token run of the whole model, ragged prompts and early ends included."""
    model, prompts = make_model(name), random_prompts(5)
    sampling = Sampling(max_new_tokens=14, end_ids=(1, 2, 3, 4))
    for use_lean in (True, False) if name in LEAN else (True,):
        engine = TransformersEngine(model, 0, batch_size=12, lean_decoder=use_lean)
        assert engine.lean is (use_lean and name in LEAN)
        groups = engine.generate(prompts, 4, sampling, [11, 12, 13, 14, 15])
        for prompt, seed, group in zip(prompts, (11, 12, 13, 14, 15), groups):
            for sample, one in enumerate(group):
                ids, logps = reference_decode(model, prompt, seed, sample, sampling)
                assert one.ids == ids
                assert one.logps == pytest.approx(logps, abs=2e-5)
                assert one.finished is (ids[-1] in sampling.end_ids)


def test_rows_leave_the_batch_and_groups_become_uneven(qwen2, monkeypatch):
    """With ends at different times the decoder drops rows several times, whole prompts among them."""
    dropped = []
    keep = lean.LeanSession.keep
    monkeypatch.setattr(
        lean.LeanSession, "keep", lambda self, rows: (keep(self, rows), dropped.append((self.grid, self.slots)))[0]
    )
    TransformersEngine(qwen2, 0).generate(
        random_prompts(6), 4, Sampling(max_new_tokens=30, end_ids=tuple(range(1, 9))), list(range(6))
    )
    assert len(dropped) >= 3
    assert any(slots is not None for _, slots in dropped)
    assert min(grid[0] for grid, _ in dropped) < 6


def test_results_do_not_depend_on_the_batch(qwen2):
    """Alone, in another order, in other chunks, in a larger group: the same completions."""
    prompts, sampling = random_prompts(5), Sampling(max_new_tokens=12, end_ids=(1, 2))
    whole = TransformersEngine(qwen2, 0).generate(prompts, 3, sampling, [5, 6, 7, 8, 9])
    backwards = TransformersEngine(qwen2, 0).generate(prompts[::-1], 3, sampling, [9, 8, 7, 6, 5])[::-1]
    small = TransformersEngine(qwen2, 0, batch_size=3).generate(prompts, 3, sampling, [5, 6, 7, 8, 9])
    alone = [TransformersEngine(qwen2, 0).generate([p], 3, sampling, [s])[0] for p, s in zip(prompts, (5, 6, 7, 8, 9))]
    wider = TransformersEngine(qwen2, 0).generate(prompts, 6, sampling, [5, 6, 7, 8, 9])
    texts = [[c.ids for c in group] for group in whole]
    for other in (backwards, small, alone, [group[:3] for group in wider]):
        assert [[c.ids for c in group] for group in other] == texts
    longer = TransformersEngine(qwen2, 0).generate(
        prompts, 3, Sampling(max_new_tokens=20, end_ids=(1, 2)), [5, 6, 7, 8, 9]
    )
    assert [[c.ids[:12] for c in group] for group in longer] == texts


def test_distribution_of_whole_responses_is_that_of_generate_and_of_the_model(make_model):
    """Two-token responses over six ids: chi-square against the exact probabilities, for the engine and generate()."""
    torch.manual_seed(1)
    model = make_model("qwen2")
    prompt, count, allowed = [3, 9, 4], 4000, 6
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1, :allowed].softmax(-1)
        rows = torch.tensor([[*prompt, v] for v in range(allowed)])
        second = model(rows).logits[:, -1, :allowed].softmax(-1)
    exact = (first[:, None] * second).flatten() * count

    def statistic(pairs) -> float:
        counts = torch.zeros(allowed, allowed)
        for a, b in pairs:
            counts[a, b] += 1
        return float(((counts.flatten() - exact) ** 2 / exact).sum())

    ours = TransformersEngine(model, 0, vocabulary=allowed).generate([prompt], count, Sampling(max_new_tokens=2), [1])[
        0
    ]
    theirs = model.generate(
        torch.tensor([prompt]).expand(count, -1),
        attention_mask=torch.ones(count, 3),
        do_sample=True,
        max_new_tokens=2,
        min_new_tokens=2,
        top_k=0,
        pad_token_id=0,
        eos_token_id=None,
        suppress_tokens=list(range(allowed, VOCABULARY)),
    )[:, 3:].tolist()
    # 35 degrees of freedom: 99.99 % point 75.3.
    assert statistic(c.ids for c in ours) < 75.3
    assert statistic(theirs) < 75.3


def test_ends_caps_and_order(qwen2):
    """The end token closes a completion, the cap cuts one, and results stand in the order of the prompts."""
    prompts = random_prompts(4)
    groups = TransformersEngine(qwen2, 0).generate(
        prompts, 5, Sampling(max_new_tokens=6, end_ids=(1, 2, 3)), [1, 2, 3, 4]
    )
    assert [len(group) for group in groups] == [5] * 4
    for one in itertools.chain(*groups):
        assert len(one.ids) == len(one.logps) <= 6
        assert not set(one.ids[:-1]) & {1, 2, 3}
        assert one.finished == (one.ids[-1] in (1, 2, 3))
        assert one.finished or len(one.ids) == 6
    assert any(one.finished for one in itertools.chain(*groups)) and not all(
        one.finished for one in itertools.chain(*groups)
    )


def test_greedy_equals_generate(qwen2):
    """Temperature 0 gives what generate() gives without sampling, for every member of a group."""
    prompts = random_prompts(3)
    groups = TransformersEngine(qwen2, 0).generate(prompts, 2, Sampling(temperature=0.0, max_new_tokens=8), [0, 0, 0])
    for prompt, group in zip(prompts, groups):
        ids = torch.tensor([prompt])
        expected = qwen2.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=8,
            min_new_tokens=8,
            pad_token_id=0,
        )
        assert group[0].ids == group[1].ids == expected[0, len(prompt) :].tolist()


def test_weights_are_read_anew_and_the_mode_is_given_back(make_model):
    """A changed weight changes the next rollout; a model in training mode comes back in training mode."""
    model = make_model("qwen2").train()
    engine, sampling = TransformersEngine(model, 0), Sampling(max_new_tokens=6)
    before = engine.generate([[5, 6]], 4, sampling, [3])
    assert model.training
    with torch.no_grad():
        model.lm_head.weight.add_(0.5 * torch.randn_like(model.lm_head.weight))
    assert engine.generate([[5, 6]], 4, sampling, [3]) != before


def test_padding_ids_of_the_head_are_never_sampled(qwen2):
    """With a vocabulary of 20 of 40 ids, neither tokens nor normalization reach beyond it."""
    one = TransformersEngine(qwen2, 0, vocabulary=20).generate([[3, 4, 5]], 8, Sampling(max_new_tokens=5), [2])[0]
    assert max(max(c.ids) for c in one) < 20
    with torch.no_grad():
        logits = qwen2(torch.tensor([[3, 4, 5, *one[0].ids]])).logits[0, 2:-1, :20]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(one[0].ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(one[0].logps), expected, atol=2e-5, rtol=0)


def test_a_static_step_equals_an_ordinary_one(qwen2):
    """The arithmetic that a CUDA graph would capture (whole memory, mask by step, written by index) runs on CPU too."""
    weights, prompts = lean.Weights(qwen2), random_prompts(3)
    with torch.inference_mode():
        plain = lean.LeanSession(weights, prompts, 2, 5, 0)
        static = lean.LeanSession(weights, prompts, 2, 5, 0)
        static.cuda_graphs = True
        for _ in range(5):
            tokens = plain.logits.argmax(-1) % VOCABULARY
            static._static_inputs(tokens)
            torch.testing.assert_close(static._forward(tokens, static.positions), plain.step(tokens))
            static.positions, static.step_index = static.positions + 1, static.step_index + 1


def test_unfused_projections_agree(qwen2, monkeypatch):
    """Large models keep their projections apart; the result is the same."""
    sampling = Sampling(max_new_tokens=8)
    fused = TransformersEngine(qwen2, 0).generate([[5, 6, 7]], 3, sampling, [1])
    monkeypatch.setattr(lean, "_FUSE_BELOW", 0)
    apart = TransformersEngine(qwen2, 0).generate([[5, 6, 7]], 3, sampling, [1])
    assert [c.ids for c in apart[0]] == [c.ids for c in fused[0]]


def adapted_model(make_model, **settings):
    """A Qwen2 with an adapter whose weights are not zero."""
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(
        make_model("qwen2"), peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    )


def test_lean_decoder_declines_what_it_does_not_compute(qwen2, make_model):
    """Another family, or an adapter that is not only added to a projection, goes through the model's own forward."""
    dora = adapted_model(make_model, target_modules=["q_proj"], use_dora=True)
    assert lean.supports(qwen2) and not lean.supports(make_model("mistral")) and not lean.supports(dora)
    assert not lean.supports(adapted_model(make_model, target_modules=["q_proj", "embed_tokens"]))
    one = TransformersEngine(dora, 0).generate([[5, 6, 7]], 2, Sampling(max_new_tokens=6), [4])[0][0]
    ids, _ = reference_decode(dora, [5, 6, 7], 4, 0, Sampling(max_new_tokens=6))
    assert one.ids == ids


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_decoded_by_the_lean_decoder(make_model, targets, dtype):
    """Same samples as the adapted model's own forward; the adapter switched off gives the base's."""
    model = adapted_model(make_model, target_modules=targets, lora_dropout=0.1).to(dtype)
    engine, sampling = TransformersEngine(model, 0), Sampling(max_new_tokens=12)
    assert engine.lean
    one = engine.generate([[5, 6, 7], [8, 9]], 2, sampling, [4, 5])[0][0]
    plain = TransformersEngine(model, 0, lean_decoder=False).generate([[5, 6, 7], [8, 9]], 2, sampling, [4, 5])[0][0]
    if dtype == torch.float32:
        assert one.ids == plain.ids
        assert one.logps == pytest.approx(plain.logps, abs=1e-5)
    else:  # rounding may turn a sample at its first token where two are about as probable
        same = [a == b for a, b in zip(one.ids, plain.ids)].index(False) if one.ids != plain.ids else len(one.ids)
        assert same >= 1 and one.logps[:same] == pytest.approx(plain.logps[:same], abs=0.2)
    with model.disable_adapter():
        bare = engine.generate([[5, 6, 7]], 1, sampling, [4])[0][0]
    base = TransformersEngine(make_model("qwen2").to(dtype), 0).generate([[5, 6, 7]], 1, sampling, [4])[0][0]
    assert bare.ids == base.ids and bare.ids != one.ids


def test_small_adapters_are_not_rounded_away_in_bfloat16(make_model):
    """An adapter of a thousandth of the weights: the decoder's distribution follows it, as a merged one would not."""
    model = adapted_model(make_model, target_modules="all-linear").to(torch.bfloat16)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(1e-2)
    (layer, *_) = lean.Weights(model).layers
    assert layer.output.low and torch.equal(
        layer.output.weight, model.base_model.model.model.layers[0].self_attn.o_proj.weight
    )


def test_wrong_requests_are_refused_in_a_sentence(qwen2):
    """Empty prompts, prompts over the position limit, CUDA graphs without a GPU, unknown engines and options."""
    from multiref_cli.config.schema import Rollout

    engine = TransformersEngine(qwen2, 0)
    with pytest.raises(RequestError, match="no tokens"):
        engine.generate([[]], 1, Sampling(), [0])
    with pytest.raises(RequestError, match="limit of 64"):
        engine.generate([[2] * 60], 1, Sampling(max_new_tokens=5), [0])
    with pytest.raises(RequestError, match="cuda_graphs"):
        TransformersEngine(qwen2, 0, cuda_graphs=True)
    with pytest.raises(RequestError, match="transformers or vllm"):
        build_engine(Rollout(engine="tgi"), qwen2, 0)
    with pytest.raises(RequestError, match="speed"):
        build_engine(Rollout(options={"speed": 9}), qwen2, 0)


def test_a_config_becomes_a_sampling_and_an_engine(qwen2):
    """Every field of the rollout config arrives."""
    from multiref_cli.config.schema import Rollout

    rollout = Rollout(temperature=0.7, top_p=0.9, top_k=4, min_p=0.05, max_new_tokens=9, batch_size=3)
    assert sampling_of(rollout, [1, 2]) == Sampling(0.7, 0.9, 4, 0.05, 9, (1, 2))
    engine = build_engine(rollout, qwen2, 0, 30)
    assert (engine.batch_size, engine.vocabulary, engine.exact_logps) == (3, 30, True)


def test_vllm_is_named_where_it_is_at_hand_and_responses_are_long(monkeypatch):
    from multiref_cli.config.schema import Rollout

    monkeypatch.setattr("multiref_cli.rollouts.factory.find_spec", lambda name: object())
    assert "rollout=vllm" in words_on(Rollout(max_new_tokens=512), "cuda:0")[0]
    assert "waits for the vLLM server" in words_on(Rollout("vllm", server="start"), "cpu")[0]
    for rollout, device in (
        (Rollout(max_new_tokens=512), "cpu"),
        (Rollout(max_new_tokens=128), "cuda"),
        (Rollout("vllm", max_new_tokens=512), "cuda"),
        (Rollout(max_new_tokens=512, options={"cuda_graphs": True}), "cuda"),
    ):
        assert words_on(rollout, device) == []
    monkeypatch.setattr("multiref_cli.rollouts.factory.find_spec", lambda name: None)
    assert words_on(Rollout(max_new_tokens=512), "cuda") == []
