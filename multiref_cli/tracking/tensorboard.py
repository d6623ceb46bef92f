"""Runs in TensorBoard: event files in logs/tensorboard/ of the run folder, written anew by every attempt."""

import shutil
from typing import Any

from multiref_cli.tracking.mirror import COLUMNS, Ending, Source


class TensorBoard:
    """A TensorBoard log; `tensorboard --logdir runs` shows every run below a folder."""

    title = "TensorBoard"

    def __init__(self) -> None:
        self._writer: Any = None

    def open(self, source: Source) -> int:
        """Begin the log; what an earlier attempt of the run left is replaced by a replay from the first step."""
        from torch.utils.tensorboard import SummaryWriter

        folder = source.folder / "logs" / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("config", _table(["key", "value"], [[k, v] for k, v in source.config.items()]))
        self._writer.add_text("group", source.group)
        return -1

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the metrics of a step."""
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)

    def end(self, ending: Ending, step: int) -> None:
        """Take results as scalars and a table, samples as a table, and close the log."""
        for name, value in ending.summary.items():
            self._writer.add_scalar(name, value, step)
        if ending.rows:
            self._writer.add_text("results", _table(list(COLUMNS), ending.rows), step)
        if ending.samples:
            self._writer.add_text("samples", _table(ending.headers, ending.samples), step)
        self._writer.close()


def _table(headers: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table, which TensorBoard draws; what people and models wrote is shown, never read as markup."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
