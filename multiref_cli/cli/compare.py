"""`multiref compare`: two models answer the same prompts, side by side."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from multiref_cli.cli import display
from multiref_cli.config.schema import Hardware
from multiref_cli.config.sentences import nearest
from multiref_cli.errors import RequestError
from multiref_cli.tracking.places import check_place

if TYPE_CHECKING:
    from multiref_cli.evaluation.answers import Answer, Compared

# Key -> (type, value where none is given).
SETTINGS: dict[str, tuple[type, float | int | str]] = {
    "seed": (int, 0),
    "temperature": (float, 0.0),
    "max_new_tokens": (int, 0),  # 0: USUAL_TOKENS, or as many as the models have positions for
    "limit": (int, 20),
    "device": (str, "auto"),
}
USUAL_TOKENS = 256
_MOST_APART = 4


def compare(names: Sequence[str], words: Sequence[str], *, file: str | None, page: str | None, plain: bool) -> None:
    """Print two models' answers with log ratios to the references, colored where the references disagree.

    Args:
        names: two runs or models.
        words: prompts, and settings as key=value.
        file: with more prompts.
        page: an HTML file to write besides.
        plain: plain lines of progress.

    Raises:
        RequestError: a setting, prompt, model or file that does not fit.
    """
    settings, texts = _settings(words)
    if page is not None:
        _check_page(Path(page))
    hardware = replace(Hardware(), device=str(settings["device"]))
    from multiref_cli.reports.side_by_side import page as page_of
    from multiref_cli.rollouts.engine import Sampling
    from multiref_cli.runs.compare import compare, prompts_of

    temperature, tokens = float(settings["temperature"]), int(settings["max_new_tokens"])
    sampling = Sampling(temperature=temperature, max_new_tokens=tokens or USUAL_TOKENS)
    prompts = prompts_of(texts, file, int(settings["limit"]))
    with display.progress(plain) as progress:
        compared = compare(names, prompts, sampling, int(settings["seed"]), hardware, progress, fit=not tokens)
    for note in compared.notes:
        display.line(f"note: {note}")
    for one in compared.comparisons:
        display.line(f"\n{one.prompt}")
        display.columns([_title(answer) for answer in one.answers], [_colored(compared, a) for a in one.answers])
        for answer in one.answers:
            display.line(_figures(compared, answer))
    _legend(compared)
    if page is not None:
        from multiref_cli.files import write_text

        how = "greedy" if temperature == 0 else f"sampled at temperature {temperature:g}, seed {settings['seed']}"
        write_text(
            Path(page),
            page_of(
                compared,
                [f"Answers of at most {tokens or USUAL_TOKENS} tokens, {how}.", f"Models: {' and '.join(names)}."],
            ),
        )
        display.line(f"page: {page}")


def _settings(words: Sequence[str]) -> tuple[dict[str, float | int | str], list[str]]:
    """Settings, and what is left: prompts."""
    found, texts = {key: value for key, (_, value) in SETTINGS.items()}, []
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not re.fullmatch(r"[a-z_.]+", key) or " " in value:
            texts.append(word)
            continue
        if key not in SETTINGS:
            raise RequestError(
                f"compare has no setting {key!r}{nearest(key, list(SETTINGS))}; a prompt that reads so: --prompts FILE."
            )
        kind = SETTINGS[key][0]
        try:
            found[key] = kind(value)
        except ValueError as error:
            raise RequestError(f"{key} is {value!r}; give a number.") from error
        if key in ("limit", "max_new_tokens") and int(found[key]) < 1:
            raise RequestError(f"{key} is {value}; give 1 or more.")
    return found, texts


def _check_page(path: Path) -> None:
    check_place(path.parent, "--html's folder")
    if path.is_dir() or (path.exists() and path.suffix not in (".html", ".htm")):
        raise RequestError(f"--html {path} is there and is no page; give a new file, such as compare.html.")


def _title(answer: "Answer") -> str:
    return f"{answer.model} ({answer.tokens} tokens{'' if answer.finished else ', cut off'})"


def _colored(compared: "Compared", answer: "Answer") -> list[tuple[str, int, float]]:
    """(text, number of the voice that finds it likeliest, strength of its color) of every piece."""
    from multiref_cli.evaluation.answers import spread
    from multiref_cli.reports.side_by_side import strength

    found = []
    for piece in answer.pieces:
        nats, voice = spread(piece, compared.voices(answer))
        found.append((piece.text, voice, strength(nats)))
    return found


def _figures(compared: "Compared", answer: "Answer") -> str:
    """Log ratios of an answer, and where the voices are furthest apart on it."""
    from multiref_cli.evaluation.answers import spread
    from multiref_cli.reports.side_by_side import FAINT, ratios

    said = ", ".join(f"{name} {value:+.2f}" for name, value in ratios(compared, answer))
    voices = compared.voices(answer)
    apart = [(spread(piece, voices), piece.text.strip()) for piece in answer.pieces]
    apart = sorted((one for one in apart if one[0][0] >= FAINT), key=lambda one: -one[0][0])[:_MOST_APART]
    shown = ", ".join(f"{text!r} {nats:.1f} ({voices[voice]})" for (nats, voice), text in apart)
    own = answer.totals[answer.model]
    more = f"; furthest apart: {shown}" if shown else ""
    return f"{answer.model}: log p {own:.2f}; log ratio to {said} nats{more}"


def _legend(compared: "Compared") -> None:
    from multiref_cli.reports.side_by_side import labels

    names = labels(compared)
    if len(names) > 1:
        display.line("")
        display.legend(names, "marks a token that it finds likeliest, where these are half a nat apart or more")
