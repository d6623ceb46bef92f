"""`multiref report`: tables and figures from what is on disk."""

from pathlib import Path

from multiref_cli.cli import display
from multiref_cli.errors import RequestError
from multiref_cli.tracking.places import check_place


def report(folders: list[str], *, out: str | None, against: str | None = None, check: str | None = None) -> None:
    """Write the report of a run, of a sweep, or of several sweeps and runs together; or check a published CSV.

    Args:
        folders: run and sweep folders; none are needed for a check.
        out: where to write; by default report/ in the first folder.
        against: CSV of committed results to compare with: one sentence says whether the reproduction holds.
        check: CSV of committed results whose numbers are computed again from the scores beside it, or a README with
            all of its tables.

    Raises:
        RequestError: a folder that is neither run nor sweep, or holds nothing finished; nothing to do.
    """
    if check is not None:
        from multiref_cli.reports.scores import check_readme, check_rows

        path = Path(check)
        for sentence in check_readme(path) if path.suffix == ".md" else [check_rows(path)]:
            display.line(sentence)
    if not folders:
        if check is None:
            raise RequestError("nothing to report: give RUN or SWEEP folders, or --check CSV.")
        return
    if out is not None:
        check_place(Path(out), "--out")
    from multiref_cli.cli.theory import refuse_laboratory
    from multiref_cli.reports.report import write_report

    for folder in folders:
        refuse_laboratory(Path(folder))
    paths, committed, said = [Path(folder) for folder in folders], Path(against) if against else None, list[str]()
    page = write_report(paths, Path(out) if out else None, committed, said.append)
    for line in (f"report: {page}", *said):
        display.line(line)
