"""Prompts with gold answers: GSM8K, any rows, preference pairs, generated problems."""

import pytest

from multiref_cli.data.encode import prompt_key
from multiref_cli.data.preferences import load_preferences
from multiref_cli.data.prompts import load_prompts
from multiref_cli.errors import RequestError


def test_gsm8k_row(write, config, chatml):
    row = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,072"}
    (prompt,) = load_prompts(config(write([row]), options={"answer": "number"}), chatml).train
    assert prompt.messages == [{"role": "user", "content": "How many?"}]
    assert prompt.answer == "1,072" and prompt.extra == {"answer": row["answer"]}
    assert chatml.decode(prompt.ids).endswith("How many?<|im_end|>\n<|im_start|>assistant\n")


def test_composed_configs_load_as_well(write, config, chatml):
    from multiref_cli.config.compose import compose

    path = write([{"q": "Q", "answer": "5"}])
    overrides = ["data=jsonl", f"data.path={path}", "data.held_out=0", "+data.columns.prompt=q"]
    composed = compose([*overrides, "data.options={answer: number}"]).data
    assert load_prompts(composed, chatml).train[0].answer == "5"


@pytest.mark.parametrize(
    "row, text, answer",
    [
        ({"prompt": "Q", "answer": "A"}, "Q", "A"),
        ({"prompt": "Q"}, "Q", None),
        ({"problem": "Q", "answer": 3}, "Q", "3"),
        ({"prompt": [{"role": "user", "content": "Q"}], "answer": 0.5}, "Q", "0.5"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "Q", None),
    ],
)
def test_any_row_with_a_prompt(row, text, answer, write, config, chatml):
    (prompt,) = load_prompts(config(write([row])), chatml).train
    assert (prompt.messages[-1]["content"], prompt.answer) == (text, answer)


def test_columns_extra_and_template(write, config, chatml):
    row = {"q": "Q", "meta": {"target": 7, "source": "s"}, "id": 3}
    data = config(write([row]), columns={"prompt": "q", "answer": "meta.target"}, prompt_template="{prompt} Think.")
    (prompt,) = load_prompts(data, chatml).train
    assert (prompt.messages[-1]["content"], prompt.answer) == ("Q Think.", "7")
    assert prompt.extra["id"] == 3 and prompt.extra["meta"]["source"] == "s"


BAD = [
    ({"prompt": "Q", "answer": "steps #### none"}, "auto", "the gold answer is no number: 'steps #### none'"),
    ({"prompt": "Q", "answer": "5 or 6"}, "number", "the gold answer is no number: '5 or 6'"),
    ({"prompt": "Q"}, "number", "missing answer"),
    ({"prompt": "Q", "answer": " "}, "auto", "empty answer"),
    ({"prompt": "Q", "answer": [1]}, "auto", "answer has the wrong type: list"),
    ({"prompt": "Q", "answer": "\\frac{1}{}"}, "math", "the gold answer does not parse: " + repr("\\frac{1}{}")),
    ({"prompt": ""}, "auto", "empty prompt"),
    ({"prompt": None}, "auto", "missing prompt"),
    ({"text": "Q"}, "auto", "missing prompt: there is text"),
    (
        {"messages": [{"role": "assistant", "content": "A"}]},
        "auto",
        "missing prompt: messages hold turns of the assistant only",
    ),
    ({"prompt": "Q" * 200}, "auto", "prompt over 100 tokens: 219"),
]


@pytest.mark.parametrize("row, kind, reason", BAD, ids=[reason for *_, reason in BAD])
def test_bad_row_is_named_with_its_line(row, kind, reason, write, config, chatml):
    good = {"prompt": "Q", "answer": "#### 5" if kind == "auto" else "5"}
    split = load_prompts(config(write([good, row]), options={"answer": kind}, max_prompt_tokens=100), chatml)
    assert split.report.problems == [(2, reason)]
    assert [prompt.row for prompt in split.train] == [1]


def test_named_answer_column_must_be_there(write, config, chatml):
    data = config(write([{"prompt": "P", "gold": 1}, {"prompt": "Q"}]), columns={"answer": "gold"})
    assert load_prompts(data, chatml).report.problems == [(2, "missing gold")]


def test_math_answers(write, config, chatml):
    rows = [{"prompt": "P", "answer": r"\frac{1}{2}"}, {"prompt": "Q", "answer": "(1, 2)"}]
    assert len(load_prompts(config(write(rows), options={"answer": "math"}), chatml).train) == 2


def test_unknown_kind_of_answer(write, config, chatml):
    with pytest.raises(RequestError, match="auto, number, math, text"):
        load_prompts(config(write([{"prompt": "Q"}]), options={"answer": "numbr"}), chatml)


def test_prompts_of_pairs_come_once_and_split_as_the_pairs(write, config, chatml):
    rows = [{"prompt": f"q{i // 2}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(40)]
    data = config(write(rows), held_out=0.2)
    pairs, prompts = load_preferences(data, chatml), load_prompts(data, chatml)
    assert len(prompts.train) + len(prompts.held_out) == 20 and prompts.report.duplicates == 20
    assert {prompt_key(p) for p in prompts.held_out} == {prompt_key(p) for p in pairs.held_out}
    assert len(prompts.held_out) == 4


def test_gsm8k_loads(shared, config, words):
    folder = shared / "gsm8k"
    data = config(str(folder / "train.jsonl"), held_out_path=str(folder / "test.jsonl"), options={"answer": "number"})
    split = load_prompts(data, words)
    assert (len(split.train), len(split.held_out)) == (7473, 1319)
    assert split.report.problems == [] and split.report.shared_prompts == 0
    assert split.held_out[0].answer == "18"


def test_prompts_of_helpful_dialogues(shared, config, words):
    split = load_prompts(config(str(shared / "hh-helpful/helpful-base-test.jsonl"), held_out=0.1), words)
    assert split.report.duplicates == split.report.kept - len(split.train) - len(split.held_out)
    assert not {prompt_key(p) for p in split.train} & {prompt_key(p) for p in split.held_out}


def test_a_solution_of_the_row_and_its_raw_answer_are_two_things(write, config, chatml):
    row = {"problem": "How many?", "solution": "We add.", "answer": "so it is #### 72"}
    (prompt,) = load_prompts(config(write([row]), options={"answer": "number"}), chatml).train
    assert prompt.answer == "72" and prompt.extra == {"solution": "We add.", "answer": "so it is #### 72"}


def test_what_an_instruction_is_about_is_part_of_the_prompt(write, config, chatml):
    """Alpaca's `input`, Dolly's `context`; nothing where it is empty, or where the prompt has another name."""
    rows = [
        {"instruction": "Classify this.", "input": "I hated it.", "answer": "1"},
        {"instruction": "When did it start?", "context": "It began in 2000.", "answer": "2000"},
        {"instruction": "Say three.", "input": "", "answer": "3"},
        {"prompt": "Say four.", "input": "a column of its own", "answer": "4"},
    ]
    prompts = load_prompts(config(write(rows)), chatml).train
    assert [one.messages[0]["content"] for one in prompts] == [
        *("Classify this.\n\nI hated it.", "When did it start?\n\nIt began in 2000.", "Say three.", "Say four.")
    ]
