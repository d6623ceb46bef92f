"""What a served model is known by: a name says little, so also what it says of a probe text.

Servers round in an order that depends on what else they compute, so the numbers of two looks at one model differ
slightly. The first look is kept in a file; whatever is near it is the same model, and the file's name its fingerprint.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from multiref_cli.errors import RunError
from multiref_cli.files import read_object, write_json
from multiref_cli.types import Tokenizer

# Nats a token, root mean square over the probe. One model in bfloat16, in batches of other sizes: about .01; the same
# weights in eight bits: .05 and more.
_NEAR = 0.03
_TEXT = "Anna has 17 apples, gives 5 of them to Ben and buys twice as many. How many are there now? 17 - 5 = 12, so 36."
# Tokens of the tokenizer's own that the probe holds besides.
_SPREAD = 32


@dataclass(frozen=True)
class Seen:
    """One look at a server.

    Attributes:
        model: as it calls itself.
        ids: T ids of the probe.
        logps: T - 1 log-probabilities in nats, of all ids but the first.
    """

    model: str
    ids: list[int]
    logps: list[float]


def probe_text(tokenizer: Tokenizer) -> str:
    """A text that tells models and tokenizers apart: a sentence, and tokens spread over the whole vocabulary."""
    count = len(tokenizer)
    spread = sorted({number * count // _SPREAD for number in range(_SPREAD)})
    return f"{_TEXT} {tokenizer.decode(spread, skip_special_tokens=True)}"


def far_from(before: Sequence[float], now: Sequence[float]) -> str | None:
    """How far two looks are apart, in words; None where it is the same model."""
    if len(before) != len(now):
        return f"{len(now)} tokens of the probe, {len(before)} before"
    far = (sum((a - b) ** 2 for a, b in zip(before, now)) / max(len(now), 1)) ** 0.5
    return None if far <= _NEAR else f"{far:.2g} nats a token off on the probe"  # nan is far


def known_as(folder: Path, seen: Seen) -> str:
    """The fingerprint of a served model: that of the first look at it on this machine.

    Args:
        folder: of what servers are known by; made where it is not there.
        seen: a look at the server.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}).") from error
    with FileLock(folder / ".lock"):
        for path in sorted(folder.glob("*.json")):
            try:
                before = Seen(**(read_object(path) or {}))
            except (RunError, TypeError):  # damaged: it is another model then, and the store is filled again
                continue
            if (before.model, before.ids) == (seen.model, seen.ids) and far_from(before.logps, seen.logps) is None:
                return path.stem
        name = hashlib.sha256(json.dumps(asdict(seen), sort_keys=True).encode()).hexdigest()
        write_json(folder / f"{name}.json", asdict(seen))
    return name
