"""Loss and gradient beside TRL 1.16.0's GRPOTrainer and RLOOTrainer, computed by their own methods on one tiny model.

TRL samples and scores (`_generate_and_score_completions`) or is handed completions of different lengths; the same
completions and rewards go through `Online.batch` and `Online.loss`. With one reference TRL scores the frozen model
itself; with several it is handed the mixed reference's values in place of the reference log-probs that it computed.
As TRL has it: advantages over the group's standard deviation, means over responses, states taken as given.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from multiref_cli.algorithms.online import Online
from multiref_cli.algorithms.parts import Parts
from multiref_cli.config import schema
from multiref_cli.config.algorithms import GrpoSettings
from multiref_cli.data.prompts import Prompt
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.rewards.combine import RewardBatch
from multiref_cli.rollouts.engine import Completion
from tests.local import live

trl = pytest.importorskip("trl", reason="parity needs the dev extra: pip install 'multiref[dev]'")

BETA, GROUP, NEW_TOKENS, WORDS = 0.3, 4, 8, 30
PROMPTS = ["w1 w2 w3", "w4 w5 w6 w7 w8"]
REDUCTIONS = ["grpo", "bnpo", "dr_grpo", "dapo"]
LEVELS = ["token", "sequence"]


def reward_of(ids) -> float:
    """Some function of the text's tokens (special ones left out), different within a group."""
    return float(sum(i for i in ids if i > 1) % 7) / 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and its tokenizer on disk, as TRL wants them."""
    path = tmp_path_factory.mktemp("model")
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *[f"w{i}" for i in range(WORDS - 2)]])}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>").save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(
        vocab_size=WORDS, num_key_value_heads=1, max_position_embeddings=64, eos_token_id=1, pad_token_id=0, **sizes
    )
    model = Qwen2ForCausalLM(config)
    moved(model, 0.1, 1).save_pretrained(path)
    return path


def moved(model, size: float, seed: int):
    """The model after a random step, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def build_trainer(kind: str, folder, output):
    """One of TRL's trainers whose policy has moved away from its reference."""
    disable_progress_bars()
    arguments = {
        "output_dir": str(output),
        "per_device_train_batch_size": len(PROMPTS) * GROUP,
        "num_generations": GROUP,
        "max_completion_length": NEW_TOKENS,
        "beta": BETA,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "logging_strategy": "no",
    }
    trainer = getattr(trl, f"{kind}Trainer")(
        model=str(folder),
        reward_funcs=lambda completion_ids, **rest: [reward_of(ids) for ids in completion_ids],
        args=getattr(trl, f"{kind}Config")(**arguments),
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
    )
    moved(trainer.model.train(), 0.05, 2)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture(scope="module")
def grpo(folder, tmp_path_factory):
    """TRL's GRPOTrainer."""
    return build_trainer("GRPO", folder, tmp_path_factory.mktemp("grpo"))


def trl_inputs(trainer) -> dict:
    """Completions of 1 to 8 tokens with prompts padded on the left, scored by TRL's own reference pass."""
    generator = torch.Generator().manual_seed(5)
    prompts = [trainer._tokenizer(text)["input_ids"] for text in PROMPTS for _ in range(GROUP)]
    longest = max(len(p) for p in prompts)
    lengths = torch.tensor([8, 3, 1, 5, 2, 8, 6, 4])
    mask = torch.arange(NEW_TOKENS) < lengths[:, None]
    inputs = {
        "prompt_ids": torch.tensor([[0] * (longest - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.randint(2, WORDS, mask.shape, generator=generator) * mask,
        "completion_mask": mask.long(),
        "num_items_in_batch": mask.sum(),
    }
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        inputs["ref_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
            trainer.ref_model, ids, seen, NEW_TOKENS
        )[0]
    return inputs


def ours(trainer, inputs, settings: dict, regularizer: dict, references: dict) -> Online:
    """The algorithm over the same completions and rewards; references: name -> (model, weight)."""
    settings = {"advantage_scale": "group", "loss_reduction": "grpo", "sampler_correction": "none", **settings}
    config = schema.Experiment(
        algorithm=GrpoSettings(name="grpo", batch_prompts=len(PROMPTS), **settings),
        regularizer=schema.Regularizer(**{"mean_order": 0, "score_order": 0, "to_go": False, **regularizer}),
        references=[schema.ReferenceSpec(name=name, path=name) for name in references],
        alpha=[weight for _, weight in references.values()],
        beta=BETA,
        rollout=schema.Rollout(group_size=GROUP, max_new_tokens=NEW_TOKENS),
    )
    prompts, completions = [], []
    for group in range(len(PROMPTS)):
        rows = range(group * GROUP, (group + 1) * GROUP)
        prompts.append(tuple(inputs["prompt_ids"][rows[0]][inputs["prompt_mask"][rows[0]].bool()].tolist()))
        completions.append([inputs["completion_ids"][r][inputs["completion_mask"][r].bool()].tolist() for r in rows])
    by_prompt = dict(zip(prompts, completions))

    def generate(asked, group_size, sampling, seeds):
        return [[Completion(ids, [0.0] * len(ids), False) for ids in by_prompt[tuple(p)]] for p in asked]

    def reward(samples):
        ids = [trainer._tokenizer(sample.completion)["input_ids"] for sample in samples]
        return RewardBatch([reward_of(one) for one in ids], {})

    parts = Parts(
        model=trainer.model,
        tokenizer=SimpleNamespace(decode=trainer._tokenizer.decode),
        prompts=[Prompt(p, [{"role": "user", "content": ""}], None, i) for i, p in enumerate(prompts)],
        end_ids=[1],
        engine=SimpleNamespace(generate=generate, exact_logps=False),
        reward=reward,
        references=live(config, [model for model, _ in references.values()]),
    )
    algorithm = Online(config, parts)
    algorithm.batch(0)
    return algorithm


def loss_and_gradient(model, compute) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of every parameter in one vector."""
    model.zero_grad()
    loss = compute()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def step_of(algorithm: Online, step: int):
    """The loss of a step as the sum of its micro-batches."""
    return sum(algorithm.loss(algorithm.parts.model, micro)[0] for micro in algorithm.batch(step).micros)


def theirs(trainer, inputs, algorithm: Online, settings: dict):
    """TRL's loss of the same step, its rows in the order of our window."""
    order = [row * GROUP + g for row in algorithm.window.rows for g in range(GROUP)]
    inputs = {k: v[order] if v.ndim else v for k, v in inputs.items()}
    inputs["advantages"] = algorithm.window.advantages.flatten().float()
    trainer.loss_type = settings.get("loss_reduction", "grpo")
    trainer.importance_sampling_level = settings.get("importance", "token")
    trainer.epsilon_low, trainer.epsilon_high = settings.get("clip_low", 0.2), settings.get("clip_high", 0.2)
    return trainer._compute_loss(trainer.model, inputs)


def assert_equal(found, expected):
    """Loss to 1e-6, gradient to 1e-5 of its length."""
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    assert (found[1] - expected[1]).norm() <= 1e-5 * expected[1].norm()
    assert expected[1].norm() > 1e-3


@pytest.mark.parametrize(("estimator", "importance"), [("k3", "token"), ("k3", "sequence"), ("k3_ratio", "token")])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("micro_tokens", [16384, 24])
def test_one_reference(grpo, reduction, importance, estimator, micro_tokens):
    """On the policy that sampled, in one pass and in several (TRL's bnpo is a mean over each pass, so in one).

    k3_ratio has the ratio of each token here; TRL's takes that of the response under sequence importance.
    """
    inputs, settings = trl_inputs(grpo), {"loss_reduction": reduction, "importance": importance}
    regularizer = {"level": schema.Level.token, "estimator": schema.Estimator[estimator]}
    grpo.args.use_bias_correction_kl = estimator == "k3_ratio"
    settings_here = {**settings, "micro_tokens": micro_tokens}
    algorithm = ours(grpo, inputs, settings_here, regularizer, {"a": (grpo.ref_model, 1.0)})
    expected = loss_and_gradient(grpo.model, lambda: theirs(grpo, inputs, algorithm, settings))
    assert_equal(loss_and_gradient(grpo.model, lambda: step_of(algorithm, 0)), expected)


@pytest.mark.parametrize("importance", LEVELS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_later_inner_iterations_with_stored_old_log_probs(grpo, reduction, importance):
    """After the policy has moved, ratios leave 1 and some are clipped; TRL is handed the stored old log-probs."""
    bounds = (0.01, 0.02) if importance == "sequence" else (0.1, 0.15)
    settings = {"loss_reduction": reduction, "importance": importance, "clip_low": bounds[0], "clip_high": bounds[1]}
    corrected = importance == "token"
    estimator = schema.Estimator.k3_ratio if corrected else schema.Estimator.k3
    regularizer = {"level": schema.Level.token, "estimator": estimator}
    inputs, start = trl_inputs(grpo), copy.deepcopy(grpo.model.state_dict())
    grpo.args.use_bias_correction_kl = corrected
    algorithm = ours(grpo, inputs, {**settings, "inner_iterations": 2}, regularizer, {"a": (grpo.ref_model, 1.0)})
    try:
        step_of(algorithm, 0)
        moved(grpo.model, 0.03, 9)
        order = torch.tensor([row * GROUP + g for row in algorithm.window.rows for g in range(GROUP)])
        inputs["old_per_token_logps"] = algorithm.window.old_logps[order.argsort()]
        expected = loss_and_gradient(grpo.model, lambda: theirs(grpo, inputs, algorithm, settings))
        averages = algorithm.loss(grpo.model, algorithm.batch(1).micros[0])[1].means()
        assert 0 < averages["clip_fraction"] < 1
        assert_equal(loss_and_gradient(grpo.model, lambda: step_of(algorithm, 1)), expected)
    finally:
        grpo.model.load_state_dict(start)


@pytest.mark.parametrize("order", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.5, 0.2, 0.3)])
def test_several_references_by_injection(grpo, order, normalized, weights):
    """TRL is handed the token-level mixed reference, enumerated over the whole vocabulary."""
    references = {f"r{i}": (moved(copy.deepcopy(grpo.ref_model), 0.1 * i, i), w) for i, w in enumerate(weights)}
    inputs, settings = trl_inputs(grpo), {"loss_reduction": "dapo"}
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = [
            Qwen2ForCausalLM.forward(m, input_ids=ids, attention_mask=seen, position_ids=positions).logits
            for m, _ in references.values()
        ]
    whole = torch.stack([logits[:, -NEW_TOKENS - 1 : -1].log_softmax(-1) for logits in plain])
    mixed = power_mean(whole, torch.tensor(weights), order)
    mixed = mixed.log_softmax(-1) if normalized else mixed
    inputs["ref_per_token_logps"] = mixed.gather(-1, inputs["completion_ids"][..., None])[..., 0]
    regularizer = {
        "mean_order": order,
        "level": schema.Level.token,
        "estimator": schema.Estimator.k3,
        "normalized": normalized,
    }
    grpo.args.use_bias_correction_kl = False
    algorithm = ours(grpo, inputs, settings, regularizer, references)
    expected = loss_and_gradient(grpo.model, lambda: theirs(grpo, inputs, algorithm, settings))
    assert_equal(loss_and_gradient(grpo.model, lambda: step_of(algorithm, 0)), expected)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_trls_own_rollouts(grpo, scale):
    """TRL generates and scores; the same completions and rewards give the same advantages and the same loss."""
    torch.manual_seed(3)
    grpo.scale_rewards = scale
    inputs = grpo._generate_and_score_completions([{"prompt": text} for text in PROMPTS for _ in range(GROUP)])
    inputs = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    settings = {"advantage_scale": scale}
    regularizer = {"level": schema.Level.token, "estimator": schema.Estimator.k3}
    grpo.args.use_bias_correction_kl = False
    algorithm = ours(grpo, inputs, settings, regularizer, {"a": (grpo.ref_model, 1.0)})
    order = [row * GROUP + g for row in algorithm.window.rows for g in range(GROUP)]
    torch.testing.assert_close(algorithm.window.advantages.flatten().float(), inputs["advantages"][order])
    assert inputs["advantages"].abs().max() > 0.1
    expected = loss_and_gradient(grpo.model, lambda: theirs(grpo, inputs, algorithm, settings))
    assert_equal(loss_and_gradient(grpo.model, lambda: step_of(algorithm, 0)), expected)


@pytest.mark.parametrize("count", [1, 2])
def test_penalty_in_the_reward_has_the_gradient_of_trls_rloo(folder, tmp_path, count):
    """Leave-one-out, beta times the sequence log ratio in the reward: advantages and gradient of TRL's RLOOTrainer.

    Its loss is a mean over sequences of sequence ratios; on the policy that sampled, that is dr_grpo of length 1.
    """
    rloo = build_trainer("RLOO", folder, tmp_path)
    weights = {1: [1.0], 2: [0.4, 0.6]}[count]
    references = {f"r{i}": (moved(copy.deepcopy(rloo.ref_model), 0.1 * i, i), w) for i, w in enumerate(weights)}
    score = rloo._get_per_token_logps_and_entropies

    def mixed(model, *rest, **named):
        if model is not rloo.ref_model:
            return score(model, *rest, **named)
        parts = [(score(m, *rest, **named)[0], w) for m, w in references.values()]
        return sum(w * logps for logps, w in parts), None, None

    # A geometric mean at sequence level is a weighted sum of log-probs; a forward patched by TRL runs every copy.
    rloo._get_per_token_logps_and_entropies = mixed
    torch.manual_seed(3)
    inputs = rloo._generate_and_score_completions([{"prompt": text} for text in PROMPTS for _ in range(GROUP)])
    inputs = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    rloo._get_per_token_logps_and_entropies = score
    settings = {
        "baseline": "leave_one_out",
        "advantage_scale": "none",
        "loss_reduction": "dr_grpo",
        "max_length_constant": 1,
    }
    algorithm = ours(rloo, inputs, settings, {"estimator": schema.Estimator.reward}, references)
    order = [row * GROUP + g for row in algorithm.window.rows for g in range(GROUP)]
    found = algorithm.window.advantages.flatten().float()
    torch.testing.assert_close(found, inputs["advantages"][order], atol=2e-6, rtol=1e-5)
    expected = loss_and_gradient(rloo.model, lambda: rloo._compute_loss(rloo.model, inputs))[1]
    gradient = loss_and_gradient(rloo.model, lambda: step_of(algorithm, 0))[1]
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()
