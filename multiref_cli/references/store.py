"""The reference store: what frozen references say of a data set, computed once and kept on disk.

An entry is addressed by content alone (weights, adapter, tokenizer, chat template, truncation, type, rows), never by
beta, alpha, a learning rate or an output folder. While entries are built one reference is in memory at a time; only the
normalizers of token-level mixes need their K references together.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from multiref_cli.config.regularizer import Mix
from multiref_cli.data.template import Message, Response
from multiref_cli.errors import RequestError, RunError
from multiref_cli.models.decoder import head_of
from multiref_cli.models.logprobs import normalizers
from multiref_cli.models.packing import Packed
from multiref_cli.parallel import ALONE, Parallel
from multiref_cli.references.base import Reference
from multiref_cli.references.entries import Entry, EntryFolder, address_key
from multiref_cli.references.hidden import Keeping, Kept, kept_of, normalizing, not_kept, size_said
from multiref_cli.references.local import LocalReference
from multiref_cli.references.parts import Parts
from multiref_cli.references.rows import ScoredRows, Work, scored_rows
from multiref_cli.references.tokens import (
    first_difference,
    rescored_ids,
    template_fingerprint,
    tokenizer_fingerprint,
)
from multiref_cli.references.verify import Finding, verify
from multiref_cli.rollouts.engine import Completion, Sampling
from multiref_cli.tracking.progress import Progress, Silent
from multiref_cli.types import Tokenizer

# How often an entry that somebody deletes is built again before that is taken for a fault.
_ATTEMPTS = 5


@dataclass(frozen=True)
class Sequence:
    """A response to be scored: ids under the policy's tokenizer, and the text for references with another one.

    Attributes:
        prompt: ids up to where the assistant begins.
        completion: ids, with the end token unless truncated.
        messages: the prompt as messages.
        text: the response, without template or special tokens; what a generation prompt opens of it included.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    messages: list[Message] = field(default_factory=list)
    text: Response = ""


@dataclass(frozen=True)
class Scoring:
    """How a run's references score.

    Attributes:
        tokenizer: of the policy; it made the ids.
        vocabulary: ids that policy and references normalize over.
        truncation: longest prompt and completion in tokens, as the data were cut; part of the address.
        micro_tokens: padded tokens per forward pass; no part of the address.
        keep_hidden: keep final hidden states beside log-probabilities, of references that this process opens itself.
    """

    tokenizer: Tokenizer
    vocabulary: int
    truncation: tuple[int | None, int] | None = None
    micro_tokens: int = 8192
    keep_hidden: bool = False

    @cached_property
    def tokens(self) -> dict[str, Any]:
        """The part of every address that says where ids come from."""
        return {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "template": template_fingerprint(self.tokenizer),
            "vocabulary": self.vocabulary,
            "truncation": self.truncation and list(self.truncation),
        }


class ReferenceStore:
    """Stored log-probabilities, token-level normalizers and samples of frozen references."""

    def __init__(self, root: Path, scoring: Scoring | None = None, parallel: Parallel = ALONE) -> None:
        """Opens a store.

        Args:
            root: its folder; made when something is written.
            scoring: needed by everything that computes, not by `list`, `verify` and `prune`.
            parallel: the processes of a run, which share what is computed; the main one writes.
        """
        self.entries, self._scoring, self.parallel = EntryFolder(root), scoring, parallel

    @property
    def scoring(self) -> Scoring:
        """How references score."""
        if self._scoring is None:
            raise ValueError("this store was opened without a Scoring, to look only")
        return self._scoring

    def logps(
        self, reference: Reference, sequences: Items[Sequence], progress: Progress | None = None
    ) -> list[np.ndarray]:
        """Log-probabilities of every response under one reference, from disk or computed now.

        A reference with another tokenizer reads the text under its own tokenizer and chat template; its arrays are then
        as long as its own tokens, and only their sums can be compared with the policy's.

        Args:
            reference: loaded only if its results are not there, and released then.
            sequences: N responses.
            progress: told tokens done, tokens in all and tokens per second.

        Returns:
            N read-only float32 arrays (T_n,), in nats, memory-mapped.

        Raises:
            RequestError: a reference whose vocabulary does not hold the policy's ids.
            RunError: a damaged entry, or a model that gives numbers that are not finite.
        """
        tokens, rows = self._rows(reference, sequences)
        model, dtype = reference.fingerprint(), reference.dtype
        address = {"kind": "logps", "model": model, "dtype": dtype, "rows": rows.sha256, **tokens}
        told, states = progress or Silent(), self._states_address(reference, rows, tokens, progress)

        def build(missing: Items[str]) -> None:
            """Compute it, and the hidden states where they are wanted."""
            if states is not None and address_key(states) in missing:
                self._build_hidden(reference, rows, {"logps": address, "hidden": states}, missing, told)
            else:
                self._build_logps(reference, rows, address, missing, told)

        keys = [address_key(address)]
        # Whole files of hidden states are read where they are needed, not by every run.
        if states is not None and self.parallel.once(lambda: self.entries.find(address_key(states)) is None):
            keys.append(address_key(states))
        return _split(self._stored(keys, build)[0], "values")

    def sums(
        self, reference: Reference, sequences: Items[Sequence], progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of whole responses, (N,) float64 nats, and how many tokens each had, (N,) int64."""
        arrays = self.logps(reference, sequences, progress)
        sums = np.array([np.sum(one, dtype=np.float64) for one in arrays])
        return sums, np.array([len(one) for one in arrays], dtype=np.int64)

    def normalizers_of(
        self,
        references: Items[Reference],
        sequences: Items[Sequence],
        mixes: Items[Mix],
        progress: Progress | None = None,
    ) -> list[list[np.ndarray]]:
        """log F_t of token-level mixes, from disk or computed now, all that are missing in one pass.

        F_t sums the mixture over the whole vocabulary. Where the hidden states of all its references are kept, their
        output heads are applied to them; else this pass has the K references in memory together. Mixes of order 1, or
        of a single reference, have log F_t = 0.

        Args:
            references: K of them over the policy's tokenizer, in memory together where something is missing.
            sequences: N responses.
            mixes: (order, K weights) each.
            progress: as in `logps`.

        Returns:
            For each mix N read-only float32 arrays (T_n,), in nats.

        Raises:
            RequestError, RunError: as `logps`.
        """
        rows = scored_rows([(one.prompt, one.completion) for one in sequences])
        trivial = [mix.order == 1 or mix.only is not None for mix in mixes]
        addresses = {i: self._mix_address(references, mix, rows) for i, mix in enumerate(mixes) if not trivial[i]}
        keys = {i: address_key(address) for i, address in addresses.items()}

        def build(missing: Items[str]) -> None:
            """Compute those that are missing, each once."""
            wanted = {key: (addresses[i], mixes[i]) for i, key in keys.items() if key in missing}
            self._build_normalizers(references, rows, wanted, progress or Silent())

        found = dict(zip(keys, self._stored(list(keys.values()), build)))
        zeros = [np.zeros(len(one.completion), np.float32) for one in sequences]
        return [zeros if trivial[i] else _split(found[i], "values") for i in range(len(mixes))]

    def samples(
        self,
        reference: Reference,
        prompts: Items[Items[int]],
        group_size: int,
        sampling: Sampling,
        seeds: Items[int],
        batch_size: int,
        vocabulary: int | None = None,
    ) -> list[list[Completion]]:
        """Responses of one reference to some prompts, drawn once.

        Args:
            reference: loaded only if its samples are not there.
            prompts: P prompts of token ids.
            group_size: G responses each.
            sampling: how they are drawn.
            seeds: P seeds.
            batch_size: responses decoded at once; no part of the address.
            vocabulary: ids that may be drawn; None: those that the run's models normalize over.

        Returns:
            [P][G] completions.
        """
        address = {
            "kind": "samples",
            "model": reference.fingerprint(),
            "dtype": reference.dtype,
            "prompts": _sha256([list(prompt) for prompt in prompts]),
            "group_size": group_size,
            "sampling": asdict(sampling),
            "seeds": list(seeds),
        }

        def build(missing: Items[str]) -> None:
            """Draw them."""
            start, shared = time.monotonic(), self._scoring.vocabulary if self._scoring else None
            ids, own = self.parallel.share([list(prompt) for prompt in prompts]), self.parallel.share(list(seeds))
            drawn = reference.generate(ids, group_size, sampling, own, batch_size, vocabulary or shared)
            self.parallel.once(reference.confirm)
            arrays = _sample_arrays([one for group in self.parallel.woven(drawn) for one in group])
            self._write(address, arrays, _origin([reference]), start)

        (arrays,) = self._stored([address_key(address)], build)
        columns = zip(_split(arrays, "ids"), _split(arrays, "values"), arrays["finished"])
        flat = [Completion(ids.tolist(), logps.tolist(), bool(finished)) for ids, logps, finished in columns]
        return [flat[start : start + group_size] for start in range(0, len(flat), group_size)]

    def verify(self, rows: int = 3, device: str = "cpu", progress: Progress | None = None) -> list[Finding]:
        """Verifies every checksum, and recomputes a few random responses of every entry whose models are at hand.

        Args:
            rows: responses recomputed per entry; 0 verifies checksums only.
            device: torch device to recompute on.
            progress: told entries done.
        """
        return verify(self.entries, rows, device, progress or Silent())

    def prune(
        self, older_than: float | None = None, keep: Iterable[str] = (), everything: bool = False, dry_run: bool = False
    ) -> list[Entry]:
        """Deletes entries, and whatever killed processes left half-written.

        Args:
            older_than: those not used for so many days.
            keep: addresses that stay in any case.
            everything: all others.
            dry_run: only says which.

        Returns:
            The entries deleted; one that is being built or read under its lock stays.
        """
        limit = time.time() - 86400 * older_than if older_than is not None else float("-inf")
        if not dry_run:
            self.entries.sweep_leftovers(float("inf") if everything else limit)
        kept = set(keep)
        old = [e for e in self.list() if e.key not in kept and (everything or e.used < limit)]
        return [entry for entry in old if dry_run or self.entries.remove(entry)]

    def _rows(self, reference: Reference, sequences: Items[Sequence]) -> tuple[dict[str, Any], ScoredRows]:
        """Where the ids come from and the ids: the policy's own, or the text under the reference's tokenizer."""
        own = reference.tokenizer
        if first_difference(self.scoring.tokenizer, own) is None:
            return self.scoring.tokens, scored_rows([(one.prompt, one.completion) for one in sequences])
        other = Scoring(own, max(own.get_vocab().values()) + 1, self.scoring.truncation)
        return other.tokens, scored_rows([rescored_ids(one, self.scoring.tokenizer, own) for one in sequences])

    def _mix_address(self, references: Items[Reference], mix: Mix, rows: ScoredRows) -> dict[str, Any]:
        members = sorted([r.fingerprint(), r.dtype, float(w)] for r, w in zip(references, mix.weights) if w != 0)
        address = {"kind": "normalizers", "order": float(mix.order), "members": members, "rows": rows.sha256}
        return address | self.scoring.tokens

    def _write(
        self, address: Mapping[str, Any], arrays: Mapping[str, np.ndarray], origin: Mapping[str, Any], start: float
    ) -> None:
        """Write an entry, once for all processes; `start` is when it was begun, on the monotonic clock."""
        if self.parallel.main:
            self.entries.write(address, arrays, origin, time.monotonic() - start)

    def _compute(
        self, work: Work, rows: ScoredRows, missing: Items[str], report: Callable[[int, int, float], None]
    ) -> list[np.ndarray]:
        """One pass that writes some missing entries, shared by all processes; what a killed one had done is kept."""
        scoring, what = self.scoring, _sha256(sorted(missing))

        def kept(division: str) -> Parts:
            """Parts of the pass for just these entries."""
            return self.entries.parts(min(missing), _sha256([what, division]))

        return rows.compute(work, scoring.micro_tokens, report, kept=kept, parallel=self.parallel)

    def _build_logps(
        self,
        reference: Reference,
        rows: ScoredRows,
        address: Mapping[str, Any],
        missing: Items[str],
        progress: Progress,
    ) -> None:
        start, model = time.monotonic(), reference.model
        if model is not None:
            _check_size(reference, address["vocabulary"])

        def compute(packed: Packed, _: np.ndarray) -> list[Any]:
            return [reference.token_logps(packed, vocabulary=address["vocabulary"])]

        report = _reporter(progress, f"reference {reference.name}")
        work = Work([] if model is None else [model], compute, reference.expect, reference.confirm)
        (values,) = self._compute(work, rows, missing, report)
        reference.release()
        _refuse_infinite(values, rows, reference.name)
        self._write(address, {**rows.arrays(), "values": values}, _origin([reference]), start)

    def _build_hidden(
        self,
        reference: Reference,
        rows: ScoredRows,
        addresses: Mapping[str, Mapping[str, Any]],
        missing: Items[str],
        progress: Progress,
    ) -> None:
        """Hidden states in one pass, and log-probabilities where they are missing too."""
        start, vocabulary = time.monotonic(), self.scoring.vocabulary
        progress.note(f"hidden states of {reference.name}: {size_said(reference, len(rows.completions))}")
        _check_size(reference, vocabulary)
        keeping = Keeping(reference, rows, vocabulary, self.entries.room(min(missing)))
        values, checks = self._compute(
            keeping.work(), rows, missing, _reporter(progress, f"reference {reference.name}")
        )
        _refuse_infinite(values, rows, reference.name)
        origin = _origin([reference])
        if self.parallel.main:
            self._write(addresses["hidden"], keeping.arrays(checks), origin, start)
        reference.release()
        if address_key(addresses["logps"]) in missing:
            self._write(addresses["logps"], {**rows.arrays(), "values": values}, origin, start)

    def _states_address(
        self, reference: Reference, rows: ScoredRows, tokens: Mapping[str, Any], progress: Progress | None = None
    ) -> dict[str, Any] | None:
        """Where a reference's hidden states are kept; None where they are not to be."""
        if not self.scoring.keep_hidden:
            return None
        why = not_kept(reference, tokens != self.scoring.tokens)
        if why is not None:
            (progress or Silent()).note(f"hidden states of {reference.name} are not kept: {why}")
        return self._hidden_address(reference, rows) if why is None else None

    def _hidden_address(self, reference: Reference, rows: ScoredRows) -> dict[str, Any]:
        known = {"model": reference.fingerprint(), "dtype": reference.dtype, "rows": rows.sha256}
        return {"kind": "hidden", **known, **self.scoring.tokens}

    def _kept(self, references: Items[Reference], rows: ScoredRows, progress: Progress) -> list[Kept] | None:
        """What is kept of all of some references; made now where it is to be kept, None where one lacks it."""
        own = [one.alone() for one in references if isinstance(one, LocalReference)]
        if len(own) < len(references):
            return None
        addresses = [self._hidden_address(one, rows) for one in own]
        keys = [address_key(one) for one in addresses]

        def build(missing: Items[str]) -> None:
            for one, address, key in zip(own, addresses, keys):
                if key in missing:
                    logps = {**address, "kind": "logps"}
                    self._build_hidden(one, rows, {"logps": logps, "hidden": address}, [key], progress)

        there = self.parallel.once(lambda: all(self.entries.find(key) is not None for key in keys))
        if not there and not self.scoring.keep_hidden:
            return None
        found = [self._stored([key], build)[0] for key in keys]
        return [kept_of(one, arrays, self.scoring.vocabulary) for one, arrays in zip(own, found)]

    def _build_normalizers(
        self,
        references: Items[Reference],
        rows: ScoredRows,
        wanted: Mapping[str, tuple[dict[str, Any], Mix]],
        progress: Progress,
    ) -> None:
        start, scoring = time.monotonic(), self.scoring
        needed = [i for i in range(len(references)) if any(mix.weights[i] != 0 for _, mix in wanted.values())]
        members = [references[i] for i in needed]
        mixes = [Mix(mix.order, tuple(mix.weights[i] for i in needed)) for _, mix in wanted.values()]

        kept = self._kept(members, rows, progress)
        if kept is not None:
            work = normalizing(kept, mixes)
        else:
            for reference in members:
                _check_size(reference, scoring.vocabulary)
            models = [reference.model for reference in members]

            def compute(packed: Packed, _: np.ndarray) -> list[Any]:
                return normalizers(models, packed, mixes, vocabulary=scoring.vocabulary)

            work = Work(models, compute)
        report = _reporter(progress, "normalizers of " + " + ".join(r.name for r in members))
        found = self._compute(work, rows, list(wanted), report)
        for reference in members:
            reference.release()
        for (address, mix), values in zip(wanted.values(), found):
            _refuse_infinite(values, rows, "the mixed references")
            origin = _origin([r for r, w in zip(references, mix.weights) if w != 0])
            origin["weights"] = [w for w in mix.weights if w != 0]
            self._write(address, {**rows.arrays(), "values": values}, origin, start)

    def _stored(self, keys: Items[str], build: Callable[[Items[str]], None]) -> list[dict[str, np.ndarray]]:
        """The arrays at some addresses; what is missing, damaged, or pruned in between is built."""
        for _ in range(_ATTEMPTS):
            entries = [self.entries.find(key) for key in keys]
            found = [None if entry is None else self.entries.read(entry) for entry in entries]
            whole = [arrays for arrays in found if arrays is not None]
            if self.parallel.once(lambda: len(whole) == len(keys)):  # noqa: B023 - called at once
                if len(whole) < len(keys):
                    raise RunError(f"one process of the run sees no stored results in {self.entries.root}.")
                return whole
            with self._building(list(dict.fromkeys(keys))) as missing:
                if missing:
                    build(missing)
                    if self.parallel.main:
                        self.entries.forget_parts(min(missing))
            self.parallel.gather(None)  # not before the main process has written
        raise RunError(
            f"stored results in {self.entries.root} are deleted as soon as they are there: stop whoever does."
        )

    @contextmanager
    def _building(self, keys: list[str]) -> Iterator[Items[str]]:
        """What is missing, as the main process sees it, while that one holds the locks."""
        with ExitStack() as held:
            missing = held.enter_context(self.entries.building(keys)) if self.parallel.main else []
            yield self.parallel.once(lambda: missing)

    def list(self) -> list[Entry]:
        """What is stored, the last used first."""
        return self.entries.list()


def _check_size(reference: Reference, vocabulary: int) -> None:
    """Refuse a reference whose output head is narrower than the vocabulary."""
    size = head_of(reference.model).weight.shape[0]
    if size < vocabulary:
        raise RequestError(
            f"reference {reference.name} has {size} output ids, the policy's tokenizer {vocabulary}: use another one."
        )


def _refuse_infinite(values: np.ndarray, rows: ScoredRows, name: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.searchsorted(rows.offsets, np.flatnonzero(bad)[0], side="right")) - 1
        raise RunError(f"{name} gives a log-probability that is not finite for response {row}: try dtype=float32.")


def _reporter(progress: Progress, phase: str) -> Callable[[int, int, float], None]:
    def report(done: int, total: int, tokens_per_second: float) -> None:
        progress.advance(phase, done, total, tokens_per_second=tokens_per_second)

    return report


def _origin(references: Items[Reference]) -> dict[str, Any]:
    names = ("name", "path", "revision", "adapter", "dtype", "trust_remote_code")
    members = [{name: getattr(r.spec, name) for name in (*names, *_served(r))} for r in references]
    for member in members:  # a relative folder would mean another one from elsewhere
        for name in ("path", "adapter"):
            if member[name] and Path(member[name]).is_dir():
                member[name] = str(Path(member[name]).resolve())
    made_with = ", ".join(sorted({"served" if _served(r) else version("transformers") for r in references}))
    return {"references": members, "transformers": made_with}


def _served(reference: Reference) -> tuple[str, ...]:
    """What else is noted of one that a server answers for; never how to be let in there."""
    return () if reference.spec.server is None else ("server", "model")


def _split(arrays: Mapping[str, np.ndarray], name: str) -> list[np.ndarray]:
    offsets = arrays["offsets"].tolist()
    return [arrays[name][start:stop] for start, stop in pairwise(offsets)]


def _sample_arrays(completions: Items[Completion]) -> dict[str, np.ndarray]:
    return {
        "offsets": np.cumsum([0, *(len(one.ids) for one in completions)]).astype(np.int64),
        "ids": np.array([i for one in completions for i in one.ids], dtype=np.int32),
        "values": np.array([p for one in completions for p in one.logps], dtype=np.float32),
        "finished": np.array([one.finished for one in completions], dtype=np.uint8),
    }


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
