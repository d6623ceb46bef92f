"""Tasks of evaluation libraries: how they are named, what is read from a library's log, how questions are answered."""

import asyncio
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from multiref_cli.config.schema import Evaluation, Model
from multiref_cli.config.tasks import check_tasks
from multiref_cli.data.chat import end_ids, prompt_ids
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.tasks import inspect_ai, lm_eval
from multiref_cli.evaluation.tasks.base import Asking, Subject, Task
from multiref_cli.models.load import load_causal_lm, load_tokenizer


@pytest.fixture
def installed(monkeypatch):
    """Libraries that look installed; returns a switch that takes one away."""
    there = {"lm_eval", "accelerate", "inspect_ai"}
    monkeypatch.setattr("multiref_cli.config.tasks.find_spec", lambda name: object() if name in there else None)
    return there.discard


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        (["gsm8k"], "evaluation.tasks has 'gsm8k'; give LIBRARY:TASK, such as lm_eval:gsm8k"),
        (["lm_eval:"], "give LIBRARY:TASK"),
        (["lmeval:gsm8k"], "one of lm_eval, inspect; did you mean lm_eval:gsm8k."),
        (["inspekt:a.py"], "did you mean inspect:a.py."),
        (["lm_eval:a", "lm_eval:a"], "evaluation.tasks has 'lm_eval:a' twice; drop one."),
    ],
)
def test_names_of_another_form_are_refused(installed, tasks, sentence):
    with pytest.raises(RequestError) as refused:
        check_tasks(tasks, writes=True)
    assert sentence in str(refused.value)


def test_a_missing_library_says_how_it_is_installed(installed):
    check_tasks(["lm_eval:gsm8k", "inspect:a.py@b"], writes=True)
    with pytest.raises(RequestError, match="a reward model writes nothing"):
        check_tasks(["lm_eval:gsm8k"], writes=False)
    installed("inspect_ai")
    with pytest.raises(RequestError, match=r"=inspect:a\.py@b needs inspect_ai, which .*: pip install inspect-ai, or"):
        check_tasks(["lm_eval:gsm8k", "inspect:a.py@b"], writes=True)
    installed("accelerate")
    with pytest.raises(
        RequestError, match=r"needs accelerate, which is not installed: pip install 'lm-eval\[hf\]', or"
    ):
        check_tasks(["lm_eval:gsm8k"], writes=True)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the library is there")
def test_without_a_library_nothing_is_written(place, multiref, offline, capsys, tmp_path):
    assert multiref("train", *offline, "evaluation.tasks=[lm_eval:gsm8k]", "run.dir=out") == 2
    assert "pip install 'lm-eval[hf]'" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert multiref("train", *offline, "evaluation.tasks=lm_eval:gsm8k", "run.dir=out") == 2
    assert "give it as evaluation.tasks=[VALUE]" in capsys.readouterr().err


def test_tasks_leave_the_hashes_of_other_experiments_as_they_were():
    from multiref_cli.config.plain import to_plain, without_later

    names = {"tasks", "task_limit", "task_fewshot", "task_chat_template"}
    plain = to_plain(Evaluation())
    assert names <= set(plain) and not names & set(without_later(Evaluation(), plain))
    asked = Evaluation(tasks=["lm_eval:a"], task_limit=3)
    assert names & set(without_later(asked, to_plain(asked))) == {"tasks", "task_limit"}


def logged(doc, strategy, **metrics):
    """A line of the log of lm-eval 0.4.13."""
    line = {"doc_id": doc, "doc_hash": f"{doc}abcdefabcdefabcdef", "arguments": [(f"question {doc}", {"until": []})]}
    line |= {"target": f"#### {doc}", "resps": [[f"answer {doc}"]], "filter": strategy, "metrics": list(metrics)}
    return line | metrics


def harness(**tasks):
    """What lm-eval knows of tasks: metric -> (aggregation, whether higher is better)."""

    def mean(values):
        return sum(values) / len(values)

    def corpus(values):
        return 0.0

    def one(metrics):
        kinds = {"mean": mean, "corpus": corpus}
        return SimpleNamespace(
            aggregation=lambda: {name: kinds[kind] for name, (kind, _) in metrics.items()},
            higher_is_better=lambda: {name: better for name, (_, better) in metrics.items()},
        )

    content = {"tasks": {name: one(metrics) for name, metrics in tasks.items()}}
    return Task("lm_eval:x", "lm_eval/x", "lm_eval 0.4.13", "3", "0" * 64, 2, content)


def test_several_filters_are_several_metrics_and_the_first_is_compared():
    task = harness(gsm8k={"exact_match": ("mean", True)})
    lines = [logged(doc, how, exact_match=float(doc == 1 and how == "strict")) for how in ("strict", "loose") for doc in (0, 1)]  # fmt: skip  # noqa: E501
    found = lm_eval._answers({"gsm8k": lines}, task)
    assert found.metrics == found.higher == ["exact_match/strict", "exact_match/loose"] and found.notes == []
    assert found.rows == [
        {"document": f"{doc}:{doc}abcdefabcde", "prompt": f"question {doc}", "target": f"#### {doc}",
         "response": f"answer {doc}", "exact_match/strict": float(doc), "exact_match/loose": 0.0}
        for doc in (0, 1)
    ]  # fmt: skip


def test_measures_of_a_whole_corpus_are_left_out_and_named():
    task = harness(t={"bleu": ("corpus", True), "acc": ("mean", True), "ter": ("mean", False)})
    lines = [logged(doc, "none", bleu=("a", "b"), acc=torch.tensor(1.0), ter=0.5) for doc in (0, 1)]
    found = lm_eval._answers({"t": lines}, task)
    assert found.metrics == ["acc", "ter"] and found.higher == ["acc"]
    assert found.notes == ["lm_eval/x: bleu left out, no number for every document"]
    assert [row["acc"] for row in found.rows] == [1.0, 1.0] and all("bleu" not in row for row in found.rows)


def test_the_documents_of_a_group_carry_their_task():
    task = harness(a={"acc": ("mean", True)}, b={"acc": ("mean", True), "acc_norm": ("mean", True)})
    samples = {"a": [logged(0, "none", acc=1.0)], "b": [logged(0, "none", acc=0.0, acc_norm=1.0)]}
    found = lm_eval._answers(samples, task)
    assert [row["document"].partition(":")[0] for row in found.rows] == ["a/0", "b/0"]
    assert found.metrics == ["acc"] and "acc_norm left out" in found.notes[0]


def test_scores_of_inspect_are_means_over_epochs():
    def sample(number, **values):
        scores = {name: SimpleNamespace(value=value) for name, value in values.items()}
        output = SimpleNamespace(completion=f"answer {number}")
        return SimpleNamespace(
            id=number, input=f"question {number}", choices=None, target="1", output=output, scores=scores
        )

    task = Task("inspect:x.py", "inspect/x", "inspect_ai 0.3", "0", "0" * 64, 2, "x.py")
    samples = [
        sample(1, match="C", both={"a": 1, "b": "P"}, said="a remark"),
        sample(1, match="I", both={"a": 0, "b": "N"}, said="a remark"),
        sample(2, match="C", both={"a": 1, "b": "C"}, said="C"),
    ]
    found = inspect_ai._answers(samples, task)
    assert found.metrics == ["match", "both/a", "both/b"] and "said left out" in found.notes[0]
    assert [[row[name] for name in found.metrics] for row in found.rows] == [[0.5, 0.5, 0.25], [1.0, 1.0, 1.0]]
    assert len({row["document"] for row in found.rows}) == 2


ASKING = Asking(None, None, None, 6, 1, 4)


def config(**values):
    """A task's generation settings, where it names any."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed", "num_choices", "stop_seqs")
    return SimpleNamespace(**{**dict.fromkeys(names), **values})


@pytest.fixture(scope="module")
def subject(world):
    source = Model(path=str(world / "one"))
    tokenizer = load_tokenizer(source)
    return Subject(load_causal_lm(source, "cpu", "float32"), tokenizer, len(tokenizer.get_vocab()))


def greedy(subject, ids, length):
    """Token after token the likeliest, by the model's own forward."""
    ends, written = set(end_ids(subject.tokenizer)), []
    while len(written) < length and not (written and written[-1] in ends):
        with torch.no_grad():
            logits = subject.model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1, : subject.vocabulary]
        written.append(int(logits.argmax()))
    return written


def test_questions_are_answered_in_batches_as_they_would_be_alone(subject):
    answerer = inspect_ai.Answerer(subject, ASKING)
    texts = [f"sam has {n} shells . then sam picks {n % 7} . how many ?" for n in range(9)]
    messages = [[{"role": "user", "content": text}] for text in texts]
    calls, generate = [], answerer.engine.generate
    answerer.engine.generate = lambda prompts, *rest: calls.append(len(prompts)) or generate(prompts, *rest)

    async def ask():
        return await asyncio.gather(*(answerer.ask(one, config(max_tokens=8 if i else None)) for i, one in enumerate(messages)))  # fmt: skip  # noqa: E501

    found = asyncio.run(ask())
    assert sorted(calls) == [1, 8], "one batch for each kind of question"
    for i, ([one], asked) in enumerate(zip(found, messages)):
        assert one.ids == greedy(subject, prompt_ids(subject.tokenizer, asked), 8 if i else 6)


def test_the_same_question_again_is_another_sample_and_a_long_one_has_no_answer(subject):
    answerer, asked = inspect_ai.Answerer(subject, ASKING), [{"role": "user", "content": "how many ?"}]

    async def ask(count, **values):
        return [one.ids for n in range(count) for one in await answerer.ask(asked, config(**values))]

    first = asyncio.run(ask(4, temperature=1.0))
    assert len({tuple(ids) for ids in first}) > 1
    answerer.asked.clear()
    assert asyncio.run(ask(4, temperature=1.0)) == first, "the seed decides"
    assert len(asyncio.run(ask(1, temperature=1.0, num_choices=3))) == 3
    asked[0]["content"] = "shells " * 130  # the model has 128 positions
    assert asyncio.run(ask(1)) == []


def test_texts_end_at_what_the_task_stops_at(subject):
    answerer, ids = inspect_ai.Answerer(subject, ASKING), subject.tokenizer("8 + 5 = 13 #### 13").input_ids
    one = SimpleNamespace(ids=[*ids, end_ids(subject.tokenizer)[0]], finished=True)
    assert inspect_ai._text(one, answerer, ()) == ("8 + 5 = 13 #### 13", True)
    assert inspect_ai._text(one, answerer, ("####", "=")) == ("8 + 5 ", True)
    assert inspect_ai._text(SimpleNamespace(ids=ids, finished=False), answerer, ()) == ("8 + 5 = 13 #### 13", False)
