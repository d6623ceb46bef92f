"""Label privacy by randomized response (arXiv 2510.13512): what flipped labels cost, and what ignoring them costs."""

import math


def flip_probability(epsilon: float) -> float:
    """Randomized response that is epsilon-differentially private turns a label with probability 1 / (1 + e^epsilon).

    Args:
        epsilon: privacy budget, > 0; usual 0.5 to 5; a scalar.

    Returns:
        float in (0, 1/2).
    """
    return 1.0 / (1.0 + math.exp(epsilon))


def inflation(epsilon: float) -> float:
    """Derived, for labels near coin flips: the gap grows by ((e^eps + 1) / (e^eps - 1))^2, as if n were that smaller.

    The order 1 / (e^eps - 1)^2 for small epsilon is the rate of arXiv 2510.13512.

    Args:
        epsilon: privacy budget, > 0, a scalar.

    Returns:
        float >= 1.
    """
    return 1.0 / math.tanh(epsilon / 2) ** 2
