"""`multiref world`: make an embedded world besides the shipped one, and list those that are here."""

from pathlib import Path

from multiref_cli.cli import display
from multiref_cli.config.schema import Hardware
from multiref_cli.errors import RequestError


def make(seed: int, *, out: str | None, plain: bool) -> None:
    """Make what is missing of a world; with `out` also write it as the shipped world lies.

    Raises:
        RequestError: world 0 without `out`, or an `out` that is not empty; nothing was made.
        KeyboardInterrupt: stopped; its text says how to go on.
    """
    if seed == 0 and out is None:
        raise RequestError("world 0 comes with multiref; give another seed, or --out FOLDER to make 0 anew beside it.")
    folder = Path(out).expanduser() if out else None
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise RequestError(f"{folder} exists already and is not empty; give another folder.")
    from multiref_cli.runs.run import train_embedded
    from multiref_cli.world.worlds import World, make_world, write_world

    world = World(seed, Hardware().cache_folder, shipped=False)
    try:
        with display.progress(plain) as progress:
            parts = make_world(world, progress, train_embedded)
    except KeyboardInterrupt:
        again = f"multiref world make {seed}" + (f" --out {out}" if out else "")
        raise KeyboardInterrupt(f"interrupted; what is finished is kept, go on with: {again}") from None
    if folder is not None:
        write_world(parts, folder)
    where = folder or world.folder
    display.line(f"world {seed}: {', '.join(parts)} in {where}" + ("" if out else f"; use it with world={seed}"))


def list_worlds() -> None:
    """Print every world with how many of its parts are there."""
    from multiref_cli.world.worlds import PARTS, worlds

    rows = []
    for world in worlds(Hardware().cache_folder):
        there = [name for name in PARTS if world.place(name).is_dir()]
        state = "shipped" if world.ships(PARTS[0]) else f"{len(there)} of {len(PARTS)} parts made"
        rows.append([world.seed, state, str(world.place(PARTS[0]).parent)])
    display.table("", ["world", "state", "folder"], rows)
