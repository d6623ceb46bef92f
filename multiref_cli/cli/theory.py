"""`multiref theory`: run studies of the finite-space laboratory, print their findings, write their report."""

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from multiref_cli.cli import display
from multiref_cli.config.compose import compose_plain, expand_axes, regularizer_of, typed
from multiref_cli.config.plain import to_plain
from multiref_cli.config.regularizer import DivergenceTerm, Level
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_yaml
from multiref_cli.theory import laboratory
from multiref_cli.theory.findings import Study
from multiref_cli.theory.settings import Laboratory, Selection
from multiref_cli.tracking.places import check_name, command, holds_something
from multiref_cli.tracking.run_dir import RunDir, refuse_existing

LONGEST_TABLE = 16  # rows; longer tables stand in the report only


def theory(overrides: list[str], *, dry_run: bool = False) -> None:
    """Run the chosen studies, at every point of their axes, and write config, results and report into a run folder.

    Raises:
        RequestError: the request is wrong; nothing was written.
        RunError: a study failed; the folder says so.
    """
    import torch

    from multiref_cli.tracking.provenance import provenance

    points, axes = _points(overrides)
    lab = points[0].lab
    for point in points:
        laboratory.check(point.lab)
    check_name(lab.run.name, "run.name")
    if dry_run:
        return _show_plan(points)
    refuse_existing(_folder(lab), "run.dir" if lab.run.dir else "run.name")
    text = yaml.safe_dump(to_plain(lab) | ({"axes": axes} if axes else {}), sort_keys=False, allow_unicode=True)
    settings = yaml.safe_dump({key: value for key, value in yaml.safe_load(text).items() if key != "run"})
    torch.set_num_threads(1)  # sums in one order, whatever the machine: the same numbers, bit for bit
    run = RunDir(_folder(lab))
    with run.alone():
        facts = provenance()
        RunDir.create(run.path, text, overrides, facts)
        _work(points, run, hashlib.sha256(settings.encode()).hexdigest()[:12], _told(settings, facts))


@dataclass(frozen=True)
class Point:
    """The laboratory at one point of the axes; `title` is empty where there are none."""

    lab: Laboratory
    title: str = ""

    def named(self, study: Study) -> Study:
        """The study with the point in its title, and in the names of its figures and numbers."""
        if not self.title:
            return study
        charts = [
            replace(chart, name=f"{chart.name}-{re.sub(r'[^a-z0-9]+', '-', self.title)}") for chart in study.charts
        ]
        return replace(study, title=f"{study.title}: {self.title}", charts=charts)


def _points(overrides: list[str]) -> tuple[list[Point], dict[str, list[str]]]:
    """Every point of the axes in order, and the axes: `study=a,b` is no axis, but several studies on one page."""
    axes, fixed = expand_axes(_with_terms(overrides))
    studies = axes.pop("study", [])
    made = [typed(compose_plain([*fixed, f"study={one}"], "theory", Laboratory()), Laboratory()) for one in studies]
    points = []
    for values in product(*axes.values()):
        chosen = [f"{key}={value}" for key, value in zip(axes, values)]
        lab = typed(compose_plain([*fixed, *chosen], "theory", Laboratory()), Laboratory())
        if made:
            parts = [part for one in made for part in one.study.parts or laboratory.STUDIES]
            lab.study = Selection("-".join(studies), list(dict.fromkeys(parts)))
        points.append(Point(lab, ", ".join(chosen)))
    return points, axes


def _with_terms(overrides: list[str]) -> list[str]:
    """The overrides with `regularizer=NAME`, which belongs to experiments, as the terms that it stands for."""
    found = []
    for text in overrides:
        key, _, name = text.partition("=")
        found.append(f"terms=[{_terms(name)}]" if key == "regularizer" else text)
    return found


def _terms(name: str) -> str:
    given = regularizer_of(name)
    why = None if given is not None else "it is none"
    if given is not None and not given.terms and given.plain_order is None:
        why = f"its {given.description}"
    if given is not None and (given.ctro or given.arwc or given.multi_loss or given.level is not Level.sequence):
        why = "it acts token by token, or changes its weights as it goes"
    if given is None or why is not None:
        raise RequestError(f"regularizer={name} is no sum of divergences over whole responses: {why}.")
    terms = given.terms or [DivergenceTerm("amari", given.plain_order)]
    shown = (to_plain(term) for term in terms)
    return ",".join("{" + ",".join(f"{k}:{'null' if v is None else v}" for k, v in one.items()) + "}" for one in shown)


def _show_plan(points: list[Point]) -> None:
    lab = points[0].lab
    display.line(yaml.safe_dump(to_plain(lab), sort_keys=False, allow_unicode=True))
    folder = _folder(lab)
    there = ", exists already: choose another" if holds_something(folder) else ""
    rows = [["run folder", f"{folder}{there}"], *(["point", point.title] for point in points if point.title)]
    display.table("plan", ["what", "value"], rows)
    chosen = lab.study.parts or list(laboratory.STUDIES)
    reads = [[name, laboratory.STUDIES[name], ", ".join(laboratory.reads(name))] for name in chosen]
    display.table("", ["study", "what it is", "settings that it reads"], reads)


def _told(settings: str, facts: Mapping[str, Any]) -> str:
    """Where the page's numbers come from, in Markdown."""
    from multiref_cli.reports.published import origin

    found = origin(facts)
    return (
        f"## Where it comes from\n\nCommit {found['commit']}, on {found['hardware']}, with {found['versions']}. The "
        f"same settings give the same numbers, bit for bit:\n\n```yaml\n{settings}```"
    )


def refuse_laboratory(folder: Path) -> None:
    """Say what can be done with a folder of the laboratory where one of runs is wanted.

    Raises:
        RequestError: it is one.
    """
    config = folder / "config.yaml"
    try:
        content = read_yaml(config) if config.is_file() else {}
    except RunError:  # whoever reads it says what it is
        return
    if "study" not in content or "algorithm" in content:
        return
    asked = read_lines_of(folder / "overrides.txt")
    again = command("theory", *(text for text in asked if not text.startswith("run.")))
    page = folder / "report" / "index.html"
    there = f"its report is {page}" if page.is_file() else "it was not finished"
    raise RequestError(f"{folder} is of the laboratory: {there}; studies are not resumed, but run again by: {again}")


def read_lines_of(path: Path) -> list[str]:
    """Lines of a text file that hold something; none where it is missing."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [line for line in lines if line]


def _work(points: list[Point], run: RunDir, settings: str, told: str) -> None:
    from multiref_cli.reports.laboratory import write_report

    lab = points[0].lab
    total = len(points) * len(lab.study.parts or laboratory.STUDIES)
    studies: list[Study] = []
    metrics: dict[str, dict[str, float]] = {}
    started = time.monotonic()
    try:
        run.write_status("running", 0, total)
        for point in points:
            for found in laboratory.run(point.lab):
                study = point.named(found)
                studies.append(study)
                place = f"{point.title}/" if point.title else ""
                metrics |= {f"{place}{study.name}/{name}": value for name, value in study.metrics.items()}
                run.write_status("running", len(studies), total)
                run.log({"step": len(studies), "study": study.name, "seconds": time.monotonic() - started})
                _show(study)
        introduction = laboratory.summary(studies if len(points) == 1 else [])
        page = write_report(run.path / "report", "The laboratory", introduction, studies, told)
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
