"""Rows as people bring them: control tokens, half characters, lost fields; each costs itself and is named."""

import gzip
import json

import pytest

from multiref_cli.config.schema import Model
from multiref_cli.data.chat import conversation_ids, end_ids
from multiref_cli.data.demonstrations import load_demonstrations
from multiref_cli.data.messages import dialogue
from multiref_cli.data.preferences import load_preferences
from multiref_cli.errors import RequestError
from multiref_cli.models.load import load_tokenizer

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
            "tool_calls have the wrong type",
        ),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b", "function_call": 1}]}, "function_call"),
        ({"prompt": "a", "completion": "b", "tools": [{"type": "function", "function": {"name": "get"}}]}, "out tools"),
    ],
    ids=[
        "turn in prompt",
        "end in completion",
        "surrogate",
        "surrogate prompt",
        "digits",
        "nesting",
        "tool call",
        "old call",
        "tools",
    ],
)
def test_a_strange_row_costs_itself(config, write, chatml, row, reason):
    split = load(config, write, chatml, row)
    assert [row.text for row in split.train] == ["Hi."]
    assert len(split.report.problems) == 1 and split.report.problems[0][0] == 2
    assert reason in split.report.summary()


def test_one_end_token_behind_a_response_is_its_own(config, write, chatml):
    split = load(config, write, chatml, {"prompt": "Hello?", "completion": "Hi.<|im_end|>\n"})
    assert (
        split.train[0].completion
        == split.train[1].completion
        == tuple(conversation_ids(chatml, split.train[0].messages, ["Hi."])[1][0])
    )


def test_an_empty_system_turn_is_no_turn(config, write, chatml):
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "Hello?"}]
    split = load(config, write, chatml, {"messages": [*turns, {"role": "assistant", "content": "Hi."}]})
    assert len(split.train) == 2 and split.train[0].prompt == split.train[1].prompt


def test_why_a_template_refused_is_in_the_account(config, write):
    tokenizer = byte_tokenizer(
        "{% if messages[0].content == 'x' %}{{ raise_exception('no x here') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
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
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    tokenizer = load_tokenizer(Model(path=str(tmp_path)))
    ends = end_ids(tokenizer)
    assert ends[0] == tokenizer.eos_token_id and len(ends) == len(set(ends)) == count


ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c\u2028d", "completion": "e, f"}]


@pytest.mark.parametrize("kind", ["list.json", "named.json", "rows.csv", "rows.jsonl.gz"])
def test_other_files(tmp_path, config, chatml, kind):
    path = tmp_path / kind
    if kind.endswith(".gz"):
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind.endswith(".csv"):
        path.write_text('prompt,completion\na,b\n"c\u2028d","e, f"\n', encoding="utf-8")
    else:
        path.write_text(json.dumps(ROWS if kind == "list.json" else {"data": ROWS}))
    split = load_demonstrations(config(str(path)), chatml)
    assert [(row.messages[0]["content"], row.text) for row in split.train] == [("a", "b"), ("c\u2028d", "e, f")]


@pytest.mark.parametrize("text", ["[1, 2", '{"a": 1}', '{"a": [], "b": []}'])
def test_a_json_file_without_a_list_of_rows_is_refused(tmp_path, config, chatml, text):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(RequestError, match=r"no JSON|no list of rows"):
        load_demonstrations(config(str(tmp_path / "rows.json")), chatml)


@pytest.mark.parametrize("write_out", [json.dumps, repr])
def test_a_conversation_kept_as_text(config, write, chatml, write_out):
    turns = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "b"}]
    other = [turns[0], {"role": "assistant", "content": "c"}]
    split = load_preferences(config(write([{"chosen": write_out(turns), "rejected": write_out(other)}])), chatml)
    (pair,) = split.train
    assert (pair.messages, pair.chosen_text, pair.rejected_text) == (turns[:1], "b", "c")


def test_dialogues_beside_a_prompt_column_carry_their_prompt(config, write, chatml):
    start = "\n\nHuman: name a tree\n\nAssistant:"
    row = {"prompt": start, "chosen": start + " oak", "rejected": start + " rock"}
    (pair,) = load_preferences(config(write([row])), chatml).train
    assert (pair.chosen_text, pair.rejected_text) == ("oak", "rock")
    assert pair.messages == [{"role": "user", "content": "name a tree"}]


def test_an_empty_system_prompt_is_one(config, write, chatml):
    (row,) = load_demonstrations(config(write([GOOD]), system_prompt=""), chatml).train
    assert row.messages[0] == {"role": "system", "content": ""}


@pytest.mark.parametrize(
    "name, content",
    [
        ("cut.jsonl.gz", gzip.compress(b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 50, mtime=0)[:40]),
        ("plain.jsonl.gz", b'{"prompt": "a"}\n'),
        ("junk.parquet", b"PAR1junk"),
        ("empty.parquet", b""),
        ("latin1.csv", b"prompt,chosen,rejected\ncaf\xe9,a,b\n"),
        ("twice.csv", b"prompt,chosen,chosen,rejected\na,b,c,d\n"),
        ("broken/state.json", b"{"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, config, chatml, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    place = path.parent if "/" in name else path
    with pytest.raises(RequestError, match=f"data.path={place} (cannot be read: .|has two columns 'chosen')"):
        load_preferences(config(path=str(place)), chatml)
