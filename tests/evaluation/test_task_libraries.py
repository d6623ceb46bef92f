"""lm-eval and Inspect for real: their scores of the embedded world's problems are those of our verifier, row by row."""

from pathlib import Path

import pytest
import torch

from multiref_cli.config.schema import Model
from multiref_cli.data.chat import prompt_ids
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.tasks.base import Asking, Subject, answer, open_task
from multiref_cli.files import read_lines
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.rewards.sample import Sample
from multiref_cli.world.reward import toy_correct
from multiref_cli.world.worlds import SHIPPED

ASKING = Asking(limit=40, fewshot=None, chat_template=None, max_new_tokens=26, seed=1, batch_size=16)
HARNESS = """
task: problems
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|end|>"], do_sample: false}}
filter_list:
  - {{name: last, filter: [{{function: regex, regex_pattern: "#### (-?\\\\d+)$"}}, {{function: take_first}}]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.0}}
"""
CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{[answer, '1']}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
INSPECT = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample, json_dataset
from inspect_ai.scorer import pattern
from inspect_ai.solver import generate

@task
def problems():
    read = lambda row: Sample(input=row["prompt"], target=row["answer"])
    return Task(dataset=json_dataset({file!r}, read), solver=generate(), scorer=pattern(r"#### (-?\\d+)$"))

@task
def others():
    return problems()
"""


@pytest.fixture(scope="module")
def subject():
    """The embedded model that solves about half of the problems."""
    source = Model(path=str(SHIPPED / "math"))
    tokenizer = load_tokenizer(source)
    return Subject(load_causal_lm(source, "cpu", "float32"), tokenizer, len(tokenizer.get_vocab()))


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """The held-out problems in a folder of their own."""
    path = tmp_path_factory.mktemp("problems") / "test.jsonl"
    path.write_text((SHIPPED / "prompts" / "test.jsonl").read_text())
    return path


def verified(rows, problems):
    """What our verifier says of the responses of some rows."""
    asked = read_lines(problems)[: len(rows)]
    samples = [
        Sample([{"role": "user", "content": one["prompt"]}], row["response"], one["answer"])
        for one, row in zip(asked, rows)
    ]
    return list(toy_correct(samples))


def test_the_harness_agrees_with_our_verifier_row_by_row(subject, problems, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    file = tmp_path / "problems.yaml"
    file.write_text(HARNESS.format(file=problems))
    task = open_task(f"lm_eval:{file}", ASKING)
    assert (task.title, task.version, task.documents) == ("lm_eval/problems", "2.0", 40)
    found = answer(task, subject, ASKING)
    assert found.metrics == found.higher == ["exact_match"]
    scores = [row["exact_match"] for row in found.rows]
    assert scores == verified(found.rows, problems) and 0.2 < sum(scores) / 40 < 0.9
    # Its prompts are those that training writes, and the same model answers the same again.
    text = read_lines(problems)[0]["prompt"]
    assert found.rows[0]["prompt"] == f"<|user|>{text}<|assistant|>"
    assert answer(task, subject, ASKING) == found
    # The same task elsewhere is the same task; with another document it is another.
    moved = tmp_path / "moved.jsonl"
    moved.write_text(problems.read_text())
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(HARNESS.format(file=moved))
    assert open_task(f"lm_eval:{elsewhere}", ASKING).sha256 == task.sha256
    assert open_task(f"lm_eval:{elsewhere}", Asking(39, None, None, 26, 1, 16)).sha256 != task.sha256


def test_choices_are_scored_by_the_log_probabilities_of_the_model(subject, problems, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    file = tmp_path / "choices.yaml"
    file.write_text(CHOICES.format(file=problems))
    asking = Asking(limit=6, fewshot=None, chat_template=None, max_new_tokens=26, seed=1, batch_size=4)
    found = answer(open_task(f"lm_eval:{file}", asking), subject, asking)
    assert found.metrics == found.higher == ["acc"]
    for row, one in zip(found.rows, read_lines(problems)):
        told = [logp for logp, _ in row["response"]]
        assert told == pytest.approx([logp(subject, one["prompt"], text) for text in (one["answer"], "1")], abs=1e-4)
        assert row["acc"] == float(told[0] > told[1])


def logp(subject, prompt, text):
    """Log-probability of a response without its end, by the model's own forward."""
    asked = prompt_ids(subject.tokenizer, [{"role": "user", "content": prompt}])
    ids = subject.tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = subject.model(input_ids=torch.tensor([[*asked, *ids]])).logits[0, len(asked) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(ids)), ids].sum())


def test_inspect_agrees_with_our_verifier_row_by_row(subject, problems, tmp_path):
    pytest.importorskip("inspect_ai")
    file = tmp_path / "toy.py"
    file.write_text(INSPECT.format(file=str(problems)))
    task = open_task(f"inspect:{file}@problems", ASKING)
    assert (task.title, task.documents) == ("inspect/problems", 40)
    found = answer(task, subject, ASKING)
    assert found.metrics == found.higher == ["pattern"]
    scores = [row["pattern"] for row in found.rows]
    assert scores == verified(found.rows, problems) and 0.2 < sum(scores) / 40 < 0.9
    assert not list(Path.cwd().glob("logs/*.eval"))


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("{file}@problem", "toy.py has no task 'problem'; did you mean 'problems'."),
        ("{file}", "toy.py has problems, others; give one of them as inspect:"),
        ("{folder}/none.py@a", "there is no file"),
        ("nothing/at_all", "Inspect knows no task 'nothing/at_all'"),
    ],
)
def test_unknown_tasks_of_inspect_are_one_sentence(problems, tmp_path, task, sentence):
    pytest.importorskip("inspect_ai")
    file = tmp_path / "toy.py"
    file.write_text(INSPECT.format(file=str(problems)))
    with pytest.raises(RequestError) as refused:
        open_task(f"inspect:{task.format(file=file, folder=tmp_path)}", ASKING)
    assert sentence in str(refused.value) and str(refused.value).count("\n") == 0


def test_unknown_tasks_of_the_harness_are_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from types import SimpleNamespace

    from multiref_cli.evaluation.tasks import lm_eval as ours

    # The index of all shipped tasks takes seconds to build.
    monkeypatch.setattr(ours, "_manager", lambda bare: SimpleNamespace(all_tasks=["gsm8k", "mmlu"]))
    with pytest.raises(RequestError, match="has no task 'gsm8kk'; did you mean 'gsm8k'"):
        open_task("lm_eval:gsm8kk", ASKING)
    with pytest.raises(RequestError, match="there is no file"):
        open_task(f"lm_eval:{tmp_path}/none.yaml", ASKING)
