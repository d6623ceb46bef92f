"""Tasks of evaluation libraries as metrics of a run: by document, kept when something fails, of references too."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Model
from multiref_cli.config.tasks import LIBRARIES, Library
from multiref_cli.data.chat import end_ids, prompt_ids
from multiref_cli.evaluation.tasks import base
from multiref_cli.evaluation.tasks.base import Answers, Task, sha256_of
from multiref_cli.files import read_json, read_lines
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.reports import metrics
from multiref_cli.reports.collect import conditions, read_run
from multiref_cli.reports.job_section import compared
from multiref_cli.reports.published import rows_of, write_rows
from multiref_cli.reports.report import mixed_inputs
from multiref_cli.reports.scores import check_rows, write_scores
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.runs.run import train

QUESTIONS = [f"sam has {n} shells . then sam picks {n % 5} . how many ?" for n in range(12)]


def words(path, count=12):
    """Tokens of a policy's likeliest answers, by question: what the library below scores with."""
    source = Model(path=str(path))
    return _words(load_causal_lm(source, "cpu", "float32"), load_tokenizer(source), count)


def _words(model, tokenizer, count):
    ids = [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS[:count]]
    engine = TransformersEngine(model, 0, 64, len(tokenizer.get_vocab()))
    sampling = Sampling(temperature=0.0, max_new_tokens=6, end_ids=tuple(end_ids(tokenizer)))
    return [float(sum(one[0].ids)) for one in engine.generate(ids, 1, sampling, list(range(count)))]


@pytest.fixture
def library(monkeypatch):
    """A library `fake` that scores answers by their tokens; returns what it was asked, and what it shall raise."""
    asked, raises = [], {}

    def open_task(given, name, settings):
        texts = QUESTIONS[: settings.limit]
        return Task(given, f"fake/{name}", "fake 1.2", "7", sha256_of([name, texts]), len(texts), texts)

    def answer(task, subject, settings):
        if task.title in raises:
            raise raises[task.title]
        asked.append(task.title)
        found = _words(subject.model, subject.tokenizer, task.documents)
        rows = [
            {"document": f"{n}:x", "prompt": text, "target": "1", "response": "", "words": value, "cost": 1.0}
            for n, (text, value) in enumerate(zip(task.content, found))
        ]
        return Answers(rows, ["words", "cost"], ["words"], ["a remark"])

    monkeypatch.setitem(LIBRARIES, "fake", Library(("json",), "fake", "fake"))
    monkeypatch.setattr(base, "module_of", lambda name: SimpleNamespace(open_task=open_task, answer=answer))
    base.open_task.cache_clear()
    yield SimpleNamespace(asked=asked, raises=raises)
    base.open_task.cache_clear()


def test_policy_and_references_are_measured_document_by_document(place, multiref, online, library):
    assert multiref("train", *online, "evaluation.tasks=[fake:a]", "evaluation.task_limit=9", "run.dir=out") == 0
    run = read_run(Path("out"))
    expected = {"fake/a/words": words("out/policy", 9)}
    expected |= {f"reference/fake/a/words/{name}": words(place / name, 9) for name in ("one", "two")}
    names = dict(zip(("one", "two"), run.references))
    for metric, values in expected.items():
        own = (
            metric if metric == "fake/a/words" else metric.replace(metric.split("/")[-1], names[metric.split("/")[-1]])
        )
        assert np.array_equal(run.per_prompt(own), values), own
        assert run.metrics[own]["mean"] == pytest.approx(np.mean(values)) and run.metrics[own]["n"] == 9
    assert len(set(expected["fake/a/words"])) > 1, "an expectation that cannot fail says nothing"
    (fact,) = run.tasks
    assert fact["library"] == "fake 1.2" and fact["version"] == "7" and fact["higher"] == ["fake/a/words"]
    assert [run.manifest["tasks"][0][key] for key in ("title", "sha256")] == [fact["title"], fact["sha256"]]
    assert "a remark" in run.results["notes"]
    # Another run asks its own policy alone: what the references answered is kept for this machine.
    assert library.asked == ["fake/a"] * 3
    assert (
        multiref("train", *online, "evaluation.tasks=[fake:a]", "evaluation.task_limit=9", "seed=1", "run.dir=b") == 0
    )
    assert library.asked == ["fake/a"] * 4
    assert read_run(Path("b")).per_prompt("reference/fake/a/words/" + names["two"]) is not None


def test_runs_are_compared_on_the_documents_that_they_share(place, online, library, tmp_path):
    given = [*online, "evaluation.tasks=[fake:a]", "evaluation.win_rate=false", "evaluation.prompts=0", "steps=2"]
    for name, seed in (("rkl", 0), ("rkl", 1), ("fkl", 0), ("fkl", 1)):
        own = [f"regularizer={name}_token", f"seed={seed}", f"run.dir=runs/{name}-{seed}"]
        train(compose([*given, *own, "optimizer.learning_rate=0.05"]))
    found = conditions([read_run(folder) for folder in sorted(Path("runs").iterdir())])
    assert metrics.most_trusted(["toy_gold", "fake/a/words"]) == "toy_gold", "a task is a score beside the run's own"
    assert metrics.most_trusted(["fake/a/words"]) == "fake/a/words"
    assert metrics.scorers(found) == ["fake/a/words"] and "fake/a/cost" in metrics.scores(found)
    (verdict,) = compared(found)
    answers = {name: [words(f"runs/{name}-{seed}/policy") for seed in (0, 1)] for name in ("rkl", "fkl")}
    assert verdict.comparison.prompts == len(QUESTIONS) and verdict.metric == "fake/a/words"
    difference = abs(np.mean(answers["rkl"]) - np.mean(answers["fkl"]))
    assert abs(verdict.comparison.difference.mean) == pytest.approx(difference) and difference > 0
    # What is published with them says every number again.
    write_rows(rows_of(found), tmp_path / "summary.csv")
    write_scores(found, tmp_path / "scores.csv.gz")
    assert check_rows(tmp_path / "summary.csv").startswith("All ")
    assert "fake/a/words" in (tmp_path / "summary.csv").read_text()
    # Another content under the same name is no fair comparison.
    results = read_json(Path("runs/fkl-1/results.json"))
    results["tasks"][0]["sha256"] = "f" * 64
    Path("runs/fkl-1/results.json").write_text(json.dumps(results))
    runs = [read_run(folder) for folder in sorted(Path("runs").iterdir())]
    assert [text for text in mixed_inputs(runs) if "task fake/a had another content" in text]


def test_what_fails_costs_nothing_that_is_finished(place, multiref, online, library, capsys):
    library.raises["fake/b"] = ValueError("no such metric")
    given = "evaluation.tasks=[fake:a,fake:b]"
    assert multiref("train", *online, given, "evaluation.win_rate=false", "run.dir=out") == 0
    run = read_run(Path("out"))
    assert [fact["title"] for fact in run.tasks] == ["fake/a"] and run.per_prompt("fake/a/words") is not None
    (note,) = [note for note in run.results["notes"] if "failed" in note]
    assert note.startswith("fake/b failed (ValueError: no such metric): see logs/tasks.txt; `multiref eval out")
    assert "no such metric" in Path("out/logs/tasks.txt").read_text() and "fake/b failed" in capsys.readouterr().out
    # Asked again, only what is missing is asked; the earlier evaluation is kept.
    library.raises.clear(), library.asked.clear()
    assert multiref("eval", "out") == 0
    assert library.asked == ["fake/b"]
    again = read_run(Path("out"))
    assert [fact["title"] for fact in again.tasks] == ["fake/a", "fake/b"]
    assert np.array_equal(again.per_prompt("fake/a/words"), run.per_prompt("fake/a/words"))
    assert not list(Path("out/checkpoints").iterdir())
    assert len(read_lines(Path("out/evaluations/0001/tasks.jsonl"))) == 12


def test_an_interrupted_evaluation_goes_on_behind_the_tasks_that_are_done(place, multiref, online, library):
    library.raises["fake/b"] = KeyboardInterrupt()
    given = ["evaluation.tasks=[fake:a,fake:b]", "evaluation.win_rate=false", "run.dir=out"]
    assert multiref("train", *online, *given) == 130
    assert read_json(Path("out/status.json"))["state"] == "stopped" and library.asked == ["fake/a"]
    library.raises.clear(), library.asked.clear()
    assert multiref("train", "--resume", "out") == 0
    assert library.asked == ["fake/b"]
    assert np.array_equal(read_run(Path("out")).per_prompt("fake/a/words"), words("out/policy"))


def test_a_finished_run_is_asked_tasks_later(place, multiref, online, library):
    assert multiref("train", *online, "run.dir=out") == 0
    assert (
        multiref("eval", "out", "evaluation.tasks=[fake:a]", "evaluation.prompts=0", "evaluation.win_rate=false") == 0
    )
    assert np.array_equal(read_run(Path("out")).per_prompt("fake/a/words"), words("out/policy"))
    assert read_run(Path("out")).lines("fake/a/words").units[0] == "0:x"


def test_a_dry_run_says_how_much_is_asked(place, multiref, online, library, capsys):
    assert multiref("train", *online, "evaluation.tasks=[fake:a]", "evaluation.task_limit=9", "--dry-run") == 0
    assert "task fake/a 9 documents (fake 1.2), in no time or memory below" in " ".join(capsys.readouterr().out.split())
    assert library.asked == []


def test_what_is_no_single_model_is_not_asked(place, multiref, online, library):
    mixed = [text for text in online if not text.startswith(("algorithm.", "steps"))]
    given = ["algorithm=untrained", "evaluation.tasks=[fake:a]", "run.dir=out"]
    assert multiref("train", *mixed, *given, "algorithm.sampler=mixed") == 0
    assert read_run(Path("out")).tasks == [] and library.asked == []
    assert "tasks were not asked" in str(read_run(Path("out")).results["notes"])


def test_two_tasks_of_one_title_are_refused(place, multiref, online, library, monkeypatch, capsys):
    opened = base.module_of("fake").open_task
    same = SimpleNamespace(open_task=lambda given, name, settings: opened(given, "x", settings))
    monkeypatch.setattr(base, "module_of", lambda name: same)
    assert multiref("train", *online, "evaluation.tasks=[fake:a,fake:b]", "run.dir=out") == 2
    assert "fake:a and fake:b are both called fake/x; drop one" in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()


def test_a_task_that_cannot_be_loaded_is_refused_before_anything_is_trained(place, multiref, online, library, monkeypatch, capsys):  # fmt: skip  # noqa: E501
    def broken(given, name, settings):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(base, "module_of", lambda name: SimpleNamespace(open_task=broken))
    assert multiref("train", *online, "evaluation.tasks=[fake:a]", "run.dir=out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "=fake:a cannot be loaded (ConnectionError: Couldn't reach the Hub); mend it, or drop the task." in said
    assert not Path("out").exists()
