"""Planted sweeps whose best arm is known in every cell; ties; what is missing; the picture, its words and its file."""

import math
from array import array
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from multiref_cli.errors import RequestError
from multiref_cli.evaluation.statistics import Interval
from multiref_cli.reports import regime_map, regimes
from multiref_cli.reports.collect import Condition, Run, conditions
from multiref_cli.reports.first_screen import Job, add_overview
from multiref_cli.reports.job_section import job_name, jobs
from multiref_cli.reports.numbers import Lines
from multiref_cli.reports.page import Page
from multiref_cli.reports.published import BEGIN, END, read_rows, rows_of, write_rows
from multiref_cli.reports.regime_words import markdown, read_regimes, rows, sentence, sentences, write_regimes
from multiref_cli.reports.scores import SCORES, check_readme, keep_scores, write_scores
from multiref_cli.sweeps.plan import make_plan
from multiref_cli.sweeps.request import parse_request

PROMPTS, SEEDS = 200, 2
# (regularizer or reference alone, second reference, beta) -> what is added to the mean score.
Truth = Callable[[str, str, float], float]


@cache
def _points() -> tuple:
    return make_plan(parse_request(["sweep=regimes", f"seeds={SEEDS}", "beta=0.1,2", "run.dir=x"])).points


def _arm(experiment) -> tuple[str, str]:
    active = [one.name for one in experiment.active_references]
    name = active[0] if len(active) == 1 else experiment.penalty.title.removesuffix("_token")
    return name, active[-1]


def _sweep(truth: Truth, noise: float = 0.3, keep: Callable[[object], bool] = lambda point: True) -> list[Condition]:
    """Conditions of the sweep as a report reads them: made-up scores and log-ratios of one response a prompt."""
    generator, shared = np.random.default_rng(0), {}
    found = []
    for point in filter(keep, _points()):
        experiment = point.experiment
        hard = shared.setdefault(experiment.data.name, generator.normal(size=PROMPTS))
        trained = experiment.algorithm.trains
        extra = truth(*_arm(experiment), experiment.beta) if trained else 0.0
        metric = "toy_gold" if experiment.data.name == "toy_preferences" else "toy_verifier"
        names = [reference.name for reference in experiment.references]
        away = {"instruct": 0.5, "instruct_large": 1.0, "math": 9.0} if not trained else dict.fromkeys(names, 1.0)
        values = {metric: hard + extra + noise * generator.normal(size=PROMPTS)}
        values |= {f"kl/{name}": away[name] + 0.01 * generator.normal(size=PROMPTS) for name in names}
        found.append(_run(point, values | {f"objective/{metric}": values[metric]}))
    return conditions(found)


def _run(point, values: Mapping[str, np.ndarray]) -> Run:
    metrics = {name: {"mean": float(v.mean()), "n": len(v)} for name, v in values.items()}
    run = Run(Path(point.name), point.experiment, {"seed": point.seed, "metrics": metrics}, {})
    lines = Lines(tuple(range(PROMPTS)), {name: array("d", v.tolist()) for name, v in values.items()})
    vars(run).update(evaluation=lines, pairs=Lines((), {}))
    return run


def _planted(name: str, second: str, beta: float) -> float:
    """At beta .1 rkl is best with the near reference, fkl with the far one; at beta 2 a reference alone or nobody."""
    if beta < 1:
        return 0.5 * ((name, second) in {("rkl", "instruct_large"), ("fkl", "math")})
    return 0.5 * (name == "math") if second == "math" else 0.0


@cache
def _picture() -> regimes.Regimes:
    made = regimes.regimes(_sweep(_planted))
    assert made is not None
    return made


def test_the_planted_winner_of_every_cell_is_found() -> None:
    made = _picture()
    found = {(one.training, one.second, one.beta): one for one in made.found if one.yardstick == "score"}
    trainings = {"DPO, sequence level", "GRPO, sequence level", "GRPO, token level", "GRPO, token level, states given"}
    trainings |= {"GRPO, token level, advantages over the group's spread"}
    assert {training for training, *_ in found} == trainings and len(found) == 5 * 4
    for (_, second, beta), one in found.items():
        expected = {("instruct_large", 0.1): "rkl", ("math", 0.1): "fkl", ("math", 2.0): "single"}
        assert one.winner == expected.get((second, beta), "")
        if not one.winner:
            assert set(one.open_kinds) == {"rkl", "mrpo", "fkl", "single"}
        assert one.distance is not None and one.distance.mean == pytest.approx(1 if second != "math" else 9, abs=0.01)
        assert len(one.means) == 5
    assert [one.second for one in found.values()][:4] == ["instruct_large", "instruct_large", "math", "math"]
    assert found["DPO, sequence level", "math", 2.0].contenders == ("math alone",)
    text = sentence([one for one in made.found if one.yardstick == "score"])
    assert "rkl in 5 (with instruct_large; β 0.1); fkl in 5 (with math; β 0.1)" in text
    assert "a single reference in 5 (with math; β 2); 5 are undecided; mrpo in none." in text
    below = "rkl in 10, mrpo in 15, fkl in 10, at least one reference alone in 10, all of them in 10, where a mix of"
    assert f"Significantly below the highest: {below} references beats each alone." in text


def test_all_pairs_of_all_cells_are_one_family() -> None:
    made = _picture()
    assert len(made.yardsticks) == 3
    of_scores = [one for _, one in made.verdicts if not one.metric.startswith("J")]
    assert len(of_scores) == 20 * 9, "five arms make ten pairs, and the two references alone are not compared"
    assert not any(one.first.count("alone") and one.second.count("alone") for one in of_scores)
    smallest = min(of_scores, key=lambda one: one.comparison.p_value)
    assert smallest.adjusted_p == pytest.approx(min(1.0, 180 * smallest.comparison.p_value))


def test_equal_arms_are_undecided_everywhere() -> None:
    made = regimes.regimes(_sweep(lambda *_: 0.0))
    assert made is not None and not any(one.decided for one in made.found)
    told = sentence([one for one in made.found if one.yardstick == "score"])
    assert told == (
        "By score it is undecided everywhere: in none of 20 cells is one of rkl, mrpo, fkl and a single reference "
        "above all others."
    )
    exact = regimes.regimes(_sweep(lambda *_: 0.0, noise=0.0))
    assert exact is not None and not any(one.decided for one in exact.found if one.yardstick == "score")


def test_equal_arms_are_seldom_told_apart() -> None:
    """Over 40 sweeps of equal arms, one training and two betas each: at 5 % five or more have a chance of .05."""
    points = [point for point in _points() if point.experiment.algorithm.name == "dpo"]
    generator, wrong = np.random.default_rng(1), 0
    for _ in range(40):
        shared = generator.normal(size=PROMPTS)
        runs = []
        for point in points:
            seed_effect = 0.03 * generator.normal()
            runs.append(_run(point, {"toy_gold": shared + seed_effect + 0.3 * generator.normal(size=PROMPTS)}))
            runs[-1].metrics["objective/toy_gold"] = runs[-1].metrics["toy_gold"]
        made = regimes.regimes(conditions(runs))
        assert made is not None and made.yardsticks == ("score",)
        wrong += any(one.adjusted_p < 0.05 for _, one in made.verdicts)
    assert wrong < 5


def test_two_that_lead_together_are_both_named() -> None:
    made = regimes.regimes(_sweep(lambda name, *_: 0.5 * (name in ("rkl", "mrpo"))))
    assert made is not None
    own = [one for one in made.found if one.yardstick == "score"]
    assert all(set(one.contenders) == {"rkl", "mrpo"} and not one.winner for one in own)
    told = "rkl in 0, mrpo in 0, fkl in 20, at least one reference alone in 20, all of them in 20, where a mix of"
    assert f"Significantly below the highest: {told}" in sentence(own)


def test_one_reference_alone_that_is_behind_is_told_apart_from_the_other() -> None:
    made = regimes.regimes(_sweep(lambda name, *_: 0.5 * (name != "instruct")))
    assert made is not None
    own = [one for one in made.found if one.yardstick == "score"]
    assert all("instruct alone" not in one.contenders and one.open_kinds.count("single") == 1 for one in own)
    # Where the other reference alone is the highest the two are not compared: all that are compared are undecided.
    compared = [not one.contenders[0].endswith("alone") for one in own]
    assert any(compared) and not all(compared)
    assert [row[3] != "undecided: all" for row in rows(own)[1]] == compared
    told = f"rkl in 0, mrpo in 0, fkl in 0, at least one reference alone in {sum(compared)}, all of them in 0."
    assert told in sentence(own)


def test_yardsticks_by_hand() -> None:
    (point, *_) = [p for p in _points() if len(p.experiment.active_references) == 2]
    names = [one.name for one in point.experiment.active_references]
    near, far = np.array([0.0, 1.0]), np.array([math.log(3), 2.0])
    values = {"toy_gold": np.array([1.0, 2.0]), f"kl/{names[0]}": near, f"kl/{names[1]}": far}
    padded = {name: np.concatenate([v, np.zeros(PROMPTS - 2)]) for name, v in values.items()}
    condition = Condition([_run(point, padded)])
    weights = dict.fromkeys(names, 0.5)

    def of(yardstick: str) -> list[float]:
        found = regimes.yardstick_values(condition, "toy_gold", 2.0, weights, yardstick)[point.seed]
        return np.asarray(found)[:2].tolist()

    assert of("score") == [1.0, 2.0]
    assert of("geometric") == pytest.approx([1 - math.log(3), 2 - 3.0])
    # -log((1 + 1/3) / 2) and -log((e^-1 + e^-2) / 2)
    mixed = [-math.log(2 / 3), -math.log((math.exp(-1) + math.exp(-2)) / 2)]
    assert of("arithmetic") == pytest.approx([1 - 2 * mixed[0], 2 - 2 * mixed[1]])


def test_a_reference_alone_is_measured_by_the_mix_of_the_cell() -> None:
    """Far from the other reference costs nothing in its own objective, and much in that of the mix."""
    made = _picture()
    cell = next(one for one in made.cells if one.second == "math" and one.beta == 2)
    arm = next(one for one in cell.arms if one.name == "math alone")
    scores, own = cell.values(arm, "score"), cell.values(arm, "geometric")
    distances = [np.asarray(arm.condition.by_seed(f"kl/{name}")[0]) for name in ("instruct", "math")]
    np.testing.assert_allclose(own[0], np.asarray(scores[0]) - 2 * (distances[0] + distances[1]) / 2)


def test_several_samples_a_prompt_leave_the_arithmetic_mean_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _sweep(_planted)
    for one in found:
        object.__setattr__(one.experiment.evaluation, "samples_per_prompt", 2)
    try:
        made = regimes.regimes(found)
    finally:
        for one in found:
            object.__setattr__(one.experiment.evaluation, "samples_per_prompt", 1)
    assert made is not None and made.yardsticks == ("score", "geometric")


def test_missing_points_leave_their_cell_open() -> None:
    def kept(point) -> bool:
        name, second = _arm(point.experiment)
        lost = (name, second, point.experiment.beta) == ("mrpo", "math", 0.1)
        return not lost and not (point.experiment.algorithm.name == "dpo" and point.seed == 1 and name == "rkl")

    made = regimes.regimes(_sweep(_planted, keep=kept))
    assert made is not None
    own = [one for one in made.found if one.yardstick == "score"]
    lost = [one for one in own if (one.second, one.beta) == ("math", 0.1)]
    assert all(one.missing == ("mrpo",) and not one.winner for one in lost) and len(lost) == 5
    assert all(not one.missing for one in own if one not in lost)
    assert "not all there: mrpo" in markdown(lost)
    # One seed of an arm cannot be judged: DPO's rkl is best by its mean where it was planted, and that is not said.
    dpo = next(one for one in own if one.training.startswith("DPO") and (one.second, one.beta)[0] == "instruct_large")
    assert dpo.contenders[0] == "rkl" and not dpo.winner


def test_a_reference_alone_under_two_regularizers_is_two_arms() -> None:
    overrides = [
        "experiment=offline_toy",
        "references=toy_trio",
        "beta=0.1,2",
        "regularizer=rkl,fkl",
        "baselines=false",
    ]
    alphas = "alpha=[0.5,0.5,0],[0.5,0,0.5],[1,0,0],[0,1,0],[0,0,1]"
    points = make_plan(parse_request([*overrides, alphas, "seeds=1", "run.dir=x"])).points
    names = ("toy_gold", "objective/toy_gold")
    made = regimes.regimes(conditions(_run(point, dict.fromkeys(names, np.zeros(PROMPTS))) for point in points))
    assert made is not None and len(made.cells) == 4
    both = ["rkl", "fkl", "instruct alone", "instruct alone (fkl)", "math alone", "math alone (fkl)"]
    assert [arm.name for arm in made.cells[-1].arms] == both and not made.cells[-1].missing
    assert [regimes.kind_of(name) for name in both] == ["rkl", "fkl", *["single"] * 4]
    # One seed: nothing is judged.
    assert not any(one.decided for one in made.found) and all(math.isnan(v.adjusted_p) for _, v in made.verdicts)


def test_no_picture_without_two_betas_two_references_and_two_regularizers() -> None:
    found = _sweep(_planted)
    assert regimes.regimes([one for one in found if one.beta == 2]) is None
    assert (
        regimes.regimes([one for one in found if "math" not in [r.name for r in one.experiment.active_references]])
        is None
    )
    assert regimes.regimes([one for one in found if one.role != "single"]) is None
    assert regimes.regimes([one for one in found if one.role == "single" or one.regularizer.mean_order == 0]) is None
    assert regimes.regimes([]) is None


def test_without_an_untrained_start_the_distance_is_not_told() -> None:
    made = regimes.regimes([one for one in _sweep(_planted) if one.algorithm != "untrained"])
    assert made is not None and all(one.distance is None for one in made.found)
    assert rows(made.found)[1][0][1] == "instruct_large"


def test_what_is_not_trained_is_no_job_of_the_first_screen() -> None:
    found = _sweep(_planted)
    groups = [Job(job_name(group[0]), group, []) for group in jobs(found)]
    assert len(groups) == 4
    page = Page("t")
    _, shown = add_overview(page, groups)
    assert {row[0] for row in shown} == {"Offline: DPO", "Online: GRPO"}
    # rkl of DPO and of GRPO stand in two tables: neither needs more words.
    assert sum(one.label == "rkl α=[0.5, 0, 0.5] β=2" for one in found) == 2


def test_the_file_says_the_same_again(tmp_path: Path) -> None:
    made = _picture()
    write_regimes(made.found, tmp_path / "regimes.csv")
    again = read_regimes(tmp_path / "regimes.csv")
    assert markdown(again) == markdown(made.found) and sentences(again) == sentences(made.found)
    assert sentences(again).startswith(
        "DPO, sequence level; GRPO, sequence level; GRPO, token level; GRPO, token level, "
    )
    assert "group's spread; 2 seeds. By score, of 20 cells" in sentences(again)
    write_regimes(again, tmp_path / "twice.csv")
    assert (tmp_path / "twice.csv").read_bytes() == (tmp_path / "regimes.csv").read_bytes()
    (tmp_path / "other.csv").write_text("a\n1\n")
    for name, words in (("other.csv", "no CSV of regimes"), ("none.csv", "does not exist")):
        with pytest.raises(RequestError, match=words):
            read_regimes(tmp_path / name)


def test_a_page_is_checked_against_the_file(tmp_path: Path) -> None:
    write_regimes(_picture().found, tmp_path / "x.cells.csv")
    rows_: list = rows_of(_sweep(_planted))
    write_rows(rows_, tmp_path / "summary.csv")
    write_scores(_sweep(_planted), tmp_path / SCORES)
    keep_scores(tmp_path, tmp_path / "x", ("toy_gold", "kl/math"))
    assert {row.metric for row in read_rows(tmp_path / "x.csv")} == {"toy_gold", "kl/math"}
    body = markdown(_picture().found)
    (tmp_path / "page.md").write_text(f"{BEGIN.format(path='x.cells.csv')}\n{body}\n{END}\n")
    first, second = check_readme(tmp_path / "page.md")
    assert first == "The table of x.cells.csv in page.md is what the file says."
    assert second.startswith("All ") and "means and intervals of x.csv follow from x.scores.csv.gz." in second
    (tmp_path / "page.md").write_text(f"{BEGIN.format(path='x.cells.csv')}\n{body}.\n{END}\n")
    assert "is not what" in check_readme(tmp_path / "page.md")[0]


def test_the_section_and_its_picture(tmp_path: Path) -> None:
    made = _picture()
    page = Page("t")
    regime_map.add_regimes(page, made)
    page.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Where does which regularizer win?\n\n- By score, of 20 cells" in text
    assert "| DPO, sequence level | instruct_large, 1 nats | 0.1 | **rkl** +0." in text and "undecided: all" in text
    picture = (tmp_path / "figures" / "regimes.svg").read_text()
    assert picture.count("<pattern") == 1, "the hatch of what is undecided"
    regime_map.add_regimes(page, None)
    page.write(tmp_path / "again")
    assert (tmp_path / "again" / "report.md").read_text() == text


@pytest.mark.parametrize(
    ("winner", "contenders", "missing", "said"),
    [
        ("rkl", ("rkl",), (), "rkl"),
        ("single", ("math alone",), (), "other"),
        ("single", ("instruct alone",), (), "start"),
        ("", ("rkl", "math alone"), (), "rkl\nother"),
        ("", ("rkl", "math alone", "instruct alone"), (), "rkl\nsingle"),
        ("", ("rkl", "fkl", "mrpo"), (), "not\nsingle"),
        ("", ("rkl", "fkl", "instruct alone", "math alone"), (), "not\nmrpo"),
        ("", ("rkl", "fkl", "instruct alone"), (), "3 of 5"),
        ("", ("rkl", "fkl", "instruct alone", "mrpo"), (), "not\nother"),
        ("", ("rkl", "fkl", "instruct alone", "mrpo", "math alone"), (), "all"),
        ("", ("instruct alone", "rkl", "fkl", "mrpo"), (), "all"),  # the two alone are not compared
        ("", ("rkl",), ("fkl",), "not all"),
    ],
)
def test_what_a_cell_is_called(winner: str, contenders: tuple, missing: tuple, said: str) -> None:
    means = dict.fromkeys(("rkl", "mrpo", "fkl", "instruct alone", "math alone"), Interval(0.0, 0.0, 0.0, 2))
    one = regimes.Regime("t", "math", None, 1.0, "score", winner, contenders, means, None, missing)
    assert regime_map._label(one) == said


def _weighed() -> list[Condition]:
    """rkl is best where the far reference weighs .7, fkl where it weighs .5; MRPO with weights of its own is an arm of
    both."""
    overrides = ["experiment=offline_toy", "references=toy_trio", "beta=0.1,2", "regularizer=rkl,fkl,mrpo_full"]
    alphas = "alpha=[0.3,0.7,0],[0.5,0.5,0],[0.3,0,0.7],[0.5,0,0.5]"
    points = make_plan(parse_request([*overrides, alphas, f"seeds={SEEDS}", "run.dir=x"])).points
    generator = np.random.default_rng(0)
    runs = []
    for point in points:
        name, second = _arm(point.experiment)
        best = (name, point.experiment.weights[0]) in {("rkl", 0.3), ("fkl", 0.5)} and second == "math"
        score = 0.5 * best + 0.1 * generator.normal(size=PROMPTS)
        runs.append(_run(point, {"toy_gold": score, "objective/toy_gold": score}))
    return conditions(runs)


def test_cells_of_several_weights_are_all_there(tmp_path: Path) -> None:
    made = regimes.regimes(_weighed())
    assert made is not None and len(made.cells) == len(made.found) == 8
    told = {(row[1], row[2]): row[3] for row in rows(made.found)[1]}
    assert list(told) == [
        *(("0.5 × instruct_large", beta) for beta in ("0.1", "2")),
        *(("0.7 × instruct_large", beta) for beta in ("0.1", "2")),
        *(("0.5 × math", beta) for beta in ("0.1", "2")),
        *(("0.7 × math", beta) for beta in ("0.1", "2")),
    ]
    for beta in ("0.1", "2"):
        assert told["0.5 × math", beta].startswith("**fkl**") and told["0.7 × math", beta].startswith("**rkl**")
    assert all({"rkl", "fkl", "mrpo_full"} < set(one.means) and not one.missing for one in made.found)
    text = sentence(made.found)
    assert "rkl in 2 (with math; weight of the other 0.7); fkl in 2 (with math; weight of the other 0.5)" in text
    assert "rkl β=2, 0.3 × instruct + 0.7 × math" in {one.first for _, one in made.verdicts}
    write_regimes(made.found, tmp_path / "regimes.csv")
    assert markdown(read_regimes(tmp_path / "regimes.csv")) == markdown(made.found)
    assert [len(axes.get_yticks()) for axes in regime_map.figure(made.found).axes] == [4]


def test_a_file_without_weights_is_read(tmp_path: Path) -> None:
    write_regimes(_picture().found, tmp_path / "regimes.csv")
    lines = (tmp_path / "regimes.csv").read_text().splitlines()
    assert lines[0].endswith(",means,weights") and lines[1].endswith(",instruct 0.5; instruct_large 0.5")
    earlier = "\n".join(line.rpartition(",")[0] for line in lines)
    (tmp_path / "earlier.csv").write_text(earlier + "\n")
    assert markdown(read_regimes(tmp_path / "earlier.csv")) == markdown(_picture().found)
