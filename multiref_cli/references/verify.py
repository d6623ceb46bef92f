"""Does the store still say what its models say: checksums, and a few responses computed again."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from multiref_cli.config import schema
from multiref_cli.config.regularizer import Mix
from multiref_cli.errors import RequestError
from multiref_cli.models.files import fingerprint
from multiref_cli.models.logprobs import logps_of, normalizers, token_logps
from multiref_cli.models.packing import Packed
from multiref_cli.references.base import references_of
from multiref_cli.references.entries import Entry, EntryFolder
from multiref_cli.references.hidden import kept_of
from multiref_cli.references.rows import Work, stored_rows
from multiref_cli.tracking.progress import Progress

# How far a token's value may be from the stored one, in nats: other batches round in another order.
_TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 0.5, "float16": 0.1, "bf16_mixed": 0.5}


@dataclass(frozen=True)
class Finding:
    """What was found of one entry: whether it may be used, and a sentence."""

    entry: Entry
    good: bool
    text: str


def verify(entries: EntryFolder, rows: int, device: str, progress: Progress) -> list[Finding]:
    """Verifies every entry; see `ReferenceStore.verify`."""
    checks, found = [], entries.list()
    for entry in found:
        if not entries.is_whole(entry):
            checks.append(Finding(entry, False, "damaged: its checksum differs"))
        elif entry.kind == "samples" or rows == 0:
            checks.append(Finding(entry, True, "checksum good"))
        else:
            checks.append(_recompute(entries, entry, rows, device))
        progress.advance("verify", len(checks), len(found))
    return checks


def _recompute(entries: EntryFolder, entry: Entry, count: int, device: str) -> Finding:
    references = [schema.ReferenceSpec(**member) for member in entry.origin["references"]]
    if any(reference.trust_remote_code for reference in references):
        # What a store says of itself is no permission to run code: entries are exchanged between people.
        return Finding(entry, True, "checksum good; its models bring their own code, so nothing was recomputed")
    served = [reference.server for reference in references if reference.server is not None]
    if served:  # nor to send anything anywhere
        return Finding(entry, True, f"checksum good; it came from the server {served[0]}, which was not asked again")
    address = entry.address
    dtypes = [one[1] for one in address["members"]] if entry.kind == "normalizers" else [address["dtype"]]
    if any(dtype not in _TOLERANCE for dtype in dtypes):
        return Finding(entry, True, f"checksum good; of weights in fewer bits ({', '.join(dtypes)}), not recomputed")
    weights = entry.origin.get("weights", [1.0])
    expected = [one[0] for one in address["members"]] if entry.kind == "normalizers" else [address["model"]]
    try:
        same = sorted(fingerprint(reference) for reference in references) == sorted(expected)
    except RequestError:
        return Finding(entry, True, "checksum good; its models are not here, so nothing was recomputed")
    if not same:
        return Finding(entry, True, "checksum good; another model lies at its path now, so nothing was recomputed")
    arrays = entries.read(entry)
    if arrays is None:
        return Finding(entry, True, "deleted in the meantime")
    stored = stored_rows(arrays)
    numbers = random.SystemRandom().sample(range(entry.rows), min(count, entry.rows))
    members = references_of(references, device, dtypes[0], together=len(references) > 1)
    models = [one.model for one in members]
    kept = kept_of(members[0], arrays, address["vocabulary"]) if entry.kind == "hidden" else None

    def compute(packed: Packed, places: np.ndarray) -> list[Any]:
        if kept is not None:  # in nats: what either says of the tokens
            head, states = kept.at(places)
            live = token_logps(models[0], packed, vocabulary=address["vocabulary"]).logps
            return [live - logps_of(states, head, packed).logps]
        if entry.kind == "logps":
            return [token_logps(models[0], packed, vocabulary=address["vocabulary"]).logps]
        return normalizers(models, packed, [Mix(address["order"], tuple(weights))], vocabulary=address["vocabulary"])

    (values,) = stored.compute(Work(models, compute), 8192, lambda *_: None, numbers)
    places = np.concatenate([np.arange(*stored.offsets[i : i + 2]) for i in numbers])
    expected_values = arrays["values"][places] if "values" in arrays else 0.0
    worst = float(np.abs(values[places] - expected_values).max(initial=0.0))
    good = worst <= max(_TOLERANCE[name] for name in dtypes)
    text = f"{len(numbers)} responses recomputed, at most {worst:.1e} nats off"
    return Finding(entry, good, f"checksum good; {text}" if good else f"wrong: {text}")
