"""A run folder: what is written, in which order, and how it survives being killed."""

import time
from pathlib import Path
from typing import Any

from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import append_line, keep_lines, read_lines, read_object, sync, write_json, write_text

STATES = ("queued", "running", "done", "failed", "stopped")


class RunDir:
    """One run's folder (its layout is in README)."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path, config_yaml: str, overrides: list[str], manifest: dict[str, Any]) -> "RunDir":
        """Make a new run folder.

        Raises:
            RequestError: the folder exists and holds something.
        """
        if path.exists() and any(path.iterdir()):
            raise RequestError(f"{path} exists already; go on with it by --resume {path}, or choose another run.name.")
        for name in ("checkpoints", "logs", "report"):
            (path / name).mkdir(parents=True, exist_ok=True)
        run = cls(path)
        write_text(path / "config.yaml", config_yaml)
        (path / "samples.jsonl").touch()  # an offline run has none
        write_text(path / "overrides.txt", "".join(f"{line}\n" for line in overrides))
        write_json(path / "manifest.json", manifest)
        return run

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
