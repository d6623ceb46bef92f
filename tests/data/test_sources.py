"""Rows that a function makes."""

import pytest

from multiref_cli.data.prompts import load_prompts
from multiref_cli.errors import RequestError

HERE = "tests.data.test_sources"


def sums(size: int = 20, start: int = 0):
    return ({"question": f"{i} + 1?", "answer": i + 1} for i in range(start, start + size))


def words():
    return ["no dictionary"]


def source(name="sums", **arguments):
    return {"_target_": f"{HERE}.{name}", **arguments}


def test_a_function_is_a_source_of_rows(config, chatml):
    split = load_prompts(config(None, source=source(size=10), held_out=0.2), chatml)
    assert (len(split.train), len(split.held_out)) == (8, 2)
    assert {(p.messages[0]["content"], p.answer) for p in [*split.train, *split.held_out]} == {
        (f"{i} + 1?", str(i + 1)) for i in range(10)
    }


def test_the_checksum_is_that_of_the_rows(config, chatml):
    def sha(**arguments):
        return load_prompts(config(None, source=source(**arguments)), chatml).sha256

    assert sha() == sha(size=20) != sha(start=1)


def test_max_rows_ends_an_endless_source(config, chatml):
    assert len(load_prompts(config(None, source=source(size=10**12), max_rows=3), chatml).train) == 3


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"source": {"size": 1}}, "no _target_"),
        ({"source": source("sum")}, "did you mean sums"),
        ({"source": source(sizes=1)}, "takes size, start: .*sizes"),
        ({"source": source("words")}, "gave str as row 1"),
        ({"source": source(), "held_out_split": "test"}, "without splits"),
        ({"source": None}, "both null"),
    ],
)
def test_what_is_no_source(config, chatml, keys, words):
    with pytest.raises(RequestError, match=words):
        load_prompts(config(None, **keys), chatml)
