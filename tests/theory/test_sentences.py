"""What a study says follows from its numbers: no sentence contradicts its table, and each has its other branch."""

import importlib
import re
from itertools import pairwise

import pytest

from multiref_cli.theory import laboratory
from multiref_cli.theory.findings import follows, metric
from multiref_cli.theory.settings import Laboratory
from multiref_cli.theory.studies import alpha, clipped, effects, exact_solutions, games, sample_complexity, sampling

pytestmark = pytest.mark.slow  # all studies are run for it

SMALL = {"problems": 25, "n": 64, "draws": 20, "trees": 3, "length": 3, "class_size": 16, "responses": 6}
UNSEEN = "not seen at these settings"


def module(name):
    return importlib.import_module(f"multiref_cli.theory.studies.{name}")


@pytest.fixture(scope="module")
def studies():
    return {name: module(name).run(Laboratory(**SMALL)) for name in laboratory.STUDIES}


def cells(study, table):
    return {str(row[0]): row for row in study.tables[table].rows}


def bounds_of(cell):
    """The interval "[-1.2, -0.3]" behind a slope, or the numbers of "3 ± 1" as an interval."""
    numbers = [float(x) for x in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]\d+)?", cell)]
    return (numbers[1], numbers[2]) if "[" in cell else (numbers[0] - numbers[1], numbers[0] + numbers[1])


@pytest.mark.parametrize("name", laboratory.STUDIES)
def test_texts_are_functions_of_the_metrics(studies, name):
    assert studies[name].texts == [module(name).conclusion(studies[name].metrics)]


def test_no_number_is_undefined_even_where_pairs_are_separated(studies):
    # 64 pairs of a rare response are separated: the fit's probabilities round to one, which once made 0 / 0.
    for name, study in studies.items():
        assert not [key for key, value in study.metrics.items() if value["mean"] != value["mean"]], name


def test_the_whole_laboratory_at_tiny_settings_says_nothing_that_its_own_slopes_contradict(studies):
    study = studies["sample_complexity"]
    text = " ".join([*study.texts, *(chart.caption for chart in study.charts)])
    late = {row[1]: bounds_of(row[4]) for row in study.tables[0].rows}
    claims = {
        "The reverse-KL gap falls as 1/n": ("reverse KL, regularized gap, linear class", -1.0),
        "forward-KL gap falls as 1/n too": ("forward KL, regularized gap, linear class", -1.0),
        "falls as 1/√n": ("reverse KL, reward gap, linear class", -0.5),
    }
    for words, (row, rate) in claims.items():
        low, high = late[row]
        assert (words in text) == (abs(low - rate) <= 0.25 and abs(high - rate) <= 0.25), words
    assert text.count(UNSEEN) >= 3  # 64 pairs and 20 data sets show no rate


def test_rates_are_claimed_where_the_numbers_show_them():
    names = [
        "5.2/reverse KL, regularized gap, linear class",
        "6.2/forward KL, regularized gap, linear class",
        "5.3/reverse KL, reward gap, linear class",
        "6.3/forward KL, gap to the best reward, gamma = n",
    ]
    rates = (-1.0, -1.0, -0.5, -1.0)
    metrics = {f"late_slope/{n}": metric(r, r - 0.1, r + 0.1) for n, r in zip(names, rates)}
    metrics["signed_gap/reverse KL"] = metric(-1.0, -2.0, 0.5)
    said = sample_complexity.conclusion(metrics)
    assert said.count("falls as 1/n") == 2 and "falls as 1/√n" in said and "not told apart from zero" in said
    assert "at least as fast as its bias" in said and UNSEEN not in said
    wide = {k: metric(v["mean"], v["mean"] - 0.6, v["mean"] + 0.6) for k, v in metrics.items()}
    said = sample_complexity.conclusion(wide)
    assert said.count(UNSEEN) == 4 and "not told apart" not in said


def test_a_rate_is_seen_only_if_the_whole_interval_is_near():
    assert follows(metric(-1.0, -1.1, -0.9), -1.0)
    assert not follows(metric(-1.0, -1.4, -0.9), -1.0) and not follows(metric(-0.6, -0.7, -0.5), -1.0)


def test_surrogates_cost_more_with_distance_only_where_the_table_says_so(studies):
    study = studies["exact_solutions"]
    harmonic = [row[1] for row in study.tables[1].rows]
    grows = harmonic[-1] > 1e-9 and all(a <= b + 1e-9 for a, b in pairwise(harmonic))
    assert ("the price grows" in study.texts[0]) == grows
    kept = cells(study, 0)["A = −1, chi-square"][5]
    assert ("nothing is at these settings" in study.texts[0]) == (kept == "81 of 81")
    flat = {k: metric(0.0) if k.startswith(("regret", "cut_off")) else v for k, v in study.metrics.items()}
    said = exact_solutions.conclusion(flat)
    assert "costs nothing at these settings" in said and "nothing is at these settings" in said
    falling = {k: metric(1 / (1 + i)) if k.startswith("regret") else v for i, (k, v) in enumerate(flat.items())}
    falling["residual/A = 0, reverse KL"] = metric(1.0)
    assert UNSEEN in exact_solutions.conclusion(falling) and "not to machine precision" in exact_solutions.conclusion(
        falling
    )


def test_alpha_is_inside_as_often_as_the_table_says(studies):
    study = studies["alpha"]
    row = cells(study, 0)[alpha.RKL]
    share = float(row[2].removesuffix(" %"))
    assert ("in none of these problems" in study.texts[0]) == (share == 0)
    assert "never inside" in study.texts[0] and {r[1] for r in study.tables[0].rows} == {"0.0 %"}
    lost = {r[0]: r[1] for r in study.tables[1].rows}
    assert f"{min(lost, key=lost.get)} loses least" in study.texts[0]
    changed = study.metrics | {
        f"interior_alpha/normalized/{alpha.RKL}": metric(0.0),
        f"interior_alpha/objective/{alpha.RKL}": metric(0.01),
        "rule/shortfall": metric(0.02),
        "ascent/largest_weight": metric(0.7),
    }
    said = alpha.conclusion(changed)
    assert UNSEEN in said and "inside in up to 1.0 %" in said and "2.0e-02 below" in said
    assert "no corner is reached" in alpha._ends(changed)


def test_regret_per_token_grows_and_disagreement_foretells_it_or_not(studies):
    study, conclusion = studies["autoregressive"], module("autoregressive").conclusion
    regrets = [float(row[1].split()[0]) for row in study.tables[0].rows]
    assert ("grows with the distance of the references, from" in study.texts[0]) == (regrets == sorted(regrets))
    changed = study.metrics | {"regret/geometric/distance=3": metric(0.0), "rank_correlation": metric(0.1)}
    assert conclusion(changed).count("at these settings") == 2


def test_violations_are_counted_in_words(studies):
    study, conclusion = studies["violations"], module("violations").conclusion
    assert "**0 violations**" in study.texts[0] and sum(row[3] for row in study.tables[0].rows) == 0
    key = next(k for k in study.metrics if k.startswith("violations/value convex"))
    broken = study.metrics | {"violations/all": metric(3), key: metric(3), "tightness/A=0": metric(0.5)}
    quiet = {k: metric(0.0) for k in study.metrics if k.startswith("small_reward/Lemma")}
    said = conclusion(broken | quiet)
    assert "**3 violations**" in said and "value convex" in said and "no data set" in said and "is tight" not in said


def test_small_rewards_exceed_the_lemma_in_the_share_of_the_table(studies):
    study = studies["violations"]
    share = cells(study, 1)["0.001"][1]
    assert f"{100 * share:.0f} % of data sets at R_max = 0.001" in study.texts[0]


def test_effects_are_factors_of_the_table(studies):
    study = studies["effects"]
    for quantity in ("alpha", "R_max"):
        values = [float(r[3].split()[0]) for r in study.tables[0].rows if r[0] == quantity and r[2] == "reverse KL"]
        said = float(re.search(rf"values of {quantity} n × gap varies by a factor ([\d.]+)", study.texts[0])[1])
        assert said == pytest.approx(max(values) / min(values), rel=0.05)
    inside = [r for r in study.tables[0].rows if abs(float(r[3].split()[0]) - r[4]) <= float(r[3].split()[2]) * 1.02]
    claimed = int(re.search(r"lies inside (\d+) of", study.texts[0])[1])
    assert abs(claimed - len(inside)) <= 2  # the table rounds
    off = study.metrics | {k: metric(1.0, 0.99, 1.01) for k in study.metrics if k.startswith("n_gap/gamma")}
    said = effects.conclusion(off)
    assert "not in proportion to γ" in said and "more than twice the half width: " in said


def test_two_stages_and_private_labels_are_judged_by_the_tables(studies):
    study = studies["sampling"]
    first, last = (study.tables[0].rows[i][3] for i in (0, -1))
    assert f"{first:.1f} times that of two" in study.texts[0] and f"and {last:.1f} times" in study.texts[0]
    assert study.tables[0].rows[-1][0] == 2**20
    known, ignored = (bounds_of(cells(study, 2)["1.0"][i]) for i in (2, 3))
    assert ("leaves a bias" in study.texts[0]) == (ignored[0] > known[1])
    one = {k.replace("/one/", "/two/"): v for k, v in study.metrics.items() if k.startswith("n_gap/one/")}
    other = {"private/ignored/eps=1": study.metrics["private/known/eps=1"], "private/slope": metric(0.5)}
    assert sampling.conclusion(study.metrics | one | other).count(UNSEEN) >= 4


def test_clips_and_games_have_their_other_branch(studies):
    study = studies["clipped"]
    best = [row[1] for row in study.tables[0].rows]
    assert ("grows with the number of rollouts: " in study.texts[0]) == (best == sorted(best) and best[0] < best[-1])
    none = {k: metric(0.0) for k in study.metrics if k.startswith("clamp")}
    never = {k: metric(1.0) for k in study.metrics if k.startswith(("continued", "best"))}
    said = clipped.conclusion(study.metrics | none | never)
    assert said.count(UNSEEN) == 2 and "none of these thresholds does" in said
    study = studies["games"]
    slopes = [row[1] for row in study.tables[1].rows]
    assert ("their **square**" in study.texts[0]) == all(abs(s - 2) <= 0.25 for s in slopes)
    linear = {k: metric(1.0) for k in study.metrics if k.startswith(("dual_gap_slope", "dual_gap/equi"))}
    said = games.conclusion(study.metrics | linear)
    assert UNSEEN in said and "not to rounding" in said
    regrets = study.tables[2].rows[-1]
    assert f"rounds {regrets[1]:.3g} against {regrets[2]:.3g}" in study.texts[0]
    greedy, commit = (study.metrics[f"regret_slope/{name}"] for name in ("greedy", "commit"))
    assert ("within its (log T)²;" in study.texts[0]) == (greedy["ci_high"] <= 2.25)
    assert ("its √T;" in study.texts[0]) == follows(commit, 0.5)
    rates = {f"regret_slope/{name}": metric(3.0) for name in ("greedy", "commit")}
    assert games.conclusion(study.metrics | rates).count(UNSEEN) == study.texts[0].count(UNSEEN) + (
        greedy["ci_high"] <= 2.25
    ) + follows(commit, 0.5)


def test_the_rules_of_the_clipping_paper_are_told_by_their_tables(studies):
    study = studies["clipped"]
    last = study.tables[0].rows[-1]
    assert f"clips at {last[6]:.2g} nats with {last[0]} rollouts" in study.texts[0]
    assert ("larger than the" in study.texts[0]) == (last[7] > last[3]) and "no quantile is left at 16" in study.texts[
        0
    ]
    shift = study.tables[1].rows
    assert all(row[3] <= row[2] * (1 + 1e-9) and row[4] == pytest.approx(row[2]) for row in shift)
    assert "is reached by the error proportional" in study.texts[0]
    for _, star, best, one, eight in study.tables[2].rows:
        assert abs(star - best) <= 0.5 and min(one, eight) >= 0
    changed = {k: metric(9.0) for k in study.metrics if k.startswith(("shift/random", "budget/best"))}
    none = {k: v for k, v in study.metrics.items() if not k.startswith("printed")}
    said = clipped.conclusion(none | changed)
    assert "gives no threshold at these settings" in said and "does not bound" in said and "is not, at these" in said


def test_pessimism_is_judged_by_its_table(studies):
    study = studies["sampling"]
    row = next(row for row in study.tables[3].rows if row[:2] == [2**14, 1.0])
    plain, careful = (bounds_of(cell) for cell in row[2:])
    assert ("pessimism loses 0" in study.texts[0]) == (careful[1] < plain[0])
    other = {"pessimism/n=16384/eps=1": study.metrics["likelihood/n=16384/eps=1"], "pessimism/slope": metric(0.0)}
    said = sampling.conclusion(study.metrics | other)
    assert "that pessimism loses less than maximum likelihood is not seen" in said
