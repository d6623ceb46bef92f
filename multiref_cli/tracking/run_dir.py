"""A run folder: what is written, in which order, and how it survives being killed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import (
    append_line,
    damaged_lines,
    keep_lines,
    read_json,
    read_kept,
    read_lines,
    read_object,
    sweep_temporaries,
    sync,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from multiref_cli.tracking.places import check_place, command, holds_something, make_place

STATES = ("queued", "running", "done", "failed", "stopped")
# In the folder of a run or a sweep: the choices of alpha (runs.choose) that it was made with.
CHOICES = "alpha.json"


class RunDir:
    """One run's folder (its layout is in README)."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls,
        path: Path,
        config_yaml: str,
        overrides: list[str],
        manifest: dict[str, Any],
        choices: Sequence[dict[str, Any]] = (),
    ) -> "RunDir":
        """Make a new run folder; `choices` of alpha, if there are any, are kept in it.

        Raises:
            RequestError: the folder exists and holds something.
        """
        refuse_existing(path, config_hash=str(manifest.get("config_hash", "")))
        run = cls(path)
        write_text(path / "config.yaml", config_yaml)
        write_text(path / "overrides.txt", "".join(line.replace("\n", "\\n") + "\n" for line in overrides))
        if choices:
            write_json(path / CHOICES, list(choices))
        run.complete(manifest)  # last: a folder without it is half made
        return run

    def complete(self, manifest: dict[str, Any] | None) -> None:
        """Make what is missing of what `create` makes, the manifest included if one is given."""
        with writing(self.path):
            for name in ("checkpoints", "logs", "report"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            (self.path / "samples.jsonl").touch()
        if manifest is not None:
            write_json(self.path / "manifest.json", manifest)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process may write this folder; what killed ones left half-written in it is swept away.

        Raises:
            RequestError: another process writes it.
        """
        make_place(self.path)
        lock = FileLock(self.path / ".lock")
        try:
            with writing(self.path):
                lock.acquire(timeout=0)
        except Timeout:
            raise RequestError(f"another process works in {self.path}; wait for its end, or stop it.") from None
        try:
            sweep_temporaries(self.path)
            yield
        finally:
            lock.release()

    def write_status(self, state: str, step: int, total: int, message: str = "") -> None:
        """Replace status.json; `state` is one of `STATES`."""
        status = {"state": state, "step": step, "total": total, "updated_at": time.time(), "message": message}
        write_json(self.path / "status.json", status)

    def status(self) -> dict[str, Any]:
        """Content of status.json, empty where there is none; a damaged one counts as that of a stopped run."""
        try:
            return read_object(self.path / "status.json") or {}
        except RunError as damaged:
            return {"state": "stopped", "step": 0, "total": 0, "updated_at": 0.0, "message": str(damaged)}

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        append_line(self.path / "metrics.jsonl", metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_lines(self.path / "metrics.jsonl")

    def log_samples(self, rows: list[dict[str, Any]]) -> None:
        """Append lines to samples.jsonl."""
        for row in rows:
            append_line(self.path / "samples.jsonl", row)

    def forget_after(self, step: int) -> None:
        """Drop what was logged after `step`: a resumed run writes those lines again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            keep_lines(self.path / name, lambda row: row.get("step", 0) <= step)

    def damage(self) -> list[str]:
        """A sentence for each log with lines that cannot be read: they stay as they are, and count for nothing."""
        counts = {name: damaged_lines(self.path / name) for name in ("metrics.jsonl", "samples.jsonl")}
        return [
            f"{count} line{'s' * (count > 1)} of {name} cannot be read: left as they are, left out of figures"
            for name, count in counts.items()
            if count
        ]

    def sync_logs(self) -> None:
        """Wait until what was logged is on the disk: a checkpoint must not know more steps than its log."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            sync(self.path / name)

    def last_logged(self) -> int:
        """Last step in metrics.jsonl, 0 where there is none."""
        return max((row["step"] for row in self.metrics() if isinstance(row.get("step"), int)), default=0)

    def write_results(
        self, metrics: dict[str, dict[str, Any]], config_hash: str, seed: int, condition: str, **more: Any
    ) -> None:
        """Write results.json, the last file of a run."""
        content = {"metrics": metrics, "config_hash": config_hash, "seed": seed, "condition": condition, **more}
        write_json(self.path / "results.json", content)

    def keep_evaluation(self) -> None:
        """Keep results.json and the lines behind it in evaluations/NUMBER/, before they are written anew."""
        kept = self.path / "evaluations"
        numbers = [int(path.name) for path in kept.glob("*") if path.name.isdigit()]
        lines = ("evaluation.jsonl", "answers.jsonl", "pairs.jsonl", "tasks.jsonl", "scorer.jsonl")
        for name in (*lines, "results.json"):
            if (self.path / name).is_file():
                target = kept / f"{max(numbers, default=0) + 1:04d}" / name
                write_bytes(target, (self.path / name).read_bytes())

    def is_done(self, config_hash: str | None = None) -> bool:
        """Whether the run finished, with this config if a hash is given."""
        if self.status().get("state") != "done":
            return False
        try:
            results = read_object(self.path / "results.json")
        except RunError:  # it is made again from what the run left
            return False
        if results is None:
            return False
        return config_hash is None or results.get("config_hash") == config_hash


def read_choices(folder: Path) -> list[dict[str, Any]]:
    """The choices of alpha that the folder of a run or a sweep was made with; none where the file is damaged."""
    try:
        content = read_json(folder / CHOICES)
    except RunError:
        return []
    return [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []


def are_results(content: dict[str, Any]) -> bool:
    """Whether results.json holds what a report reads: a seed, a hash, and a mean with bounds of every metric."""
    metrics, fields = content.get("metrics"), ("mean", "ci_low", "ci_high", "n")
    return (
        isinstance(content.get("seed"), int)
        and isinstance(content.get("config_hash"), str)
        and isinstance(metrics, dict)
        and all(isinstance(one, dict) and all(name in one for name in fields) for one in metrics.values())
        and all(one[name] is None or isinstance(one[name], (int, float)) for one in metrics.values() for name in fields)
    )


def check_run_folder(path: Path) -> None:
    """Refuse what no run has begun in.

    Raises:
        RequestError: it holds no config.yaml.
    """
    if not (path / "config.yaml").is_file():
        raise RequestError(f"{path} is no run folder: it holds no config.yaml.")


def refuse_existing(path: Path, key: str = "run.name", config_hash: str | None = None) -> None:
    """Refuse a folder for a new run that is there already, or that cannot be made.

    Args:
        path: the folder.
        key: by which it was given.
        config_hash: of the new run; None where it is no run that could be gone on with.

    Raises:
        RequestError: it holds something that is not hidden, or no folder can be there; saying how to go on.
    """
    check_place(path, "the run folder")
    if not holds_something(path) or _half_made(path):
        return
    another, manifest = f"give another {key}", read_kept(path / "manifest.json") or {}
    done = RunDir(path).is_done()
    if config_hash is None:
        raise RequestError(f"{path} exists already; {another}.")
    if not (path / "config.yaml").is_file():
        raise RequestError(f"{path} exists already and is no run folder; {another}.")
    if manifest.get("config_hash", config_hash) != config_hash:
        raise RequestError(f"{path} is a run of another config{', and done' if done else ''}; {another}.")
    again = command("eval", path) if done else command("train", "--resume", path)
    how = f"is done already; `{again}` scores it again" if done else f"exists already; go on with it by `{again}`"
    raise RequestError(f"{path} {how}, or {another}.")


def _half_made(path: Path) -> bool:
    """Whether a folder holds nothing but what `create` writes before the manifest: its process was killed there."""
    allowed = {"config.yaml", "overrides.txt", CHOICES, "samples.jsonl", "checkpoints", "logs", "report"}
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    known = {entry.name for entry in entries} <= allowed and (path / "config.yaml").exists()
    return known and not any(any(entry.iterdir()) for entry in entries if entry.is_dir())
