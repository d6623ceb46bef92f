"""The wording of refusals: one sentence out of Hydra's or OmegaConf's message, with the nearest valid name."""

import difflib
import re
from collections.abc import Callable, Sequence


def sentence(error: Exception, keys: set[str], options: Callable[[str], list[str]]) -> str:
    """One sentence for an error of Hydra or OmegaConf.

    Args:
        error: as it was raised.
        keys: all dotted keys of the config.
        options: group -> the names that `group=` accepts.
    """
    text = str(error).strip()
    lone = re.search(r"Error parsing override '([^']*)'", text)
    if lone or "Lexer" in type(error).__name__ or text.startswith("Lexer"):
        return f"{lone.group(1) if lone else text.splitlines()[0]!r} is not an override; write key=value."
    absent = re.search(r"Missing mandatory value: (\S+)", text)
    if absent:
        return no_value(absent.group(1).rstrip("."))
    if "--multirun" in text:
        return "several values for one key: use `multiref sweep` for axes, or quote a list as 'key=[a,b]'."
    found = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if found:
        group, option = found.group(1), found.group(2)
        return f"{group} has no option {option!r}{nearest(option, options(group))}."
    key = _unknown_key(error, text)
    if key in PAIR_KEYS:
        return f"{key}= is the path of a reference of references=pair; add references=pair."
    if key:
        return f"there is no key {key!r}{nearest(key, sorted(keys))}."
    first = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    full_key = getattr(error, "full_key", None)
    return f"{full_key}: {first}." if full_key and full_key not in first else f"{first}."


# What references=pair is filled from; these keys are gone once a config is composed.
PAIR_KEYS = ("first", "second")
GONE_KEYS = (*PAIR_KEYS, "own")


def no_value(key: str) -> str:
    """What is said of a key that has to be given."""
    return f"{key} has no value; give it as {key}=VALUE."


def nearest(name: str, allowed: Sequence[str]) -> str:
    """`; did you mean …`, else the names of the same group, else nothing."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    group = name.rpartition(".")[0]
    siblings = [key for key in allowed if group and key.rpartition(".")[0] == group]
    if close and (not group or close[0] in siblings):
        return f"; did you mean {close[0]!r}"
    tails = {key.rpartition(".")[2]: key for key in allowed}
    near = difflib.get_close_matches(name.rpartition(".")[2], tails, n=1, cutoff=0.75)
    if near:
        return f"; did you mean {tails[near[0]]!r}"
    shown = siblings or (allowed if len(allowed) <= 30 else [])
    return f"; allowed: {', '.join(shown)}" if shown else ""


def _unknown_key(error: Exception, text: str) -> str | None:
    for pattern in (r"Could not override '([^'@]+)'", r"Could not append to config\. .*'([^']+)'"):
        found = re.search(pattern, text)
        if found:
            return found.group(1)
    if type(error).__name__ == "ConfigKeyError" or "not in struct" in text:
        found = re.search(r"Key '([^']+)'", text)
        return getattr(error, "full_key", None) or (found.group(1) if found else None)
    return None
