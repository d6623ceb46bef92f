"""A mirror of a run in Weights & Biases: metrics.jsonl is the truth, and what it holds is replayed, once.

The only module that imports wandb, and only when a run is mirrored. Whatever goes wrong with the mirror is one warning;
the run goes on without it.
"""

import functools
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from multiref_cli.config.schema import Experiment, experiment_of
from multiref_cli.files import parse_lines, read_json, read_lines

# How long an online run may wait for the server at its start, and at its end, before the mirror is given up: without
# this it is a minute and a half at the start, and at the end for as long as a server that hangs likes. In between the
# server is only told, never waited for.
_SECONDS = 30
_SAMPLES = 64


def open_mirror(folder: Path, warn: Callable[[str], None]) -> "Mirror | NoMirror":
    """Open the mirror that a run's config asks for.

    Args:
        folder: a run folder with config.yaml and manifest.json.
        warn: takes the one sentence that says why the mirror was given up.

    Returns:
        A mirror to call `update` on now and then and `finish` at the end; with tracking=off one that does nothing.
    """
    experiment = experiment_of(yaml.safe_load((Path(folder) / "config.yaml").read_text()))
    mode = os.environ.get("WANDB_MODE") or experiment.tracking.mode
    if experiment.tracking.name == "off" or mode == "disabled":
        return NoMirror()
    return Mirror(Path(folder), experiment, mode, warn)


class NoMirror:
    """What stands in for a mirror where none is wanted."""

    def update(self) -> None:
        """Nothing to do."""

    def finish(self) -> None:
        """Nothing to do."""


def _patience(settings: Any) -> dict[str, Any]:
    """The settings that end a wait at the end of a run, as far as this version of wandb has them."""
    wanted = {"finish_timeout": _SECONDS, "finish_timeout_raises": True}
    return {name: value for name, value in wanted.items() if name in getattr(settings, "model_fields", {})}


def _harmless(method: Callable[["Mirror"], None]) -> Callable[["Mirror"], None]:
    """Turn any failure of the mirror into one warning and no more mirror."""

    @functools.wraps(method)
    def guarded(self: "Mirror") -> None:
        if self.given_up:
            return
        try:
            method(self)
        except Exception as error:  # wandb raises anything, from usage errors to broken pipes
            self.given_up = True
            text = str(error).strip().splitlines()
            self.warn(f"W&B mirror given up: {type(error).__name__}: {text[0] if text else ''}; the run goes on.")

    return guarded


class Mirror:
    """Replays a run's files into one W&B run.

    W&B cannot resume an offline run, so what an earlier attempt of the same run left is replaced by a replay from the
    first step; an online run is resumed under its id, and steps that it has are not sent again.
    """

    def __init__(self, folder: Path, experiment: Experiment, mode: str, warn: Callable[[str], None]) -> None:
        self.folder, self.experiment, self.mode, self.warn = folder, experiment, mode, warn
        self.given_up = False
        self._run: Any = None
        self._offset = 0
        self._last_step = -1

    @_harmless
    def update(self) -> None:
        """Send the lines of metrics.jsonl that were not sent yet."""
        self._open()
        for row in self._new_rows():
            step = row.pop("step")
            self._run.log({name: value for name, value in row.items() if value is not None}, step=step)
            self._last_step = step

    @_harmless
    def finish(self) -> None:
        """Send what is left, the results, samples and figures, and close the run."""
        self.update()
        if self.given_up:
            return
        results = read_json(self.folder / "results.json")
        if results is not None:
            self._send_results(results)
        state = (read_json(self.folder / "status.json") or {}).get("state")
        self._run.finish(exit_code=0 if state in ("done", "stopped") else 1)

    def _open(self) -> None:
        if self._run is not None:
            return
        import wandb

        manifest = read_json(self.folder / "manifest.json") or {}
        identity = sha256(f"{self.folder.resolve()} {manifest.get('started_at')}".encode()).hexdigest()[:16]
        logs = self.folder / "logs"
        if self.mode == "offline":
            for old in logs.glob(f"wandb/offline-run-*-{identity}"):
                shutil.rmtree(old)
        tracking = self.experiment.tracking
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            id=identity,
            name=self.folder.resolve().name,
            group=self._group(manifest),
            tags=self._tags(),
            config={**self.experiment.plain, "provenance": manifest},
            dir=str(logs.resolve()),  # W&B's own process may have been started in another folder
            mode=self.mode,  # type: ignore[arg-type]  # W&B itself refuses other words
            resume="allow" if self.mode == "online" else None,
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_save_requirements=False,
                init_timeout=_SECONDS,
                **_patience(wandb.Settings),
            ),
        )
        # A resumed run says which step comes next; a new one says 0.
        self._last_step = int(self._run.step) - 1

    def _group(self, manifest: dict[str, Any]) -> str:
        """Name of the condition, the same for all seeds and for nothing else."""
        return f"{manifest.get('condition', 'run')}-{self.experiment.condition_hash[:6]}"

    def _tags(self) -> list[str]:
        experiment, parent = self.experiment, self.folder.resolve().parent
        regularizer = experiment.regularizer.title if experiment.regularizer else None
        sweep = f"sweep:{parent.name}" if (parent / "sweep.yaml").is_file() else None
        found = [experiment.algorithm.name, regularizer, sweep, *experiment.tracking.tags]
        return [tag[:64] for tag in dict.fromkeys(tag for tag in found if tag)]

    def _new_rows(self) -> list[dict[str, Any]]:
        """Whole lines behind the last one that was read; from the start again if the file was cut by a resume."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return []
        if path.stat().st_size < self._offset:
            self._offset = 0
        with path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        self._offset += len(content)
        return [row for row in parse_lines(content) if row.get("step", -1) > self._last_step]

    def _send_results(self, results: dict[str, Any]) -> None:
        import wandb

        metrics = results["metrics"]
        columns = ["mean", "ci_low", "ci_high", "n"]
        table = wandb.Table(["metric", *columns], data=[[n, *(v[c] for c in columns)] for n, v in metrics.items()])
        extra: dict[str, Any] = {"results": table}
        samples = read_lines(self.folder / "evaluation.jsonl")[:_SAMPLES]
        if samples:
            rows = [[row["prompt"], row.get("answer"), "\n\n".join(row["responses"])] for row in samples]
            extra["samples"] = wandb.Table(["prompt", "answer", "responses"], data=rows)
        for path in sorted(self.folder.glob("report/figures/*.png")):
            extra[f"figures/{path.stem}"] = wandb.Image(str(path))
        self._run.log(extra, step=max(self._last_step, 0))
        for name, value in metrics.items():
            self._run.summary[f"results/{name}"] = value["mean"]
