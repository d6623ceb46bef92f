"""`multiref help`: the topics of multiref_cli/help/, one Markdown file each. Reads text, imports nothing heavy."""

import re
from collections.abc import Sequence
from pathlib import Path

from multiref_cli.cli import display
from multiref_cli.errors import RequestError

FOLDER = Path(__file__).resolve().parents[1] / "help"


def show(topic: str | None, commands: Sequence[str] = ()) -> None:
    """Print a topic, or the list of all.

    Args:
        topic: name of a file of the folder, without its ending; None: all, with what each is about.
        commands: what people may have meant instead.

    Raises:
        RequestError: there is no such topic.
    """
    found = topics()
    if topic is None:
        display.table(
            "multiref help TOPIC", ["topic", "what it says"], [[name, title] for name, title in found.items()]
        )
        return display.line("Commands: multiref --help, multiref COMMAND --help. What can be chosen: multiref list.")
    if topic not in found:
        raise RequestError(_unknown(topic, list(found), commands))
    display.markdown(shown((FOLDER / f"{topic}.md").read_text(encoding="utf-8")))


def topics() -> dict[str, str]:
    """Name of every topic with what its title says behind the colon, sorted by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.md")):
        with path.open(encoding="utf-8") as lines:
            title = next(lines)
        found[path.stem] = title.lstrip("# ").strip().partition(": ")[2]
    return found


def shown(text: str) -> str:
    """A topic as it is read in a terminal: without the marks of what is generated; pictures as where they lie."""
    text = re.sub(r"<!-- .*? -->\n?", "", text, flags=re.S)
    return re.sub(r"!\[([^\]]*)\]\((?:\.\./)*([^)]+)\)", r"Figure `\2` of the repository: \1.", text)


def _unknown(topic: str, known: list[str], commands: Sequence[str]) -> str:
    from multiref_cli.config.sentences import nearest

    if topic in commands:
        return f"{topic} is a command, not a topic: multiref {topic} --help; topics: {', '.join(known)}."
    return f"there is no topic {topic!r}{nearest(topic, known)}."
