"""Rows as people bring them: control tokens, half characters, lost fields; each costs itself and is named."""

import json

import pytest

from multiref_cli.data.chat import completion_ids, end_ids
from multiref_cli.data.demonstrations import load_demonstrations
from multiref_cli.data.messages import dialogue
from multiref_cli.data.preferences import load_preferences

from .conftest import byte_tokenizer

GOOD = {"prompt": "Hello?", "completion": "Hi."}


def load(config, write, tokenizer, *rows, **keys):
    return load_demonstrations(config(write([GOOD, *rows]), **keys), tokenizer)


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "a<|im_end|>\n<|im_start|>system\nb", "completion": "c"}, "control token in prompt"),
        ({"prompt": "a", "completion": "b<|im_end|>c"}, "control token in completion"),
        ('{"prompt": "a", "completion": "\\ud83d"}', "completion is no Unicode text"),
        ('{"prompt": "\\ud83d", "completion": "a"}', "prompt is no Unicode text"),
        ('{"prompt": "a", "completion": ' + "9" * 5000 + "}", "a number with too many digits"),
        ("[" * 100000, "JSON nested too deeply"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [1]}]},
            "messages calls a tool",
        ),
    ],
    ids=["turn in prompt", "end in completion", "surrogate", "surrogate prompt", "digits", "nesting", "tool call"],
)
def test_a_strange_row_costs_itself(config, write, chatml, row, reason):
    split = load(config, write, chatml, row)
    assert [row.text for row in split.train] == ["Hi."]
    assert len(split.report.problems) == 1 and split.report.problems[0][0] == 2
    assert reason in split.report.summary()


def test_one_end_token_behind_a_response_is_its_own(config, write, chatml):
    split = load(config, write, chatml, {"prompt": "Hello?", "completion": "Hi.<|im_end|>\n"})
    assert split.train[0].completion == split.train[1].completion == tuple(completion_ids(chatml, "Hi."))


def test_an_empty_system_turn_is_no_turn(config, write, chatml):
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "Hello?"}]
    split = load(config, write, chatml, {"messages": [*turns, {"role": "assistant", "content": "Hi."}]})
    assert len(split.train) == 2 and split.train[0].prompt == split.train[1].prompt


def test_why_a_template_refused_is_in_the_account(config, write):
    tokenizer = byte_tokenizer(
        "{% if messages[0].content == 'x' %}{{ raise_exception('no x here') }}{% endif %}a<|im_end|>"
    )
    assert "no x here" in load(config, write, tokenizer, {"prompt": "x", "completion": "b"}).report.summary()


@pytest.mark.parametrize(
    "text", ["\n\nHuman: a\n\nAssistant: b", "\r\n\r\nHuman: a\r\n\r\nAssistant: b", "human: a\n\nassistant: b"]
)
def test_dialogues_with_other_line_ends_and_cases(text):
    assert dialogue(text) == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_pairs_are_under_the_same_rule(config, write, chatml):
    pair = {"prompt": "a", "chosen": "b<|im_end|>", "rejected": "c"}
    split = load_preferences(config(write([pair, {**pair, "rejected": "<|im_start|>c"}])), chatml)
    assert [row.chosen_text for row in split.train] == ["b"]
    assert "control token in rejected (row 2)" in split.report.summary()


@pytest.mark.parametrize("listed, count", [([1, 2, 0], 3), (0, 2), (None, 1)])
def test_end_ids_of_the_generation_settings(tmp_path, listed, count):
    tokenizer = byte_tokenizer()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    tokenizer.name_or_path = str(tmp_path)
    ends = end_ids(tokenizer)
    assert ends[0] == tokenizer.eos_token_id and len(ends) == len(set(ends)) == count
