"""Studies end to end: small settings, repeatability, refusals, the command and its run folder."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from multiref_cli.cli import theory as cli_theory
from multiref_cli.cli.theory import theory
from multiref_cli.config.terms import DivergenceTerm
from multiref_cli.errors import RequestError, RunError
from multiref_cli.reports.laboratory import draw
from multiref_cli.theory import laboratory
from multiref_cli.theory.findings import Chart, Line, Panel, Range, Study, metric
from multiref_cli.theory.settings import Laboratory, Selection

CONF = Path(__file__).parents[2] / "conf" / "theory"
SMALL = {"problems": 25, "n": 1024, "draws": 20, "trees": 3, "length": 3, "class_size": 16, "responses": 6}


def small(*parts, **changes):
    read = {key for part in parts or laboratory.STUDIES for key in laboratory.reads(part)}
    chosen = {key: value for key, value in SMALL.items() if key in read} | changes
    return Laboratory(study=Selection("test", list(parts)), **chosen)


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in laboratory.STUDIES if n != "violations"])
def test_every_study_has_words_numbers_tables_and_charts(name):
    (study,) = laboratory.run(small(name))
    assert study.name == name and study.texts and study.tables and study.charts and study.metrics
    for table in study.tables:
        assert all(len(row) == len(table.headers) for row in table.rows) and table.caption
    assert all(len(chart.caption) > 80 for chart in study.charts)


@pytest.mark.slow
def test_violations_are_counted_and_none_is_found_on_random_problems():
    (study,) = laboratory.run(small("violations"))
    assert study.metrics["violations/all"]["mean"] == 0
    assert study.metrics["small_reward/Lemma B.1/R=0.001"]["mean"] > 0.3
    assert study.metrics["small_reward/derived constants/R=0.001"]["mean"] == 0
    names = [row[1] for row in study.tables[0].rows]
    assert {"Theorem 5.2", "Theorem 5.3", "Theorem 6.2", "Theorem 6.3"} <= set(names)


@pytest.mark.slow
def test_alpha_is_never_interior_by_the_objective_but_often_by_held_out_reward():
    (study,) = laboratory.run(small("alpha", problems=400))
    by_objective = [v["mean"] for k, v in study.metrics.items() if "objective" in k]
    by_reward = [v["mean"] for k, v in study.metrics.items() if "held_out" in k]
    assert by_objective == [0.0] * 4 and max(by_reward) > 0.2


@pytest.mark.slow
def test_token_level_regret_in_the_report_grows_with_distance():
    (study,) = laboratory.run(small("autoregressive", trees=6))
    regrets = [v["mean"] for k, v in study.metrics.items() if k.startswith("regret/geometric")]
    assert regrets == sorted(regrets) and regrets[-1] > 100 * regrets[0]


@pytest.mark.slow
def test_more_than_two_references_work_everywhere():
    list(laboratory.run(small("autoregressive", "sample_complexity", "sampling", "games", alpha=[0.2, 0.3, 0.5])))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": 10}, "n is 10; it must be from 64"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": [0.5, 0.6]}, "alpha="),
        ({"beta": 0.0}, "beta"),
        ({"delta": 1.0}, "delta"),
        ({"vocabulary": 10, "length": 8}, "vocabulary=10"),
        ({"study": Selection("x", ["nothing"])}, "nothing"),
    ],
)
def test_senseless_settings_are_refused_by_name(changes, named):
    with pytest.raises(RequestError, match=named):
        laboratory.check(dataclasses.replace(small(), **changes))


OTHER = {"problems": 100, "n": 2048, "draws": 25, "responses": 7, "alpha": 0.3, "beta": 0.2, "reward_max": 1.5,
         "dimension": 2, "class_size": 20, "delta": 0.02, "distance": 0.5, "vocabulary": 2, "length": 2,
         "trees": 4, "divergence": "tests.theory.test_laboratory.pearson", "order": 0.3,
         "terms": [DivergenceTerm("jeffreys", weight=2.0)]}  # fmt: skip


def pearson(ratio):
    """f of the chi-squared divergence."""
    return (ratio - 1) ** 2


def digits(found):
    """A study's numbers to eight digits: linear algebra may differ in the last one from call to call."""
    if isinstance(found, dict):
        return {key: digits(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [digits(value) for value in found]
    return f"{found:.8g}" if isinstance(found, float) else found


@pytest.mark.slow
@pytest.mark.parametrize("name", laboratory.STUDIES)
def test_a_study_reads_exactly_the_settings_that_it_says_it_reads(name):
    run = importlib.import_module(f"multiref_cli.theory.studies.{name}").run
    lab, reads = Laboratory(**SMALL), laboratory.reads(name)
    found = run(lab)
    unread = {key: value for key, value in OTHER.items() if key not in reads}
    assert digits(dataclasses.asdict(run(dataclasses.replace(lab, **unread)))["metrics"]) == digits(found.metrics)
    for key in reads:
        changed = dataclasses.asdict(run(dataclasses.replace(lab, **{key: OTHER[key]})))
        same = dataclasses.asdict(found)
        assert any(digits(changed[part]) != digits(same[part]) for part in ("tables", "charts", "metrics")), key


def test_a_setting_that_no_chosen_study_reads_is_refused_in_one_sentence():
    with pytest.raises(
        RequestError, match=r"^n=64 has no effect on study exact_solutions; it reads alpha, beta, .*\.$"
    ):
        laboratory.check(Laboratory(study=Selection("x", ["exact_solutions"]), n=64))
    laboratory.check(Laboratory(study=Selection("x", ["exact_solutions", "effects"]), n=64))


@pytest.mark.parametrize(("wrong", "nearest"), [("nn=3", "n"), ("+problem=3", "problems"), ("run.dri=x", "run.dir")])
def test_an_unknown_key_is_answered_with_the_nearest_setting(wrong, nearest):
    with pytest.raises(RequestError, match=f"did you mean '{nearest}'"):
        theory([wrong])


def test_the_yaml_files_hold_every_setting_with_its_default_and_every_study():
    root = OmegaConf.load(CONF / "config.yaml")
    default = dataclasses.asdict(Laboratory())
    assert set(root) - {"defaults"} == set(default) - {"study"}
    assert all(root[key] == default[key] for key in default if key not in ("study", "run"))
    choices = {path.stem: OmegaConf.load(path) for path in (CONF / "study").glob("*.yaml")}
    assert set(choices) == {"all", *laboratory.STUDIES}
    assert all(choice.name == name for name, choice in choices.items())
    assert all(list(choices[name].parts) == [name] for name in laboratory.STUDIES) and list(choices["all"].parts) == []


@pytest.mark.slow
def test_the_command_writes_a_run_folder_and_repeats_itself_bit_for_bit(tmp_path, capsys):
    overrides = ["study=sample_complexity", "n=512", "draws=20", "class_size=8", "seed=3"]
    for name in ("first", "second"):
        theory([*overrides, f"run.dir={tmp_path / name}"])
    first, second = ((tmp_path / name) for name in ("first", "second"))
    for file in ("results.json", "report/report.md", "report/index.html", "report/figures/sample-complexity.png"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    assert json.loads((first / "status.json").read_text())["state"] == "done"
    assert json.loads((first / "results.json").read_text())["seed"] == 3
    assert "Theorem" in (first / "report/report.md").read_text()
    assert "report:" in capsys.readouterr().out
    with pytest.raises(RequestError, match="exists already"):
        theory([*overrides, f"run.dir={first}"])


@pytest.mark.slow
def test_orders_named_divergences_and_presets_are_solved_beside_the_others():
    """What is asked for in other words is the same problem, with the same optimum: no regret there, some elsewhere."""
    (anchor,), _ = cli_theory._points(["study=divergences", "regularizer=anchor"])
    (study,) = laboratory.run(dataclasses.replace(anchor.lab, order=0.5, divergence="chi_po"))
    own, metrics = "reverse_kl.start+forward_kl.others", study.metrics
    for name in ("order 0.5/in Hellinger", "chi_po/in chi-PO", f"{own}/in anchor"):
        assert metrics[f"regret/{name}"]["mean"] < 1e-12, name
    assert metrics["regret/order 0.5/in reverse KL"]["mean"] > 1e-3 < metrics[f"regret/{own}/in reverse KL"]["mean"]


@pytest.mark.parametrize(
    ("option", "terms"),
    [
        ("rkl", [DivergenceTerm("amari", 0.0)]),
        ("hellinger", [DivergenceTerm("amari", 0.5)]),
        ("js", [DivergenceTerm("jensen_shannon")]),
        ("anchor", [DivergenceTerm("reverse_kl", reference="start"), DivergenceTerm("forward_kl", reference="others")]),
    ],
)
def test_a_preset_is_its_terms(option, terms):
    (point,), axes = cli_theory._points([f"regularizer={option}"])
    assert point.lab.terms == terms and not axes


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Studies without work in an empty folder; returns the settings that they were given."""
    monkeypatch.chdir(tmp_path)
    ran = []

    def numbers(lab):
        ran.append((lab.study.parts, lab.beta))
        for part in lab.study.parts:
            chart = Chart(part, "caption", [Panel("t", "x", "y", [Line("l", [1, 2], [1.0, lab.beta])])])
            yield Study(part, f"Study {part}", [], [], [chart], {"number": metric(lab.beta)})

    monkeypatch.setattr(laboratory, "run", numbers)
    monkeypatch.setattr(laboratory, "summary", lambda studies: "Numbers.")
    return ran


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "regularizer=mrpo",
            "regularizer=mrpo is no sum of divergences over whole responses: its order of the mean -1",
        ),
        ("regularizer=rkl_token", "is no sum of divergences over whole responses: it acts token by token"),
        ("regularizer=none", "is no sum of divergences over whole responses: it is none"),
        ("regularizer=rlk", "regularizer has no option 'rlk'; did you mean 'rkl'"),
        ("divergence=reverse_kll", "divergence"),
        ("terms=[{divergence: jeffreys, reference: start}]", "terms leave a reference without a divergence"),
        ("terms=[{divergence: jeffreys, reference: math}]", "terms: reference 'math' is unknown to the laboratory"),
        ("terms=[{divergence: total_variation}]", "terms: total_variation has a score of slope zero"),
        ("order=300", "order"),
        ("study=alpha,sample", "study has no option 'sample'"),
    ],
)
def test_what_is_no_divergence_is_said_before_anything_is_written(tmp_path, wrong, said):
    with pytest.raises(RequestError) as refused:
        theory([*(() if wrong.startswith("study") else ("study=divergences",)), wrong, f"run.dir={tmp_path / 'x'}"])
    assert said in str(refused.value) and not (tmp_path / "x").exists()


def test_several_studies_and_axes_are_one_page(quick, capsys):
    theory(["study=exact_solutions,divergences", "beta=0.2,0.5"], dry_run=True)
    shown = capsys.readouterr().out
    assert "runs/theory-exact_solutions-divergences-0" in shown and "beta=0.5" in shown and not list(Path().iterdir())
    assert "alpha, beta, reward_max, divergence, order, terms" in shown and not quick
    theory(["study=exact_solutions,divergences", "beta=0.2,0.5", "run.dir=x"])
    assert quick == [(["exact_solutions", "divergences"], beta) for beta in (0.2, 0.5)]
    found = json.loads(Path("x/results.json").read_text())["metrics"]
    means = {name: value["mean"] for name, value in found.items()}
    assert means == {f"beta={b}/{s}/number": b for b in (0.2, 0.5) for s in ("exact_solutions", "divergences")}
    figures = {one.name for one in Path("x/report/figures").iterdir()}
    assert {f"{s}-beta-0-{b}.png" for b in (2, 5) for s in ("exact-solutions", "divergences")} <= figures
    text = Path("x/report/report.md").read_text()
    assert "## Study divergences: beta=0.2" in text and "## Study divergences: beta=0.5" in text
    assert "## Where it comes from" in text and "seed: 0" in text and "torch" in text
    assert OmegaConf.load("x/config.yaml").axes == {"beta": ["0.2", "0.5"]}


@pytest.mark.parametrize("command", [("report",), ("train", "--resume")])
def test_a_folder_of_the_laboratory_is_no_run(quick, multiref, capsys, command):
    theory(["study=divergences", "beta=0.3", "run.dir=x"])
    capsys.readouterr()
    assert multiref(*command, "x") == 2
    said = capsys.readouterr().err
    assert "x is of the laboratory: its report is x/report/index.html" in said
    assert said.endswith("run again by: multiref theory study=divergences beta=0.3\n") and said.count("\n") == 1


def test_another_seed_gives_other_numbers():
    (one,), (other,) = (list(laboratory.run(small("sample_complexity", seed=seed))) for seed in (0, 1))
    assert one.metrics.keys() == other.metrics.keys() and one.metrics != other.metrics


def test_unknown_studies_and_keys_write_nothing(tmp_path):
    for wrong in ("study=nothing", "+typo=1", "n=many"):
        with pytest.raises(RequestError):
            theory([wrong, f"run.dir={tmp_path / 'x'}"])
    assert not (tmp_path / "x").exists()


def test_a_study_that_fails_leaves_a_folder_that_says_so(tmp_path, monkeypatch):
    def broken(lab):
        raise ZeroDivisionError("no pairs")
        yield

    monkeypatch.setattr(laboratory, "run", broken)
    with pytest.raises(RunError, match="no pairs"):
        theory(["study=alpha", f"run.dir={tmp_path / 'x'}"])
    assert json.loads((tmp_path / "x" / "status.json").read_text())["state"] == "failed"


def test_charts_are_drawn_with_every_line_named_and_infinite_points_left_out():
    lines = [
        Line("measured one", [1, 2, 3], [0.1, 0.2, float("inf")], "measured", 0, [0.05, 0.1, 0.2], [0.2, 0.3, 0.4]),
        Line("bound one", [1, 2, 3], [1.0, 2.0, 3.0], "bound", 1),
        Line("peak one", [1, 2, 3], [0.5, float("nan"), 0.4], "shape", 2, at_peak=True),
    ]
    figure = draw(Chart("c", "caption", [Panel("title", "x", "y", lines, y_scale="log")]))
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert {"measured one", "bound one", "peak one"} <= texts
    ranges = [Range("row", (1.0, 2.0, 3.0, 4.0, 5.0)), Range("other", (0.5, 2.0, 3.0, 4.0, 5.0), 1)]
    drawn = draw(Chart("r", "caption", [Panel("title", "x", "", ranges=ranges, x_scale="log")], columns=1))
    assert [t.get_text() for t in drawn.axes[0].get_yticklabels()] == ["other", "row"]
