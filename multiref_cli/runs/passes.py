"""How the rows of a job are laid out in passes: what a pass keeps goes by its tokens, padding included."""

from dataclasses import dataclass

from multiref_cli.algorithms.base import Job, module_of
from multiref_cli.models.packing import micro_batches, row_length, sharing_pays
from multiref_cli.seeding import epoch_batch

# Steps whose passes are laid out, and rows by which sharing prompts is weighed; of more the first ones.
_STEPS, _ROWS = 100, 200


@dataclass(frozen=True)
class Layout:
    """Of a job's training rows: mean tokens of one, tokens of the largest pass, longest row with a mask (0: none)."""

    mean: float
    passed: int
    width: int


def layout(job: Job, steps: int, hidden: int | None) -> Layout | None:
    """Lay out the first steps as the run will; responses that are still to be sampled are as long as they may be.

    Args:
        job: with its rows.
        steps: of the run.
        hidden: hidden size of the policy, by which prompts are shared or not; None where it is not known.

    Returns:
        The layout; None where nothing is trained.
    """
    settings, rollout, rows = job.experiment.algorithm, job.experiment.rollout, job.data.train
    if not settings.trains or not settings.pass_tokens:
        return None
    given: dict[int, tuple[int, list[int]]] = {}

    def group(row: int) -> tuple[int, list[int]]:
        """Tokens of a row's prompt, and of each response."""
        if row not in given:
            parts = module_of(job.experiment).parts(rows[row])
            sampled = [rollout.max_new_tokens] * rollout.group_size
            given[row] = len(parts[0][1]), sampled if settings.online else [len(ids) for *_, ids in parts]
        return given[row]

    some = [group(row) for row in range(min(len(rows), _ROWS))]
    asked, several = getattr(settings, "share_prompt", None), len(some[0][1]) > 1
    pays = sharing_pays([prompt for prompt, _ in some], [responses for _, responses in some], hidden)
    shared = several and (pays if asked is None else bool(asked))
    lengths, passed, width, each = list[int](), 0, 0, 1 if shared else len(some[0][1])
    for step in range(min(steps, _STEPS)):
        groups = [group(row) for row in epoch_batch(len(rows), settings.batch_size, step, job.experiment.seed)]
        own = [row_length(*one, shared) for one in groups]
        lengths += [each * length for length in own]
        for part in micro_batches(own, settings.pass_tokens, each, job.experiment.hardware.processes):
            longest = max(own[i] for i in part)
            passed, width = max(passed, each * len(part) * longest), max(width, longest if shared else 0)
    return Layout(sum(lengths) / max(1, len(lengths)), passed, width)
