"""What a curve is worth at a step, and which rungs it misses."""

from pathlib import Path

from multiref_cli.tracking.rungs import Rungs, curve_value, read_rungs, rung_step, write_rungs

ROWS = [{"step": step, "reward": float(step)} for step in range(1, 9)]


def test_a_curve_is_the_mean_of_its_last_quarter() -> None:
    assert curve_value(ROWS, "reward", 8) == (7 + 8) / 2
    assert curve_value(ROWS, "reward", 4) == 4 and curve_value(ROWS, "reward", 1) == 1
    assert curve_value(ROWS, "loss", 8) is None
    assert curve_value([{"step": 7, "reward": None}, {"step": 8, "reward": 2.0}], "reward", 8) == 2


def test_rungs_lie_at_shares_of_the_steps() -> None:
    assert [rung_step(share, 20) for share in (1 / 9, 1 / 3, 0.5)] == [3, 7, 10] and rung_step(0.1, 2) == 1
    rungs = Rungs("reward", ((0.25, 2.0), (0.5, 4.5)))
    assert rungs.missed(ROWS, 2, 8) is None and rungs.missed(ROWS, 3, 8) is None, "reached, and no rung"
    missed = rungs.missed(ROWS, 4, 8)
    assert missed is not None and (missed.value, missed.least) == (4.0, 4.5)
    assert str(missed) == "pruned after step 4 of 8: reward is 4, below 4.5 of earlier trials"


def test_rungs_are_left_beside_a_run(tmp_path: Path) -> None:
    rungs = Rungs("reward", ((0.25, 2.0), (0.5, 4.5)))
    write_rungs(tmp_path / "run", rungs)
    assert read_rungs(tmp_path / "run") == rungs and read_rungs(tmp_path / "other") is None
    assert not (tmp_path / "run").exists()
