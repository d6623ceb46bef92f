"""Warnings that matter, each once while training and once for the whole of it; a resume changes none of them."""

import json

from multiref_cli.training.health import EARLY, Health


def _rows(count: int, **values: float) -> list[dict[str, float]]:
    return [{"step": i, **values} for i in range(1, count + 1)]


def test_equal_rewards_are_said_once_early_and_once_at_the_end() -> None:
    health = Health()
    said = [health.step(row) for row in _rows(30, zero_spread_fraction=1.0, reward=0.0)]
    assert [i for i, sentences in enumerate(said, 1) if sentences] == [EARLY]
    assert said[EARLY - 1][0].startswith("so far: all rewards of a prompt were equal at every one of 10 steps")
    assert health.notes() == ["all rewards of a prompt were equal at every one of 30 steps: the reward taught nothing"]


def test_one_group_that_differs_is_enough_to_learn_from() -> None:
    health = Health()
    rows = [*_rows(29, zero_spread_fraction=1.0), {"step": 30, "zero_spread_fraction": 0.96}]
    for row in rows:
        health.step(row)
    assert health.notes() == []


def test_what_is_cut_and_what_drifted_apart() -> None:
    health = Health()
    rows = _rows(12, score_clip_fraction=0.75, clip_fraction=0.1, ratio_clip_fraction=0.5) + _rows(
        4, **{"rollout/kl": 0.2}
    )
    said = [sentence for row in rows for sentence in health.step(row)]
    assert len(said) == 2  # too few steps of an engine's log-probs to say anything while they come
    assert health.notes() == [
        "the score was cut (regularizer.score_clip) in 75% of the responses",
        "the log ratio to the references was clipped at 50% of the tokens",
        "sampler and trainer are apart: 0.2 nats a token (rollout/kl), mean over 4 steps",
    ]


def test_a_resume_says_what_an_undisturbed_run_says() -> None:
    rows = [{"step": i, "score_clip_fraction": 0.4 + 0.013 * i} for i in range(1, 21)]
    whole, resumed = Health(), Health()
    for row in rows:
        whole.step(row)
    resumed.read(json.loads(json.dumps(rows[:7])))
    for row in rows[7:]:
        resumed.step(row)
    assert whole.notes() == resumed.notes() and whole.notes()


def test_what_is_not_measured_says_nothing() -> None:
    health = Health()
    assert [health.step(row) for row in _rows(20, loss=0.5)] == [[]] * 20 and health.notes() == []
