"""Rows that were parsed once are read again: the same rows and account, and never those of another recipe."""

import os

import pytest

from multiref_cli.config.schema import BadRows
from multiref_cli.data import parsed, rows
from multiref_cli.data.preferences import load_preferences, parse_pair
from tests.data.conftest import CHATML, byte_tokenizer

PAIRS = [{"prompt": f"Sum {n}?", "chosen": f"{n}", "rejected": "no", "kind": n % 3} for n in range(40)]
PAIRS += [{"prompt": "", "chosen": "a", "rejected": "b"}, {"prompt": "x" * 900, "chosen": "a", "rejected": "b"}]
PAIRS += [{"prompt": "p", "chosen": "y" * 600, "rejected": "b", "score_chosen": 1, "score_rejected": 2}]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A cache of its own, used for any number of rows."""
    monkeypatch.setenv("MULTIREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rows, "PARSED_FROM", 1)


@pytest.fixture
def load(monkeypatch, write, config, chatml):
    """Loads pairs; says how many rows were parsed for it, and the split."""
    count = 0

    def counting(number, row, data, tokenizer):
        nonlocal count
        count += 1
        return parse_pair(number, row, data, tokenizer)

    counting.__module__, counting.__qualname__ = parse_pair.__module__, parse_pair.__qualname__
    monkeypatch.setattr("multiref_cli.data.preferences.parse_pair", counting)
    path = write(PAIRS)

    def run(tokenizer=chatml, path=path, **settings):
        nonlocal count
        count = 0
        return load_preferences(config(path, **{"held_out": 0.1} | settings), tokenizer), count

    return run


def test_the_second_time_nothing_is_parsed(load):
    (first, parsed_first), (second, parsed_second) = load(), load()
    assert (parsed_first, parsed_second) == (len(PAIRS), 0)
    assert first.report == second.report and first.report.truncated == 1 and first.report.reversed == 1
    assert first.sha256 == second.sha256 and len(first.report.problems) == 2
    assert list(first.train) == list(second.train) and list(first.held_out) == list(second.held_out)
    assert list(second.train)[3] == second.train[3] and len(second.held_out) == 4


def test_what_says_where_rows_go_is_no_part_of_it(load):
    """Another share held out, rows refused: the same entry, another split."""
    load()
    (other, count), (_, again) = load(held_out=0.5), load(bad_rows=BadRows.drop)
    assert count == again == 0 and len(other.held_out) > 10


def test_another_recipe_is_parsed_anew(load, monkeypatch, write):
    load()
    assert load(max_completion_tokens=20)[1] == len(PAIRS)
    assert load(tokenizer=byte_tokenizer(CHATML.replace("assistant", "model")))[1] == len(PAIRS)
    assert load(prompt_template="Q: {prompt}")[1] == len(PAIRS)
    assert load(split_seed=1)[1] == len(PAIRS)
    monkeypatch.setattr(parsed, "_code", lambda: ["another version"])
    assert load()[1] == len(PAIRS)
    assert load(path=write(PAIRS[:-1]))[1] == len(PAIRS) - 1


def test_special_tokens_in_other_roles_are_another_recipe(config):
    """The same tokens, of which another one ends a response."""
    first, second = (byte_tokenizer(CHATML) for _ in range(2))
    first.eos_token, first.pad_token = "<|im_end|>", "<|im_start|>"
    second.eos_token, second.pad_token = "<|im_start|>", "<|im_end|>"
    assert sorted(first.all_special_tokens) == sorted(second.all_special_tokens)
    made = [parsed.recipe_of(config("rows.jsonl"), one, "parser") for one in (first, second)]
    assert made[0] != made[1]


@pytest.mark.parametrize("where", [0.0, 0.02, 0.2, 0.5, 0.98])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_entry_is_made_again(load, tmp_path, where, how):
    whole, _ = load()
    (path,) = (tmp_path / "cache/tokens").iterdir()
    content = bytearray(path.read_bytes())
    place = int(where * len(content))
    if how == "flip":
        content[place] ^= 1
    path.write_bytes(content if how == "flip" else content[:place])
    (again, count), (last, none) = load(), load()
    assert count == len(PAIRS) and none == 0
    assert list(again.train) == list(whole.train) == list(last.train) and again.report == whole.report


def test_a_cache_that_cannot_be_written_costs_nothing_else(load, tmp_path):
    (tmp_path / "cache").write_text("a file, no folder")
    assert load()[1] == load()[1] == len(PAIRS)


def test_the_least_used_entries_go(load, tmp_path, monkeypatch):
    monkeypatch.setattr(parsed, "_KEPT", 2)
    for limit in (20, 30, 40):
        load(max_completion_tokens=limit)
        for age, path in enumerate(sorted((tmp_path / "cache/tokens").iterdir(), key=os.path.getmtime)[::-1]):
            os.utime(path, (1000 - age, 1000 - age))
    assert len(list((tmp_path / "cache/tokens").iterdir())) == 2
    assert load(max_completion_tokens=40)[1] == 0 and load(max_completion_tokens=20)[1] == len(PAIRS)


def test_few_rows_and_tokenizers_without_rules_leave_nothing(load, tmp_path, monkeypatch, config, chatml):
    monkeypatch.setattr(rows, "PARSED_FROM", 5_000)
    load()
    assert parsed.recipe_of(config("x"), object(), "any") is None and not (tmp_path / "cache/tokens").exists()
