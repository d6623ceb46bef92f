"""One damaged file of a sweep stops that point alone, and only until it is run again."""

import json
import os
import time
from pathlib import Path

import pytest

from multiref_cli.sweeps.ledger import STALE_SECONDS, Ledger
from multiref_cli.sweeps.plan import Plan
from multiref_cli.sweeps.request import parse_request
from multiref_cli.tracking.run_dir import RunDir

DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:3],
    "zeros": lambda content: bytes(len(content)),
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "sweep.yaml").write_text("seeds: [0]\n")
    run = RunDir.create(tmp_path / "point", "seed: 0\n", [], {"command": "multiref sweep"})
    run.write_results({}, "id", 0, "dpo")
    run.write_status("done", 3, 3)
    return Ledger(tmp_path)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name, state", [("status.json", "stopped"), ("results.json", "queued")])
def test_a_damaged_point_is_not_done(ledger: Ledger, name: str, state: str, damage) -> None:
    assert ledger.state("point", "id") == "done"
    path = ledger.folder("point") / name
    path.write_bytes(damage(path.read_bytes()))
    assert ledger.state("point", "id") == state


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_a_run_that_cannot_be_gone_on_with_is_made_anew(ledger: Ledger, name: str, damage) -> None:
    ledger.clear("point")
    path = ledger.folder("point") / name
    assert path.is_file()
    path.write_bytes(damage(path.read_bytes()))
    ledger.clear("point")
    assert not ledger.folder("point").exists()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_claim_is_that_of_a_dead_holder(ledger: Ledger, damage) -> None:
    claim = ledger.path / ".sweep" / "claims" / "point.json"
    claim.parent.mkdir(parents=True)
    claim.write_bytes(damage(b'{"host": "here", "pid": 1, "launch": "a", "deaths": 1}'))
    with ledger.claim("point", "a") as holder:
        assert holder is not None and holder.deaths == 0


def test_what_killed_processes_left_beside_claims_is_swept(ledger: Ledger) -> None:
    claims = ledger.path / ".sweep" / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    for name, age in ((".p.json.0123abcd", STALE_SECONDS + 5), (".q.json.4567ef", 1), (".clock-89", 2 * STALE_SECONDS)):
        (claims / name).touch()
        os.utime(claims / name, (time.time() - age,) * 2)
    ledger.write_plan(parse_request(["experiment=offline_toy", "alpha=0.5"]), Plan((), ()), {})
    assert os.listdir(claims) == [".q.json.4567ef"]


def test_deaths_are_counted_without_progress(ledger: Ledger) -> None:
    def die() -> int:
        with ledger.claim("point", "launch") as holder:
            left = json.dumps(vars(holder))
        (ledger.path / ".sweep" / "claims" / "point.json").write_text(left)
        return holder.deaths

    assert [die(), die()] == [0, 1]
    (ledger.folder("point") / "checkpoints" / "step_00000004.pt").touch()
    assert [die(), die(), die()] == [1, 2, 3]
