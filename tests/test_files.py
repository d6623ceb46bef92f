"""Files are whole or say that they are not; what is readable in a damaged one is kept."""

import errno
import os

import pytest

from multiref_cli.errors import RunError
from multiref_cli.files import append_line, damaged_lines, keep_lines, read_json, read_lines, write_bytes, write_json


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\0" * 64, b"\xff\xfe{}"])
def test_a_damaged_json_file_is_named_in_one_sentence(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(RunError, match=r"results\.json is damaged .*restore it") as caught:
        read_json(tmp_path / "results.json")
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_and_nothing_is_left_beside_it(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": float("inf"), "y": "\u2028"})
    assert read_json(tmp_path / "a" / "b.json") == {"x": None, "y": "\u2028"}
    assert os.listdir(tmp_path / "a") == ["b.json"] and read_json(tmp_path / "absent") is None


def test_lines_end_at_line_feeds_only(tmp_path):
    rows = [{"text": "one\u2028two\u2029three\u0085four\x0bfive\x1e"}, {"text": "\r"}]
    for row in rows:
        append_line(tmp_path / "x.jsonl", row)
    assert read_lines(tmp_path / "x.jsonl") == rows and damaged_lines(tmp_path / "x.jsonl") == 0


def test_lines_behind_a_damaged_one_are_read_and_the_damage_is_counted_and_never_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    damaged = b'{"step": 2, "l\n\0\0\0\0\n[1]\n'
    path.write_bytes(b'{"step": 1}\n' + damaged + b'{"step": 3}\n{"step": 4}\n{"st')
    assert [row["step"] for row in read_lines(path)] == [1, 3, 4] and damaged_lines(path) == 3
    keep_lines(path, lambda row: row["step"] <= 3)
    assert path.read_bytes() == b'{"step": 1}\n' + damaged + b'{"step": 3}\n'


def test_a_line_behind_a_cut_one_stands_alone(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_good_file(tmp_path, monkeypatch, call):
    path = tmp_path / "status.json"
    write_bytes(path, b"good")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(RunError, match=r"status\.json cannot be written \(No space left on device\): make room"):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"good" and os.listdir(tmp_path) == ["status.json"]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
