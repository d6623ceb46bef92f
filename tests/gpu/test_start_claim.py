"""Claim: a reference in bf16_mixed says of its own start what the policy says, to the bit, in half of its memory."""

import torch

from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.precision import Precision, compute_mixed
from tests.gpu.parts import record


def test_a_start_is_itself(scale):
    rows = scale.rows(scale.choose(8, 4), scale.choose(128, 5), scale.choose(256, 7))
    precision = Precision("bf16_mixed", scale.device)
    policy = scale.model(dtype=torch.bfloat16).float().train()  # its weights are numbers of bfloat16
    reference, narrow = (scale.model(dtype=torch.bfloat16) for _ in range(2))
    compute_mixed(reference)
    with torch.no_grad():
        with precision.autocast():
            own = token_logps(policy, rows).logps.sum(-1)
        found = {name: token_logps(one, rows).logps.sum(-1) - own for name, one in
                 (("mixed", reference), ("bfloat16", narrow))}  # fmt: skip
    record("a start beside itself", **{name: float(off.std()) for name, off in found.items()})
    assert not found["mixed"].any()
    assert sum(p.numel() * p.element_size() for p in reference.parameters()) < 0.51 * sum(
        p.numel() * p.element_size() for p in policy.parameters()
    )
