"""The trials by kill, power cut and malformed input in their small form; tests/bench has the large one."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import tiny
import trial_kills
import trial_malformed
import trial_power_cuts

WELL = {"cases", "kills", "cuts", "right"}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """What a trial sets in the environment ends with it."""
    monkeypatch.setenv("MULTIREF_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "environ", os.environ)
    before = Path.cwd()
    yield
    os.chdir(before)


def wrong(counts) -> list[str]:
    """Rows with anything but what is right."""
    return [f"{key}: {row}" for key, row in counts.items() if set(row) - WELL]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["dpo", "grpo"])
def test_killed_runs_end_as_undisturbed_ones(tmp_path, job):
    counts = trial_kills.trial(2, 1, tmp_path, tiny.Clock(), (job,))
    assert wrong(counts) == [] and sum(row.get("kills", 0) for row in counts.values()) == 2


@pytest.mark.slow
def test_runs_survive_power_cuts(tmp_path):
    counts = trial_power_cuts.trial(2, 1, tmp_path, tiny.Clock())
    assert wrong(counts) == [] and sum(row["right"] for row in counts.values()) == 2


@pytest.mark.slow
def test_malformed_inputs_are_refused_or_spared(tmp_path):
    counts = trial_malformed.trial(12, 1, tmp_path, tiny.Clock())
    assert wrong(counts) == [] and sum(row["cases"] for row in counts.values()) >= 12


def test_a_difference_between_two_runs_is_seen():
    assert tiny.difference({"a": 1, "b": 2}, {"a": 1, "b": 2}) is None
    assert tiny.difference({"a": 1, "b": 2}, {"a": 1, "b": 3}) == "b"


def test_a_cut_takes_what_was_not_synced_alone(tmp_path):
    """Of a file whose first three bytes are durable those stay; of a rename that no folder's sync followed, either."""
    import json
    import random

    journal, run = tmp_path / "journal", tmp_path / "run"
    outcomes = set()
    for seed in range(40):
        tiny.fresh(run)
        (run / "log").write_bytes(b"abcdef")
        (run / "new").write_bytes(b"new")
        (tmp_path / "old").write_bytes(b"old")
        events = [["file", str(run / "log"), "3"], ["file", str(run / ".new"), "3"]]
        events += [["rename", str(run / ".new"), str(run / "new"), str(tmp_path / "old")]]
        journal.write_text("".join(json.dumps(event) + "\n" for event in events))
        trial_power_cuts.cut([run], journal, random.Random(seed), set())
        content = (run / "log").read_bytes()
        assert content.startswith(b"abc") and len(content) <= 6
        assert (run / "new").read_bytes() in (b"new", b"old", b"", b"\0\0\0", b"o", b"ol")
        outcomes.add((content, (run / "new").read_bytes()))
    assert {new for _, new in outcomes} >= {b"new", b"old"} and len({log for log, _ in outcomes}) >= 4
