"""Demonstrations in every form that supervised fine-tuning takes."""

import pytest

from multiref_cli.data.demonstrations import load_demonstrations

USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "A"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER, ANSWER]},
        {"messages": [USER, ANSWER, USER]},
        {"question": "Q", "answer": "A"},
        {"instruction": "Q", "output": "A"},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
    ],
    ids=str,
)
def test_every_form(row, write, config, chatml):
    (one,) = load_demonstrations(config(write([row])), chatml).train
    assert one.messages == [USER] and one.text == "A"
    assert chatml.decode(one.completion) == "A<|im_end|>"
    assert chatml.decode(one.prompt).endswith("Q<|im_end|>\n<|im_start|>assistant\n")


def test_last_turn_of_a_conversation_is_learned(write, config, chatml):
    second = {"role": "assistant", "content": "B"}
    (one,) = load_demonstrations(config(write([{"messages": [USER, ANSWER, USER, second]}])), chatml).train
    assert one.messages == [USER, ANSWER, USER] and one.text == "B"


def test_calculator_marks_and_columns(write, config, chatml):
    row = {"q": "Q", "steps": "48/2 = <<48/2=24>>24\n#### 24", "id": 1}
    columns = {"prompt": "q", "completion": "steps"}
    (plain,) = load_demonstrations(config(write([row]), columns=columns), chatml).train
    (bare,) = load_demonstrations(
        config(write([row]), columns=columns, options={"calculator_marks": False}), chatml
    ).train
    assert plain.text == row["steps"] and bare.text == "48/2 = 24\n#### 24"
    assert plain.extra == {"id": 1}


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "Q"}, "missing completion"),
        ({"prompt": "Q", "completion": ""}, "empty completion"),
        ({"prompt": "Q", "completion": 3}, "completion has the wrong type: int"),
        ({"messages": [USER]}, "messages hold no response to a prompt"),
        ({"text": " "}, "empty text"),
        ({"text": 3}, "text has the wrong type: int"),
        ({"text": "\ud800"}, "text is no Unicode text"),
    ],
)
def test_bad_row(row, reason, write, config, chatml):
    split = load_demonstrations(config(write([{"prompt": "Q", "completion": "A"}, row])), chatml)
    assert split.report.problems == [(2, reason)] and len(split.train) == 1


def test_truncation_is_counted(write, config, chatml):
    rows = [{"prompt": "Q", "completion": "x" * 20}, {"prompt": "Q2", "chosen": "x" * 20, "rejected": "y"}]
    split = load_demonstrations(config(write(rows), max_completion_tokens=8), chatml)
    assert [len(one.completion) for one in split.train] == [8, 8]
    assert split.report.truncated == 2


def test_gsm8k_solutions(shared, config, words):
    data = config(str(shared / "gsm8k/test.jsonl"), options={"calculator_marks": False})
    split = load_demonstrations(data, words)
    assert len(split.train) == 1319 and not any("<<" in one.text for one in split.train)


@pytest.mark.parametrize(
    "text, whole",
    [
        ("two words", "two words<|im_end|>"),
        ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>",) * 2,
    ],
)
def test_a_text_is_learned_whole(text, whole, write, config, chatml):
    """Every token but the first, which nothing comes before, and the end token once."""
    (one,) = load_demonstrations(config(write([{"text": text, "id": 1}])), chatml).train
    assert list(one.prompt + one.completion) == chatml(whole, add_special_tokens=False)["input_ids"]
    assert len(one.prompt) == 1 and one.extra == {"id": 1} and one.truncated == 0


def test_a_text_of_another_column_is_cut_at_the_limit(write, config, chatml):
    data = config(write([{"body": "one two three four"}]), columns={"text": "body"}, max_completion_tokens=2)
    (one,) = load_demonstrations(data, chatml).train
    assert len(one.completion) == 2 and one.truncated == 1


def test_a_text_beside_a_prompt_is_no_text_to_learn(write, config, chatml):
    (one,) = load_demonstrations(config(write([{"text": "T", "prompt": "Q", "completion": "A"}])), chatml).train
    assert one.text == "A"
