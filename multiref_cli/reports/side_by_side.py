"""The page of `multiref compare`: one file without dependencies; what models and users wrote is text, never markup."""

import html
import math
from collections.abc import Sequence

from multiref_cli.evaluation.answers import ITSELF, Answer, Compared, Comparison, Piece, spread

# Of a colored token: from this spread of its log-probabilities on, in nats, and from this on the strongest color.
FAINT, STRONG = 0.5, 4.0
# One hue a voice, told apart also by color-blind readers; voices beyond these begin again.
HUES = (210, 28, 150, 285, 55, 340)
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --soft: #57606a; --light: 78%; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --soft: #9198a1; --light: 34%; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; } .answer { flex: 1 1 20rem; min-width: 0;
  border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace; }
.t { border-radius: .2rem; background: hsl(var(--h) 85% var(--light) / var(--a)); }
.key { padding: 0 .4rem; margin-right: .4rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; margin-top: .5rem; }
td, th { padding: 0 .8rem 0 0; text-align: right; }
th { font-weight: normal; color: var(--soft); } td:first-child, th:first-child { text-align: left; }
@media print { .t { -webkit-print-color-adjust: exact; print-color-adjust: exact; } .answer { break-inside: avoid; } }
"""


def page(compared: Compared, facts: Sequence[str]) -> str:
    """The whole page.

    Args:
        compared: answers and scores.
        facts: how the answers came about, a sentence each.
    """
    first, second = map(html.escape, compared.models)
    shown = labels(compared)
    keys = " ".join(_mark(html.escape(name), number, 1.0, "key") for number, name in enumerate(shown))
    legend = (
        f"<p>{keys} A token has the color of the one that finds it likeliest, where these are {FAINT:g} nats apart or "
        f"more, strongest from {STRONG:g} nats on; point at a token for the log-probabilities.</p>"
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in [*facts, *compared.notes])
    sections = "\n".join(_section(compared, one) for one in compared.comparisons)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{first} beside {second}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>\n'
        f"<h1>{first} beside {second}</h1>\n{legend if len(shown) > 1 else ''}<ul class=soft>{notes}</ul>\n{sections}\n"
        "</body></html>\n"
    )


def labels(compared: Compared) -> list[str]:
    """What the colors are of: one name a voice, in their order."""
    voices = compared.voices(compared.comparisons[0].answers[0])
    return [ITSELF if name in compared.models and compared.references else name for name in voices]


def strength(nats: float) -> float:
    """How strong a color is, 0 to 1, from the spread of a token's log-probabilities."""
    if nats < FAINT:
        return 0.0
    return 0.25 + 0.75 * min(1.0, math.log(nats / FAINT) / math.log(STRONG / FAINT))


def ratios(compared: Compared, answer: Answer) -> list[tuple[str, float]]:
    """(name, log p(answer) of the model that wrote it minus that of the other) of every other scorer, in nats."""
    own = answer.totals[answer.model]
    return [(name, own - value) for name, value in answer.totals.items() if name != answer.model]


def _section(compared: Compared, one: Comparison) -> str:
    answers = "\n".join(_answer(compared, answer) for answer in one.answers)
    return f'<section><h2>{html.escape(one.prompt)}</h2>\n<div class="pair">{answers}</div></section>'


def _answer(compared: Compared, answer: Answer) -> str:
    voices = compared.voices(answer)
    text = "".join(_token(piece, voices) for piece in answer.pieces)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{answer.totals[name]:.2f}</td><td>{value:+.2f}</td></tr>"
        for name, value in ratios(compared, answer)
    )
    own = f"<tr><td>{html.escape(answer.model)} itself</td><td>{answer.totals[answer.model]:.2f}</td><td></td></tr>"
    length = f"{answer.tokens} tokens{'' if answer.finished else ', cut off'}"
    return (
        f'<div class="answer"><b>{html.escape(answer.model)}</b> <span class="soft">{length}</span>\n'
        f'<div class="text">{text}</div>\n'
        f"<table><tr><th>nats, whole answer</th><th>log p</th><th>log ratio to it</th></tr>{own}{rows}</table></div>"
    )


def _token(piece: Piece, voices: Sequence[str]) -> str:
    told = html.escape(", ".join(f"{name} {value:.2f}" for name, value in piece.logps.items()), quote=True)
    nats, voice = spread(piece, voices)
    return _mark(html.escape(piece.text), voice, strength(nats), "t", told)


def _mark(text: str, voice: int, alpha: float, kind: str, told: str = "") -> str:
    title = f' title="{told}"' if told else ""
    style = f' style="--h:{HUES[voice % len(HUES)]};--a:{alpha:.2f}"' if alpha else ""
    if kind == "key":
        kind = "t key"
    return f'<span class="{kind}"{style}{title}>{text}</span>' if alpha or told else text
