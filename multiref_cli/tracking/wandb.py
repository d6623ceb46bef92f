"""Runs in Weights & Biases, and which tracker a run's config asks for.

The only module that imports wandb, and only when a run is mirrored there.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from multiref_cli.config.schema import experiment_of
from multiref_cli.tracking.mirror import COLUMNS, Ending, Mirror, NoMirror, Source, Tracker
from multiref_cli.tracking.tensorboard import TensorBoard
from multiref_cli.tracking.trackio import Trackio

# How long an online run may wait for the server at its start, and at its end, before the mirror is given up: without
# this it is a minute and a half at the start, and at the end for as long as a server that hangs likes. In between the
# server is only told, never waited for.
_SECONDS = 30


def _patience(settings: Any) -> dict[str, Any]:
    """The settings that end a wait at the end of a run, as far as this version of wandb has them."""
    wanted = {"finish_timeout": _SECONDS, "finish_timeout_raises": True}
    return {name: value for name, value in wanted.items() if name in getattr(settings, "model_fields", {})}


def open_mirror(folder: Path, warn: Callable[[str], None]) -> Mirror | NoMirror:
    """Open the mirror that a run's config asks for.

    Args:
        folder: a run folder with config.yaml and manifest.json.
        warn: takes the one sentence that says why the mirror was given up.

    Returns:
        A mirror to call `update` on now and then and `finish` at the end; with tracking=off one that does nothing.
    """
    experiment = experiment_of(yaml.safe_load((Path(folder) / "config.yaml").read_text()))
    tracking = experiment.tracking
    mode = (os.environ.get("WANDB_MODE") if tracking.name == "wandb" else None) or tracking.mode
    if tracking.name == "off" or mode == "disabled":
        return NoMirror()
    trackers: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WeightsAndBiases(mode),
        "tensorboard": TensorBoard,
        "trackio": Trackio,
    }
    return Mirror(Path(folder), experiment, trackers[tracking.name](), warn)


class WeightsAndBiases:
    """A W&B run.

    W&B cannot resume an offline run, so what an earlier attempt of the same run left is replaced by a replay from the
    first step; an online run is resumed under its id, and steps that it has are not sent again.
    """

    title = "W&B"

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._run: Any = None

    def open(self, source: Source) -> int:
        """Begin a run, or go on with it; the last step that it has, -1 for none."""
        import wandb

        logs, tracking = source.folder / "logs", source.experiment.tracking
        if self.mode == "offline":
            for old in logs.glob(f"wandb/offline-run-*-{source.identity}"):
                shutil.rmtree(old)
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            id=source.identity,
            name=source.name,
            group=source.group,
            tags=source.tags,
            config=source.config,
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
        return int(self._run.step) - 1

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the metrics of a step."""
        self._run.log(values, step=step)

    def end(self, ending: Ending, step: int) -> None:
        """Take tables of results and samples, figures and the summary, and close the run."""
        import wandb

        if ending.rows:
            extra: dict[str, Any] = {"results": wandb.Table(list(COLUMNS), data=ending.rows)}
            if ending.samples:
                extra["samples"] = wandb.Table(list(ending.headers), data=ending.samples)
            extra |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in ending.figures}
            self._run.log(extra, step=step)
            for name, value in ending.summary.items():
                self._run.summary[name] = value
        self._run.finish(exit_code=0 if ending.good else 1)
