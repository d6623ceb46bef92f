"""The mini-GSM world: problems, solutions in a style, qualities, labels, tokenizer."""

import json
import math
import random

import pytest

from multiref_cli.world import problems as toy
from multiref_cli.world import tokenizer as toy_tokenizer
from multiref_cli.world.problems import (
    Problem,
    Qualities,
    Style,
    assess,
    parse_problem,
    preference_rows,
    problems,
    solve,
)

TWO = Problem("max", "books", 8, (("burns", 6), ("borrows", 3)))


def test_a_problem_and_its_solution():
    assert TWO.text == "max has 8 books . then max burns 6 . then max borrows 3 . how many ?"
    assert TWO.answer == 5 and parse_problem(TWO.text) == TWO
    assert solve(TWO) == "8 - 6 = 2 ; 2 + 3 = 5 #### 5"


def test_problems_are_a_function_of_the_seed_and_never_repeat():
    first = problems(0, 300)
    assert first == problems(0, 300) and first != problems(1, 300)
    assert len({p.text for p in first}) == 300
    others = problems(0, 300, exclude=[p.text for p in first])
    assert not {p.text for p in others} & {p.text for p in first}
    assert all(parse_problem(p.text) == p and p.answer >= 0 for p in first)
    assert 0.6 < sum(len(p.steps) == 2 for p in first) / 300 < 0.8


def test_verb_split():
    used = {verb for p in problems(0, 300, toy.HALF) for verb, _ in p.steps}
    assert used == set(toy.HALF) and len(toy.HALF) == 10 and len(toy.ALL) == 20


@pytest.mark.parametrize(
    "text", ["", "max has 8 books . how many ?", "max has 8 books . then max flies 6 . how many ?"]
)
def test_other_texts_are_no_problem(text):
    with pytest.raises(ValueError, match="not a mini-GSM problem"):
        parse_problem(text)


def test_slips_have_their_rate_and_carry_on():
    generator = random.Random(0)
    texts = [solve(TWO, Style(slip=0.35), generator) for _ in range(2000)]
    right = sum(assess(TWO, text).correct for text in texts) / 2000
    # Both steps right, or two slips that cancel: 0.65^2 and a little more.
    assert 0.42 < right < 0.50
    slipped = next(text for text in texts if not text.startswith("8 - 6 = 2"))
    first, second = slipped.split(" ; ")
    assert second.startswith(first.split(" = ")[1] + " + 3")


def test_style_rates():
    generator = random.Random(0)
    style = Style(courtesy=0.4, skip=0.08, repeat=0.15, incomplete=0.05)
    found = [assess(TWO, solve(TWO, style, generator)) for _ in range(4000)]

    def rate(field):
        return sum(getattr(quality, field) for quality in found) / len(found)

    assert rate("courtesy") == pytest.approx(0.4, abs=0.03)
    assert rate("steps") == pytest.approx(0.92, abs=0.02)
    assert rate("repeated") == pytest.approx(0.92 * 0.15, abs=0.02)
    # A solution that skips its steps still states its answer.
    assert rate("complete") == pytest.approx(1 - 0.92 * 0.05, abs=0.02)
    assert rate("correct") == pytest.approx(rate("complete"), abs=1e-9)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("8 - 6 = 2 ; 2 + 3 = 5 #### 5", Qualities(1, 1, 1, 0, 0, 13)),
        ("8 - 6 = 2 ; 2 + 3 = 5 #### 5 glad to help", Qualities(1, 1, 1, 1, 0, 16)),
        ("8 - 6 = 4 ; 4 + 3 = 7 #### 7", Qualities(0, 1, 1, 0, 0, 13)),
        ("8 - 6 = 2 ; 8 - 6 = 2 ; 2 + 3 = 5 #### 5", Qualities(1, 1, 1, 0, 1, 19)),
        ("8 - 6 = 2 #### 5", Qualities(1, 1, 0.5, 0, 0, 7)),
        ("#### 5", Qualities(1, 1, 0, 0, 0, 2)),
        ("8 - 6 = 2 ; 2 + 3 = 5", Qualities(0, 0, 1, 0, 0, 11)),
        ("#### 4 #### 5", Qualities(0, 0, 0, 0, 0, 4)),
        ("#### 5 #### ", Qualities(0, 0, 0, 0, 0, 3)),
        ("#### 5 books", Qualities(0, 0, 0, 0, 0, 3)),
        ("#### 15", Qualities(0, 1, 0, 0, 0, 3)),
        ("glad to help", Qualities(0, 0, 0, 1, 0, 3)),
        ("", Qualities(0, 0, 0, 0, 0, 0)),
    ],
)
def test_qualities(text, expected):
    assert assess(TWO, text) == expected


def test_corpus_rows_depend_on_their_own_problem_only():
    found = problems(0, 20)
    rows = toy.corpus_rows(found, Style(slip=0.5, courtesy=0.5), seed=3)
    assert rows[5:] == toy.corpus_rows(found[5:], Style(slip=0.5, courtesy=0.5), seed=3)
    assert rows != toy.corpus_rows(found, Style(slip=0.5, courtesy=0.5), seed=4)
    assert toy.prompt_rows(found)[0] == {"prompt": found[0].text, "answer": str(found[0].answer)}


def test_labels_follow_bradley_terry():
    n = 4000
    prompts, pairs = [f"p{i}" for i in range(n)], [("a", "b")] * n
    rows = preference_rows(prompts, pairs, [(1.5, 0.5)] * n, seed=0)
    share = sum(row["chosen"] == "a" for row in rows) / n
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.025)
    row = next(row for row in rows if row["chosen"] == "b")
    assert (row["gold_chosen"], row["gold_rejected"]) == (0.5, 1.5)
    assert rows == preference_rows(prompts, pairs, [(1.5, 0.5)] * n, seed=0)
    assert rows[7:] == preference_rows(prompts[7:], pairs[7:], [(1.5, 0.5)] * (n - 7), seed=0)
    assert rows != preference_rows(prompts, pairs, [(1.5, 0.5)] * n, seed=1)


def test_pairs_without_a_preference_are_left_out():
    assert preference_rows(["p", "q"], [("a", "a "), ("", "b")], [(1.0, 1.0), (0.0, 9.0)], seed=0) == []


def test_tokenizer_round_trips_every_text_of_the_world(toy):
    style = Style(slip=0.3, courtesy=0.5, skip=0.2, repeat=0.2, incomplete=0.1)
    for i, problem in enumerate(problems(0, 200)):
        for text in (problem.text, solve(problem, style, random.Random(i))):
            ids = toy(text)["input_ids"]
            assert toy.decode(ids) == text and toy.unk_token_id not in ids
    assert len(toy) == 89 and len(toy("#### 17")["input_ids"]) == 3
    assert len(toy_tokenizer.vocabulary()) == len(set(toy_tokenizer.vocabulary()))


def test_lengths_are_those_the_configs_allow(toy):
    found = problems(0, 500)
    prompts = [len(toy(p.text)["input_ids"]) + 2 for p in found]
    longest = Style(slip=0.5, courtesy=1.0, repeat=1.0)
    answers = [len(toy(solve(p, longest, random.Random(i)))["input_ids"]) + 1 for i, p in enumerate(found)]
    assert max(prompts) <= 24 and max(answers) <= 34


def test_saved_beside_a_qwen2_config_it_still_makes_tokens(toy, tmp_path):
    from transformers import PreTrainedTokenizerFast

    toy.save_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    again = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    assert again(TWO.text)["input_ids"] == toy(TWO.text)["input_ids"] != []
    assert (again.eos_token_id, again.pad_token_id) == (toy.eos_token_id, toy.pad_token_id)
    assert again.chat_template == toy.chat_template and again.decode(toy("#### 17")["input_ids"]) == "#### 17"
