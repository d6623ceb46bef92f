"""What a terminal shows while work is done: lines where nothing can be redrawn, bars that end full, plain durations."""

import sys
from io import StringIO

import pytest
from rich.console import Console

from multiref_cli.cli import display
from multiref_cli.cli.display import LiveProgress, LiveSweep, PlainProgress
from multiref_cli.sweeps.watch import Snapshot
from multiref_cli.tracking.progress import remaining


def test_a_time_that_is_left_cannot_be_taken_for_a_clock() -> None:
    times = [0.2, 42, 59.7, 1176, 7500]
    assert [remaining(s) for s in times] == [
        "0 s left",
        "42 s left",
        "1 min 00 s left",
        "19 min 36 s left",
        "2 h 05 min left",
    ]


def test_plain_lines_end_every_phase(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainProgress(every_seconds=3600)
    lines.advance("open models and data", 0, 1)
    lines.advance("train", 1, 9, loss=0.5)
    lines.advance("train", 2, 9, loss=0.4)
    lines.advance("evaluate: sample", 0, 256)
    lines.advance("evaluate: gold", 0, 256)
    lines.finish()
    assert capsys.readouterr().out.splitlines() == [
        "open models and data",
        "train 1/9 loss 0.5",
        "train 9/9",
        "evaluate: sample 0/256",
        "evaluate: sample 256/256",
        "evaluate: gold 0/256",
        "evaluate: gold 256/256",
    ]


def test_plain_lines_say_the_time_left_and_speeds_in_digits(capsys, monkeypatch) -> None:
    clock = iter([100.0, 102.0, 104.0, 106.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    lines = PlainProgress(every_seconds=1)
    for done in (256, 512, 1280, 2304):
        lines.advance("tokenize", done, 2304, tokens_per_second=51234.5)
    assert capsys.readouterr().out.splitlines() == [
        "tokenize 256/2304 tokens_per_second 51234",
        "tokenize 512/2304 tokens_per_second 51234 14 s left",
        "tokenize 1280/2304 tokens_per_second 51234 4 s left",
        "tokenize 2304/2304 tokens_per_second 51234",
    ]
    assert [display.figure(one) for one in (9999.4, 12345.6, -5e5, 2e9, 1e-6)] == [
        "9999",
        "12346",
        "-500000",
        "2e+09",
        "1e-06",
    ]


def test_what_fails_is_not_said_to_be_finished(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), display.progress(plain=True, title="a run") as progress:
        progress.advance("train", 3, 9)
        raise ValueError
    assert capsys.readouterr().out.splitlines() == ["a run", "train 3/9"]


def _drawn(what: object) -> str:
    console = Console(file=StringIO(), width=120, height=40, force_terminal=True, color_system=None)
    console.print(what)
    return console.file.getvalue()


def test_no_bar_is_left_at_its_start() -> None:
    live = LiveProgress()
    live.advance("evaluate: sample", 0, 256)
    assert "256" in _drawn(live) and "0/256" not in _drawn(live)
    live.advance("train", 3, 9, loss=0.25)
    assert "256/256" in _drawn(live) and "3/9" in _drawn(live) and "loss 0.25" in _drawn(live)
    live.finish()
    assert "9/9" in _drawn(live)


@pytest.mark.parametrize(("term", "live"), [("xterm-256color", True), ("dumb", False), ("", False)])
def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch, term: str, live: bool) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert display._is_live(plain=False) is live and not display._is_live(plain=True)


def test_passes_that_points_wait_for_are_bars_of_a_sweep() -> None:
    counts = dict.fromkeys(("done", "running", "queued", "stopped", "failed"), 0) | {"queued": 4}
    live = LiveSweep()
    live.update(Snapshot(counts, [], [], 1176.0, (("math over toy_prompts", 65.0),)))
    text = _drawn(live)
    assert "making math over toy_prompts, 1:05" in text and "about 19 min 36 s left" in text and "0/4" in text
