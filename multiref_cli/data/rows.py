"""Rows of a data set, from wherever they lie, and the account of what was read, dropped and held out."""

import csv
import gzip
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from multiref_cli.config.schema import BadRows, Data
from multiref_cli.data.held_out import hold_out
from multiref_cli.data.made import Encoder, Made, Maker, made
from multiref_cli.data.parsed import PARSED_FROM, Parsed
from multiref_cli.data.shelf import Shelf
from multiref_cli.data.sources import make_rows
from multiref_cli.errors import HubUnreachable, RequestError, RunError
from multiref_cli.tracking.progress import Progress, Silent

T = TypeVar("T")
SUFFIXES = (".jsonl", ".parquet")
OTHER_FILES = (".json", ".csv", ".jsonl.gz")  # read as a single file, not as part of a folder
_BATCH = 1000  # rows that are read at once where a format has batches
_LONG = 2.0  # seconds; what takes less is over before a bar is read
_NOT_UTF8, _AS_UTF8 = "not UTF-8", " Save the file as UTF-8: `iconv -f LATIN1 -t UTF-8` if it is Latin-1."
OPTIONS = ("name", "answer", "calculator_marks", "ties")


@dataclass(frozen=True)
class Rows:
    """What a file, a folder or the Hub holds.

    Args:
        rows: (row number, row); the number is the line of a .jsonl file, else a count, and begins with 1.
        problems: (line number, reason) of the lines that are no JSON object.
        sha256: of the rows as canonical JSON; the same content has the same sum in every format.
    """

    rows: Sequence[tuple[int, dict[str, Any]]]
    problems: list[tuple[int, str]]
    sha256: str

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows) + len(self.problems)


@dataclass
class RowReport:
    """The account of one data set; nothing is dropped or shortened without a place here.

    Args:
        total: rows read, lines without JSON included.
        kept: rows that can be used, held-out ones included.
        problems: (line number, reason) of every row that was dropped.
        truncated: completions that lost their end to max_completion_tokens, and with it their end token.
        duplicates: prompts that another row already has, where a data set of prompts is made of preference pairs.
        shared_prompts: prompts of a given held-out file or split that are also among the training prompts.
        columns: of the first row.
        ties: pairs that were kept though both responses have the same score.
        reversed: pairs whose rejected response has the higher score.
        prompt_limit: tokens of the longest prompt that is kept, where it was chosen from the data.
    """

    total: int = 0
    kept: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0
    duplicates: int = 0
    shared_prompts: int = 0
    columns: list[str] = field(default_factory=list)
    ties: int = 0
    reversed: int = 0
    prompt_limit: int | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of dropped rows by reason, the most frequent first; a reason is the text before its colon."""
        return dict(Counter(reason.split(":")[0] for _, reason in self.problems).most_common())

    def summary(self) -> str:
        """One sentence: rows read and kept, why the others were dropped, and where the first ones are."""
        parts = [f"{self.kept} of {self.total} rows kept"]
        if self.prompt_limit is not None:
            parts.append(f"prompts of up to {self.prompt_limit} tokens, chosen from the data")
        for reason, count in self.counts.items():
            lines = [line for line, why in self.problems if why.split(":")[0] == reason]
            shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
            parts.append(f"{count} dropped: {reason} (row{'s' if count > 1 else ''} {shown})")
            if reason == "refused":  # what a template refuses, the first row's sentence says
                why = next(why for _, why in self.problems if why.startswith("refused: "))
                parts[-1] += f", row {lines[0]}: {why.removeprefix('refused: ').rstrip('.')}"
        if self.truncated:
            parts.append(f"{self.truncated} completions cut to max_completion_tokens")
        if self.ties:
            parts.append(f"{self.ties} pairs with equal scores")
        if self.reversed:
            parts.append(f"{self.reversed} pairs whose rejected response has the higher score")
        if self.duplicates:
            parts.append(f"{self.duplicates} rows repeat a prompt")
        if self.shared_prompts:
            parts.append(f"{self.shared_prompts} held-out prompts are also training prompts")
        return "; ".join(parts)


@dataclass
class Split(Generic[T]):
    """Training and held-out rows of one data set.

    Args:
        train: usable rows, in the order of the source.
        held_out: usable rows whose prompt is not in `train` (unless a held-out file was given that shares prompts).
        report: what was dropped and why.
        sha256: of the content that was read, held-out source included.
    """

    train: Shelf[T]
    held_out: Shelf[T]
    report: RowReport
    sha256: str


def read_rows(
    path: str, split: str = "train", revision: str | None = None, max_rows: int | None = None, name: str | None = None
) -> Rows:
    """Read the rows of a .jsonl or .parquet file, a folder of such files or one saved by `datasets`, or a Hub id.

    Args:
        path: file, folder, or Hub id such as `openai/gsm8k`.
        split: which split of a folder or of a Hub data set; a single file has none.
        revision: commit, tag or branch of a Hub data set.
        max_rows: read no more than the first so many.
        name: configuration of a Hub data set, such as `main`.

    Returns:
        Numbered rows, lines that could not be parsed, and the checksum of the content.

    Raises:
        RequestError: nothing is there, or the split, format or configuration is not.
    """
    rows: Shelf[tuple[int, dict[str, Any]]] = Shelf()
    problems, digest = [], hashlib.sha256()
    try:
        for number, row in _numbered(path, split, revision, max_rows, name):
            if isinstance(row, dict):
                rows.append((number, row))
            else:
                problems.append((number, row))
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    except (RequestError, RunError):
        raise
    except Exception as error:  # a damaged file raises anything: cut off, of another format, not UTF-8
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(f"data.path={path} cannot be read: {reason.rstrip('.')}.") from error
    return Rows(rows, problems, digest.hexdigest())


def _numbered(
    path: str, split: str, revision: str | None, max_rows: int | None, name: str | None
) -> Iterable[tuple[int, dict | str]]:
    place = Path(path).expanduser()
    if place.is_dir():
        return _read_folder(place, split, max_rows, name)
    if place.suffix in SUFFIXES or place.exists():
        return _read_file(place, max_rows)
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return enumerate(_read_hub(path, split, revision, max_rows, name), 1)
    raise RequestError(f"data.path={path}: no such file or folder, and no Hub id (owner/name) either.")


def _read_file(path: Path, max_rows: int | None) -> Iterator[tuple[int, dict | str]]:
    if not path.is_file():
        raise RequestError(f"data.path={path}: no such file.")
    if path.suffix == ".jsonl":
        return _read_jsonl(path, max_rows)
    if path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        batches = ParquetFile(path).iter_batches(_BATCH)
        return enumerate(islice((row for batch in batches for row in batch.to_pylist()), max_rows), 1)
    if path.name.endswith(".jsonl.gz"):
        return _read_jsonl(path, max_rows)
    if path.suffix == ".csv":
        return _read_csv(path, max_rows)
    if path.suffix == ".json":
        return _read_json(path, max_rows)
    raise RequestError(
        f"data.path={path}: the format is not known; give a {' or '.join(SUFFIXES)} file (or {', '.join(OTHER_FILES)})."
    )


def _read_csv(path: Path, max_rows: int | None) -> Iterator[tuple[int, dict | str]]:
    csv.field_size_limit(10**8)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        names = list(reader.fieldnames or ())
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RequestError(f"data.path={path} has two columns {twice!r}: give each a name of its own.")
        for number, row in enumerate(islice(reader, max_rows), 1):
            yield number, "another number of fields than the header" if None in row else row


def _read_json(path: Path, max_rows: int | None) -> Iterator[tuple[int, dict | str]]:
    """A list of objects, or the only list of an object, such as {"data": [...]}."""
    try:
        found = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise RequestError(f"data.path={path} is {_NOT_UTF8}: {error}.{_AS_UTF8}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"data.path={path} is no JSON: {error}; for one object to a line call it .jsonl.") from error
    lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else [found]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise RequestError(f"data.path={path} holds no list of rows; give a list of objects.")
    for number, row in enumerate(lists[0][:max_rows], 1):
        yield number, row if isinstance(row, dict) else "not a JSON object"


def _read_jsonl(path: Path, max_rows: int | None) -> Iterator[tuple[int, dict | str]]:
    read = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if max_rows is not None and read >= max_rows:
                return
            read += 1
            try:
                row = json.loads(line)
            except RecursionError:
                yield number, "JSON nested too deeply"
                continue
            except UnicodeDecodeError:
                yield number, _NOT_UTF8
                continue
            except ValueError as error:  # no JSON, or a number of more digits than Python reads
                decoding = isinstance(error, json.JSONDecodeError)
                yield number, "not JSON" if decoding else "a number with too many digits"
                continue
            yield number, row if isinstance(row, dict) else "not a JSON object"


def _read_folder(
    folder: Path, split: str, max_rows: int | None, name: str | None = None
) -> Iterable[tuple[int, dict | str]]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        from datasets import DatasetDict, load_from_disk

        data = load_from_disk(str(folder))
        if isinstance(data, DatasetDict):
            data = data[_known_split(split, list(data), folder)]
        elif split != "train":
            raise RequestError(
                f"data.path={folder} holds one data set without splits; data.split={split} is not there."
            )
        return enumerate(_each(data, max_rows), 1)
    # Single files are named by their split (train.jsonl); the Hub's shards are train-00000-of-00002.parquet.
    files = sorted(file for suffix in SUFFIXES for file in folder.rglob(f"*{suffix}"))
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(file.stem.split("-0")[0], []).append(file)
    chosen = by_split[_known_split(split, list(by_split), folder)]
    places = sorted({file.parent.relative_to(folder).as_posix() for file in chosen})
    if len(places) > 1:  # as many configurations of one data set
        if name not in places:
            raise RequestError(
                f"data.path={folder} holds split {split} in {len(places)} folders: give data.options.name, one of "
                f"{', '.join(places)}."
            )
        chosen = [file for file in chosen if file.parent == folder / name]
    if len(chosen) == 1:
        return _read_file(chosen[0], max_rows)
    if any(file.suffix == ".jsonl" for file in chosen):
        raise RequestError(f"data.path={folder}: split {split} has several files with .jsonl; give one of them.")
    rows = (row for file in chosen for _, row in _read_file(file, None))
    return ((number, row) for number, row in enumerate(rows, 1) if max_rows is None or number <= max_rows)


def _read_hub(path: str, split: str, revision: str | None, max_rows: int | None, name: str | None) -> Iterator[dict]:
    from datasets import load_dataset
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    try:
        data = load_dataset(path, name=name, split=split, revision=revision)
    except Exception as error:  # datasets raises anything, from connection errors to those of a data set's parser
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        if isinstance(error.__cause__, GatedRepoError) or "gated" in reason:
            page = f"{constants.ENDPOINT}/datasets/{path}"
            raise RequestError(
                f"data.path={path} is gated: accept its terms at {page} and log in with: hf auth login."
            ) from error
        kind = HubUnreachable if isinstance(error, ConnectionError) else RequestError
        raise kind(
            f"data.path={path} is no local file or folder, and the Hub gave no split {split!r} of it: {reason}"
        ) from error
    return _each(data, max_rows)


def _each(data: Any, max_rows: int | None) -> Iterator[dict]:
    """The rows of a data set of `datasets`, never all of them in memory."""
    tables = data.with_format("arrow").iter(_BATCH)
    return islice((row for table in tables for row in table.to_pylist()), max_rows)


def _known_split(split: str, known: list[str], folder: Path) -> str:
    if split in known:
        return split
    there = ", ".join(sorted(known)) or f"no {' or '.join(SUFFIXES)} file"
    raise RequestError(f"data.path={folder} has no split {split!r}; there is: {there}.")


def load_split(
    data: Data,
    parse: Callable[[int, dict[str, Any]], T],
    prompt: Callable[[T], str],
    progress: Progress | None = None,
) -> Split[T]:
    """Read, parse and split a data set; the one place where rows are dropped, counted, refused and held out.

    The random held-out rows are those of the prompts with the smallest sha256(split_seed, prompt): a prompt lies on one
    side with all its rows, and where it lies depends on no other row's order, tokenizer or length.

    Args:
        data: the data part of the config.
        parse: (row number, row) -> usable row; raises BadRow with the reason otherwise. Many rows that an `Encoder`
            parses are shared out to helpers, and kept: those that were parsed once on this machine are read again.
        prompt: usable row -> the text that identifies its prompt.
        progress: told how far it is, where that takes more than a moment.

    Returns:
        The split; `held_out` is empty if data.held_out is 0 and no held-out source is given.

    Raises:
        RequestError: data.bad_rows is `refuse` and there are bad rows, no row is left, an unknown option, or a held-out
            split of a single file.
    """
    _check_source(data)
    name, progress = data.options.get("name"), progress or Silent()
    source = _training_rows(data)
    maker = Maker(parse, prompt, data.split_seed)
    train, keys, report = _parse_rows(source, maker, progress)
    sha256 = source.sha256
    if data.held_out_path or data.held_out_split:
        path, split = data.held_out_path or data.path or "", data.held_out_split or data.split
        source = read_rows(path, split, data.revision, None, name)
        held_out, others, other = _parse_rows(source, maker, progress)
        for name in ("total", "kept", "truncated", "ties", "reversed"):
            setattr(report, name, getattr(report, name) + getattr(other, name))
        report.problems += [(line, f"held-out {reason}") for line, reason in other.problems]
        report.shared_prompts = len(np.intersect1d(keys, others))
        sha256 = hashlib.sha256((sha256 + source.sha256).encode()).hexdigest()
    else:
        train, held_out = hold_out(train, keys, data.held_out)
    if report.problems and data.bad_rows is BadRows.refuse:
        raise RequestError(f"data.path={data.path} has bad rows and data.bad_rows=refuse: {report.summary()}.")
    if not train:
        raise RequestError(
            f"data.path={data.path} has no usable training row: {report.summary()}.{_hint(report, data)}"
        )
    return Split(train, held_out, report, sha256)


def _hint(report: RowReport, data: Data) -> str:
    """How columns are named, where rows lack one and it might be there under another name; what templated text is."""
    if any(reason.startswith("control token") for reason in report.counts):
        return (
            " These texts are templated already, or hold tokens that open or end a turn: give the text alone, or the "
            "conversation as messages; the chat template writes those tokens (multiref help data)."
        )
    if next(iter(report.counts), None) == _NOT_UTF8:
        return _AS_UTF8
    given = {column: name for name, column in data.columns.items()}
    lacking = [reason.removeprefix("missing ") for reason in report.counts if reason.startswith("missing ")]
    lacking = [name for name in lacking if name not in report.columns]  # else it is there, without a value
    if not lacking or not report.columns:
        return ""
    wanted, sides = [given.get(lacking[0], lacking[0])], ("chosen", "rejected")
    if lacking[0] in sides:
        wanted = [side for side in sides if side not in report.columns and side not in data.columns]
    there = ", ".join(report.columns)
    which = "which one it is" if len(wanted) == 1 else "which ones they are"
    settings = " ".join(f"data.columns.{name}=COLUMN" for name in wanted)
    return f" The columns of the first row are {there}: say {which} with {settings}."


def _training_rows(data: Data) -> Rows:
    if data.source is not None:
        rows, checksum = make_rows(data.source, data.max_rows)
        return Rows(rows, [], checksum)
    if data.path is None:
        raise RequestError("data.path and data.source are both null: give a file, folder or Hub id as data.path.")
    return read_rows(data.path, data.split, data.revision, data.max_rows, data.options.get("name"))


def _check_source(data: Data) -> None:
    unknown = sorted(set(data.options) - set(OPTIONS))
    if unknown:
        raise RequestError(f"data.options.{unknown[0]} is no option of a data set; there is {', '.join(OPTIONS)}.")
    if data.options.get("ties", "keep") not in ("keep", "drop"):
        raise RequestError(f"data.options.ties={data.options['ties']}; allowed: keep, drop.")
    if data.held_out_split and not data.held_out_path and data.source is not None:
        raise RequestError(
            f"data.source makes rows without splits, so there is no {data.held_out_split!r}: leave held_out_split=null "
            "for a random share of the rows, or give data.held_out_path."
        )
    if data.held_out_split and not data.held_out_path and str(data.path).endswith(SUFFIXES + OTHER_FILES):
        raise RequestError(
            f"data.path={data.path} is one file and has no split {data.held_out_split!r}: give "
            "data.held_out_path=FILE, or data.held_out_split=null for a random share of the rows."
        )


def _parse_rows(source: Rows, maker: Maker, progress: Progress) -> tuple[Shelf[Any], np.ndarray, RowReport]:
    """The usable rows, the keys of their prompts, and the account of the others."""
    parse = maker.parse
    recipe = parse.recipe if isinstance(parse, Encoder) and len(source) >= PARSED_FROM else None
    entry = None if recipe is None else Parsed(recipe, source.sha256, _ends(source))
    known: tuple[Shelf[Any], bytes, dict[str, Any]] | None = None if entry is None else entry.read()
    if known is not None:
        shelf, places, told = known
        told["problems"] = [(number, reason) for number, reason in told["problems"]]
        return shelf, np.frombuffer(places, dtype="S32"), RowReport(**told)
    report = RowReport(total=len(source), problems=list(source.problems))
    report.columns = next((list(map(str, row)) for _, row in source if row), [])
    kept, keys = Shelf[Any](), bytearray()
    for chunk in _watched(made(source.rows, maker, recipe), len(source.rows), progress):
        for one in chunk:
            if one.problem is not None:
                report.problems.append((one.number, one.problem))
                continue
            kept.add(one.content)
            keys += one.key
            report.truncated += one.truncated
            report.ties += one.margin == 0
            report.reversed += one.margin is not None and one.margin < 0
    report.problems.sort()
    report.kept = len(kept)
    if entry is not None:
        entry.write(kept, bytes(keys), vars(report))
    return kept, np.frombuffer(bytes(keys), dtype="S32"), report


def _watched(chunks: Iterator[list[Made]], total: int, progress: Progress) -> Iterator[list[Made]]:
    """The chunks; told how far they are, where they take long enough for somebody to wonder."""
    start, done, tokens, shown = time.monotonic(), 0, 0, False
    for chunk in chunks:
        done, tokens = done + len(chunk), tokens + sum(one.tokens for one in chunk)
        seconds = time.monotonic() - start
        shown = shown or seconds / done * total > _LONG
        if shown:
            progress.advance("tokenize", done, total, tokens_per_second=tokens / seconds)
        yield chunk


def _ends(source: Rows) -> list[int]:
    """Numbers of the first and the last row: blank lines move rows and leave their content as it is."""
    return [source.rows[0][0], source.rows[-1][0], len(source.problems)] if source.rows else [len(source.problems)]
