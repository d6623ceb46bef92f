"""From a checked job to the online algorithm: engine, reward, live references, or their stored samples."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import nn

from multiref_cli.config import build
from multiref_cli.data.chat import end_ids
from multiref_cli.models.decoder import Adapted, honours_shared_prompts
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.references.models import first_difference, load_references
from multiref_cli.rewards.combine import build_reward
from multiref_cli.rollouts.engine import Completion, Sampling, build_engine
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.seeding import derive, epoch_batch
from multiref_cli.tracking.progress import Progress
from multiref_cli.training.grpo import Grpo, Parts
from multiref_cli.training.job import Job
from multiref_cli.training.live_references import LiveReferences, Member


def build_grpo(job: Job, model: nn.Module, progress: Progress) -> Grpo:
    """The online algorithm of a job; loads only the references that it will ask.

    Args:
        job: checked.
        model: the policy, on its device.
        progress: told while references are loaded or sampled.
    """
    config = job.config
    # Ids beyond the tokenizer's are padding of the head: never sampled, left out of every softmax.
    parts = Parts(
        model=model,
        tokenizer=job.tokenizer,
        prompts=job.data.train,
        end_ids=end_ids(job.tokenizer),
        engine=build_engine(config.rollout, model, 0, config.policy.path, job.vocabulary),
        reward=build_reward(config.reward),
        vocabulary=job.vocabulary,
        may_share=honours_shared_prompts(model),
    )
    if build.reads_samples(config):
        parts.stored_weights = build.active_references(config)[1]
        parts.stored = reference_samples(job, _reached(job), progress)
    elif config.beta > 0:
        parts.references = live_references(job, progress)
        own = [member.model for member in parts.references.members if member.tokenizer is None]
        modules = [one.model if isinstance(one, Adapted) else one for one in own]
        parts.may_share = parts.may_share and all(honours_shared_prompts(module) for module in modules)
    return Grpo(config, parts)


def live_references(job: Job, progress: Progress) -> LiveReferences:
    """The references with a positive weight, frozen, where hardware.reference_device wants them."""
    config = job.config
    policy_device, given = build.device_name(config), config.hardware.reference_device
    references, weights = build.active_references(config)
    progress.advance("load references", 0, len(references))
    models = load_references(references, given or policy_device, build.dtype_name(config))
    members = [
        Member(reference.name, model, weight, _foreign_tokenizer(job, reference))
        for reference, model, weight in zip(references, models, weights)
    ]
    return LiveReferences(config, members, (policy_device, given))


def _foreign_tokenizer(job: Job, reference: Any) -> Any:
    """The reference's tokenizer where the policy's ids mean something else to it, else None."""
    tokenizer = load_tokenizer(reference)
    return None if first_difference(job.tokenizer, tokenizer) is None else tokenizer


def reference_samples(job: Job, rows: Iterable[int], progress: Progress) -> list[dict[int, list[list[int]]]]:
    """Responses of every active reference to training prompts, drawn once per machine.

    They are drawn and stored in blocks of consecutive prompts, as many as the engine decodes at once, a whole group of
    each reference: what is stored depends neither on the seed, the weights or beta of who asks first, nor on how far a
    killed process had come. K references share a group: of each one the first group_size / K are used.

    Args:
        job: with `states: reference`.
        rows: numbers of the prompts wanted; blocks are drawn whole.
        progress: told while a reference is sampled.

    Returns:
        For each active reference: prompt number -> [S] token ids, S responses.
    """
    references, _ = build.active_references(job.config)
    share = max(1, job.config.rollout.group_size // len(references))
    rows = list(rows)
    stored = [_stored_blocks(job, reference, rows, progress) for reference in references]
    return [{row: groups[row][:share] for row in rows} for groups in stored]


def _stored_blocks(job: Job, reference: Any, wanted: list[int], progress: Progress) -> dict[int, list[list[int]]]:
    """Prompt number -> a group of responses of one reference, for all blocks that the wanted prompts lie in."""
    config, settings, train, store = job.config, job.config.rollout, job.data.train, job.open_store()
    size = max(1, settings.batch_size // settings.group_size)
    blocks = sorted({row // size for row in wanted})
    sampling = Sampling(
        settings.temperature, max_new_tokens=settings.max_new_tokens, end_ids=tuple(end_ids(job.tokenizer))
    )

    @cache
    def engine() -> TransformersEngine:
        model = load_causal_lm(reference, build.device_name(config), build.dtype_name(config, reference.dtype))
        return TransformersEngine(model, 0, settings.batch_size, job.vocabulary)

    def generate(texts: list, group_size: int, how: Sampling, numbers: list[int]) -> list[list[Completion]]:
        return engine().generate(texts, group_size, how, numbers)

    found: dict[int, list[list[int]]] = {}
    for done, block in enumerate(blocks):
        progress.advance(f"samples of {reference.name}", done, len(blocks))
        rows = range(block * size, min((block + 1) * size, len(train)))
        seeds = [derive(0, "reference samples", train[row].row) for row in rows]
        prompts = [train[row].ids for row in rows]
        groups = store.samples(reference, prompts, settings.group_size, sampling, seeds, generate)
        found |= {row: [one.ids for one in group] for row, group in zip(rows, groups)}
    return found


def _reached(job: Job) -> list[int]:
    """Numbers of the training prompts that the run will see, ascending."""
    settings, count = job.config.algorithm, len(job.data.train)
    windows = -(-job.total_steps // settings.inner_iterations)
    seen = {row for w in range(windows) for row in epoch_batch(count, settings.batch_prompts, w, job.config.seed)}
    return sorted(seen)
