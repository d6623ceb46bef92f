"""What holds over worlds: claims by hand, sentences that say what the numbers say, the CSV that is published."""

import math
from pathlib import Path

import pytest

from multiref_cli.errors import RequestError
from multiref_cli.reports.collect import conditions, read_run
from multiref_cli.reports.report import write_report
from multiref_cli.reports.worlds import Claim, claims, read_claims, summary, worlds_table, write_claims

UP, DOWN, NOT = "above", "below", "not significant"


def claim(*verdicts: str, differences: tuple[float, ...] = ()) -> Claim:
    signs = differences or tuple({UP: 1.0, DOWN: -1.0}.get(word, 0.1) + 0.01 * i for i, word in enumerate(verdicts))
    return Claim("job", "gold", "regularizer", True, "a", "b", dict(enumerate(signs)), dict(enumerate(verdicts)))


@pytest.fixture(scope="module")
def found(worlds):
    return worlds, conditions(read_run(folder) for folder in worlds.run_folders())


@pytest.mark.parametrize(
    ("verdicts", "holds"),
    [
        ((UP, UP, UP), "all"),
        ((DOWN, DOWN), "all"),
        ((UP, UP, NOT), "most"),
        ((UP, UP, NOT, NOT), "some"),
        ((NOT, UP, NOT), "one"),
        ((NOT, NOT), "none"),
        ((UP, UP, UP, DOWN), "opposite"),
        (("cannot be judged", NOT), "none"),
    ],
)
def test_where_a_conclusion_holds(verdicts, holds):
    assert claim(*verdicts).holds == holds


def test_the_interval_over_worlds_is_the_t_interval_of_the_differences():
    """Mean 2, standard deviation 1, t(2, .975) = 4.302653: half width 4.302653 / sqrt(3); p of t = 2 sqrt(3)."""
    one = claim(UP, UP, UP, differences=(1.0, 2.0, 3.0))
    half = 4.302653 / math.sqrt(3)
    assert one.interval[:3] == pytest.approx((2, 2 - half, 2 + half), rel=1e-6)
    t = 2 * math.sqrt(3)
    assert one.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    assert math.isnan(claim(UP, UP, differences=(1.0, 1.0)).p_value)


def test_the_sentence_says_what_the_numbers_say():
    text = claim(UP, NOT, DOWN, differences=(3.0, 1.0, -0.5)).sentence
    assert text.startswith(
        "a is above b on gold in 2 of 3 worlds, significantly in 1 and significantly the other way in 1"
    )
    assert text.endswith("over worlds it cannot be judged.")
    assert "below b on gold in 2 of 2 worlds" in claim(DOWN, DOWN, differences=(-1.0, -2.0)).sentence
    said = summary([claim(UP, UP, UP), claim(UP, NOT, NOT), claim(NOT, NOT, NOT), claim(UP, DOWN, NOT)])
    assert said == (
        "Of 4 comparisons on gold in 3 worlds (0, 1, 2), 1 hold in all, 1 in one, 1 in none and 1 are significant both "
        "ways; 0 are significant over worlds."
    )


def test_a_sweep_over_worlds_is_compared_within_each_and_over_all(found):
    """rkl is above fkl by construction, in every world; labels do not name the world, jobs do."""
    _, all_conditions = found
    (family,) = claims(all_conditions)
    one = next(c for c in family if c.over_alpha and c.kind == "regularizer" and c.metric == "gold")
    assert one.first.startswith("rkl") and one.second.startswith("fkl") and list(one.differences) == [0, 2, 5]
    assert one.holds == "all" and one.adjusted_p < 0.05 and "world" not in one.job
    assert "in 3 of 3 worlds, significantly in 3; over worlds it is significant" in one.sentence
    assert not any("world" in condition.label for condition in all_conditions)
    only = [condition for condition in all_conditions if condition.experiment.world == 2]
    assert claims(only) == []


def test_the_report_has_a_section_over_worlds_and_its_csv(found, undrawn, tmp_path: Path):
    ledger, all_conditions = found
    write_report([ledger.path], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Over worlds" in text, text
    assert ", world 5\n" in text and ", world 0" not in text
    (family,) = claims(all_conditions)
    again = read_claims(tmp_path / "worlds.csv")
    assert [one.sentence for one in again] == [one.sentence for one in family]
    assert summary([one for one in family if one.metric == "gold"]) in worlds_table(again)
    assert worlds_table(again) == worlds_table(family) and again[0].origin == family[0].origin
    assert again[0].origin["started_from"].count("world ") == 3 and "AVX2" in worlds_table(again)
    assert {one.metric for one in family} == {"gold", "reward_model"}  # these runs have no scores of single prompts


def test_an_interval_that_is_not_corrected_stands_beside_the_corrected_p(tmp_path: Path):
    """Mean 2, t = 2 sqrt(3), p = .074; one of two claims: Holm doubles it."""
    ones = [claim(UP, UP, UP, differences=(1.0, 2.0, 3.0)), claim(NOT, NOT, NOT, differences=(-1.0, 0.0, 1.5))]
    write_claims(ones, tmp_path / "worlds.csv")
    text = worlds_table(read_claims(tmp_path / "worlds.csv"))
    assert "| over worlds | corrected p | holds in |" in text and "interval over worlds, not corrected;" in text
    assert "| 2.0 ± 2.5 | 0.15 | all |" in text
    assert (
        "95 % interval of this one alone [-0.484, +4.48], corrected p = 0.15)."
        in read_claims(tmp_path / "worlds.csv")[0].sentence
    )


def test_a_csv_that_does_not_add_up_is_refused(tmp_path: Path):
    write_claims([claim(UP, UP, differences=(1.0, 2.0))], tmp_path / "worlds.csv")
    lines = (tmp_path / "worlds.csv").read_text().replace(",1.5,", ",1.6,")
    (tmp_path / "worlds.csv").write_text(lines)
    with pytest.raises(RequestError, match="does not follow"):
        read_claims(tmp_path / "worlds.csv")
    (tmp_path / "worlds.csv").write_text("a,b\n")
    with pytest.raises(RequestError, match="no CSV of claims"):
        read_claims(tmp_path / "worlds.csv")
