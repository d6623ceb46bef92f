"""The model card of a run: README.md in its policy/, made from what the run folder and the models behind it say.

Its front matter is what the Hub reads (https://huggingface.co/docs/hub/model-cards). Names, paths and notes come from
users and data: they are shown as text, never as markup.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from multiref_cli.config.objective import deviations, objective
from multiref_cli.config.schema import Experiment, Model
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_object, write_text
from multiref_cli.models.files import hub_id, resolve
from multiref_cli.tracking.places import command
from multiref_cli.tracking.run_dir import RunDir

CARD = "README.md"
# What the card of the start says of its terms, which hold for what is trained from it.
_TERMS = ("license", "license_name", "license_link")
_CITATION = """@article{aminian2025klregularized,
  title   = {KL-Regularized RLHF with Multiple Reference Models: Exact Solutions and Sample Complexity},
  author  = {Gholamali Aminian and Amir R. Asadi and Idan Shenfeld and Youssef Mroueh},
  journal = {arXiv preprint arXiv:2502.01203},
  year    = {2025},
}"""


def write_card(run: RunDir, asked: Experiment, steps: int) -> None:
    """Write policy/README.md of a run that is measured, or replace it after another evaluation.

    Args:
        run: with its manifest, results and policy/.
        asked: its experiment, as the user gave it.
        steps: optimizer steps of the run.
    """
    manifest, results = (_content(run.path / f"{name}.json") for name in ("manifest", "results"))
    try:
        overrides = (run.path / "overrides.txt").read_text().splitlines()
    except OSError:
        overrides = []
    write_text(run.path / "policy" / CARD, card(asked, manifest, results, overrides, steps))


def card(
    asked: Experiment,
    manifest: Mapping[str, Any],
    results: Mapping[str, Any],
    overrides: Sequence[str],
    steps: int,
) -> str:
    """The text of a model card.

    Args:
        asked: the experiment as the user gave it.
        manifest: content of manifest.json.
        results: content of results.json.
        overrides: of `multiref train`, as given.
        steps: optimizer steps of the run.
    """
    parts = [
        f"---\n{yaml.safe_dump(front_matter(asked), sort_keys=False, allow_unicode=True)}---",
        f"# {_plain(asked.condition)}",
        _opening(asked),
        "## Training",
        _table(("what", "value"), _training(asked, manifest, steps)),
        *_references(asked, manifest),
        *_evaluation(results),
        "## Load it",
        _fenced(_loading(asked), "python"),
        "## Make it again",
        _fenced(command("train", *overrides), "bash"),
        _software(manifest),
        "## Cite",
        _fenced(_CITATION, "bibtex"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(asked: Experiment) -> dict[str, Any]:
    """What the Hub reads of a card: names of models and data where they are on the Hub, terms as the start has them."""
    policy, data, found = asked.policy, asked.data, dict[str, Any]()
    trained_from = policy.new is None
    if trained_from and hub_id(policy.path):
        found |= {"base_model": policy.path, "base_model_relation": "finetune"}
    found["library_name"] = "transformers"
    found["pipeline_tag"] = "text-generation" if asked.algorithm.writes else "text-classification"
    found["tags"] = ["multiref", asked.algorithm.name, *(["kl-regularization"] if asked.penalized else [])]
    if data.source is None and data.path is not None and hub_id(data.path):
        found["datasets"] = [data.path]
    terms = _front_matter_of(policy) if trained_from else {}
    return found | {key: terms[key] for key in _TERMS if isinstance(terms.get(key), (str, list))}


def _front_matter_of(model: Model) -> dict[str, Any]:
    """The front matter of a model's own card; empty where it has none."""
    try:
        text = (resolve(model.path, model.revision, weights=False) / CARD).read_text()
        block = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        content = yaml.safe_load(block[1]) if block else None
    except (RequestError, OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _opening(asked: Experiment) -> str:
    policy, names = asked.policy, [_code(one.name) for one in asked.active_references]
    start = "a new model" if policy.new is not None else _code(policy.path)
    sentence = f"{_plain(asked.algorithm.title)}, trained from {start} with multiref"
    if not asked.penalized:
        return f"{sentence}; no reference regularizes it."
    return f"{sentence}, regularized towards {' and '.join(names)}."


def _training(asked: Experiment, manifest: Mapping[str, Any], steps: int) -> list[tuple[str, str]]:
    policy, data, optimizer = asked.policy, asked.data, asked.optimizer
    start = "random weights, " + _code(policy.new) if policy.new is not None else _model(policy, manifest.get("policy"))
    rows = [("start", start), ("algorithm", _code(asked.algorithm.name))]
    if asked.penalized:
        penalty = asked.penalty
        estimator = f", estimator {_plain(asked.estimator_name)}" if asked.estimator_name else ""
        rest = "; ".join([objective(asked), *deviations(asked)])
        level = f"level {penalty.level.name}{estimator}"
        rows += [
            ("regularizer", f"{_code(penalty.title)}: {_plain(penalty.description)}, {level}"),
            ("beta", f"{asked.beta_words} of reward per nat"),
            ("objective at rest", _plain(rest)),
        ]
    if asked.reward is not None and asked.algorithm.rewarded:
        rows.append(("reward", _code(asked.reward.name)))
    read = manifest.get("data") or {}
    checksum = f", sha256 {str(read.get('sha256'))[:12]}" if read.get("sha256") else ""
    rate = f"learning rate {optimizer.learning_rate:g}, {_plain(optimizer.schedule)}"
    rows += [
        ("data", f"{_code(data.path or data.name)}{checksum}"),
        ("rows", _plain(read.get("rows") or "not recorded")),
        ("optimizer", f"{_code(optimizer.name)}, {rate}"),
        ("steps", f"{steps} of {asked.algorithm.batch_size} rows"),
        ("seed", str(asked.seed)),
    ]
    if policy.lora is not None:
        rows.append(("LoRA", f"rank {policy.lora.rank}, alpha {policy.lora.alpha:g}; merged into the weights"))
    return rows


def _references(asked: Experiment, manifest: Mapping[str, Any]) -> list[str]:
    """The frozen references with their weights."""
    if not asked.penalized:
        return []
    sums = manifest.get("references") or {}
    rows = []
    for index, one in enumerate(asked.references):
        if asked.adaptive_weights:
            weight = "made of each pair" if asked.weights[index] else "0"
        elif asked.routes is None:
            weight = f"{asked.weights[index]:g}"
        else:
            weight = ", ".join(f"{_plain(value)}: {row[index]:g}" for value, row in asked.routes.weights.items())
        rows.append((_code(one.name), weight, _model(one, sums.get(one.name))))
    by = "" if asked.routes is None else f" by {_code(asked.routes.column)}"
    return ["## References", _table(("reference", f"weight{by}", "model"), rows)]


def _evaluation(results: Mapping[str, Any]) -> list[str]:
    """What was measured, with intervals, and what a reader must know of it."""
    metrics = results.get("metrics") or {}
    rows = [
        (_code(name), f"{one['mean']:.4g}", f"{one['ci_low']:.4g} to {one['ci_high']:.4g}", str(one["n"]))
        for name, one in metrics.items()
    ]
    notes = [str(note) for note in results.get("notes") or () if not str(note).startswith("objective at rest")]
    found = ["## Evaluation"]
    if rows:
        found += [
            "Means over held-out prompts or pairs, with 95 % bootstrap intervals over these (one training seed).",
            _table(("measure", "mean", "95 % interval", "n"), rows),
        ]
    else:
        found.append("Nothing was measured.")
    return [*found, "\n".join(f"* {_plain(note)}" for note in notes)]


def _loading(asked: Experiment) -> str:
    kind = "AutoModelForCausalLM" if asked.algorithm.writes else "AutoModelForSequenceClassification"
    return (
        f"from transformers import {kind}, AutoTokenizer\n\n"
        f'model = {kind}.from_pretrained("FOLDER_OR_REPOSITORY")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPOSITORY")'
    )


def _software(manifest: Mapping[str, Any]) -> str:
    versions, git = manifest.get("versions") or {}, manifest.get("git") or {}
    commit = f", commit {_code(git['commit'][:12])}" if git.get("commit") else ""
    changed = " with local changes" if git.get("dirty") else ""
    shown = ", ".join(f"{name} {versions[name]}" for name in ("multiref", "torch", "transformers") if name in versions)
    return f"Software: {_plain(shown)}{commit}{changed}." if shown else ""


def _model(model: Model, checksum: object) -> str:
    """A model as a cell: path, revision, adapter and the sha256 of its content."""
    parts = [_code(model.path)]
    if model.revision:
        parts.append(f"revision {_code(model.revision)}")
    if model.adapter:
        parts.append(f"adapter {_code(model.adapter)}")
    if checksum:
        parts.append(f"sha256 {str(checksum)[:12]}")
    return ", ".join(parts)


def _content(path: Path) -> dict[str, Any]:
    try:
        return read_object(path) or {}
    except RunError:
        return {}


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(text: object) -> str:
    """One line of what can be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _plain(text: object) -> str:
    """Text in which nothing is markup."""
    escaped = re.sub(r"([\\`*_\[\]|#~!$])", r"\\\1", _line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: object) -> str:
    """Text as code, in a cell of a table too."""
    shown = _line(text).replace("|", r"\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def _fenced(text: str, language: str) -> str:
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"
