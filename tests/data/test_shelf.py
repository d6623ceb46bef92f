"""Rows on a shelf come back as they were, from memory and from the temporary file, in any order."""

import os
import random

import pytest

from multiref_cli.data import shelf
from multiref_cli.data.shelf import Shelf
from multiref_cli.errors import RequestError


@pytest.mark.parametrize("page", [1, 500, 2**22])
def test_rows_come_back(monkeypatch, page):
    monkeypatch.setattr(shelf, "_PAGE", page)
    generator = random.Random(0)
    rows = [{"number": i, "ids": tuple(range(generator.randrange(50))), "text": "ä\u2028" * i} for i in range(200)]
    kept = Shelf(rows)
    assert len(kept) == 200 and kept == rows and kept[:3] == rows[:3] and kept[-1] == rows[-1] and rows[7] in kept
    order = generator.sample(range(200), 200)
    assert [kept[i] for i in order] == [rows[i] for i in order]
    some = kept.chosen(order[:30])
    kept.append({"number": 200})
    some.append({"number": 201})
    assert some == [*(rows[i] for i in order[:30]), {"number": 201}] and kept[200] == {"number": 200}
    assert kept != rows and not Shelf([]) and [number for number, _ in enumerate(some)] == list(range(31))
    with pytest.raises(IndexError):
        kept[201]


def test_what_cannot_be_kept_is_said():
    with pytest.raises(RequestError, match="cannot be kept"):
        Shelf([lambda: None])


def test_processes_that_share_a_shelf_read_their_own_rows(monkeypatch):
    monkeypatch.setattr(shelf, "_PAGE", 100)
    kept = Shelf(range(5000))
    pid = os.fork()
    if pid == 0:
        os._exit(int(list(kept) != list(range(5000))))
    assert list(kept) == list(range(5000))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
