"""What is left of a ranking when every arm is tuned: planted rows and verdicts, hand-set and tuned."""

import math
from pathlib import Path

import pytest

from multiref_cli.errors import RequestError
from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports.comparisons import Judged
from multiref_cli.reports.published import Row
from multiref_cli.reports.tuned import (
    Found,
    arm_of,
    change,
    found_in,
    ranking,
    read_found,
    search_table,
    write_found,
)

FOUND = [
    Found("dpo-a", 8, "gold", 1.5, "beta", "0.031", "0.03 to 10, log scale", "lower"),
    Found("dpo-a", 8, "gold", 1.5, "optimizer.learning_rate", "0.001", "0.0001 to 0.01, log scale", ""),
    Found("dpo-b", 8, "gold", 1.25, "beta", "0.5", "0.03 to 10, log scale", ""),
]


def row(condition: str, mean: float, role: str = "grid", metric: str = "gold") -> Row:
    return Row("job", condition, role, "sequence", "–", metric, Interval(mean, mean - 0.1, mean + 0.1, 3), "", "", "")


def pair(first: str, second: str, verdict: str, over_alpha: bool = False, metric: str = "gold") -> Judged:
    return Judged("job", metric, "regularizer", over_alpha, first, second, math.nan, verdict)


def test_an_arm_is_a_condition_without_its_tuned_settings() -> None:
    assert arm_of("rkl α=0.5 β=0.038 optimizer.learning_rate=0.001") == "rkl α=0.5"
    assert arm_of("large alone (rkl) β=1") == "large alone (rkl)"
    assert arm_of("rkl α=0.5 learning_rate=0.001 to_go=True") == "rkl α=0.5 to_go=True"


HAND = [row("a β=1", 3.0), row("b β=1", 2.0), row("c alone β=1", 1.0, "single"), row("a β=1", 9.0, metric="other")]
TUNED = [row("a β=0.5", 2.0), row("b β=3", 2.5), row("c alone β=2", 2.6, "single"), row("d β=1", 9.0)]


def test_arms_are_ranked_by_their_means_where_both_have_them() -> None:
    assert ranking(HAND, "job", "gold", ["c alone", "b", "a", "d"]) == ["a", "b", "c alone"]
    assert ranking(TUNED, "job", "gold", ["a", "b", "c alone"]) == ["c alone", "b", "a"]
    assert ranking([row("start", 1.0, "untrained")], "job", "gold", ["start"]) == []


def test_a_changed_order_and_every_fate_of_a_difference_are_told() -> None:
    before = [
        pair("a β=1", "b β=1", "above"),
        pair("a β=1", "c alone β=1", "above"),
        pair("b β=1", "c alone β=1", "not significant"),
        pair("a (mean over 3 α)", "b (mean over 3 α)", "above", over_alpha=True),
    ]
    after = [
        pair("a β=0.5", "b β=3", "not significant"),
        pair("a β=0.5", "c alone β=2", "below"),
        pair("b β=3", "c alone β=2", "below"),
        pair("a β=0.5", "b β=3", "above", metric="other"),
        pair("a β=0.5", "d β=1", "below"),
    ]
    text = change(HAND, TUNED, before, after, FOUND)
    assert text == (
        "With beta and optimizer.learning_rate of each arm from 8 trials of its own, on other seeds and rows, 0 of 2 "
        "differences that are significant at hand-set settings hold. job, by gold: at hand-set settings a > b > "
        "c alone; with each at its own best the order becomes c alone > b > a. Of 2 pairs told apart at hand-set "
        "settings, still so: 0; turned round: 1 (a below c alone); told apart no more: 1 (a above b). Told apart only "
        "now: 1 (b below c alone). Tuned alone: d."
    )


def test_an_order_that_stays_is_said_to_stay() -> None:
    same = [pair("a β=1", "b β=1", "above")]
    text = change(HAND, HAND[:2], same, same, FOUND)
    assert (
        "1 of 1 differences that are significant at hand-set settings holds." in text
        and "the order stays the same" in text
    )
    assert "still so: 1 (a above b); turned round: 0; told apart no more: 0." in text
    assert "only now" not in text and "Tuned alone" not in text


def test_a_pair_that_is_named_the_other_way_round_is_the_same_pair() -> None:
    before = [pair("a β=1", "b β=1", "above"), pair("c alone β=1", "b β=1", "below")]
    after = [pair("b β=3", "a β=0.5", "below"), pair("b β=3", "c alone β=2", "below")]
    text = change(HAND, TUNED, before, after, FOUND)
    assert "1 of 2 differences that are significant at hand-set settings holds." in text
    assert "still so: 1 (b below a); turned round: 1 (b below c alone); told apart no more: 0." in text


def test_what_was_found_is_kept_in_a_file_and_a_table(tmp_path: Path) -> None:
    path = tmp_path / "x.search.csv"
    write_found(FOUND, path)
    assert read_found(path) == FOUND
    table = search_table(FOUND)
    assert "| dpo-a | 8 | 0.031 (lower end) | 0.001 | gold 1.5 |" in table
    assert "| dpo-b | 8 | 0.5 | – | gold 1.25 |" in table
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RequestError, match="no file of a search"):
        read_found(tmp_path / "other.csv")
    with pytest.raises(RequestError, match="has no search"):
        found_in(tmp_path)
