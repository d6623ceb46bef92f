"""MRPO's two additions to a mixed reference (arXiv 2405.16388)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiref_cli.objectives.mixing import checked_weights


@dataclass(frozen=True)
class TrustRegion:
    """Clipped trust-region optimization (CTRO).

    Attributes:
        anchor: index of the reference that the policy starts from; it is never clipped.
        epsilon: half width of the region as a share of the anchor's log-probability; usual 0.1.
        adaptive: share epsilon out between chosen and rejected, pair by pair.
    """

    anchor: int = 0
    epsilon: float = 0.1
    adaptive: bool = False


def adjusted_references(
    chosen: Tensor,
    rejected: Tensor,
    weights: Tensor,
    trust_region: TrustRegion | None = None,
    adaptive_weights: bool = False,
    swapped: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What MRPO does to K references before they are mixed, for the responses of every pair: weigh (ARWC), clip (CTRO).

    A single reference with a positive weight is returned as it is: nothing is clipped or weighed.

    Args:
        chosen: (K, N) log pi_i(y_w) of whole responses, in nats. Rows of weight 0 may hold anything.
        rejected: (K, N) log pi_i(y_l), in nats.
        weights: (K,) alpha on the simplex.
        trust_region: CTRO's settings; None leaves the references as they are.
        adaptive_weights: replace alpha by ARWC's weights, pair by pair, among the references of positive weight.
        swapped: exchange ARWC's weights of two references: in the authors' code the share of reference 1 multiplies
            1 / pi_2.

    Returns:
        (J, N) chosen, (J, N) rejected and (J,) or (J, N) weights of the J references of positive weight.

    Raises:
        ValueError: weights that do not fit, or a trust region around a reference of weight 0.
    """
    weights = checked_weights(weights, chosen).reshape(-1)
    kept = (weights > 0).nonzero().flatten().tolist()
    chosen, rejected, weights = chosen[kept], rejected[kept], weights[kept]
    if adaptive_weights:  # before clipping, which would give every reference nearly the anchor's contrast
        weights = adaptive_reference_weights(chosen, rejected)
        weights = weights.flip(0) if swapped else weights
    if trust_region is not None and len(kept) > 1:
        if trust_region.anchor not in kept:
            raise ValueError(f"the trust region's anchor, reference {trust_region.anchor}, has weight 0")
        chosen, rejected = clip_to_trust_region(
            chosen, rejected, kept.index(trust_region.anchor), trust_region.epsilon, trust_region.adaptive
        )
    return chosen, rejected, weights


def clip_to_trust_region(
    chosen: Tensor, rejected: Tensor, anchor: int, epsilon: float, adaptive: bool = False
) -> tuple[Tensor, Tensor]:
    """CTRO: clip log pi_i to [(1 + eps) l0, (1 - eps) l0], l0 <= 0 the anchor's (arXiv 2405.16388).

    Adaptive: eps_w = eps s and eps_l = eps (1 - s), s = |b_w| / (|b_w| + |b_l|), b the mean log-probability over the
    references: the response that the references find less likely gets the wider region.

    Args:
        chosen: (K, N) log pi_i(y_w) in nats.
        rejected: (K, N) log pi_i(y_l) in nats.
        anchor: row of the reference that the policy starts from.
        epsilon: half width of the region as a share of |l0|; usual 0.1.
        adaptive: share epsilon out between chosen and rejected, pair by pair.

    Returns:
        (K, N) and (K, N) clipped log-probabilities; the anchor's row is unchanged.
    """
    wide_chosen = wide_rejected = torch.full_like(chosen[0], epsilon)
    if adaptive:
        size_chosen, size_rejected = chosen.mean(0).abs(), rejected.mean(0).abs()
        share = torch.nan_to_num(size_chosen / (size_chosen + size_rejected), nan=0.5)
        wide_chosen, wide_rejected = epsilon * share, epsilon * (1.0 - share)

    def clipped(logps: Tensor, wide: Tensor) -> Tensor:
        return torch.clamp(logps, min=(1.0 + wide) * logps[anchor], max=(1.0 - wide) * logps[anchor])

    return clipped(chosen, wide_chosen), clipped(rejected, wide_rejected)


def adaptive_reference_weights(chosen: Tensor, rejected: Tensor) -> Tensor:
    """ARWC: per pair alpha_i = |a_i| / sum_j |a_j|, a_i = log pi_i(y_w) - log pi_i(y_l) (arXiv 2405.16388).

    References that tell the two responses apart weigh more, whichever they prefer. Pairs that no reference tells
    apart get equal weights.

    Args:
        chosen: (K, N) log pi_i(y_w) in nats.
        rejected: (K, N) log pi_i(y_l) in nats.

    Returns:
        (K, N) weights on the simplex, one column a pair.
    """
    contrast = (chosen - rejected).abs()
    total = contrast.sum(0)
    return torch.where(total > 0, contrast / total, 1.0 / len(contrast))
