"""`multiref refs`: build, list, verify and prune the reference store."""

import time
from typing import TYPE_CHECKING

from multiref_cli.cli import display
from multiref_cli.config.build import cache_folder
from multiref_cli.config.check import check
from multiref_cli.config.compose import compose
from multiref_cli.errors import RequestError, RunError

if TYPE_CHECKING:
    from multiref_cli.references.store import ReferenceStore


def build(overrides: list[str]) -> None:
    """Fill the store with what an offline run of this config needs."""
    config = compose(overrides)
    check(config)
    if config.algorithm.name != "dpo":
        raise RequestError(
            f"algorithm={config.algorithm.name} scores its references as it goes; store those of algorithm=dpo."
        )
    from multiref_cli.training.assemble import stored_pairs
    from multiref_cli.training.embedded import localized
    from multiref_cli.training.job import prepare

    with display.progress(plain=False) as progress:
        job = prepare(localized(config, progress), config)
        store, start = job.open_store(), time.time()
        for pairs in filter(None, (job.data.train, job.data.held_out)):
            stored_pairs(job, pairs, progress)
    new = [entry for entry in store.list() if entry.created >= start]
    tokens, seconds = sum(entry.tokens for entry in new), sum(entry.seconds for entry in new)
    display.line(f"{len(new)} new entries, {tokens:,} tokens in {seconds:.1f} s; all others were there.")


def list_entries() -> None:
    """Print what is stored, the last used first."""
    store = _store()
    entries = store.list()
    rows = [
        [e.key[:12], e.kind, e.names, e.rows, e.tokens, f"{e.bytes / 2**20:.1f}", _ago(e.used), _ago(e.created)]
        for e in entries
    ]
    display.table(
        f"{store.entries.root}", ["address", "kind", "references", "rows", "tokens", "MiB", "used", "built"], rows
    )
    display.line(f"{len(entries)} entries, {sum(e.bytes for e in entries) / 2**20:.1f} MiB")


def verify() -> None:
    """Verify every checksum and recompute a few responses of every entry whose models are at hand."""
    with display.progress(plain=False) as progress:
        checks = _store().verify(progress=progress)
    display.table("", ["address", "kind", "references", "found"], [_found(check) for check in checks])
    bad = [check for check in checks if not check.good]
    if bad:
        raise RunError(f"{len(bad)} of {len(checks)} entries are bad, the first is {bad[0].entry.folder}: delete them.")
    display.line(f"{len(checks)} entries, all good.")


def prune(*, older_than: float | None, everything: bool, dry_run: bool) -> None:
    """Delete entries that nobody used for some days, or all."""
    store = _store()
    sizes = {entry.key: entry.bytes for entry in store.list()}
    gone = store.prune(older_than=older_than, everything=everything, dry_run=dry_run)
    rows = [[e.key[:12], e.kind, e.names, f"{sizes[e.key] / 2**20:.1f}"] for e in gone]
    display.table("", ["address", "kind", "references", "MiB"], rows)
    verb = "would be deleted" if dry_run else "deleted"
    display.line(f"{len(gone)} entries, {sum(sizes[e.key] for e in gone) / 2**20:.1f} MiB {verb}.")


def _store() -> "ReferenceStore":
    from multiref_cli.references.store import ReferenceStore

    return ReferenceStore(cache_folder() / "store")


def _found(check) -> list[str]:
    return [check.entry.key[:12], check.entry.kind, check.entry.names, check.text]


def _ago(then: float) -> str:
    hours = (time.time() - then) / 3600
    return f"{hours / 24:.0f} d ago" if hours >= 48 else f"{hours:.1f} h ago"
