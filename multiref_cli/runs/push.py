"""A run's policy as a repository of the Hub: its weights, tokenizer and model card, in one commit."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiref_cli.errors import RequestError, RunError
from multiref_cli.models.files import weights_problem
from multiref_cli.runs.card import CARD
from multiref_cli.tracking.places import command
from multiref_cli.tracking.run_dir import RunDir

# What a card says in place of the repository, as long as that is not known (runs.card).
_PLACE = "FOLDER_OR_REPOSITORY"
_ADAPTER = "adapter"


@dataclass(frozen=True)
class Parcel:
    """What would be uploaded.

    Attributes:
        run: its folder.
        repository: owner/name.
        files: path in the repository -> file here; the card's text is made from its file.
        notes: what somebody should know before it is public.
    """

    run: Path
    repository: str
    files: dict[str, Path]
    notes: list[str]

    def content(self, name: str) -> bytes | str:
        """What is uploaded under a name: the text of the card with the repository in it, else the path of the file."""
        path = self.files[name]
        return path.read_text().replace(_PLACE, self.repository).encode() if name == CARD else str(path)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.content(name)
        return len(content) if isinstance(content, bytes) else self.files[name].stat().st_size


def pack(folder: Path, repository: str, adapter: bool = False) -> Parcel:
    """Collect what a finished run has for the Hub; nothing is sent.

    Args:
        folder: of the run.
        repository: owner/name on the Hub.
        adapter: of a LoRA run its adapter alone, in place of the merged weights.

    Raises:
        RequestError: no finished run, damaged weights, no adapter, or a name that no repository can have.
    """
    _check_name(repository)
    run = RunDir(folder)
    policy = run.path / "policy"
    if not (run.path / "config.yaml").is_file():
        raise RequestError(f"{folder} is no run folder; give the folder of a finished run.")
    if not run.is_done() or not policy.is_dir():
        raise RequestError(f"{folder} is not finished: `{command('train', '--resume', folder)}` goes on with it.")
    problem = weights_problem(policy)
    if problem is not None:
        raise RequestError(f"{folder} is done, but its policy is damaged ({problem}): train it again elsewhere.")
    source = policy / _ADAPTER if adapter else policy
    if not source.is_dir():
        raise RequestError(f"{folder} has no adapter: it was trained without policy=lora; leave out --adapter.")
    files = _below(source)
    if adapter:  # it is opened over its base, with the tokenizer of the run
        own = {name: path for name, path in _below(policy).items() if "/" not in name}
        files |= {name: path for name, path in own.items() if _is_tokenizer(name) or name == CARD}
    return Parcel(run.path, repository, dict(sorted(files.items())), _notes(files))


def send(parcel: Parcel, private: bool, revision: str | None) -> str:
    """Upload in one commit; the repository, and a branch, are made where they are not there.

    Args:
        parcel: from `pack`.
        private: whether a repository that is made is seen by its owner alone; one that is there stays as it is.
        revision: branch; None is main.

    Returns:
        The address of the commit.

    Raises:
        RequestError: no token, no right to write there, or a name or branch that the Hub refuses.
        RunError: the Hub cannot be reached, or fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        api.create_repo(parcel.repository, private=private, exist_ok=True)
        if revision not in (None, "main"):
            api.create_branch(parcel.repository, branch=str(revision), exist_ok=True)
        operations = [CommitOperationAdd(name, parcel.content(name)) for name in parcel.files]
        message = f"Policy of {parcel.run.name}, trained with multiref"
        return str(
            api.create_commit(parcel.repository, operations, commit_message=message, revision=revision).commit_url
        )
    except Exception as error:  # of the client, of the transport, of the server
        raise _answer(error, parcel, revision) from error


def _answer(error: Exception, parcel: Parcel, revision: str | None) -> Exception:
    """One sentence for what the Hub, or the way there, answered."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    place = parcel.repository if revision is None else f"{parcel.repository}@{revision}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return RunError(f"{place} was not uploaded: HF_HUB_OFFLINE is set; unset it.")
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return RequestError("the Hub knows no token, or not this one: `hf auth login`, or set HF_TOKEN.")
    if status in (403, 404):
        owner = parcel.repository.partition("/")[0]
        return RequestError(f"the token may not write to {place}: give it the right to, or another owner than {owner}.")
    if isinstance(error, HFValidationError) or status in (400, 409, 422):
        return RequestError(f"the Hub refuses {place}: {_first_line(error)}.")
    if isinstance(error, HfHubHTTPError):
        return RunError(f"the Hub failed ({_first_line(error)}); nothing of {place} was changed: try again.")
    return RunError(f"the Hub cannot be reached ({type(error).__name__}); nothing of {place} was changed: try again.")


def _first_line(error: Exception) -> str:
    said = getattr(error, "server_message", None) or str(error)
    return (str(said).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        good = False
    else:
        good = repository.count("/") == 1
    if not good:
        raise RequestError(
            f"{repository!r} is no name of a repository: write owner/name, of letters, digits, '-', '_' and '.'."
        )


def _below(folder: Path) -> dict[str, Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: path for name, path in names.items() if not any(part.startswith(".") for part in name.split("/"))}


def _is_tokenizer(name: str) -> bool:
    return bool(
        re.match(r"(tokenizer|chat_template|vocab|merges|special_tokens|added_tokens)|.*\.(model|tiktoken)$", name)
    )


def _notes(files: dict[str, Path]) -> list[str]:
    """Places of this machine that the texts among the files name, and what is missing in the card."""
    found = []
    for name, path in files.items():
        if path.suffix not in (".md", ".json") or path.stat().st_size > 2**20:
            continue
        text = path.read_text(errors="replace")
        places = [place for place in re.findall(r"(?<![\w.])/[\w./-]+", text) if Path(place).exists() and place != "/"]
        if places:
            found.append(f"{name} names a place of this machine: {places[0]}")
    card: Any = files.get(CARD)
    if card is None:
        found.append("there is no model card: `multiref train --resume RUN` writes it")
    elif not re.search(r"^license:", card.read_text().split("\n---", 1)[0], re.MULTILINE):
        found.append("the card says no license: the start of the run has none")
    return found
