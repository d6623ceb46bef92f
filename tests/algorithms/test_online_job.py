"""The online algorithm assembled from a job on disk: which references are loaded, where they go, stored samples."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from multiref_cli.algorithms import grpo, parts
from multiref_cli.config.compose import compose
from multiref_cli.references import local
from multiref_cli.runs.job import prepare
from multiref_cli.tracking.progress import Silent
from multiref_cli.world.problems import problems, prompt_rows
from multiref_cli.world.tokenizer import tokenizer as toy_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three tiny models with the embedded tokenizer, and 24 prompts."""
    root, tokenizer = tmp_path_factory.mktemp("world"), toy_tokenizer()
    for seed, name in enumerate(("policy", "first", "second")):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Qwen2Config(vocab_size=len(tokenizer) + 7, num_key_value_heads=1, max_position_embeddings=128, **sizes)
        Qwen2ForCausalLM(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    rows = prompt_rows(problems(0, 24))
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def job_of(world, tmp_path, *overrides):
    """A job over the tiny world."""
    config = compose(
        [
            "algorithm=grpo",
            "references=pair",
            f"first={world / 'first'}",
            f"second={world / 'second'}",
            "policy=folder",
            f"policy.path={world / 'policy'}",
            "data=jsonl",
            f"data.path={world / 'prompts.jsonl'}",
            "reward=toy_verifier",
            "rollout=toy",
            "rollout.max_new_tokens=6",
            "evaluation.max_new_tokens=6",
            "rollout.group_size=4",
            "algorithm.batch_prompts=3",
            "steps=4",
            f"hardware.cache_dir={tmp_path}",
            "hardware.device=cpu",
            *overrides,
        ]
    )
    return prepare(config, config, Silent())


def assembled(job):
    """(notes, objective) of a job."""
    trainee = grpo.assemble(job, Silent())
    return trainee.notes, trainee.objective


def opened(monkeypatch) -> list[str]:
    """Folder names of the references that are opened from now on."""
    names, load = [], local.load_causal_lm
    monkeypatch.setattr(local, "load_causal_lm", lambda spec, *rest: names.append(spec.name) or load(spec, *rest))
    return names


def test_padded_heads_are_cut_and_weight_zero_is_never_loaded(world, tmp_path, monkeypatch):
    """Sampling stays inside the tokenizer's ids; alpha = 1 loads the first reference only and says so."""
    asked = opened(monkeypatch)
    job = job_of(world, tmp_path, "alpha=1.0", "regularizer.estimator=reward")
    notes, algorithm = assembled(job)
    model = algorithm.parts.model
    batch = algorithm.batch(0)
    names = [r.name for r in job.experiment.references]
    assert asked == names[:1]
    assert any(names[1] in note for note in notes)
    assert algorithm.parts.vocabulary == job.vocabulary < model.config.vocab_size
    assert max(i for group in algorithm.window.completions for one in group for i in one) < job.vocabulary
    assert set(batch.metrics) >= {"reward", "penalty"}


def test_beta_zero_loads_nothing(world, tmp_path, monkeypatch):
    """No reference is opened at all."""
    asked = opened(monkeypatch)
    notes, algorithm = assembled(job_of(world, tmp_path, "beta=0"))
    algorithm.batch(0)
    assert asked == []
    assert algorithm.parts.references is None and "no reference is loaded" in notes[0]


def test_reference_samples_are_drawn_once_and_shared_by_sweep_points(world, tmp_path, monkeypatch):
    """The second point, with another weight and beta, opens no reference and gets the same responses."""
    first = job_of(world, tmp_path, "regularizer=fkl_reference_states", "alpha=0.3")
    _, drawn = assembled(first)
    asked = opened(monkeypatch)
    second = job_of(world, tmp_path, "regularizer=fkl_reference_states", "alpha=0.7", "beta=0.5")
    _, again = assembled(second)
    assert asked == []
    assert drawn.parts.stored == again.parts.stored
    assert again.experiment.active_weights == pytest.approx([0.7, 0.3])
    assert all(len(group) == 2 for one in drawn.parts.stored for group in one.values())
    model = again.parts.model
    for micro in again.batch(0).micros:
        again.loss(model, micro)[0].backward()
    assert model.lm_head.weight.grad.abs().max() > 0


def test_references_that_visit_one_at_a_time_say_the_same(world, tmp_path):
    """Moving each model in and out changes no sum; only the disagreement is not seen."""
    job = job_of(world, tmp_path, "regularizer.estimator=reward")
    _, algorithm = assembled(job)
    algorithm.batch(0)
    together, references = algorithm.window.scores, algorithm.parts.references
    moves = []
    for member in references.members:
        member.model.to = lambda device, name=member.name: moves.append((name, str(device)))
    references.visiting = True
    algorithm.window = None
    algorithm.batch(0)
    torch.testing.assert_close(algorithm.window.scores.sums, together.sums, atol=1e-5, rtol=1e-6)
    assert algorithm.window.scores.log_normalizers is None and together.log_normalizers is not None
    names = references.names
    assert moves == [(names[0], "cpu"), (names[0], "cpu"), (names[1], "cpu"), (names[1], "cpu")]


def test_two_adapters_of_one_base_share_it(world, tmp_path):
    """Two LoRA references on the policy's base: one base in memory, two different voices."""
    peft = pytest.importorskip("peft")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        base = Qwen2ForCausalLM.from_pretrained(world / "first")
        adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        adapted.save_pretrained(tmp_path / name)
    job = job_of(world, tmp_path, f"second={world / 'first'}", "regularizer.estimator=reward")
    references = [
        replace(one, adapter=str(tmp_path / name)) for one, name in zip(job.experiment.references, ("one", "two"))
    ]
    job = replace(job, experiment=replace(job.experiment, references=references))
    _, algorithm = assembled(job)
    first, second = algorithm.parts.references.models
    assert first.model is second.model
    algorithm.batch(0)
    assert (algorithm.window.scores.sums[0] - algorithm.window.scores.sums[1]).abs().max() > 1e-4


def test_stored_samples_depend_on_nobody_who_asks(world, tmp_path):
    """Blocks of two prompts: what one seed and pair of weights draw is what others find, and what a pass draws."""
    options = ["regularizer=fkl_reference_states", "rollout.batch_size=8", "algorithm.batch_prompts=2", "steps=2"]
    alone = job_of(world, tmp_path / "a", *options, "alpha=1.0", "seed=3")
    mixed = job_of(world, tmp_path / "a", *options, "alpha=0.4")
    everything = job_of(world, tmp_path / "b", *options, "alpha=0.4")
    rows = parts.reached(alone)
    groups = parts.reference_samples(alone, rows, Silent())
    assert all(len(groups[0][row]) == 4 for row in rows)  # one reference: a whole group of 4
    shared = parts.reference_samples(mixed, rows, Silent())
    assert [shared[0][row] for row in rows] == [groups[0][row][:2] for row in rows]
    grpo.fill_store(everything, Silent())
    whole = parts.reference_samples(everything, range(len(everything.data.train)), Silent())
    assert [{row: one[row] for row in rows} for one in whole] == shared
    assert len(mixed.open_store().list()) < len(everything.open_store().list())
