"""Tasks of evaluation libraries, answered by a run's policy and by its references, as metrics of the run."""

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multiref_cli.algorithms.base import Job
from multiref_cli.config.algorithms import UntrainedSettings
from multiref_cli.config.plain import digest
from multiref_cli.config.schema import Evaluation, Experiment, Model
from multiref_cli.errors import RequestError, RunError
from multiref_cli.evaluation.evaluate import summary
from multiref_cli.evaluation.tasks.base import Answers, Asking, Row, Subject, Task, answer, open_task
from multiref_cli.files import read_kept, read_lines, read_object, sentence_of, write_json, writing
from multiref_cli.models.files import fingerprint
from multiref_cli.references.base import Reference
from multiref_cli.tracking.places import command
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel


@dataclass
class TaskOutcome:
    """What was measured on tasks.

    Attributes:
        metrics: name -> mean, ci_low, ci_high, n.
        rows: one a document of a task.
        facts: what is known of every task that the policy answered, its metrics among it.
        notes: sentences for the report.
    """

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def open_tasks(settings: Evaluation) -> list[Task]:
    """The tasks of an evaluation.

    Raises:
        RequestError: one is not known or cannot be loaded, or two are called the same.
    """
    found = [open_task(given, Asking.of(settings)) for given in settings.tasks]
    for task in found:
        same = [one.given for one in found if one.title == task.title]
        if len(same) > 1:
            raise RequestError(f"evaluation.tasks {' and '.join(same)} are both called {task.title}; drop one.")
    return found


def measure_tasks(job: Job, model: LanguageModel, progress: Progress, folder: Path) -> TaskOutcome:
    """Have the policy answer every task, then the references where the evaluation compares with them.

    Each finished task is kept at once: what fails or is killed later costs none of it.

    Args:
        job: of the run.
        model: trained, on its device.
        progress: told of every task.
        folder: of the run, with the model in policy/.
    """
    settings, found = job.experiment.evaluation, TaskOutcome()
    if not answers_alone(job.experiment):
        found.notes.append("tasks were not asked: what is measured is no single model")
        return found
    references = job.references(active=False) if settings.win_rate else []
    served = [one.name for one in references if one.spec.server is not None]
    if served:
        found.notes.append(f"tasks were not asked of {', '.join(served)}: no library asks a server that only scores")
    exam = Exam(job, folder, progress, found.notes)
    for task in open_tasks(settings):
        own = exam.of_policy(task, model)
        if own is not None:
            others = {one.name: exam.of_reference(task, one) for one in references if one.spec.server is None}
            tables = _add(found, task, own, {name: one for name, one in others.items() if one is not None})
            found.metrics |= {name: summary(np.array(v), settings.bootstrap) for name, v in tables.items()}
            asked = {key: getattr(settings, f"task_{key}") for key in ("limit", "fewshot", "chat_template")}
            found.facts[-1] |= {"asked": asked, "answers": exam.place_of_policy(task).stem}
    return found


def answers_alone(experiment: Experiment) -> bool:
    """Whether what is measured is a model that a library can ask: no mixture of several, no best of several answers."""
    settings = experiment.algorithm
    return not isinstance(settings, UntrainedSettings) or (settings.sampler != "mixed" and settings.best_of == 1)


@dataclass
class Exam:
    """Asks the models of a run, and keeps what each answered to a task; see `measure_tasks`.

    Answers of the policy are kept as long as checkpoints are, those of references for all runs of this machine.
    """

    job: Job
    folder: Path
    progress: Progress
    notes: list[str]

    def of_policy(self, task: Task, model: LanguageModel) -> Answers | None:
        """The policy's answers; None and a note where the library failed."""
        place = self.place_of_policy(task)
        earlier = self._recorded(task, place.stem)
        subject = Subject(model, self.job.tokenizer, self.job.vocabulary)
        return earlier or self._answers(task, "", place, lambda: subject)

    def place_of_policy(self, task: Task) -> Path:
        """Where the policy's answers are kept until the run is done."""
        return self._place(self.folder / "checkpoints", task, fingerprint(Model(path=str(self.folder / "policy"))))

    def of_reference(self, task: Task, reference: Reference) -> Answers | None:
        """A reference's answers; None and a note where the library failed."""
        foreign = self.job.foreign_tokenizer(reference)
        size = self.job.vocabulary if foreign is None else max(foreign.get_vocab().values()) + 1
        cache = self.job.experiment.hardware.cache_folder
        place = self._place(cache, task, f"{reference.fingerprint()} {reference.dtype}")
        try:
            return self._answers(
                task,
                f" of {reference.name}",
                place,
                lambda: Subject(reference.model, reference.tokenizer, size),
            )
        finally:
            reference.release()

    def _recorded(self, task: Task, answers: str) -> Answers | None:
        """The same answers of an earlier evaluation of this run."""
        with contextlib.suppress(RunError):
            for fact in (read_object(self.folder / "results.json") or {}).get("tasks") or []:
                if fact.get("answers") == answers:
                    title, own = f"{task.title}/", ("document", "prompt", "target", "response", *fact["metrics"])
                    lines = [row for row in read_lines(self.folder / "tasks.jsonl") if row.get("task") == task.title]
                    rows = [{k.removeprefix(title): v for k, v in row.items() if k in own} for row in lines]
                    metrics, higher = ([n.removeprefix(title) for n in fact[key]] for key in ("metrics", "higher"))
                    return Answers(rows, metrics, higher, fact["notes"]) if len(rows) == task.documents else None
        return None

    def _place(self, root: Path, task: Task, model: str) -> Path:
        """Where answers are kept, by all that they depend on."""
        experiment = self.job.experiment
        asking = {k: v for k, v in asdict(Asking.of(experiment.evaluation)).items() if k != "batch_size"}
        how = [asking, experiment.precision, experiment.data.date, dict(experiment.data.chat_template_kwargs)]
        return root / "tasks" / f"{digest([task.sha256, task.title, task.library, model, how])}.json"

    def _answers(self, task: Task, whose: str, place: Path, subject: Callable[[], Subject]) -> Answers | None:
        kept = read_kept(place)
        if kept is not None:
            return Answers(**kept)
        self.progress.advance(f"evaluate: {task.title}{whose}", 0, task.documents)
        try:
            answers = answer(task, subject(), Asking.of(self.job.experiment.evaluation))
        except Exception as error:  # of a library, of a task's own code, of a model that has no memory left for it
            self._tell(task, whose, error)
            return None
        write_json(place, asdict(answers))
        return answers

    def _tell(self, task: Task, whose: str, error: Exception) -> None:
        """Note a failure, its traceback in logs/tasks.txt."""
        log = self.folder / "logs" / "tasks.txt"
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{task.given}{whose}\n{''.join(traceback.format_exception(error))}\n")
        why = sentence_of(error).strip().splitlines()[0].rstrip(".")
        tasks = ",".join(self.job.experiment.evaluation.tasks)
        again = command("eval", self.folder, f"evaluation.tasks=[{tasks}]")
        said = f"{task.title}{whose} failed ({why}): see logs/tasks.txt; `{again}` asks again"
        self.progress.note(said)
        self.notes.append(said)


def _add(found: TaskOutcome, task: Task, own: Answers, others: dict[str, Answers]) -> dict[str, list[float]]:
    """Rows and facts of a task; returns metric -> a value for every document."""
    rows = {row["document"]: {"task": task.title, **_named(row, own, f"{task.title}/")} for row in own.rows}
    tables = {f"{task.title}/{name}": [float(row[name]) for row in own.rows] for name in own.metrics}
    for name, answers in others.items():
        for metric in answers.metrics:
            key = f"reference/{task.title}/{metric}/{name}"
            values = {row["document"]: float(row[metric]) for row in answers.rows}
            if set(values) == set(rows):
                tables[key] = [values[document] for document in rows]
                for document, row in rows.items():
                    row[key] = values[document]
    found.rows += list(rows.values())
    found.notes += own.notes
    metrics, higher = ([f"{task.title}/{name}" for name in names] for names in (own.metrics, own.higher))
    found.facts.append({**task.facts, "metrics": metrics, "higher": higher, "notes": own.notes})
    return tables


def _named(row: Row, answers: Answers, title: str) -> Row:
    """A row whose metrics have their whole names."""
    return {f"{title}{key}" if key in answers.metrics else key: value for key, value in row.items()}
