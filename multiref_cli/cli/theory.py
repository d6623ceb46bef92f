"""`multiref theory`: run studies of the finite-space laboratory, print their findings, write their report."""

import hashlib
import time
from pathlib import Path

import yaml

from multiref_cli.cli import display
from multiref_cli.config.compose import compose_plain, typed
from multiref_cli.config.plain import to_plain
from multiref_cli.errors import RequestError, RunError
from multiref_cli.theory import laboratory
from multiref_cli.theory.findings import Study
from multiref_cli.theory.settings import Laboratory
from multiref_cli.tracking.places import check_name
from multiref_cli.tracking.run_dir import RunDir, refuse_existing

LONGEST_TABLE = 16  # rows; longer tables stand in the report only


def theory(overrides: list[str]) -> None:
    """Run the chosen studies and write config, results and report into a run folder."""
    import torch

    from multiref_cli.tracking.provenance import provenance

    lab = typed(compose_plain(overrides, "theory", Laboratory()), Laboratory())
    text = yaml.safe_dump(to_plain(lab), sort_keys=False, allow_unicode=True)
    laboratory.check(lab)
    check_name(lab.run.name, "run.name")
    refuse_existing(_folder(lab))
    torch.set_num_threads(1)  # sums in one order, whatever the machine: the same numbers, bit for bit
    run = RunDir(_folder(lab))
    with run.alone():
        RunDir.create(run.path, text, overrides, provenance())
        _work(lab, run, hashlib.sha256(text.split("\nrun:")[0].encode()).hexdigest()[:12])


def _work(lab: Laboratory, run: RunDir, settings: str) -> None:
    from multiref_cli.reports.laboratory import write_report

    total = len(lab.study.parts or laboratory.STUDIES)
    studies: list[Study] = []
    started = time.monotonic()
    try:
        run.write_status("running", 0, total)
        for study in laboratory.run(lab):
            studies.append(study)
            run.write_status("running", len(studies), total)
            run.log({"step": len(studies), "study": study.name, "seconds": time.monotonic() - started})
            _show(study)
        page = write_report(run.path / "report", "The laboratory", laboratory.summary(studies), studies)
        metrics = {f"{study.name}/{name}": value for study in studies for name, value in study.metrics.items()}
        run.write_results(metrics, settings, lab.seed, f"theory {lab.study.name}")
        run.write_status("done", total, total)
    except KeyboardInterrupt:
        run.write_status("stopped", len(studies), total)
        raise
    except Exception as error:  # whatever a study raised: the folder says so, the door in cli/app prints it
        run.write_status("failed", len(studies), total, f"{type(error).__name__}: {error}")
        raise RunError(f"study {len(studies) + 1} of {total} failed: {type(error).__name__}: {error}.") from error
    counted = "1 study" if total == 1 else f"{total} studies"
    display.line(f"\n{counted} in {time.monotonic() - started:.0f} s; report: {page}")


def _show(study: Study) -> None:
    display.line(f"\n{study.title}\n")
    for text in study.texts:
        display.line(text.replace("**", ""))
    for table in study.tables:
        display.line("")
        if len(table.rows) <= LONGEST_TABLE:
            display.table(table.caption, table.headers, table.rows)
        else:
            display.line(f"{table.caption} ({len(table.rows)} rows: see the report)")


def _folder(lab: Laboratory) -> Path:
    if lab.run.dir:
        return Path(lab.run.dir).expanduser()
    if lab.run.name:
        return Path("runs") / lab.run.name
    base = Path("runs") / f"theory-{lab.study.name}-{lab.seed}"
    for number in range(1, 10_000):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not folder.exists():
            return folder
    raise RequestError(f"{base} and 9,999 more exist; give run.name.")
