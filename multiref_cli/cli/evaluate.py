"""`multiref eval`: score finished runs again."""

from pathlib import Path

from multiref_cli.cli import display
from multiref_cli.cli.train import finished
from multiref_cli.errors import RequestError
from multiref_cli.tracking.progress import OPENING


def evaluate(folder: str, overrides: list[str], *, plain: bool, outputs: bool = False) -> None:
    """Score one run, or every finished run of a sweep folder, again; `outputs`: and write what AlpacaEval reads."""
    path = Path(folder)
    if not path.is_dir():
        raise RequestError(f"{folder} is not a folder; give a run or a sweep folder.")
    runs = [path] if (path / "config.yaml").is_file() else sorted(p.parent for p in path.glob("*/results.json"))
    if not runs:
        raise RequestError(f"{folder} holds no finished run.")
    with display.progress(plain) as progress:
        progress.advance(OPENING, 0, 1)
        from multiref_cli.reports.report import write_run_report
        from multiref_cli.runs.outputs import write_outputs
        from multiref_cli.runs.run import evaluate as evaluate_run

        for run in runs:
            progress.note(f"eval {run}")
            progress.advance(OPENING, 0, 1)
            evaluate_run(run, overrides, progress)
            write_run_report(run)
            if outputs:
                progress.note(f"outputs: {write_outputs(run)}")
    if len(runs) == 1:
        finished(runs[0])
    else:
        from multiref_cli.cli.report import report

        report([folder], out=None)
