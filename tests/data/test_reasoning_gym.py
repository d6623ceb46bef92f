"""Generated problems of reasoning-gym and their scorers, where the package is installed."""

import sys

import pytest

from multiref_cli.data.prompts import load_prompts
from multiref_cli.data.reasoning_gym import generate
from multiref_cli.errors import RequestError
from multiref_cli.rewards.reasoning_gym import task_score
from multiref_cli.rewards.sample import Sample


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RequestError, match="pip install reasoning-gym"):
        generate("chain_sum")


@pytest.fixture
def gym():
    return pytest.importorskip("reasoning_gym", reason="the optional package reasoning-gym is not installed")


def test_right_answers_of_boards_are_right(gym):
    """Its scorer compares with a tuple, which a list is not equal to."""
    for row in generate("rearc", size=2):
        scored = Sample([], row["answer"], row["answer"], {"reasoning_gym": row["reasoning_gym"]})
        assert task_score([scored]) == [1.0]


GENERATE = "multiref_cli.data.reasoning_gym.generate"
SUM = {"task": "chain_sum", "size": 20, "min_digits": 1, "max_digits": 1}


@pytest.mark.parametrize("options", [SUM, {"task": "gsm_symbolic", "size": 20}], ids=lambda o: o["task"])
def test_problems_and_their_scorers(gym, options, config, chatml):
    data = config(None, held_out=0.25, source={"_target_": GENERATE, **options}, max_prompt_tokens=2000)
    split = load_prompts(data, chatml)
    assert len(split.train) + len(split.held_out) + split.report.duplicates == split.report.kept == 20
    assert len(split.held_out) >= 4
    assert split.sha256 == load_prompts(data, chatml).sha256

    def score(completion):
        prompt = split.train[0]
        return task_score([Sample(prompt.messages, completion, prompt.answer, prompt.extra)])[0]

    answer = split.train[0].answer
    assert score(answer) == score(f"so <answer>{answer}</answer>") == score(rf"\boxed{{{answer}}}") == 1.0
    assert score("<answer>123456</answer>") < 0.1 and score("no idea") < 0.1


def test_another_seed_gives_other_problems(gym):
    assert generate(**SUM) == generate(**SUM) != generate(**SUM, seed=1)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"task": "chan_sum"}, "there is chain_sum"),
        ({"task": "chain_sum", "terms": 3}, "terms is no setting of chain_sum; it has .*max_terms"),
        ({"task": "chain_sum", "min_digits": 0}, "refuses the settings of chain_sum"),
    ],
)
def test_wrong_settings(gym, options, words):
    with pytest.raises(RequestError, match=words):
        generate(**options)


def test_other_prompts_have_no_such_scorer():
    with pytest.raises(ValueError, match="reasoning_gym"):
        task_score([Sample([{"role": "user", "content": "Q"}], "A")])
