"""`multiref convert`: a config of TRL as one command."""

import shlex
from pathlib import Path

from multiref_cli.cli import display
from multiref_cli.config.trl import Converted, convert
from multiref_cli.errors import RequestError


def show(file: str, overrides: list[str], *, trainer: str | None, processes: int) -> None:
    """Print the command that a config means, then what differs and what has no counterpart.

    Args:
        file: YAML or JSON of TRL.
        overrides: to be put behind those of the file, such as references.
        trainer: dpo or grpo; None: told by the file.
        processes: of `accelerate launch`.

    Raises:
        RequestError: a file that is none, or overrides that do not compose.
    """
    found = convert(Path(file), trainer, processes)
    words = arguments(found, overrides)
    problem = _problem(words)
    if problem and overrides and problem != _problem(arguments(found, [])):  # the command line brought it
        raise RequestError(f"{problem[0]}.")
    display.line(" \\\n  ".join(["multiref train", *map(shlex.quote, words)]))
    own = not any(text.startswith("references") for text in overrides)
    hint = ["the policy's own start is the only reference; several: references=pair first=PATH second=PATH alpha=0.5"]
    for title, sentences in (
        ("Fill in", found.wanted),
        ("Otherwise than in TRL", [*found.differs, *hint * own]),
        ("Without a counterpart", found.missing),
        ("Does not compose yet", problem),
    ):
        for number, sentence in enumerate(sentences):
            display.line(("" if number else f"\n{title}:\n") + f"  * {sentence}")


def arguments(found: Converted, overrides: list[str]) -> list[str]:
    """The overrides of a command: those of the file, then others, which take the place of the same key."""
    keys = {text.partition("=")[0].lstrip("+") for text in overrides}
    own = [f"{key}={value}" for key, value in found.overrides.items() if key.lstrip("+") not in keys]
    return [*own, *overrides]


def _problem(words: list[str]) -> list[str]:
    """Why the command is refused, where nothing has to be filled in first."""
    from multiref_cli.config.compose import compose

    try:
        compose([word.replace("steps=STEPS", "steps=1") for word in words])
    except RequestError as error:
        return [str(error).rstrip(".")]
    return []
