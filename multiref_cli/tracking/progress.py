"""How long work tells the outside how far it is: two calls, whatever draws them."""

import time
from typing import Protocol

from multiref_cli.files import writing

# The first phase of every command that works with models.
OPENING = "open models and data"


class Progress(Protocol):
    """What training, the reference store and evaluation report to."""

    def note(self, text: str) -> None:
        """One line worth keeping."""

    def advance(self, phase: str, done: int, total: int, **figures: float) -> None:
        """`done` of `total` units of a named phase are finished; figures such as loss or tokens_per_second."""


class Silent:
    """A progress that says nothing."""

    def note(self, text: str) -> None:
        """Drop the line."""

    def advance(self, phase: str, done: int, total: int, **figures: float) -> None:
        """Drop the figures."""


class Heartbeat:
    """Passes everything on and keeps status.json (how a dead process is told from a slow one) and the mirror fresh."""

    def __init__(self, inner: Progress, run, mirror, every_seconds: float = 2.0) -> None:
        self.inner, self.run, self.mirror, self.every_seconds = inner, run, mirror, every_seconds
        self.step, self.total, self._written = 0, 0, float("-inf")

    def note(self, text: str) -> None:
        """Pass the line on and keep it in logs/run.log."""
        path = self.run.path / "logs" / "run.log"
        with writing(path), path.open("a") as file:
            file.write(text + "\n")
        self.inner.note(text)

    def advance(self, phase: str, done: int, total: int, **figures: float) -> None:
        """Pass the figures on; refresh status.json now and then."""
        if phase == "train":
            self.step, self.total = done, total
        if time.monotonic() - self._written >= self.every_seconds:
            self.run.write_status("running", self.step, self.total, phase)
            self._written = time.monotonic()
            if phase == "train":  # not before: a resume first drops what was logged behind its checkpoint
                self.mirror.update()
        self.inner.advance(phase, done, total, **figures)


def duration(seconds: float) -> str:
    """A duration as people read it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def remaining(seconds: float) -> str:
    """A time that is still to go: `42 s left`, `19 min 36 s left`, `2 h 05 min left`."""
    whole = max(0, round(seconds))
    return f"{duration(whole) if whole >= 60 else f'{whole} s'} left"


def memory_text(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
