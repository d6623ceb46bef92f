"""The filter of `multiref runs`: what it lets pass, what it refuses, and that it never runs anything."""

import pytest

from multiref_cli.config.where import value_of, where
from multiref_cli.errors import RequestError

FACTS = {
    "beta": 1.0,
    "seed": 3,
    "regularizer": "rkl",
    "alpha": [0.3, 0.7],
    "estimator": None,
    "share": True,
    "condition": "dpo-rkl a",
    "kl/mixed": 0.25,
}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("beta=1", True),
        ("beta==1.0", True),
        ("beta!=1", False),
        ("beta=1 and regularizer=fkl", False),
        ("beta=1 AND regularizer=rkl", True),
        ("beta=2 or regularizer=rkl", True),
        ("beta=2 and seed=3 or regularizer=rkl", True),  # and binds first
        ("beta=2 and (seed=3 or regularizer=rkl)", False),
        ("seed>=3 and seed<=3 and seed>2.5 and seed<4", True),
        ("seed>3", False),
        ("kl/mixed<0.3", True),
        ("alpha=[0.3,0.7]", True),
        ("alpha=[0.3, 0.7]", True),
        ("alpha='[0.30,0.7]'", True),
        ("alpha=[0.7,0.3]", False),
        ("condition='dpo-rkl a'", True),
        ('condition="dpo-rkl a"', True),
        ("share=true and share!=false", True),
        ("estimator=null", True),
        ("estimator!=exact", False),  # what is not there stands to nothing
        ("nothing=1 or nothing!=1", False),
        ("regularizer<5", False),
        ("1e0=1", False),
    ],
)
def test_what_passes(text, passes):
    assert where(text).holds(FACTS.get) is passes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a key at its end"),
        ("beta", "one of <= >= != = < > at its end"),
        ("beta=", "a value at its end"),
        ("beta=1 and", "a key at its end"),
        ("beta=1 seed=2", "and, or, or the end at 'seed=2'"),
        ("(beta=1", ") at its end"),
        ("beta=1)", "and, or, or the end at ')'"),
        ("beta='1", "close the quotation mark"),
        ("beta<rkl", "which is no number"),
        ("__import__('os').system('x')", "one of"),
        ("(" * 60 + "beta=1" + ")" * 60, "fewer brackets"),
        ("=1", "a key at '=1'"),
    ],
)
def test_what_is_refused_in_a_sentence(text, expected):
    with pytest.raises(RequestError, match="--where") as error:
        where(text)
    assert expected in str(error.value)


def test_keys_of_a_config():
    content = {
        "beta": 1,
        "regularizer": {"name": "rkl", "score_order": 0.0},
        "policy": {"path": "a/b"},
        "references": [{"name": "one", "path": "x"}, {"name": "two", "path": "y"}],
        "estimator": None,
    }
    found = {
        "beta": 1,
        "regularizer": "rkl",
        "regularizer.score_order": 0.0,
        "policy": "a/b",
        "references.two.path": "y",
        "references.one": "one",
        "estimator": None,
    }
    assert {key: value_of(content, key) for key in found} == found
    for key in ("betta", "beta.x", "references.three", "policy.revision", ""):
        with pytest.raises(KeyError):
            value_of(content, key)
