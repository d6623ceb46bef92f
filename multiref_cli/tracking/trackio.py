"""Runs in trackio, a tracker that lies on this machine: `trackio show` draws what it has stored.

The only module that imports trackio, and only when a run is mirrored there.
"""

from pathlib import Path
from typing import Any

from multiref_cli.files import read_json
from multiref_cli.tracking.mirror import COLUMNS, Ending, Source


class Trackio:
    """A trackio run, gone on with under its name; the run folder keeps which step was sent last."""

    title = "trackio"

    def __init__(self) -> None:
        self._marker = Path()

    def open(self, source: Source) -> int:
        """Begin the run, or go on with it; the last step that was sent, -1 for none."""
        import trackio

        self._marker = source.folder / "logs" / "trackio.json"
        sent = read_json(self._marker) if self._marker.is_file() else None
        trackio.init(
            project=source.experiment.tracking.project,
            name=f"{source.name}-{source.identity[:6]}",
            group=source.group,
            config={**source.config, "tags": source.tags},
            resume="allow" if sent else "never",
            embed=False,
        )
        return int(sent["step"]) if sent else -1

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the metrics of a step."""
        import trackio

        trackio.log(values, step=step)
        self._marker.write_text(f'{{"step": {step}}}')  # a mirror: what is lost of it is sent again

    def end(self, ending: Ending, step: int) -> None:
        """Take the summary, tables of results and samples, and figures, and close the run."""
        import trackio

        if ending.rows:
            extra: dict[str, Any] = {"results": _table(list(COLUMNS), ending.rows)}
            if ending.samples:
                extra["samples"] = _table(ending.headers, ending.samples)
            trackio.log({**ending.summary, **extra}, step=step)
        trackio.finish()


def _table(headers: list[str], rows: list[list[Any]]) -> Any:
    import pandas
    import trackio

    return trackio.Table(dataframe=pandas.DataFrame(rows, columns=headers))
