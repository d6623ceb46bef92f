"""On-policy distillation: no reward; the policy's own responses, and the penalty towards one or several teachers alone.

The objective is -beta sum_i alpha_i D_A(pi_i || pi): with reverse KL and one teacher the method of arXiv 2306.13649 and
its successors, with several the mixed reference of arXiv 2502.01203 as the teacher. The estimator is the penalty's, as
in `algorithms.online`: exact over the vocabulary, sampled at each token, or in the reward.
"""

from multiref_cli.algorithms.base import Job, Trainee
from multiref_cli.algorithms.grpo import fill_store, load, mean_tokens, parts
from multiref_cli.algorithms.online import assemble_online
from multiref_cli.tracking.progress import Progress

__all__ = ["assemble", "fill_store", "load", "mean_tokens", "parts"]


def assemble(job: Job, progress: Progress) -> Trainee:
    """Load the student and its teachers."""
    return assemble_online(job, None, progress)
