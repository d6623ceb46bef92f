"""A run folder: what is written, in which order, and how it survives being killed."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from multiref_cli.errors import RequestError

STATES = ("queued", "running", "done", "failed", "stopped")


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically; NaN and infinities become null."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Content of a JSON file, None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a .jsonl file; a last line cut off by a crash is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


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
        (path / "config.yaml").write_text(config_yaml)
        (path / "samples.jsonl").touch()  # an offline run has none
        (path / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
        write_json(path / "manifest.json", manifest)
        return run

    def write_status(self, state: str, step: int, total: int, message: str = "") -> None:
        """Replace status.json; `state` is one of `STATES`."""
        status = {"state": state, "step": step, "total": total, "updated_at": time.time(), "message": message}
        write_json(self.path / "status.json", status)

    def status(self) -> dict[str, Any]:
        """Content of status.json, empty where there is none."""
        return read_json(self.path / "status.json") or {}

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self._append("metrics.jsonl", metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_lines(self.path / "metrics.jsonl")

    def log_samples(self, rows: list[dict[str, Any]]) -> None:
        """Append lines to samples.jsonl."""
        for row in rows:
            self._append("samples.jsonl", row)

    def forget_after(self, step: int) -> None:
        """Drop what was logged after `step`: a resumed run writes those lines again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.path / name
            if path.is_file():
                kept = [row for row in read_lines(path) if row.get("step", 0) <= step]
                temporary = path.with_name(f".{name}.{os.getpid()}")
                temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
                os.replace(temporary, path)

    def write_results(
        self, metrics: dict[str, dict[str, Any]], config_hash: str, seed: int, condition: str, **more: Any
    ) -> None:
        """Write results.json, the last file of a run."""
        content = {"metrics": metrics, "config_hash": config_hash, "seed": seed, "condition": condition, **more}
        write_json(self.path / "results.json", content)

    def is_done(self, config_hash: str | None = None) -> bool:
        """Whether the run finished, with this config if a hash is given."""
        results = read_json(self.path / "results.json")
        if self.status().get("state") != "done" or results is None:
            return False
        return config_hash is None or results.get("config_hash") == config_hash

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with (self.path / name).open("a") as file:
            file.write(json.dumps(_finite(row), ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
