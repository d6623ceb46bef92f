"""Requests become the right points: axes, baselines, seeds, one hash for one result."""

import re
from pathlib import Path

import pytest

from multiref_cli.config.canonical import canonical
from multiref_cli.config.compose import compose
from multiref_cli.config.folders import options
from multiref_cli.errors import RequestError
from multiref_cli.sweeps.cost import counted
from multiref_cli.sweeps.plan import Composer, _weighed, make_plan
from multiref_cli.sweeps.request import parse_request

BASE = ["experiment=offline_toy"]


def _plan(*overrides: str):
    return make_plan(parse_request([*BASE, *overrides]))


def _names(plan) -> list[str]:
    return list(dict.fromkeys(point.condition for point in plan.points))


def test_axes_baselines_and_seeds() -> None:
    """2 regularizers x 2 alphas, one pair of baselines (rkl and mrpo share theirs), 2 seeds: 12 points."""
    plan = _plan("regularizer=rkl,mrpo", "alpha=0.3,0.7", "seeds=2")
    assert len(plan.points) == 12 and len({p.id for p in plan.points}) == 12
    assert len({p.name for p in plan.points}) == 12
    assert plan.count("grid") == 4 and plan.count("single") == 2
    assert [p.seed for p in plan.points] == [0] * 6 + [1] * 6
    assert {p.condition for p in plan.points if p.role == "single"} == {
        "dpo-rkl-single_instruct-b1",
        "dpo-rkl-single_instruct_large-b1",
    }
    assert _plan("regularizer=rkl,mrpo", "alpha=0.3,0.7", "baselines=false").count("single") == 0


def test_points_are_what_train_would_run() -> None:
    for point in _plan("regularizer=fkl", "alpha=0.3", "beta=0.1,2", "optimizer.learning_rate=1e-4").points:
        experiment = compose(list(point.overrides))
        assert experiment.hash == point.id == point.experiment.hash
        assert experiment.condition_hash == point.condition_id
        assert experiment.condition == point.condition and experiment.seed == point.seed


def test_names_tell_estimators_apart() -> None:
    plan = make_plan(
        parse_request(["experiment=online_toy", "regularizer.estimator=exact,k3", "regularizer=rkl_token,fkl_token"])
    )
    grid = [point.condition for point in plan.points if point.role == "grid"]
    assert grid == [
        "grpo-rkl_token-a0.5-b1",
        "grpo-fkl_token-a0.5-b1",
        "grpo-rkl_token-k3-a0.5-b1",
        "grpo-fkl_token-k3-a0.5-b1",
    ]


def test_a_file_is_an_alias_of_its_numbers() -> None:
    """rkl_paper is rkl_token under k3, states given: asked for by both names, it is one condition."""
    numbers = ["regularizer.estimator=k3", "regularizer.to_go=false"]
    plan = make_plan(parse_request(["experiment=online_toy", *numbers, "regularizer=rkl_token,rkl_paper"]))
    found = [point.condition for point in plan.points if point.role == "grid"]
    assert found == ["grpo-rkl_token-k3-states_given-a0.5-b1"]


def test_alone_is_alone_under_every_mean() -> None:
    experiment = compose([*BASE, "regularizer=mrpo", "alpha=1"])
    assert canonical(experiment) == compose([*BASE, "regularizer=rkl", "alpha=1"])
    for kept in (["regularizer=fkl", "alpha=1"], ["regularizer=mrpo_ctro"], ["regularizer=multi_dpo"]):
        experiment = compose([*BASE, *kept])
        assert canonical(experiment) == experiment


def test_alone_is_estimated_as_it_was() -> None:
    """MRPO of whole responses is charged in the reward, reverse KL at each token: towards one reference two runs."""
    mrpo, rkl = (
        canonical(compose(["experiment=online_toy", f"regularizer={name}", "alpha=1"])) for name in ("mrpo", "rkl")
    )
    assert (mrpo.estimator_name, rkl.estimator_name) == ("reward", "exact")
    assert mrpo.penalty.mean_order == rkl.penalty.mean_order == 0 and mrpo.result_hash != rkl.result_hash


def test_one_run_under_several_names_is_planned_once() -> None:
    """Five regularizers at one alpha and their baselines: with one reference all five are plain reverse KL."""
    names = ("rkl", "mrpo", "mrpo_ctro", "mrpo_arwc", "multi_dpo")
    plan = _plan(f"regularizer={','.join(names)}", "alpha=0.4")
    assert plan.count("grid") == 5 and plan.count("single") == 2
    assert {point.names for point in plan.points if point.role == "single"} == {names}
    assert [point.names for point in plan.points if point.role == "grid"] == [(name,) for name in names]
    assert all(set(point.line()["names"]) == set(point.names) for point in plan.points)
    plan = _plan("regularizer=mrpo,rkl,multi_dpo", "alpha=1", "baselines=false")
    (point,) = plan.points
    assert (point.condition, point.names) == ("dpo-rkl-single_instruct-b1", ("mrpo", "rkl", "multi_dpo"))


def test_weights_that_play_no_part_are_no_axis() -> None:
    """ARWC makes its weights from each pair: of three alphas the first is run, and of two sets of references both."""
    plan = _plan("regularizer=mrpo,mrpo_full", "alpha=0.3,0.5,0.7", "baselines=false")
    assert [name for name in _names(plan) if "full" in name] == ["dpo-mrpo_full-a0.3-b1"]
    assert len(_names(plan)) == 4
    plan = _plan("references=toy_trio", "regularizer=mrpo_arwc", "alpha=[0.5,0.5,0],[0.3,0.7,0],[0.4,0.3,0.3]")
    assert plan.count("grid") == 2


def test_a_corner_of_the_grid_is_the_baseline() -> None:
    assert len(_plan("alpha=0,0.5,1").points) == 3


def test_lists_of_weights() -> None:
    plan = _plan("references=toy_trio", "alpha=[0.2,0.3,0.5],[0.5,0.25,0.25]")
    assert plan.count("grid") == 2 and plan.count("single") == 3
    assert "dpo-rkl-a0.2_0.3_0.5-b1" in _names(plan)


def test_passes_are_shared() -> None:
    """Two references under every regularizer, alpha and seed: two passes; the shipped world needs no other."""
    plan = _plan("regularizer=rkl,fkl,mrpo", "alpha=0.3,0.7", "seeds=3")
    references = [one for one in plan.passes if one.toy is None]
    assert [one.title for one in references] == ["instruct over toy_preferences", "instruct_large over toy_preferences"]
    assert references == list(plan.passes) and not any(one.needs for one in references)
    for point in plan.points:
        expected = {"dpo-rkl-single_instruct-b1": 1, "dpo-fkl-single_instruct-b1": 1}.get(point.condition)
        alone = point.role == "single"
        assert len(point.passes) == (1 if alone else 2), expected


def test_a_world_is_an_axis_whose_models_are_made_first() -> None:
    """World 0 is what no axis means; another world has points, models and passes of its own."""
    alone, both = _plan("alpha=0.3", "seeds=2"), _plan("alpha=0.3", "seeds=2", "world=0,7")
    shipped, other = ([p for p in both.points if p.experiment.world == world] for world in (0, 7))
    assert [p.id for p in shipped] == [p.id for p in alone.points] and len(other) == len(shipped)
    assert len({p.name for p in both.points}) == len(both.points) and all("-w7-s" in p.name for p in other)
    assert {p.id for p in alone.passes} <= {p.id for p in both.passes}
    made = {one.id: one for one in both.passes if one.toy is not None}
    assert {one.toy for one in made.values()} >= {"instruct", "instruct_large", "preferences", "reward_model"}
    assert all(set(made) <= set(p.passes) for p in other) and not any(set(made) & set(p.passes) for p in shipped)
    assert len({one.title for one in both.passes}) == len(both.passes)
    assert all(point.id == compose(list(point.overrides)).hash for point in both.points if point.role == "grid")


def test_another_world_costs_what_the_shipped_one_does_and_its_making(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MULTIREF_CACHE", str(tmp_path))
    alone, both = (counted(_plan("alpha=0.3", *more)) for more in ((), ("world=0,7",)))
    assert both.seconds == pytest.approx(2 * alone.seconds) and both.references == 2 * alone.references > 0
    assert (alone.worlds, both.worlds) == (0, 1) and not list(tmp_path.iterdir())


def test_normalizers_of_all_mixes_are_one_pass() -> None:
    """Two means x two alphas x two seeds: four mixes, computed together after the references' own passes."""
    plan = _plan("regularizer=rkl_token,mrpo_token", "alpha=0.3,0.7", "seeds=2")
    (one,) = [one for one in plan.passes if one.mixes]
    weights = ((0.3, 0.7), (0.7, pytest.approx(0.3)))
    found = sorted((mix.order, mix.weights) for mix in one.mixes)
    assert found == [(order, pair) for order in (-1.0, 0.0) for pair in weights]
    assert set(one.needs) == {other.id for other in plan.passes} - {one.id}
    mixed = [point for point in plan.points if point.role == "grid"]
    assert all(one.id in point.passes for point in mixed) and len(mixed) == 8
    assert all(one.id not in point.passes for point in plan.points if point.role == "single")


def test_unnormalized_mixes_need_no_normalizers() -> None:
    plan = _plan("regularizer=rkl_token", "regularizer.normalized=false", "alpha=0.3")
    assert not any(one.mixes for one in plan.passes)


def test_reference_samples_are_one_pass_a_reference() -> None:
    plan = make_plan(parse_request(["experiment=online_toy", "regularizer=fkl_reference_states", "alpha=0.3,0.7"]))
    titles = [one.title for one in plan.passes if one.toy is None]
    assert titles == ["instruct over toy_prompts", "math over toy_prompts"]
    assert all(len(point.passes) == len(plan.passes) for point in plan.points if point.role == "grid")


@pytest.mark.parametrize(
    ("overrides", "seeds"),
    [(["seeds=3"], (0, 1, 2)), (["seeds=5,7"], (5, 7)), (["seed=4"], (4,)), (["seed=range(2,4)"], (2, 3)), ([], (0,))],
)
def test_seeds(overrides: list[str], seeds: tuple[int, ...]) -> None:
    assert parse_request(overrides).seeds == seeds


def test_folder_is_the_same_when_values_of_an_axis_change() -> None:
    one = parse_request([*BASE, "alpha=0.1,0.2"]).folder
    assert parse_request([*BASE, "alpha=0.1,0.2,0.5", "seeds=3"]).folder == one
    assert parse_request([*BASE, "alpha=0.1,0.2", "beta=2"]).folder != one
    assert parse_request([*BASE, "alpha=0.1,0.2", "run.name=mine"]).folder == Path("runs/mine")
    assert parse_request(["sweep=smoke"]).folder == Path("runs/smoke")


def test_sweep_file_is_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    text = "common: experiment=offline_toy beta=2\ngrids:\n  - regularizer=rkl alpha=0.2,0.4\n"
    text += "  - regularizer=fkl beta=0.5\nseeds: 2\nbaselines: false\n"
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    plan = make_plan(parse_request(["sweep=mine"]))
    assert _names(plan) == ["dpo-rkl-a0.2-b2", "dpo-rkl-a0.4-b2", "dpo-fkl-a0.5-b0.5"] and len(plan.points) == 6
    plan = make_plan(parse_request(["sweep=mine", "alpha=0.9", "seeds=1"]))
    assert _names(plan) == ["dpo-rkl-a0.9-b2", "dpo-fkl-a0.9-b0.5"]
    (tmp_path / "conf" / "sweep" / "wrong.yaml").write_text("grid: []\n")
    with pytest.raises(RequestError, match="no key 'grid'"):
        parse_request(["sweep=wrong"])
    (tmp_path / "conf" / "sweep" / "list.yaml").write_text("grids: [[alpha=0.1]]\n")
    with pytest.raises(RequestError, match="not lists"):
        parse_request(["sweep=list"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["regularizer=rkl,rlk"], "regularizer has no option 'rlk'.*did you mean 'rkl'.*in the point"),
        (["alpha=0.5,1.5"], r"alpha is 1.5.*alpha=1.5"),
        (["references=[{path: x}]", "alpha=1,0.5"], r"x is the only one here.*in the point.*alpha=0.5"),
        (["optimizer.lr=1,2"], "no key"),
        (["sweep=nothing"], "sweep has no option 'nothing'"),
        (["seeds=many"], "seeds is 'many'"),
        (["seeds=2", "seed=1"], "not both"),
        (["baselines=maybe"], "baselines is 'maybe'"),
    ],
)
def test_wrong_requests(overrides: list[str], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        _plan(*overrides)


@pytest.mark.parametrize("name", options("sweep"))
def test_every_sweep_file_makes_a_plan(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for made in ("chat", "math", "helpful", "reward_model", "sums"):  # what make smollm makes before its sweeps
        Path(f"runs/smollm/{made}/policy").mkdir(parents=True)
    request = parse_request([f"sweep={name}"])
    plan = make_plan(request)
    in_grids = any(re.search(r"\[1(,0)+\]", text) for grid in request.grids for text in grid)
    assert plan.points and (plan.count("single") >= 2) == (request.baselines or in_grids)


def test_a_number_that_is_not_given_is_that_of_the_groups() -> None:
    """Whatever an earlier condition of the same groups had."""
    composer = Composer()
    for given, key in (("beta=0.5", "beta"), ("alpha=0.7", "alpha"), ("world=3", "world")):
        plain = getattr(compose(["experiment=offline_toy"]), key)
        assert getattr(composer.compose(("experiment=offline_toy", given)), key) != plain
        assert getattr(composer.compose(("experiment=offline_toy",)), key) == plain
    assert composer.compose(("experiment=offline_toy", "optimizer.learning_rate=0.5")).optimizer.learning_rate == 0.5
    assert composer.compose(("experiment=offline_toy",)).optimizer.learning_rate != 0.5


def test_weights_are_written_so_that_they_are_read_back() -> None:
    (text,) = _weighed(("alpha=balanced",), [1 / 3, 1 / 3, 1 / 3])
    assert text == "alpha=[0.3333333333333333,0.3333333333333333,0.3333333333333333]"
    assert _weighed((), [1.0, 0.0, 0.25]) == ("alpha=[1,0,0.25]",)
