"""`multiref push`: a run's policy to the Hub, shown first."""

from pathlib import Path

from multiref_cli.cli import display


def push(folder: str, repository: str, *, yes: bool, private: bool, revision: str | None, adapter: bool) -> None:
    """Show what would be uploaded; with `yes` upload it.

    Args:
        folder: of a finished run.
        repository: owner/name.
        yes: upload.
        private: a repository that is made is private.
        revision: branch; None is main.
        adapter: the adapter of a LoRA run alone.

    Raises:
        RequestError: see `runs.push`.
        RunError: the Hub cannot be reached.
    """
    from multiref_cli.runs.push import pack, send

    parcel = pack(Path(folder), repository, adapter)
    sizes = {name: parcel.size(name) for name in parcel.files}
    display.table("", ["file", "bytes"], [[name, f"{size:,}"] for name, size in sizes.items()])
    for note in parcel.notes:
        display.line(f"note: {note}")
    place = f"{repository}{'' if revision is None else f', branch {revision}'}{', private if it is new' * private}"
    what = f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB"
    if not yes:
        return display.line(f"{what} would go to {place}; --yes uploads them.")
    display.line(f"{what} go to {place} …")
    display.line(f"uploaded: {send(parcel, private, revision)}")
