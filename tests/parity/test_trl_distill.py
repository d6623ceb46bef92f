"""Loss and gradient beside TRL 1.16.0's DistillationTrainer with one teacher, both computed by their own methods.

TRL's loss takes the states as given and averages over tokens: `regularizer.to_go=false`, `loss_reduction=dapo`. Its
Jensen-Shannon divergence at beta 1/2 is half of ours, KL(pi || m) + KL(p || m).
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from multiref_cli.algorithms.online import Online
from multiref_cli.algorithms.parts import Parts
from multiref_cli.config import schema
from multiref_cli.config.algorithms import DistillSettings
from multiref_cli.data.prompts import Prompt
from multiref_cli.rollouts.engine import Completion
from tests.local import live
from tests.parity.test_trl_grpo import GROUP, NEW_TOKENS, PROMPTS, WORDS, folder, moved

trl = pytest.importorskip("trl", reason="parity needs the dev extra: pip install 'multiref[dev]'")

__all__ = ["folder"]
TEMPERATURE = 0.7
JS = [schema.DivergenceTerm("jensen_shannon")]
# TRL's beta, our regularizer, and how many of TRL's losses ours is.
LOSSES = {
    "forward": (0.0, {"mean_order": 1, "score_order": 1}, 1.0),
    "reverse": (1.0, {"mean_order": 0, "score_order": 0}, 1.0),
    "jensen_shannon": (0.5, {"mean_order": None, "score_order": None, "terms": JS}, 2.0),
}


@pytest.fixture(scope="module")
def trainer(folder, tmp_path_factory):
    """TRL's trainer, its student away from the teacher."""
    disable_progress_bars()
    teacher = Qwen2ForCausalLM.from_pretrained(folder)
    arguments = {
        "output_dir": str(tmp_path_factory.mktemp("distillation")),
        "per_device_train_batch_size": len(PROMPTS) * GROUP,
        "max_completion_length": NEW_TOKENS,
        "temperature": TEMPERATURE,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "logging_strategy": "no",
    }
    found = trl.DistillationTrainer(
        model=str(folder),
        teacher_model=teacher,
        args=trl.DistillationConfig(**arguments),
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
    )
    moved(found.model.train(), 0.05, 2)
    return found


def inputs_of(trainer) -> dict[str, torch.Tensor]:
    """Completions of 1 to 8 tokens, prompts padded on the left."""
    tokenizer, generator = trainer.processing_class, torch.Generator().manual_seed(5)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS for _ in range(GROUP)]
    longest = max(len(p) for p in prompts)
    mask = torch.arange(NEW_TOKENS) < torch.tensor([8, 3, 1, 5, 2, 8, 6, 4])[:, None]
    return {
        "prompt_ids": torch.tensor([[0] * (longest - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.randint(2, WORDS, mask.shape, generator=generator) * mask,
        "completion_mask": mask.long(),
    }


def ours(trainer, inputs, student, regularizer: dict) -> Online:
    """The algorithm over the same completions, as if the student had sampled them."""
    config = schema.Experiment(
        algorithm=DistillSettings(name="distill", batch_prompts=len(PROMPTS), sampler_correction="none"),
        regularizer=schema.Regularizer(
            **{"level": schema.Level.token, "estimator": schema.Estimator.exact, "to_go": False, **regularizer}
        ),
        references=[schema.ReferenceSpec(name="teacher", path="teacher")],
        alpha=[1.0],
        beta=1.0,
        rollout=schema.Rollout(group_size=GROUP, max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE),
    )
    prompts, completions = [], []
    for group in range(len(PROMPTS)):
        rows = range(group * GROUP, (group + 1) * GROUP)
        prompts.append(tuple(inputs["prompt_ids"][rows[0]][inputs["prompt_mask"][rows[0]].bool()].tolist()))
        completions.append([inputs["completion_ids"][r][inputs["completion_mask"][r].bool()].tolist() for r in rows])
    by_prompt = dict(zip(prompts, completions))

    def generate(wanted, size, sampling, seeds):
        return [[Completion(one, [0.0] * len(one), True) for one in by_prompt[tuple(p)]] for p in wanted]

    parts = Parts(
        model=student,
        tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids))),
        prompts=[Prompt(p, [{"role": "user", "content": ""}], None, i) for i, p in enumerate(prompts)],
        end_ids=[],
        engine=SimpleNamespace(generate=generate, exact_logps=True),
        reward=None,
        references=live(config, [trainer.teacher_model]),
    )
    return Online(config, parts)


@pytest.mark.parametrize("name", LOSSES)
def test_one_teacher_is_trls_distillation_loss(trainer, name):
    """The same number and the same gradient of every parameter, at a temperature of 0.7."""
    beta, regularizer, factor = LOSSES[name]
    inputs, theirs = inputs_of(trainer), trainer.model
    student = copy.deepcopy(theirs)
    trainer.beta = beta
    loss, _, count = trainer._compute_loss(theirs, inputs, inputs["completion_mask"].sum())
    theirs.zero_grad()
    loss.backward()
    algorithm = ours(trainer, inputs, student, regularizer)
    found = torch.zeros(())
    for micro in algorithm.batch(0).micros:
        share, _ = algorithm.loss(student, micro)
        share.backward()
        found = found + share.detach()
    assert int(count) == int(inputs["completion_mask"].sum())
    torch.testing.assert_close(found, factor * loss.detach(), rtol=1e-5, atol=1e-6)
    compared = 0
    for (key, expected), given in zip(theirs.named_parameters(), student.parameters()):
        torch.testing.assert_close(given.grad, factor * expected.grad, rtol=1e-4, atol=1e-6, msg=key)
        compared += float(expected.grad.abs().max()) > 1e-4
    assert compared > 10 and loss > 1e-3
