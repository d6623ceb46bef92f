"""The online algorithm with a real tiny model and the real engine: metrics, invariances, resume, notes, references."""

import copy
import io
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from multiref_cli.algorithms.online import Online
from multiref_cli.algorithms.parts import Parts
from multiref_cli.config import schema
from multiref_cli.config.algorithms import GrpoSettings
from multiref_cli.config.objective import notes
from multiref_cli.data.prompts import Prompt
from multiref_cli.rewards.combine import RewardBatch
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from tests.local import live

VOCABULARY, PROMPTS, GROUP = 24, 6, 4
ALWAYS = {
    "reward",
    "zero_spread_fraction",
    "length",
    "truncated_fraction",
    "time/rollout",
    "time/score",
    "entropy",
    "clip_fraction",
}
WITH_REFERENCES = {"penalty", "kl/a", "kl/b", "kl/mixed", "disagreement"}


def tiny(seed: int) -> Qwen2ForCausalLM:
    """A random model with clearly uneven distributions."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(
        vocab_size=VOCABULARY, num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3, **sizes
    )
    return Qwen2ForCausalLM(config).eval()


def config_of(settings: dict | None = None, regularizer: dict | None = None, **root):
    """A config of the run; `settings` of the algorithm, `regularizer` fields, `root` keys of the experiment."""
    rollout = root.pop("rollout", {})
    return schema.Experiment(
        algorithm=GrpoSettings(**{"name": "grpo", "batch_prompts": 3, **(settings or {})}),
        regularizer=schema.Regularizer(**{"mean_order": 0, "score_order": 0, **(regularizer or {})}),
        references=[schema.ReferenceSpec(name=n, path=n) for n in ("a", "b")],
        rollout=schema.Rollout(**{"group_size": GROUP, "max_new_tokens": 7, **rollout}),
        **{"alpha": [0.4, 0.6], "beta": 0.5, "seed": 3, **root},
    )


def algorithm_of(config, model=None, reward=None, penalized: bool = True, **parts) -> Online:
    """`Online` over six prompts of different lengths; the reward counts token 5 unless given."""
    model = model or tiny(0)
    numbers = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(3, VOCABULARY, (2 + i,), generator=numbers).tolist()) for i in range(PROMPTS)]
    count = reward or (
        lambda samples: [float(s.completion.split().count("5")) + 0.1 * len(s.completion) for s in samples]
    )
    references = live(config, [tiny(1), tiny(2)]) if penalized else None
    return Online(
        config,
        Parts(
            model=model,
            tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids))),
            prompts=[Prompt(p, [{"role": "user", "content": f"question {i}"}], "42", i) for i, p in enumerate(prompts)],
            end_ids=[1, 2],
            engine=TransformersEngine(model, 0),
            reward=lambda samples: RewardBatch(count(samples), {}),
            references=references,
            **parts,
        ),
    )


def take_step(algorithm: Online, step: int, optimizer=None):
    """The metrics of one step and the gradient, the optimizer moved if given."""
    model = algorithm.parts.model
    model.zero_grad()
    batch, loss, metrics = algorithm.batch(step), 0.0, {}
    from multiref_cli.tracking.metrics import Averages

    averages = Averages()
    for micro in batch.micros:
        share, values = algorithm.loss(model, micro)
        share.backward()
        averages.update(values)
        loss += share.item()
    metrics = averages.means() | batch.metrics | {"loss": loss}
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    if optimizer is not None:
        optimizer.step()
    return metrics, gradient, batch


def token(estimator: str, **more) -> dict:
    """A token-level regularizer with this estimator."""
    return {"level": schema.Level.token, "estimator": schema.Estimator[estimator], **more}


REWARD = {"estimator": schema.Estimator.reward}
STORED = {"mean_order": 1, "score_order": 1, "level": schema.Level.token, "states": schema.States.reference}
ALL = {
    "reward": REWARD,
    "exact_sequence": {},
    "clipped": {"estimator": schema.Estimator.clipped},
    "fkl": {"mean_order": 1, "score_order": 1},
    "reward_token": token("reward"),
    "exact": token("exact"),
    "exact_mrpo": token("exact", mean_order=-1),
    "k2": token("k2"),
    "k3": token("k3"),
    "k3_ratio": token("k3_ratio"),
}


@pytest.mark.parametrize("name", ALL)
def test_every_estimator_logs_what_the_contract_lists(name):
    """All metrics, all finite, a gradient, and samples with their rewards."""
    metrics, gradient, batch = take_step(algorithm_of(config_of(regularizer=ALL[name])), 0)
    assert metrics.keys() >= ALWAYS | WITH_REFERENCES
    assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())
    assert gradient.isfinite().all() and gradient.norm() > 1e-3
    # An arithmetic mean of distributions is one: log F = 0.
    assert metrics["disagreement"] > 0 or (name == "fkl" and metrics["disagreement"] == 0)
    assert batch.tokens > 0 and len(batch.ids) == 3
    assert {"prompt", "response", "reward", "advantage", "answer", "finished"} == batch.samples[0].keys()
    assert batch.samples[0]["reward"] >= batch.samples[1]["reward"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("reduction", ["grpo", "dapo", "dr_grpo"])
def test_passes_and_shared_prompts_do_not_change_the_step(name, reduction):
    """One pass with shared prompts, or one prompt a pass without sharing: the same loss, gradient, and metrics."""
    found = []
    for micro_tokens, share in ((16384, True), (1, False)):
        settings = {"micro_tokens": micro_tokens, "loss_reduction": reduction}
        metrics, gradient, batch = take_step(algorithm_of(config_of(settings, ALL[name]), may_share=share), 0)
        found.append(({k: v for k, v in metrics.items() if "time" not in k}, gradient))
        assert len(batch.micros) == (1 if share else 3)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=2e-6, rtol=1e-3)


def test_distances_and_disagreement_by_enumeration():
    """kl/<reference>, kl/mixed and disagreement equal means over the sampled responses, read off full softmaxes."""
    for regularizer in (token("k2"), token("exact"), REWARD, {}):
        algorithm = algorithm_of(config_of(regularizer=regularizer))
        metrics, _, _ = take_step(algorithm, 0)
        window, sums, gaps = algorithm.window, [], []
        for row, group in zip(window.rows, window.completions):
            for ids in group:
                whole = torch.tensor([[*algorithm.parts.prompts[row].ids, *ids]])
                models = [algorithm.parts.model, *algorithm.parts.references.models]
                with torch.no_grad():
                    logps = torch.stack([m(whole).logits[0, -len(ids) - 1 : -1].log_softmax(-1) for m in models])
                mixed = 0.4 * logps[1] + 0.6 * logps[2]
                log_f = mixed.logsumexp(-1)
                gaps.append(-log_f)
                target = mixed if "level" not in regularizer else mixed - log_f[:, None]
                picked = torch.cat([logps, target[None]]).gather(-1, torch.tensor(ids).expand(4, -1)[..., None])
                sums.append(picked[..., 0].sum(-1))
        policy, first, second, target = torch.stack(sums).T
        assert metrics["kl/a"] == pytest.approx((policy - first).mean().item(), abs=1e-4)
        assert metrics["kl/b"] == pytest.approx((policy - second).mean().item(), abs=1e-4)
        assert metrics["kl/mixed"] == pytest.approx((policy - target).mean().item(), abs=1e-4)
        assert metrics["disagreement"] == pytest.approx(torch.cat(gaps).mean().item(), abs=1e-5)


@pytest.mark.parametrize("name", ["reward", "k3_ratio", "exact"])
def test_resume_is_bitwise_at_every_step_and_inside_a_window(name):
    """Three inner iterations, six steps: going on from any checkpoint ends in the same weights, bit for bit."""
    settings = {"inner_iterations": 3, "micro_tokens": 60}

    def start():
        model = tiny(0)
        algorithm = algorithm_of(config_of(settings, ALL[name]), model)
        return algorithm, torch.optim.AdamW(model.parameters(), lr=1e-2)

    def saved(algorithm, optimizer) -> bytes:
        buffer = io.BytesIO()
        state = {"m": algorithm.parts.model.state_dict(), "o": optimizer.state_dict(), "a": algorithm.state_dict()}
        torch.save(state, buffer)
        return buffer.getvalue()

    algorithm, optimizer = start()
    checkpoints, trail = [], []
    for step in range(6):
        checkpoints.append(saved(algorithm, optimizer))
        metrics, _, _ = take_step(algorithm, step, optimizer)
        trail.append({k: v for k, v in metrics.items() if "time" not in k})
    final = copy.deepcopy(algorithm.parts.model.state_dict())
    assert trail[0]["clip_fraction"] == 0.0 and trail[2]["clip_fraction"] > 0
    for begin in range(6):
        algorithm, optimizer = start()
        state = torch.load(io.BytesIO(checkpoints[begin]), weights_only=True)
        algorithm.parts.model.load_state_dict(state["m"])
        optimizer.load_state_dict(state["o"])
        algorithm.load_state_dict(state["a"])
        for step in range(begin, 6):
            metrics, _, _ = take_step(algorithm, step, optimizer)
            assert {k: v for k, v in metrics.items() if "time" not in k} == trail[step]
        assert all(torch.equal(final[k], v) for k, v in algorithm.parts.model.state_dict().items())


def test_rollouts_are_a_function_of_the_seed_and_the_window():
    """Sweep points with other weights, beta, regularizers see the same prompts and, at the start, the same samples."""
    base = algorithm_of(config_of())
    other = algorithm_of(config_of(regularizer=ALL["exact"], alpha=[0.9, 0.1], beta=2.0))
    reseeded = algorithm_of(config_of(seed=4))
    for algorithm in (base, other, reseeded):
        algorithm.batch(1)
    assert base.window.rows == other.window.rows and base.window.completions == other.window.completions
    assert base.window.completions != reseeded.window.completions


def test_groups_of_equal_rewards_teach_nothing_and_are_counted():
    """Without a penalty a constant reward gives a zero gradient."""
    algorithm = algorithm_of(config_of(beta=0.0), reward=lambda samples: [1.0] * len(samples), penalized=False)
    metrics, gradient, _ = take_step(algorithm, 0)
    assert metrics["zero_spread_fraction"] == 1.0
    assert gradient.abs().max() == 0.0


def test_beta_zero_says_that_no_reference_is_loaded():
    """No distances, no penalty, and one sentence."""
    algorithm = algorithm_of(config_of(beta=0.0), penalized=False)
    metrics, _, _ = take_step(algorithm, 0)
    assert not metrics.keys() & WITH_REFERENCES
    told = ["beta is 0: no reference is loaded, and no distance to one is measured while training"]
    assert notes(algorithm.experiment) == told


def test_reverse_kl_with_k3_is_called_by_its_name():
    """A note beside the objective; not under the forward KL, whose gradient k3 has."""
    whole = {"baseline": "leave_one_out"}
    objective, told = notes(config_of(whole, token("k3")))
    assert "no objective's optimum: k3" in objective and "FORWARD KL" in told and "rkl_token" in told
    (objective,) = notes(config_of(whole, token("k3", mean_order=1, score_order=1)))
    assert objective == "objective at rest: E[r] − β E[Σₜ KL(M[1]/F‖π)], token level"
    assert len(notes(config_of(whole, token("k2")))) == 1


@pytest.mark.parametrize(
    ("settings", "regularizer", "words"),
    [
        ({"advantage_scale": "group"}, token("exact"), "vanishes as a prompt is solved"),
        ({"advantage_scale": "batch"}, token("k2"), "standard deviation of the step's rewards"),
        ({"loss_reduction": "grpo"}, token("exact"), "short responses weigh more"),
        ({}, token("exact"), f"with G = {GROUP} beta acts as {GROUP / (GROUP - 1):.3g} beta"),
        ({}, STORED, f"with G = {GROUP} beta acts as {GROUP / (GROUP - 1):.3g} beta"),
        ({"baseline": "leave_one_out"}, token("exact"), None),
        ({}, REWARD, None),
        ({"advantage_scale": "group"}, STORED, "vanishes as a prompt is solved"),
        ({"loss_reduction": "grpo"}, STORED, "short responses weigh more"),
        ({"inner_iterations": 2}, token("exact"), "correct each token for itself"),
        ({"inner_iterations": 2}, token("k2"), "do not correct the penalty"),
        ({"advantage_scale": "group"}, REWARD, None),
        ({"loss_reduction": "grpo"}, REWARD, None),
        ({}, token("exact", to_go=False), "no objective's optimum: KL(π‖M[0]/F) at each state, states taken as given"),
    ],
)
def test_what_moves_a_run_from_its_objective_is_said(settings, regularizer, words):
    """A scale of advantages beside a loss term, weights by length, iterations off the policy, states given."""
    said = " ".join(notes(config_of(settings, regularizer)))
    assert words in said if words else said.count("objective at rest") == 1 and "length" not in said


def test_penalty_in_the_reward_by_hand():
    """Advantages are those of reward - beta (log pi - sum_i alpha_i log pi_i) of whole responses."""
    algorithm = algorithm_of(config_of(regularizer=REWARD))
    algorithm.batch(0)
    window = algorithm.window
    mixed = 0.4 * window.scores.sums[0] + 0.6 * window.scores.sums[1]
    penalty = window.old_logps.sum(-1, dtype=torch.float64) - mixed
    total = window.rewards - 0.5 * penalty.reshape(3, GROUP)
    torch.testing.assert_close(window.advantages, total - total.mean(1, keepdim=True))
    assert window.metrics["penalty"] == pytest.approx(penalty.mean().item())


def test_clipped_estimator_uses_the_given_or_the_calibrated_threshold():
    """ratio_clip as given; null finds one from the window's own log ratios."""
    for given in (0.5, None):
        regularizer = {"estimator": schema.Estimator.clipped, "ratio_clip": given}
        metrics, _, _ = take_step(algorithm_of(config_of(regularizer=regularizer)), 0)
        assert metrics["ratio_clip"] == given if given else metrics["ratio_clip"] > 0
        assert 0 < metrics["ratio_clip_fraction"] <= 1


@pytest.mark.parametrize("reduction", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_stored_reference_samples_give_the_forward_kl(reduction):
    """A constant reward leaves -beta sum_i alpha_i E_{pi_i} log pi(y), whole responses under every reduction.

    All are divided by one length: the constant of dr_grpo, else the mean of the responses that were sampled beside.
    """
    generator = torch.Generator().manual_seed(1)
    stored = [
        {
            row: [torch.randint(3, VOCABULARY, (2 + row,), generator=generator).tolist() for _ in range(2)]
            for row in range(PROMPTS)
        }
        for _ in range(2)
    ]
    regularizer = {"mean_order": 1, "score_order": 1, "states": schema.States.reference}
    config = config_of({"loss_reduction": reduction}, regularizer)
    constant = algorithm_of(config, reward=lambda s: [1.0] * len(s), penalized=False, stored=stored)
    metrics, gradient, _ = take_step(constant, 0)
    model = constant.parts.model
    model.zero_grad()
    total = 0.0
    for row in constant.window.rows:
        for weight, one in zip((0.4, 0.6), stored):
            for ids in one[row]:
                logits = model(torch.tensor([[*constant.parts.prompts[row].ids, *ids]])).logits[0, -len(ids) - 1 : -1]
                logps = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])
                sampled = [len(one) for group in constant.window.completions for one in group]
                length = 7 if reduction == "dr_grpo" else sum(sampled) / len(sampled)
                total = total - 0.5 * weight * logps.sum() / length / (2 * 3)
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert metrics["penalty"] > 0


def test_an_engine_with_other_rounding_is_not_believed():
    """Where the engine's log-probs are not the trainer's, the penalty is computed from the trainer's own."""
    exact, other = (algorithm_of(config_of(regularizer=REWARD)) for _ in range(2))
    generate = other.parts.engine.generate

    def distorted(*arguments):
        groups = generate(*arguments)
        return [[type(c)(c.ids, [p + 0.3 for p in c.logps], c.finished) for c in group] for group in groups]

    other.parts.engine = SimpleNamespace(generate=distorted, exact_logps=False)
    exact.batch(0)
    other.batch(0)
    torch.testing.assert_close(other.window.advantages, exact.window.advantages, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inner", [0, 1])
@pytest.mark.parametrize(("correction", "shift", "weight"), [("auto", 0.3, math.exp(-0.3)), ("token", -0.9, 2.0)])
def test_samples_of_another_engine_count_for_their_ratio(correction, shift, weight, inner):
    """An engine whose log-probs are all off by the same: every token has one weight, also in later inner iterations."""
    results = {}
    for name in ("none", correction):
        settings = {"sampler_correction": name, "inner_iterations": 2}
        algorithm = algorithm_of(config_of(settings, token("k2")))
        generate = algorithm.parts.engine.generate

        def distorted(*arguments, generate=generate):
            groups = generate(*arguments)
            return [[type(c)(c.ids, [p + shift for p in c.logps], c.finished) for c in group] for group in groups]

        algorithm.parts.engine = SimpleNamespace(generate=distorted, exact_logps=False)
        for step in range(inner + 1):
            results[name] = take_step(algorithm, step)
    (plain, expected, _), (metrics, gradient, _) = results["none"], results[correction]
    torch.testing.assert_close(gradient, weight * expected, atol=1e-6, rtol=1e-4)
    assert metrics["loss"] == pytest.approx(weight * plain["loss"], rel=1e-4)
    assert metrics["rollout/kl"] == pytest.approx(math.exp(-shift) - 1 + shift, rel=1e-4)
    assert plain["rollout/kl"] == metrics["rollout/kl"] and metrics["rollout/beyond_fraction"] == 1.0
    assert "rollout/kl" not in take_step(algorithm_of(config_of(None, token("k2"))), 0)[0]


def test_references_with_another_tokenizer_read_the_text():
    """A foreign reference scores the same text under its own ids: a permutation of the vocabulary changes nothing."""
    permutation = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(2))

    class Permuted:
        """Reads numbers as text and writes permuted ids."""

        chat_template, eos_token_id, eos_token = None, None, None

    foreign, config = tiny(2), config_of(regularizer=REWARD)
    own = copy.deepcopy(foreign)
    with torch.no_grad():
        foreign.model.embed_tokens.weight[permutation] = own.model.embed_tokens.weight.clone()
        foreign.lm_head.weight[permutation] = own.lm_head.weight.clone()
    from multiref_cli.references import tokens as reference_models

    monkey = pytest.MonkeyPatch()
    read = lambda text: [int(permutation[int(word)]) for word in text.split()]  # noqa: E731
    encoded = lambda tokenizer, messages, texts, finished: (  # noqa: E731
        read(messages[0]["content"]),
        [[*read(text), *([int(permutation[1])] if finished else [])] for text in texts],
    )
    monkey.setattr(reference_models, "conversation_ids", encoded)
    try:
        found = []
        for model, tokenizer in ((own, None), (foreign, Permuted())):
            algorithm = algorithm_of(config)
            for prompt in algorithm.parts.prompts:
                prompt.messages[0]["content"] = " ".join(map(str, prompt.ids))
            algorithm.parts.end_ids = [1]
            algorithm.parts.references = live(config, [tiny(1), model], [None, tokenizer])
            algorithm.batch(0)
            found.append(algorithm.window.scores.sums)
        torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-5)
    finally:
        monkey.undo()
