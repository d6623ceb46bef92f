"""The best of several candidates against the best of several others, chosen on other data than they are judged on.

The best of m candidates on the data that chose it looks better than it is, and the more so the larger m is. Here every
cell of seed and prompt is judged by the candidate that was best on all other seeds and on the other half of the prompts
(cross-fitting: Stone 1974), so that no noise that chose a candidate counts for it (numpy only).
"""

from typing import NamedTuple

import numpy as np

from multiref_cli.evaluation.crossed import compare
from multiref_cli.evaluation.statistics import Comparison

# Level of the test by which chosen candidates are judged by their own spread. Small: where all vary alike the residual
# of all is the better estimate, and ten times the standard deviation over three seeds is seen at this level too.
APART = 0.01


class Contest(NamedTuple):
    """The best of one side against the best of the other.

    Attributes:
        comparison: first minus second, each chosen apart from where it is judged.
        first: shares of the cells in which each candidate of the first side was the chosen one.
        second: the same of the second side.
    """

    comparison: Comparison
    first: np.ndarray
    second: np.ndarray


def chosen_apart(candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Judge the procedure "take the best candidate" cell by cell.

    Args:
        candidates: (M, S, P) scores of M candidates on S seeds, at least 2, and P prompts, at least 2; the same seeds
            and prompts in all.

    Returns:
        (S, P) scores of the candidate that is best on the other seeds and the other half of the prompts (even and odd
        ones), and (S, P) its number.

    Raises:
        ValueError: one seed or one prompt: nothing is left to choose on.
    """
    _, seeds, prompts = candidates.shape
    if seeds < 2 or prompts < 2:
        raise ValueError("a choice apart needs two seeds and two prompts")
    number = np.empty((seeds, prompts), dtype=int)
    for half in (0, 1):
        sums = candidates[:, :, 1 - half :: 2].mean(2)
        others = (sums.sum(1, keepdims=True) - sums) / (seeds - 1)
        number[:, half::2] = others.argmax(0)[:, None]
    return np.take_along_axis(candidates, number[None], 0)[0], number


def contest(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Contest:
    """Compare the best of one side with the best of the other, over seeds and prompts.

    What seeds do comes from the residual that all candidates share (`crossed.compare`): a few seeds of two candidates
    need not tell it by themselves. Where the chosen ones vary more than those that were never chosen, it comes from
    their own difference.

    Args:
        first: (M, S, P) scores of its candidates.
        second: (N, S, P) of the other side's, the same seeds and prompts.
        confidence: of the interval.

    Raises:
        ValueError: as `chosen_apart`.
    """
    (a, which_a), (b, which_b) = chosen_apart(first), chosen_apart(second)
    shares = [np.bincount(w.ravel(), minlength=len(s)) / w.size for w, s in ((which_a, first), (which_b, second))]
    block = [dict(enumerate(table.mean(1))) for table in (*first, *second)]
    others = [means for means, share in zip(block, np.concatenate(shares)) if share == 0]
    sides = dict(enumerate(a)), dict(enumerate(b))
    found = compare(*sides, block, confidence=confidence, others=others, apart=APART)
    return Contest(found, *shares)
