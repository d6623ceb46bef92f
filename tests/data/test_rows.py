"""Reading rows from every kind of place, the account of bad ones, and the split."""

import json
from hashlib import sha256

import numpy as np
import pytest

from multiref_cli.config.schema import BadRows
from multiref_cli.data.held_out import hold_out
from multiref_cli.data.made import BadRow
from multiref_cli.data.rows import load_split, read_rows
from multiref_cli.data.shelf import Shelf
from multiref_cli.errors import RequestError

ROWS = [{"prompt": f"p{i}", "n": i} for i in range(6)]


def _parquet(rows, path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_every_format_gives_the_same_rows_and_the_same_checksum(write, tmp_path):
    from datasets import Dataset, DatasetDict

    _parquet(ROWS, tmp_path / "rows.parquet")
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(str(tmp_path / "dict"))
    shards = tmp_path / "hub/data"
    shards.mkdir(parents=True)
    _parquet(ROWS[:4], shards / "train-00000-of-00002.parquet")
    _parquet(ROWS[4:], shards / "train-00001-of-00002.parquet")
    (tmp_path / "folder").mkdir()
    write(ROWS, "folder/train.jsonl")
    places = [write(ROWS), *(tmp_path / name for name in ("rows.parquet", "one", "dict", "hub", "folder"))]
    read = [read_rows(str(place)) for place in places]
    assert all(rows.rows == list(enumerate(ROWS, 1)) for rows in read)
    assert len({rows.sha256 for rows in read}) == 1
    assert read_rows(str(tmp_path / "dict"), "test").rows == [(1, ROWS[0])]
    assert all(len(read_rows(str(place), max_rows=2)) == 2 for place in places)


def test_checksum_follows_the_content(write):
    changed = [*ROWS[:-1], {**ROWS[-1], "n": 7}]
    assert read_rows(write(ROWS)).sha256 != read_rows(write(changed, "changed.jsonl")).sha256


def test_lines_that_are_no_json_keep_their_numbers(write):
    rows = read_rows(write([ROWS[0], "{not json", "", "[1, 2]", ROWS[1]]))
    assert [number for number, _ in rows] == [1, 5]
    assert rows.problems == [(2, "not JSON"), (4, "not a JSON object")]
    assert len(rows) == 4


@pytest.mark.parametrize(
    "path, words",
    [
        ("nowhere.jsonl", "no such file"),
        ("./nowhere/at/all", "no such file or folder"),
        ("nonsense", "no Hub id"),
    ],
)
def test_nothing_there(path, words):
    with pytest.raises(RequestError, match=words):
        read_rows(path)


def test_unknown_format_and_split(tmp_path, write):
    (tmp_path / "rows.txt").write_text("a,b\n")
    with pytest.raises(RequestError, match=r"\.jsonl or \.parquet"):
        read_rows(str(tmp_path / "rows.txt"))
    (tmp_path / "folder").mkdir()
    write(ROWS, "folder/train.jsonl")
    write(ROWS, "folder/test.jsonl")
    with pytest.raises(RequestError, match="there is: test, train"):
        read_rows(str(tmp_path / "folder"), "validation")


def test_hub_id_goes_to_the_hub_with_its_revision_and_configuration(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, **keys):
        asked.update(path=path, **keys)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_rows("openai/gsm8k", "test", "abc123", 2, "main")
    assert asked == {"path": "openai/gsm8k", "name": "main", "split": "test", "revision": "abc123"}
    assert rows.rows == [(1, ROWS[0]), (2, ROWS[1])]


def test_a_hub_that_says_no_is_a_wrong_request(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise FileNotFoundError("Couldn't find it\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RequestError, match=r"Couldn't find it$"):
        read_rows("nobody/nothing")


def _parse(number, row):
    if "prompt" not in row:
        raise BadRow("missing prompt")
    if row["prompt"] == "long":
        raise BadRow(f"too long: {number}")
    return row["prompt"]


def test_bad_rows_are_counted_and_listed_never_silent(write, config):
    path = write([ROWS[0], {"x": 1}, "{", {"prompt": "long"}, {"prompt": "long"}, ROWS[1]])
    split = load_split(config(path), _parse, str)
    assert split.train == ["p0", "p1"]
    report = split.report
    assert (report.total, report.kept) == (6, 2)
    assert report.problems == [(2, "missing prompt"), (3, "not JSON"), (4, "too long: 4"), (5, "too long: 5")]
    assert report.counts == {"too long": 2, "missing prompt": 1, "not JSON": 1}
    assert report.summary() == (
        "2 of 6 rows kept; 2 dropped: too long (rows 4, 5); 1 dropped: missing prompt (row 2); "
        "1 dropped: not JSON (row 3)"
    )


def test_bad_rows_can_be_refused(write, config):
    good, bad = write([ROWS[0]]), write([ROWS[0], {"x": 1}], "bad.jsonl")
    assert load_split(config(good, bad_rows=BadRows.refuse), _parse, str).report.kept == 1
    with pytest.raises(RequestError, match=r"bad_rows=refuse.*missing prompt \(row 2\)"):
        load_split(config(bad, bad_rows=BadRows.refuse), _parse, str)


def test_nothing_usable_says_why(write, config):
    with pytest.raises(RequestError, match=r"no usable training row.*missing prompt"):
        load_split(config(write([{"x": 1}])), _parse, str)


def test_given_held_out_file_and_what_it_shares(write, config):
    train, test = write(ROWS[:4]), write([ROWS[3], ROWS[5], {"x": 1}], "test.jsonl")
    split = load_split(config(train, held_out_path=test), _parse, str)
    assert (split.train, split.held_out) == (["p0", "p1", "p2", "p3"], ["p3", "p5"])
    assert split.report.shared_prompts == 1 and "1 held-out prompts are also training prompts" in split.report.summary()
    assert split.report.problems == [(3, "held-out missing prompt")]
    assert split.sha256 != load_split(config(train), _parse, str).sha256


def test_held_out_split_of_a_folder_but_not_of_a_file(tmp_path, write, config):
    (tmp_path / "folder").mkdir()
    write(ROWS[:4], "folder/train.jsonl")
    write(ROWS[4:], "folder/test.jsonl")
    split = load_split(config(str(tmp_path / "folder"), held_out_split="test"), _parse, str)
    assert (len(split.train), split.held_out) == (4, ["p4", "p5"])
    with pytest.raises(RequestError, match="has no split 'test'"):
        load_split(config(write(ROWS), held_out_split="test"), _parse, str)


def test_a_folder_of_several_configurations_is_read_one_at_a_time(tmp_path, write, config):
    """As a clone of a Hub data set lies there: never their rows mixed."""
    for place, part in (("main", ROWS[:2]), ("socratic", ROWS[2:4])):
        (tmp_path / "clone" / place).mkdir(parents=True)
        write(part, f"clone/{place}/train.jsonl")
    path = str(tmp_path / "clone")
    assert load_split(config(path, options={"name": "socratic"}), _parse, str).train == ["p2", "p3"]
    for options in ({}, {"name": "other"}):
        with pytest.raises(RequestError, match=r"in 2 folders: give data\.options\.name, one of main, socratic"):
            load_split(config(path, options=options), _parse, str)


def test_unknown_option_is_refused(write, config):
    with pytest.raises(RequestError, match=r"data\.options\.answr"):
        load_split(config(write(ROWS), options={"answr": "number"}), _parse, str)


def _held_out(rows, share, seed=0):
    """Training and held-out rows, by their prompts."""
    keys = [sha256(f"{seed}\n{row['prompt']}".encode()).digest() for row in rows]
    return hold_out(Shelf(rows), np.array(keys, dtype="S32"), share)


def test_random_split_keeps_a_prompt_on_one_side_whatever_the_order():
    rows = [{"prompt": f"p{i // 2}", "n": i} for i in range(100)]
    train, held_out = _held_out(rows, 0.1)
    prompts = {row["prompt"] for row in held_out}
    assert len(prompts) == 5 and len(held_out) == 10 and not prompts & {row["prompt"] for row in train}
    assert [row["n"] for row in train] == sorted(row["n"] for row in train)
    assert {row["prompt"] for row in _held_out(rows[::-1], 0.1)[1]} == prompts
    assert {row["prompt"] for row in _held_out(rows, 0.1, 1)[1]} != prompts
    # A row that drops out for one tokenizer moves no prompt but at the edge of the share.
    fewer = {row["prompt"] for row in _held_out(rows[:90], 0.1)[1]}
    assert len(fewer - prompts) <= 1


def test_the_held_out_prompts_are_those_of_the_smallest_sha256(write, config):
    rows = [{"prompt": f"p{i}"} for i in range(40)]
    ranked = sorted((row["prompt"] for row in rows), key=lambda p: sha256(f"7\n{p}".encode()).digest())
    split = load_split(config(write(rows), held_out=0.2, split_seed=7), _parse, str)
    assert set(split.held_out) == set(ranked[:8]) and set(split.train) == set(ranked[8:])


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_share_must_leave_rows(share):
    with pytest.raises(RequestError, match="nothing to train on"):
        _held_out(ROWS, share)


def test_sha256_of_rows_is_of_canonical_json(write):
    import hashlib

    expected = hashlib.sha256(b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in ROWS)).hexdigest()
    assert read_rows(write(ROWS)).sha256 == expected
