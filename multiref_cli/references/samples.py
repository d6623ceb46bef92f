"""Stored responses of references to training prompts: drawn once, read by every run that trains on them."""

from collections.abc import Iterable, Sequence

from multiref_cli.config.schema import Rollout
from multiref_cli.data.prompts import Prompt
from multiref_cli.references.base import Reference
from multiref_cli.references.store import ReferenceStore
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.seeding import derive
from multiref_cli.tracking.progress import Progress


def stored_responses(
    store: ReferenceStore,
    reference: Reference,
    prompts: Sequence[Prompt],
    wanted: Iterable[int],
    rollout: Rollout,
    end_ids: Sequence[int],
    progress: Progress,
    root: int = 0,
) -> dict[int, list[list[int]]]:
    """Responses of one reference, drawn now where they are not stored.

    They are drawn and stored in blocks of consecutive prompts, as many as the engine decodes at once, a whole group
    each: what is stored depends neither on the seed, the weights or beta of who asks first, nor on how far a killed
    process had come.

    Args:
        store: of this machine.
        reference: whose responses; it reads the policy's tokens.
        prompts: all training prompts.
        wanted: numbers of those that are wanted; blocks are drawn whole.
        rollout: temperature, most new tokens, responses a prompt and responses decoded at once.
        end_ids: ids that end a response.
        progress: told while the reference is sampled.
        root: of the seeds; other ones give responses that are independent of these.

    Returns:
        Prompt number -> [G] token ids, for all blocks that the wanted prompts lie in.
    """
    size = max(1, rollout.batch_size // rollout.group_size)
    sampling = Sampling(rollout.temperature, max_new_tokens=rollout.max_new_tokens, end_ids=tuple(end_ids))
    blocks = sorted({row // size for row in wanted})
    found: dict[int, list[list[int]]] = {}
    for done, block in enumerate(blocks):
        progress.advance(f"samples of {reference.name}", done, len(blocks))
        rows = range(block * size, min((block + 1) * size, len(prompts)))
        seeds = [derive(root, "reference samples", prompts[row].row) for row in rows]
        ids = [prompts[row].ids for row in rows]
        groups = store.samples(reference, ids, rollout.group_size, sampling, seeds, rollout.batch_size)
        found |= {row: [one.ids for one in group] for row, group in zip(rows, groups)}
    return found
