"""`multiref report`: tables and figures from what is on disk."""

from pathlib import Path

from multiref_cli.cli import display


def report(folders: list[str], *, out: str | None, against: str | None = None) -> None:
    """Write the report of a run, of a sweep, or of several sweeps and runs together.

    Args:
        folders: run and sweep folders.
        out: where to write; by default report/ in the first folder.
        against: CSV of committed results to compare with; what lies outside their intervals is said.

    Raises:
        RequestError: a folder that is neither run nor sweep, or holds nothing finished.
    """
    from multiref_cli.reports.report import write_report

    paths, committed = [Path(folder) for folder in folders], Path(against) if against else None
    index = write_report(paths, Path(out) if out else None, committed)
    if committed is not None:
        from multiref_cli.reports.collect import conditions, read_run
        from multiref_cli.reports.compare import compare_with, read_rows, verdict
        from multiref_cli.sweeps.ledger import expand_folders

        found = conditions(read_run(folder) for folder in expand_folders(paths))
        display.line(verdict(compare_with(read_rows(committed), found)))
    display.line(f"report: {index}")
