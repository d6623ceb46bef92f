"""Where results come from: commands, commit, machine, versions, and the fingerprints of what runs were made from."""

from collections.abc import Mapping, Sequence
from typing import Any

from multiref_cli.reports.collect import Run
from multiref_cli.reports.page import Page

Manifest = Mapping[str, Any]
# More values of one kind are counted.
_NAMED = 3


def add_provenance(page: Page, runs: Sequence[Run], commands: Sequence[str] = ()) -> None:
    """Add where the results of runs come from; what differs between runs is listed."""
    facts = [_of_run(run) for run in runs]
    add_facts(page, facts, commands, f"Provenance of {len(runs)} run{'s' * (len(runs) != 1)}.")


def add_facts(page: Page, facts: Sequence[Mapping[str, str]], commands: Sequence[str], caption: str) -> None:
    """Add the section from what is known of each of several runs; equal values are told once."""
    page.section("Where it comes from")
    if commands:
        page.text("```\n" + "\n".join(dict.fromkeys(commands)) + "\n```")
    found: dict[str, dict[str, None]] = {}
    for one in facts:
        for name, value in one.items():
            found.setdefault(name, {})[value] = None
    rows = [[name, _several(list(values))] for name, values in found.items()]
    page.table(["what", "value"], rows, caption, name="provenance")


def _several(values: Sequence[str]) -> str:
    return "; ".join(values[:_NAMED]) + (f"; and {len(values) - _NAMED} more" if len(values) > _NAMED else "")


def of_manifest(manifest: Manifest) -> dict[str, str]:
    """What every folder's manifest.json knows: command, commit, machine, versions, time."""
    hardware: dict[str, Any] = manifest.get("hardware") or {}
    git = manifest.get("git") or {}
    commit = (git.get("commit") or "installed package")[:12] + (" with local changes" if git.get("dirty") else "")
    machine = [str(hardware[k]) for k in ("processor", "machine", "cpu_capability") if hardware.get(k)]
    gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
    versions = ", ".join(f"{k} {v}" for k, v in (manifest.get("versions") or {}).items())
    return {
        "command": f"`{manifest.get('command', 'unknown')}`",
        "commit": commit,
        "hardware": f"{' '.join(machine)}, {hardware.get('cores', '?')} cores, {gpus}",
        "versions": versions or "unknown",
        "started": str(manifest.get("started_at", "unknown")),
    }


def fingerprints(manifest: Manifest) -> dict[str, str]:
    """The first digits of the sha256 of everything that a run was made from."""
    found = {
        "sha256 of the data": (manifest.get("data") or {}).get("sha256"),
        "sha256 of the policy": manifest.get("policy"),
    }
    found |= {f"sha256 of reference {name}": value for name, value in (manifest.get("references") or {}).items()}
    found["sha256 of the reward model"] = manifest.get("scorer")
    return {name: f"`{str(value)[:12]}`" for name, value in found.items() if value}


def _of_run(run: Run) -> dict[str, str]:
    known = of_manifest(run.manifest)
    data = run.manifest.get("data") or {}
    known["seed"] = str(run.seed)
    known["data"] = f"{run.experiment.data.path}, {data.get('rows', 'rows unknown')}"
    known |= {f"task {one['title']}": f"{one['library']}, sha256 `{one['sha256'][:12]}`" for one in run.tasks}
    return known | fingerprints(run.manifest)
