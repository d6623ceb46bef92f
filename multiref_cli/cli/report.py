"""`multiref report`: tables and figures from what is on disk."""

from pathlib import Path

from multiref_cli.cli import display


def report(folders: list[str], *, out: str | None) -> None:
    """Write the report of a run, of a sweep, or of several sweeps and runs together.

    Raises:
        RequestError: a folder that is neither run nor sweep, or holds nothing finished.
    """
    from multiref_cli.reports.report import write_report

    display.line(f"report: {write_report([Path(folder) for folder in folders], Path(out) if out else None)}")
