"""The mixed reference as a sampler: its conditionals against enumeration, its samples, its corners, what it refuses."""

import itertools
import random

import pytest
import torch

from multiref_cli.errors import RequestError
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.mixture import MixtureEngine, MixtureSession
from multiref_cli.rollouts.sampling import draw, uniforms
from multiref_cli.rollouts.transformers_engine import TransformersEngine

VOCABULARY = 40
ORDERS = [0.0, 1.0, -1.0, 0.5]


@pytest.fixture(scope="module")
def models(make_model):
    """Two models that disagree."""
    return make_model("qwen2"), make_model("llama")


def random_prompts(count: int) -> list[list[int]]:
    numbers = random.Random(0)
    return [[numbers.randrange(2, VOCABULARY) for _ in range(numbers.randint(2, 17))] for _ in range(count)]


@torch.no_grad()
def conditional(models, ids, order: float, weights, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """(V,) the normalized power mean of next-token probabilities in float64, written out token by token."""
    rows = [model(torch.tensor([list(ids)])).logits[0, -1, :vocabulary].double().softmax(-1) for model in models]
    mean = torch.zeros(vocabulary, dtype=torch.float64)
    for v in range(vocabulary):
        ps = [float(row[v]) for row in rows]
        if order == 0:
            mean[v] = ps[0] ** weights[0] * ps[1] ** weights[1]
        else:
            mean[v] = (weights[0] * ps[0] ** order + weights[1] * ps[1] ** order) ** (1 / order)
    return mean / mean.sum()


@pytest.mark.parametrize("order", ORDERS)
def test_conditionals_are_the_normalized_power_mean(order, models):
    """At the prompt and after each forced token, for ragged prompts and after rows left the batch."""
    prompts, weights = random_prompts(4), (0.3, 0.7)
    openers = [TransformersEngine(model, 0).opener() for model in models]
    with torch.inference_mode():
        session = MixtureSession([open_session(prompts, 1, 4) for open_session in openers], weights, order)
        logits, texts = session.logits, [list(p) for p in prompts]
        for t in range(4):
            for row, ids in zip(logits.softmax(-1), texts):
                exact = conditional(models, ids, order, weights)
                assert row.double() == pytest.approx(exact, abs=2e-6)
            if t == 1:
                session.keep(torch.tensor([0, 2, 3]))
                texts = [texts[0], texts[2], texts[3]]
            tokens = torch.arange(len(texts)) * 5 + t
            texts = [[*ids, int(token)] for ids, token in zip(texts, tokens)]
            logits = session.step(tokens)


@pytest.mark.parametrize("order", ORDERS)
def test_responses_are_drawn_from_it(order, models):
    """Two-token responses over six ids: chi-square against the exact probabilities."""
    prompt, count, allowed, weights = [3, 9, 4], 4000, 6, (0.6, 0.4)
    first = conditional(models, prompt, order, weights, allowed)
    second = torch.stack([conditional(models, [*prompt, v], order, weights, allowed) for v in range(allowed)])
    exact = (first[:, None] * second).flatten() * count
    engine = MixtureEngine(models, weights, order, batch_size=count, vocabulary=allowed)
    counts = torch.zeros(allowed, allowed)
    for one in engine.generate([prompt], count, Sampling(max_new_tokens=2), [1])[0]:
        counts[one.ids[0], one.ids[1]] += 1
    large = exact >= 1  # cells below are pooled
    cells = torch.cat([counts.flatten()[large], counts.flatten()[~large].sum()[None]])
    wanted = torch.cat([exact[large], exact[~large].sum()[None]]).clamp(min=1e-9)
    # At most 36 degrees of freedom: 99.99 % point 76.4.
    assert float(((cells - wanted) ** 2 / wanted.clamp(min=1)).sum()) < 76.4


@pytest.mark.parametrize("order", [0.0, -1.0])
def test_tokens_and_log_probs_equal_a_run_without_cache(order, models):
    """Every completion against a token-by-token run of both models, early ends and several batches included."""
    prompts, weights, sampling = random_prompts(5), (0.5, 0.5), Sampling(max_new_tokens=10, end_ids=(1, 2, 3, 4))
    groups = MixtureEngine(models, weights, order, batch_size=6).generate(prompts, 3, sampling, [7, 8, 9, 10, 11])
    for prompt, seed, group in zip(prompts, (7, 8, 9, 10, 11), groups):
        for sample, one in enumerate(group):
            numbers, ids = uniforms(seed, sample + 1, 10)[sample], []
            for t, logp in enumerate(one.logps):
                exact = conditional(models, [*prompt, *ids], order, weights).log()[None]
                token, expected = draw(exact, numbers[t : t + 1], sampling)
                ids.append(int(token))
                assert logp == pytest.approx(float(expected), abs=2e-5)
            assert one.ids == ids
            assert one.finished is (ids[-1] in sampling.end_ids)
    assert any(one.finished and len(one.ids) < 10 for group in groups for one in group)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_a_corner_is_that_reference(name, make_model):
    """All weight on one model: its own samples on the same random numbers; the other one is not even looked at."""
    model, prompts, sampling = make_model(name), random_prompts(4), Sampling(max_new_tokens=8, end_ids=(1, 2))
    alone = TransformersEngine(model, 0).generate(prompts, 3, sampling, [1, 2, 3, 4])
    for models, weights in (((model, None), (1.0, 0.0)), ((None, model), (0.0, 1.0))):
        for order in (0.0, 1.0, -1.0):
            mixed = MixtureEngine(models, weights, order).generate(prompts, 3, sampling, [1, 2, 3, 4])
            for one, other in zip(itertools.chain(*mixed), itertools.chain(*alone)):
                assert one.ids == other.ids and one.finished == other.finished
                assert one.logps == pytest.approx(other.logps, abs=1e-5)


def test_the_mixture_is_another_policy_than_its_references(models):
    prompts, sampling = random_prompts(4), Sampling(max_new_tokens=8)
    drawn = [
        [
            one.ids
            for group in MixtureEngine(models, w, 0.0).generate(prompts, 4, sampling, [1, 2, 3, 4])
            for one in group
        ]
        for w in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
    ]
    assert drawn[1] not in (drawn[0], drawn[2])


@pytest.mark.parametrize("weights", [(0.5, 0.6), (-0.1, 1.1), (1.0,), (0.3, 0.3, 0.4)])
def test_wrong_weights_are_refused(weights, models):
    with pytest.raises(RequestError, match="cannot be mixed"):
        MixtureEngine(models, weights, 1.0)


def test_prompts_without_room_and_heads_of_different_width_are_refused(models, make_model):
    with pytest.raises(RequestError, match="limit of 64"):
        MixtureEngine(models, (0.5, 0.5), 0.0).generate([[5] * 60], 1, Sampling(max_new_tokens=8), [0])
    wide = make_model("qwen2")
    wide.resize_token_embeddings(48)
    with pytest.raises(RequestError, match="how many ids"):
        MixtureEngine((models[0], wide), (0.5, 0.5), 0.0)
    shared = MixtureEngine((models[0], wide), (0.5, 0.5), 0.0, vocabulary=VOCABULARY)
    groups = shared.generate([[5, 6]], 50, Sampling(max_new_tokens=2), [0])
    assert max(i for one in groups[0] for i in one.ids) < VOCABULARY
