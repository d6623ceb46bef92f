"""What an online algorithm works with: models, prompts, engine, reward, and its references, live or sampled."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from multiref_cli.algorithms.base import Job
from multiref_cli.config.algorithms import OnlineSettings
from multiref_cli.data.chat import end_ids
from multiref_cli.data.prompts import Prompt
from multiref_cli.parallel import ALONE, Parallel
from multiref_cli.references.live import LiveReferences
from multiref_cli.references.samples import stored_responses
from multiref_cli.rewards.combine import RewardBatch
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.engine import Engine
from multiref_cli.seeding import epoch_batch
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel, Tokenizer


@dataclass
class Parts:
    """What a run works with, besides its config.

    Attributes:
        model: the policy, a transformers model with or without an adapter.
        tokenizer: of the policy.
        prompts: training prompts.
        end_ids: ids that end a completion.
        engine: samples from the policy.
        reward: B samples to their rewards; None: none is given.
        references: frozen models; None without a penalty, or where the penalty is on stored samples.
        stored: for `states: reference` or a `teacher_share`, for each reference its stored responses, prompt number ->
            [S] token ids.
        vocabulary: ids shared by policy and references; None: the whole head.
        opening: what the generation prompt writes of every response, see `data.chat.Shape`.
        may_share: whether every model gives the same hidden states when responses share their prompt's row.
        parallel: the processes that share rollouts and passes.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    end_ids: list[int]
    engine: Engine
    reward: Callable[[list[Sample]], RewardBatch] | None
    references: LiveReferences | None = None
    stored: list[dict[int, list[list[int]]]] = field(default_factory=list)
    vocabulary: int | None = None
    opening: str = ""
    may_share: bool = True
    parallel: Parallel = ALONE


def live_references(job: Job, progress: Progress) -> LiveReferences:
    """The references with a positive weight, in memory, where hardware.reference_device wants them."""
    members = job.references(together=True)
    found = LiveReferences(job.experiment, members, [job.foreign_tokenizer(member) for member in members])
    for number, member in enumerate(members):
        progress.advance("load references", number, len(members))
        _ = member.model if member.spec.server is None else member.fingerprint()
    # An adapter that shares its base is not merged, as it is where it is measured; one that moves is another by then.
    still = [one for one in members if one.spec.adapter is None and one.spec.update is None]
    job.opened.update({one.name: one for one in still if one.spec.server is None})
    return found


def reference_samples(job: Job, rows: Iterable[int], progress: Progress) -> list[dict[int, list[list[int]]]]:
    """Responses of every active reference to training prompts, drawn once per machine.

    K references share a group: of each one the first group_size / K are used; with a `teacher_share` as many of each as
    a step may take of one.

    Args:
        job: with `states: reference`, or a `teacher_share`.
        rows: numbers of the prompts wanted.
        progress: told while a reference is sampled.

    Returns:
        For each active reference: prompt number -> [S] token ids, S responses.
    """
    references, store, rows = job.references(), job.open_store(), list(rows)
    share = job.experiment.taught or max(1, job.experiment.rollout.group_size // len(references))
    found = []
    for reference in references:
        ends = end_ids(job.tokenizer)
        groups = stored_responses(store, reference, job.data.train, rows, job.experiment.rollout, ends, progress)
        reference.release()
        found.append({row: groups[row][:share] for row in rows})
    return found


def reached(job: Job) -> list[int]:
    """Numbers of the training prompts that the run will see, ascending."""
    settings, count = cast(OnlineSettings, job.experiment.algorithm), len(job.data.train)
    windows, seed = -(-job.total_steps // settings.inner_iterations), job.experiment.seed
    return sorted({row for w in range(windows) for row in epoch_batch(count, settings.batch_prompts, w, seed)})
