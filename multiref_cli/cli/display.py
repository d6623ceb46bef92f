"""Everything drawn on a terminal; the only module that imports rich. Piped or with --plain: one plain line an event."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from multiref_cli.tracking.progress import remaining

if TYPE_CHECKING:
    from multiref_cli.sweeps.watch import Snapshot

# Piped, a table is as wide as its rows: who reads a file or a log has no 80 columns to fit into.
_console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
# Figures worth a place in the live panel, in this order, whatever else a step logs.
_SHOWN = (
    *("loss", "reward", "reward_margin", "accuracy", "kl/mixed", "log_ratio/mixed"),
    *("entropy", "length", "tokens_per_second"),
)


def line(text: str) -> None:
    """Print one line as it is (no markup: square brackets stay)."""
    _console.print(text, markup=False)


def markdown(text: str) -> None:
    """Print Markdown: drawn on a terminal, no wider than reads well; as it stands when piped."""
    if not _console.is_terminal:
        return line(text.rstrip())
    from rich.markdown import Markdown

    _console.print(Markdown(text), width=min(_console.width, 120))


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    drawn = Table(title=Text(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, header in enumerate(headers):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        drawn.add_column(Text(header), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*[Text(figure(cell)) for cell in row])
    _console.print(drawn)


def figure(value: object) -> str:
    """A cell as text: four significant digits for fractions, no power of ten where digits are read more easily."""
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return "" if value is None else str(value)


def mask(pieces: Sequence[tuple[str, bool]]) -> None:
    """Print a row's tokens: scored ones in color, the others dim; without color scored ones stand in «»."""
    if _console.is_terminal and not _console.no_color:
        text = Text()
        for piece, scored in pieces:
            text.append(piece.replace("\n", "⏎\n"), style="black on green" if scored else "dim")
        _console.print(text)
    else:
        line("".join(f"«{piece}»" if scored else piece for piece, scored in pieces))


# One background a voice, in the order of `reports.side_by_side.HUES`; a faint and a strong shade.
_SHADES = (("#cfe3ff", "#5aa2ff"), ("#ffe0c2", "#ff9a3c"), ("#c9f0da", "#35c06f"), ("#ead6fb", "#b06bec"))


def columns(titles: Sequence[str], cells: Sequence[Sequence[tuple[str, int, float]]]) -> None:
    """Print texts side by side whose pieces are marked.

    Args:
        titles: of the columns; none of them for a line without.
        cells: one a column: pieces (text, which voice, strength 0 to 1). Without color a marked piece stands in «».
    """
    colored = _console.is_terminal and not _console.no_color
    drawn = Table(box=None, pad_edge=False, show_header=bool(titles), header_style="bold", expand=len(cells) > 1)
    for number in range(len(cells)):
        drawn.add_column(Text(titles[number]) if titles else "", ratio=1, overflow="fold")
    texts = []
    for pieces in cells:
        text = Text()
        for piece, voice, strength in pieces:
            if not strength:
                text.append(piece)
            elif colored:
                shade = _SHADES[voice % len(_SHADES)][strength > 0.6]
                text.append(piece, style=f"black on {shade}")
            else:
                inner = piece.strip()
                text.append(piece.replace(inner, f"«{inner}»", 1) if inner else piece)
        texts.append(text)
    drawn.add_row(*texts)
    _console.print(drawn)


def legend(names: Sequence[str], meaning: str) -> None:
    """Print whose the colors of `columns` are and what one means; without color what «» means."""
    if not (_console.is_terminal and not _console.no_color):
        return line(f"«»: {' or '.join(names)} {meaning}")
    text = Text()
    for number, name in enumerate(names):
        text.append(f" {name} ", style=f"black on {_SHADES[number % len(_SHADES)][1]}")
        text.append(" ")
    text.append(meaning)
    _console.print(text)


class PlainProgress:
    """One line an event; a phase prints at its start, at most every few seconds, and at its end."""

    def __init__(self, every_seconds: float = 5.0) -> None:
        self.every_seconds, self._printed = every_seconds, 0.0
        self._phase, self._done, self._total = "", 0, 0
        self._began, self._first = 0.0, 0

    def note(self, text: str) -> None:
        """Print the line."""
        print(text, flush=True)

    def advance(self, phase: str, done: int, total: int, **figures: float) -> None:
        """Print `phase done/total figures time left`, not too often."""
        now = time.monotonic()
        if phase != self._phase:
            self.finish()
            self._began, self._first = now, done
        elif done < total and now - self._printed < self.every_seconds:
            return
        self._phase, self._printed, self._done, self._total = phase, now, done, total
        shown = [f"{name} {figure(float(figures[name]))}" for name in _SHOWN if name in figures]
        if self._first < done < total and now > self._began:
            shown.append(remaining((now - self._began) / (done - self._first) * (total - done)))
        print(" ".join([phase if total <= 1 else f"{phase} {done}/{total}", *shown]), flush=True)

    def finish(self) -> None:
        """Print that the last phase is over, where its last line did not say so: a phase ends where the next begins."""
        if self._done < self._total and self._total > 1:
            print(f"{self._phase} {self._total}/{self._total}", flush=True)
        self._done = self._total


class LiveProgress:
    """Bars and the newest figures, redrawn in place; a phase that has not said how far it is pulses."""

    def __init__(self) -> None:
        self.bars = Progress(
            TextColumn("{task.description:26}"),
            BarColumn(),
            TextColumn("{task.fields[count]:>11}"),
            _Times(),
            console=_console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[TaskID, int] = {}
        self._figures: dict[str, float] = {}

    def note(self, text: str) -> None:
        """Print the line above the bars."""
        self.bars.console.print(text, markup=False)

    def advance(self, phase: str, done: int, total: int, **figures: float) -> None:
        """Move the bar of a phase and show its newest figures."""
        if phase not in self._tasks:
            self.finish()
            self._tasks[phase] = self.bars.add_task(phase, total=None, count="")
        task = self._tasks[phase]
        self._totals[task] = total
        count = f"{done}/{total}" if done else f"{total}" * (total > 1)
        self.bars.update(task, completed=done, total=total if done else None, count=count)
        self._figures = {name: figures[name] for name in _SHOWN if name in figures} or self._figures

    def finish(self) -> None:
        """Fill the bars: a phase ends where the next one begins, the last one where all is done."""
        for task, total in self._totals.items():
            self.bars.update(task, completed=total, total=total, count=f"{total}/{total}" * (total > 1))

    def __rich__(self) -> Group:
        """The panel as rich draws it."""
        shown = Table.grid(padding=(0, 3))
        shown.add_row(*[Text(f"{name} {figure(float(v))}") for name, v in self._figures.items()])
        return Group(self.bars, Panel(shown, title="latest", title_align="left")) if self._figures else Group(self.bars)


class _Count(ProgressColumn):
    """How many of how many, where that is known."""

    def render(self, task: Task) -> Text:
        """As `3/10`."""
        return Text("" if task.total is None else f"{int(task.completed)}/{int(task.total)}")


class _Times(ProgressColumn):
    """How long a phase has taken, and how long it has still to go."""

    def render(self, task: Task) -> Text:
        """As `0:42, 19 min 36 s left`."""
        spent = clock(task.finished_time if task.finished_time is not None else task.elapsed or 0)
        left = None if task.finished else task.time_remaining
        return Text(spent if left is None else f"{spent}, {remaining(left)}", style="dim")


def _is_live(plain: bool) -> bool:
    """Whether lines can be drawn again: not when piped, and not on a terminal that cannot move its cursor."""
    return not plain and sys.stdout.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown", "")


@contextmanager
def progress(plain: bool, title: str = "") -> Iterator[PlainProgress | LiveProgress]:
    """A live panel on a terminal, plain lines when piped or asked for.

    Args:
        plain: lines, whatever the terminal can do.
        title: what is worked on, printed first.
    """
    if title:
        line(title)
    if not _is_live(plain):
        lines = PlainProgress()
        yield lines
        lines.finish()
        return
    from rich.live import Live

    live = LiveProgress()
    with Live(live, console=_console, refresh_per_second=4):
        yield live
        live.finish()


class PlainSweep:
    """A sweep as one line an event."""

    def event(self, text: str, important: bool) -> None:
        """Print the line."""
        print(text, flush=True)

    def update(self, snapshot: "Snapshot") -> None:
        """Nothing: events say everything."""


class LiveSweep:
    """A sweep redrawn in place: counts, the points at work, the newest failures, however many points there are."""

    def __init__(self, most_running: int = 16, most_failures: int = 4) -> None:
        self.most_running, self.most_failures = most_running, most_failures
        self._snapshot: Snapshot | None = None

    def event(self, text: str, important: bool) -> None:
        """Print what the table does not show above it: failures, and what is made for several points."""
        if important:
            _console.print(Text(text, style="red" if "FAILED" in text else "dim"))

    def update(self, snapshot: "Snapshot") -> None:
        """Draw this state from now on (a `sweeps.watch.Snapshot`)."""
        self._snapshot = snapshot

    def __rich__(self) -> Group:
        """The table as rich draws it."""
        if self._snapshot is None:
            return Group()
        now = self._snapshot
        bar = Progress(TextColumn("{task.description}"), BarColumn(), _Count())
        left = f", about {remaining(now.seconds_left)}" if now.seconds_left is not None else ""
        counts = ", ".join(f"{count} {state}" for state, count in now.counts.items() if count)
        bar.add_task(f"{counts}{left}", total=now.total, completed=now.counts["done"])
        for title, seconds in now.making:
            bar.add_task(f"making {title}, {clock(seconds)}", total=None)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in ("point", "step", "phase", "metric", "steps/s", ""):
            table.add_column(header, justify="left" if header in ("point", "phase") else "right")
        for row in now.running[: self.most_running]:
            speed = f"{row.steps_per_second:.3g}" if row.steps_per_second else ""
            left = remaining(row.seconds_left) if row.seconds_left is not None else ""
            cells = (row.name, f"{row.step}/{row.total}", row.phase, row.metric, speed, left)
            table.add_row(*[Text(cell) for cell in cells])
        hidden = len(now.running) - self.most_running
        parts: list[RenderableType] = [bar, table]
        parts += [Text(f"… and {hidden} more at work")] if hidden > 0 else []
        failures = [Text(f"{f.name}: {f.reason} ({f.log})", style="red") for f in now.failures[-self.most_failures :]]
        return Group(*parts, *failures)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


@contextmanager
def sweep_progress(plain: bool) -> Iterator[PlainSweep | LiveSweep]:
    """A live table on a terminal, one plain line an event when piped or asked for."""
    if not _is_live(plain):
        yield PlainSweep()
        return
    from rich.live import Live

    live = LiveSweep()
    with Live(live, console=_console, refresh_per_second=2):
        yield live
