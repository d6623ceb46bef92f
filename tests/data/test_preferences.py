"""Preference rows in the forms that TRL users have them, and every kind of bad row."""

import pytest

from multiref_cli.config.schema import BadRows
from multiref_cli.data.preferences import load_preferences
from multiref_cli.errors import RequestError

USER = {"role": "user", "content": "Sky?"}
BLUE, GREEN = {"role": "assistant", "content": "Blue."}, {"role": "assistant", "content": "Green."}
HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sky?\n\nAssistant: "
FORMS = {
    "plain": {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "conversational": {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]},
    "implicit": {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "implicit with a copy of the prompt": {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "one message": {"prompt": "Sky?", "chosen": BLUE, "rejected": GREEN},
    "from and value": {
        "chosen": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}],
        "rejected": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Green."}],
    },
    "text parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "Sky?"}]}],
        "chosen": [BLUE],
        "rejected": [GREEN],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one_pair(form, write, config, chatml):
    split = load_preferences(config(write([FORMS[form]])), chatml)
    (pair,) = split.train
    assert pair.messages == [USER]
    assert (pair.chosen_text, pair.rejected_text) == ("Blue.", "Green.")
    assert chatml.decode(pair.prompt) == "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
    assert chatml.decode(pair.chosen) == "Blue.<|im_end|>" and chatml.decode(pair.rejected) == "Green.<|im_end|>"


def test_old_dialogues_become_turns(write, config, chatml):
    row = {"chosen": HH + "Blue.\n\nMostly.", "rejected": HH + "Green."}
    (pair,) = load_preferences(config(write([row])), chatml).train
    assert [(turn["role"], turn["content"]) for turn in pair.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "Sky?"),
    ]
    assert pair.chosen_text == "Blue.\n\nMostly."


def test_old_dialogue_as_a_prompt(write, config, chatml):
    row = {"prompt": HH, "chosen": "Blue.", "rejected": "Green."}
    (pair,) = load_preferences(config(write([row])), chatml).train
    assert [turn["role"] for turn in pair.messages] == ["user", "assistant", "user"]


def test_words_that_two_plain_texts_begin_with_are_no_prompt(write, config, chatml):
    rows = [{"chosen": "The sky is blue.", "rejected": "The sky is black.", "topic": "The sky?"}]
    with pytest.raises(
        RequestError, match=r"missing prompt \(row 1\).*chosen, rejected, topic.*data.columns.prompt=COLUMN"
    ):
        load_preferences(config(write(rows)), chatml)
    (pair,) = load_preferences(config(write(rows), columns={"prompt": "topic"}), chatml).train
    assert (pair.messages[0]["content"], pair.chosen_text) == ("The sky?", "The sky is blue.")


@pytest.mark.parametrize("name", ["question", "problem", "instruction"])
def test_a_prompt_has_the_names_that_conf_says(write, config, chatml, name):
    (pair,) = load_preferences(config(write([{name: "Sky?", "chosen": "Blue.", "rejected": "Red."}])), chatml).train
    assert pair.messages[0]["content"] == "Sky?" and name not in pair.extra


def test_the_system_turn_of_a_prompt_beside_full_conversations_stays(write, config, chatml):
    turns = [{"role": "user", "content": "Sky?"}]
    row = {
        "prompt": [{"role": "system", "content": "Judge."}, *turns],
        "chosen": [*turns, {"role": "assistant", "content": "Blue."}],
        "rejected": [*turns, {"role": "assistant", "content": "Red."}],
    }
    (pair,) = load_preferences(config(write([row])), chatml).train
    assert [turn["content"] for turn in pair.messages] == ["Judge.", "Sky?"]


def test_columns_system_prompt_template_and_extra(write, config, chatml):
    row = {"q": {"text": "Sky?"}, "good": "Blue.", "bad": "Green.", "scores": {"good": 9}}
    data = config(
        write([row]),
        columns={"prompt": "q.text", "chosen": "good", "rejected": "bad"},
        system_prompt="Be brief.",
        prompt_template="Q: {prompt} {really}",
    )
    (pair,) = load_preferences(data, chatml).train
    assert pair.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: Sky? {really}"},
    ]
    assert pair.extra["scores"] == {"good": 9}


BAD = [
    ({"prompt": "Sky?", "chosen": "Blue."}, "missing rejected"),
    ({"prompt": "Sky?", "chosen": None, "rejected": "Green."}, "chosen is null"),
    ({"chosen": "Blue.", "rejected": "Green."}, "missing prompt"),
    ({"prompt": " ", "chosen": "Blue.", "rejected": "Green."}, "empty prompt"),
    ({"prompt": "Sky?", "chosen": "", "rejected": "Green."}, "empty chosen"),
    ({"prompt": "Sky?", "chosen": "Blue.", "rejected": "\n"}, "empty rejected"),
    ({"prompt": 7, "chosen": "Blue.", "rejected": "Green."}, "prompt has the wrong type: int"),
    ({"prompt": "Sky?", "chosen": 7, "rejected": "Green."}, "chosen has the wrong type: int"),
    ({"prompt": "Sky?", "chosen": ["Blue."], "rejected": ["Green."]}, "chosen has the wrong type: a turn is str"),
    ({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Blue. "}, "chosen equals rejected"),
    ({"chosen": [USER, BLUE], "rejected": [USER, BLUE]}, "chosen equals rejected"),
    ({"chosen": HH + "Blue.", "rejected": HH + "Blue."}, "chosen equals rejected"),
    (
        {"chosen": [USER, BLUE, USER, BLUE], "rejected": [USER, GREEN]},
        "chosen and rejected part before their last turn",
    ),
    ({"chosen": [BLUE], "rejected": [GREEN]}, "missing prompt: chosen and rejected share no turn"),
    ({"prompt": [USER, BLUE], "chosen": [BLUE], "rejected": [GREEN]}, "prompt ends with a turn of the assistant"),
    ({"prompt": "Sky?" * 30, "chosen": "Blue.", "rejected": "Green."}, "prompt over 100 tokens: 139"),
    (
        {"prompt": "Sky?", "chosen": "a" * 50 + "b", "rejected": "a" * 50 + "c"},
        "chosen equals rejected in its first max_completion_tokens",
    ),
    ('{"prompt": "Sky?", ', "not JSON"),
    ('["Sky?"]', "not a JSON object"),
]


def _refusal(data, tokenizer):
    with pytest.raises(RequestError) as refused:
        load_preferences(data, tokenizer)
    return str(refused.value)


def test_columns_that_are_there_are_not_asked_for_and_lacking_ones_are_asked_for_together(write, config, chatml):
    row = {"question": "Sky?", "good": "Blue.", "bad": "Green."}
    text = _refusal(config(write([row])), chatml)
    assert text.endswith(
        "The columns of the first row are question, good, bad: say which ones they are with data.columns.chosen=COLUMN "
        "data.columns.rejected=COLUMN."
    )
    text = _refusal(config(write([row]), columns={"chosen": "good"}), chatml)
    assert text.endswith("say which one it is with data.columns.rejected=COLUMN.")
    text = _refusal(config(write([row]), columns={"chosen": "god"}), chatml)
    assert text.endswith("say which one it is with data.columns.chosen=COLUMN.")
    for nothing, reason in (("chosen", "chosen is null"), ("prompt", "missing prompt")):
        text = _refusal(config(write([{**FORMS["plain"], nothing: None}])), chatml)
        assert text.endswith(f"1 dropped: {reason} (row 1).")


def test_a_file_in_latin_1_is_called_that(tmp_path, config, chatml):
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é", "chosen": "a", "rejected": "b"}\n'.encode("latin-1"))
    text = _refusal(config(tmp_path / "latin.jsonl"), chatml)
    assert "1 dropped: not UTF-8 (row 1). Save the file as UTF-8" in text
    (tmp_path / "latin.json").write_bytes('[{"prompt": "é", "chosen": "a", "rejected": "b"}]'.encode("latin-1"))
    assert "latin.json is not UTF-8: " in _refusal(config(tmp_path / "latin.json"), chatml)


@pytest.mark.parametrize("row, reason", BAD, ids=[reason for _, reason in BAD])
def test_bad_row_is_named_with_its_line(row, reason, write, config, chatml):
    data = config(write([FORMS["plain"], row]), max_prompt_tokens=100, max_completion_tokens=40)
    split = load_preferences(data, chatml)
    assert split.report.problems == [(2, reason)]
    assert (split.report.total, split.report.kept, len(split.train)) == (2, 1, 1)


def test_truncated_completions_lose_their_end_and_are_counted(write, config, chatml):
    rows = [
        {"prompt": "Sky?", "chosen": "x" * 9, "rejected": "y" * 10},
        {"prompt": "Sea?", "chosen": "x" * 11, "rejected": "z" * 30},
    ]
    split = load_preferences(config(write(rows), max_completion_tokens=10), chatml)
    end = chatml.eos_token_id
    assert [pair.chosen[-1] == end for pair in split.train] == [True, False]
    assert [pair.rejected[-1] == end for pair in split.train] == [False, False]
    assert all(len(pair.rejected) == 10 for pair in split.train)
    assert split.report.truncated == 3 and "3 completions cut" in split.report.summary()
    assert split.train[0].rejected_text == "y" * 10


def test_a_template_that_refuses_a_row_drops_it(write, config):
    from .conftest import byte_tokenizer

    tokenizer = byte_tokenizer(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    system = {"prompt": [{"role": "system", "content": "Brief."}, USER], "chosen": "Blue.", "rejected": "Green."}
    split = load_preferences(config(write([system, FORMS["plain"]])), tokenizer)
    assert len(split.train) == 1 and split.report.counts == {"refused": 1}


def test_ultrafeedback_loads(shared, config, words):
    data = config(str(shared / "ultrafeedback-sample/train_clean.jsonl"), held_out=0.1, max_prompt_tokens=4096)
    split = load_preferences(data, words)
    report = split.report
    assert report.total == 1000 and report.kept == len(split.train) + len(split.held_out)
    assert report.counts == {"chosen equals rejected": 4, "empty rejected": 1, "empty chosen": 1}
    assert len(split.held_out) == round(0.1 * report.kept)
    assert isinstance(split.train[0].extra["metadata"]["score_chosen"], (int, float))


def test_helpful_dialogues_load(shared, config, words):
    data = config(
        str(shared / "hh-helpful/helpful-base-test.jsonl"), max_prompt_tokens=8192, max_completion_tokens=4096
    )
    split = load_preferences(data, words)
    assert split.report.total == 2352 and split.report.kept > 2300
    assert set(split.report.counts) <= {
        "chosen and rejected part before their last turn",
        "empty rejected",
        "empty chosen",
        "empty prompt",
        "chosen equals rejected",
    }
    for pair in split.train:
        assert pair.messages[-1]["role"] == "user"
        assert "\n\nHuman:" not in pair.chosen_text and "\n\nAssistant:" not in pair.messages[-1]["content"]


def limits(write, config, chatml, lengths, **more):
    """Pairs whose prompts have so many letters, read with a limit that is chosen from them."""
    rows = [{"prompt": "x" * n, "chosen": "a", "rejected": "b"} for n in lengths]
    return load_preferences(config(write(rows), max_prompt_tokens=None, held_out=0.0, **more), chatml)


def test_a_limit_of_prompts_is_chosen_from_the_data(write, config, chatml):
    """Of 400 prompts two are far longer than the others: the limit is the least multiple of 64 that 99.5 % fit in."""
    split = limits(write, config, chatml, [*range(1, 399), 2000, 3000])
    limit, fits = split.report.prompt_limit, max(len(row.prompt) for row in split.train)
    assert limit % 64 == 0 and limit - 64 < fits <= limit
    assert len(split.train) == 398 == split.report.kept and len(split.report.problems) == 2
    assert f"prompts of up to {limit} tokens, chosen from the data" in split.report.summary()
    assert f"2 dropped: prompt over {limit} tokens (rows 399, 400)" in split.report.summary()


def test_nothing_is_dropped_by_a_chosen_limit_where_bad_rows_are_refused(write, config, chatml):
    split = limits(write, config, chatml, [1, 2, 3000], bad_rows=BadRows.refuse)
    assert len(split.train) == 3 and split.report.prompt_limit > 3000
