"""`multiref eval`: score finished runs again."""

from pathlib import Path

from multiref_cli.cli import display
from multiref_cli.cli.train import finished
from multiref_cli.errors import RequestError
from multiref_cli.tracking.progress import OPENING


def evaluate(folder: str, overrides: list[str], *, plain: bool) -> None:
    """Score one run, or every finished run of a sweep folder, again."""
    path = Path(folder)
    if not path.is_dir():
        raise RequestError(f"{folder} is not a folder; give a run or a sweep folder.")
    runs = [path] if (path / "config.yaml").is_file() else sorted(p.parent for p in path.glob("*/results.json"))
    if not runs:
        raise RequestError(f"{folder} holds no finished run.")
    with display.progress(plain) as progress:
        progress.advance(OPENING, 0, 1)
        from multiref_cli.reports.report import write_run_report
        from multiref_cli.runs.run import evaluate as evaluate_run

        for run in runs:
            progress.note(f"eval {run}")
            progress.advance(OPENING, 0, 1)
            evaluate_run(run, overrides, progress)
            write_run_report(run)
    if len(runs) == 1:
        finished(runs[0])
    else:
        from multiref_cli.cli.report import report

        report([folder], out=None)
