"""Rows of right and wrong responses are judged as RewardBench 1 and 2 do: by hand, and by a program of other words."""

import itertools
import json
import math

import numpy as np
import pytest

from multiref_cli.errors import RequestError
from multiref_cli.evaluation.best_of import judge, read_lineups, result, summarized, ties_score
from multiref_cli.evaluation.statistics import wilson_interval


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def best_of(subset="Math", chosen=("a",), rejected=("b", "c", "d"), id="1"):
    """A row as the benchmark's second version has it."""
    row = {"id": id, "prompt": "q", "chosen": list(chosen), "rejected": list(rejected), "subset": subset}
    return row | {"num_correct": len(chosen), "num_incorrect": len(rejected), "models": [], "total_completions": 4}


def test_files_of_both_versions_are_read(tmp_path):
    pair = {"prompt": "q", "chosen": "a", "chosen_model": "m", "rejected": "b", "subset": "hep-cpp", "id": 7}
    turns = {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}
    found = read_lineups(written(tmp_path / "rows.jsonl", best_of(), pair, turns, {"prompt": "q", "chosen": []}))
    assert [(one.row, one.id, one.subset, one.pair) for one in found.rows] == [
        (1, "1", "Math", False), (2, "7", "hep-cpp", True), (3, "3", "all", True)
    ]  # fmt: skip
    assert found.rows[0].right == ("a",) and found.rows[0].wrong == ("b", "c", "d") and found.unusable == 1
    assert all(one.messages == [{"role": "user", "content": "q"}] for one in found.rows)
    # The scores come back row by row, the right ones first.
    order = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.0}
    scores = judge(found.rows, lambda asked: [order[text] for _, text, finished in asked if finished])
    assert [values.tolist() for values in scores] == [[3, 1, 2, 0], [3, 1], [3, 1]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"prompt": "q", "chosen": "a"}\n', r"rows\.jsonl has no usable row \(row 1: missing rejected\); give rows"),
        ("not JSON\n", r"has no usable row \(not JSON\)"),
        (None, r"evaluation\.scorer_file=.*rows\.jsonl: no such file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(RequestError, match=sentence):
        read_lineups(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("row", "scores", "expected"),
    [
        (best_of(), [3, 1, 2, 0], 1.0),
        (best_of(), [1, 3, 2, 0], 0.0),
        (best_of(), [3, 3, 2, 0], 1 / 2),  # of two highest scores
        (best_of(), [3, 3, 3, 3], 1 / 4),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, [1, 0], 1.0),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, [1, 1], 0.0),  # the first version counts a tie as an error
        (best_of(chosen=["a", "b"], rejected=["c"]), [2, 3, 1], 1.0),
        (best_of(chosen=["a", "b"], rejected=["c"]), [2, 1, 1], 0.0),
        (best_of("Ties"), [3, 3, 2, 0], 0.0),
    ],
)
def test_a_row_counts_as_in_its_benchmark(tmp_path, row, scores, expected):
    (one,) = read_lineups(written(tmp_path / "rows.jsonl", row)).rows
    assert result(one, np.array(scores, dtype=float)) == expected


def test_chance_is_one_of_m_on_average(tmp_path):
    """Over all orders with ties of four scores out of three values the results sum as those of a fair draw."""
    (one,) = read_lineups(written(tmp_path / "rows.jsonl", best_of())).rows
    every = [result(one, np.array(scores, dtype=float)) for scores in itertools.product(range(3), repeat=4)]
    assert math.fsum(every) / len(every) == pytest.approx(1 / 4, abs=1e-12)


def test_the_score_of_the_subset_ties_by_hand(tmp_path):
    rows = [
        best_of("Ties", ["a"], ["b"], "ref:1"), best_of("Ties", ["a", "b"], ["c"], "tied:1"),
        best_of("Ties", ["a"], ["b"], "ref:2"), best_of("Ties", ["a", "b"], ["c"], "tied:2"),
    ]  # fmt: skip
    lineups = read_lineups(written(tmp_path / "rows.jsonl", *rows)).rows
    # Prompt 1: margin 2 of the tied row, spread 1, margin 3 of the reference row. Prompt 2: margin 1, spread 2, and -1.
    scores = [np.array(values, dtype=float) for values in ([3, 0], [3, 2, 0], [0, 1], [4, 2, 1])]
    # a_tied = 1, a_ref = 1/2, P(m > s) = 1/2, P(min > s) = 1/2, tanh(2 - 1) and tanh(-1/2 - 1).
    expected = 0.3 * 1 + 0.3 / 2 + 0.2 / 2 + 0.2 / 2 + 0.01 * (math.tanh(1) + math.tanh(-1.5)) / 2
    assert ties_score(lineups, scores) == pytest.approx(expected, abs=1e-12)
    found = summarized(lineups, scores, [result(one, values) for one, values in zip(lineups, scores)])
    assert found["subsets"]["Ties"]["mean"] == 3 / 4 and found["subsets"]["Ties"]["score"] == pytest.approx(expected)
    assert found["average"] == pytest.approx(expected)
    # Equal right responses: a spread of 0 is preferred without end; nothing at all counts 0.
    flat = [np.array(values, dtype=float) for values in ([1, 0], [1, 1, 0], [0, 0], [0, 0, 0])]
    assert ties_score(lineups, flat) == pytest.approx(0.3 / 2 + 0.3 / 2 + 0.2 / 2 + 0.2 / 2 + 0.01 / 2, abs=1e-12)
    assert ties_score(lineups[1:2], scores[1:2]) is None, "no reference row"


def test_subsets_have_wilson_intervals(tmp_path):
    rows = [best_of("Math") for _ in range(10)] + [best_of("Focus")]
    lineups = read_lineups(written(tmp_path / "rows.jsonl", *rows)).rows
    found = summarized(lineups, [np.zeros(4)] * 11, [1.0] * 8 + [0.0] * 2 + [1.0])
    math_, focus = found["subsets"]["Math"], found["subsets"]["Focus"]
    # 8 of 10: Agresti and Coull's textbook example of the interval, [.490, .943].
    assert (round(math_["ci_low"], 3), round(math_["ci_high"], 3)) == (0.490, 0.943) and math_["n"] == 10
    assert focus["ci_high"] == 1.0 and 0.2 < focus["ci_low"] < 0.21  # 1 / (1 + z^2)
    assert found["average"] == pytest.approx(0.9) and found["all"]["mean"] == pytest.approx(9 / 11)


def test_wilson_bounds_are_where_the_score_test_turns():
    """Both bounds solve (p - bound)^2 = z^2 bound (1 - bound) / n."""
    for share, n in ((0.0, 5), (0.3, 7), (0.5, 100), (1.0, 3)):
        found = wilson_interval(share, n)
        for bound in (found.low, found.high):
            assert (share - bound) ** 2 == pytest.approx(1.959963984540054**2 * bound * (1 - bound) / n, abs=1e-12)
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(1.2, 3)
