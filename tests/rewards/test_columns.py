"""Reward functions as users of TRL have them: prompts, completions and columns, plain or conversational."""

from pathlib import Path

import pytest

from multiref_cli.config.schema import Reward, RewardTerm
from multiref_cli.errors import RequestError, RunError
from multiref_cli.rewards.combine import build_reward, lack_of, probe
from multiref_cli.rewards.sample import Sample

HERE = Path(__file__).parent
TALK = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Q"}]
PLAIN = [
    Sample([{"role": "user", "content": "Q1"}], "long answer", "5", {"topic": "sums"}),
    Sample(
        [{"role": "user", "content": "Q2"}], "no", "7", {"topic": "art", "solution": "so it is", "answer": "so #### 7"}
    ),
]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def reward(*functions, seconds=30.0, **options):
    terms = {
        one: RewardTerm(function={"_target_": f"column_rewards.{one}" if "." not in one else one, **options})
        for one in functions
    }
    return Reward(name="test", terms=terms, timeout_seconds=seconds)


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_plain_rows(seconds):
    batch = build_reward(reward("length", "topic_is", seconds=seconds))(PLAIN)
    assert batch.terms["length"] == [11.0, 2.0] and batch.terms["topic_is"] == [1.0, 0.0]
    assert batch.total == [12.0, 2.0]
    assert build_reward(reward("everything", seconds=0.0))(PLAIN).total == [1.0, 1.0]


def test_conversations():
    samples = [Sample(TALK, "long answer", conversational=True)]
    assert build_reward(reward("talk", seconds=0.0))(samples).total == [11.0]


def test_options_of_the_config_and_columns_go_to_the_same_function():
    assert build_reward(reward("topic_is", seconds=0.0, wanted="art"))(PLAIN).total == [0.0, 1.0]
    with pytest.raises(RequestError, match="has no option wantd"):
        build_reward(reward("topic_is", wantd="art"))
    with pytest.raises(RequestError, match=r"needs_a_column raised TypeError.*ground_truth"):
        probe(reward("needs_a_column"), PLAIN[0])


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_none_is_not_applicable(seconds):
    batch = build_reward(reward("only_sums", "length", seconds=seconds))(PLAIN)
    assert batch.terms["only_sums"] == [1.0, None] and batch.total == [12.0, 2.0]
    assert build_reward(reward("nothing", seconds=0.0))(PLAIN).total == [0.0, 0.0]


def test_what_metrics_say_of_terms_that_do_not_apply():
    torch = pytest.importorskip("torch")
    from multiref_cli.algorithms.window import reward_metrics

    batch = build_reward(reward("only_sums", "length", seconds=0.0))(PLAIN)
    found = reward_metrics(batch, torch.tensor([batch.total]))
    assert found["reward/only_sums"] == 1.0 and found["reward/length"] == 6.5
    assert found["reward_not_applicable_fraction"] == 0.25


@pytest.mark.parametrize("kind", ["array", "tensor", "booleans", "generator", "an_object", "partial"])
def test_whatever_holds_numbers(kind):
    assert build_reward(reward(kind, seconds=0.0))(PLAIN).total == [1.0, 0.0]


@pytest.mark.parametrize(
    "kind, sentence",
    [
        ("a_dict", "a_dict gave a dict, not a list of one number a response"),
        ("a_text", "a_text gave a str, not a list"),
        ("texts", "texts gave a str for a response, not a number"),
        ("none", "none gave None, not a list"),
        ("one_number", "one_number gave a float, not a list"),
        ("too_many", "too_many gave 2 values for 1 responses"),
        ("pairs", "pairs gave a tuple for a response, not a number"),
        ("asynchronous", "asynchronous is asynchronous"),
        ("infinite", "infinite gave inf"),
        ("breaks", "breaks raised ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_a_wrong_return_is_known_before_a_run(kind, sentence, seconds):
    if seconds and kind not in ("a_dict", "breaks"):
        pytest.skip("one of each sort in a process of its own is enough")
    with pytest.raises(RequestError, match=sentence):
        probe(reward(kind, seconds=seconds), PLAIN[0])
    with pytest.raises(RunError, match=sentence.split(" gave ")[0].split(" is ")[0].split(" raised ")[0]):
        build_reward(reward(kind, seconds=seconds))(PLAIN[:1])


@pytest.mark.parametrize(
    "function, sample, lack",
    [
        ("final_number", PLAIN[0], None),
        ("final_number", Sample([], "", "north"), "the gold answer is no number"),
        ("final_number", Sample([], ""), "missing answer"),
        ("xml_correct", Sample([], "", "north"), "the gold answer is no number"),
        ("exact_text", Sample([], "", "north"), None),
        ("exact_text", Sample([], ""), "missing answer"),
        ("math_equal", Sample([], "", r"\frac{x}{2}"), None),
        ("math_equal", Sample([], ""), "missing answer"),
        ("math_equal", Sample([], "", "9^{9^{9}}"), "the gold answer does not parse"),
        ("xml_count", Sample([], ""), None),
    ],
)
def test_what_verifiers_need_of_a_row(function, sample, lack):
    assert lack_of(reward(f"multiref_cli.rewards.verifiers.{function}"))(sample) == lack
