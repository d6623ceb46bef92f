"""Group-relative policy optimization towards a mixed reference (arXiv 2402.03300): see `algorithms.online`."""

from collections.abc import Sequence

from multiref_cli.algorithms.base import Job, Trainee
from multiref_cli.algorithms.online import assemble_online
from multiref_cli.algorithms.parts import reference_samples
from multiref_cli.config.schema import Data
from multiref_cli.data.prompts import Prompt, load_prompts
from multiref_cli.data.rows import Split
from multiref_cli.rewards.combine import build_reward
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import Tokenizer


def load(data: Data, tokenizer: Tokenizer, progress: Progress) -> Split[Prompt]:
    """Prompts, with their answers where the reward wants them."""
    return load_prompts(data, tokenizer, progress)


def assemble(job: Job, progress: Progress) -> Trainee:
    """Load the policy and the references that it will ask."""
    reward = None if job.experiment.reward is None else build_reward(job.experiment.reward)
    return assemble_online(job, reward, progress)


def fill_store(job: Job, progress: Progress) -> None:
    """Samples of the references to all training prompts, for `states: reference`."""
    reference_samples(job, range(len(job.data.train)), progress)


def mean_tokens(job: Job) -> float:
    """A prompt, computed once for its group, and the group's responses, each taken for as long as allowed."""
    rows, rollout = job.data.train[:200], job.experiment.rollout
    return sum(len(r.ids) for r in rows) / len(rows) + rollout.group_size * rollout.max_new_tokens


def parts(row: Prompt) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    """The prompt; what is scored is sampled."""
    return [("first prompt", row.ids, ())]
