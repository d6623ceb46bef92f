"""Preference pairs with the mixed reference's log-probabilities, as TRL's DPOTrainer takes precomputed ones.

An implicit reward of one summand, beta w s(log pi - log M), is what DPOTrainer computes where `ref_chosen_logps` and
`ref_rejected_logps` are log M: for the geometric mean and the reverse KL that is Theorem 5.1 of arXiv 2502.01203.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from multiref_cli.algorithms.base import Job
from multiref_cli.algorithms.dpo import StoredPairs, stored_pairs
from multiref_cli.config.algorithms import DpoSettings
from multiref_cli.config.objective import objective
from multiref_cli.config.regularizer import Level
from multiref_cli.config.schema import Experiment, Term
from multiref_cli.data.chat import prompt_text, said
from multiref_cli.data.preferences import Pair
from multiref_cli.data.template import OF_THE_ROW, Message, Response, attached_to
from multiref_cli.errors import RequestError
from multiref_cli.files import sync_tree, write_text, writing
from multiref_cli.models.auto import agrees
from multiref_cli.models.files import resolve
from multiref_cli.models.inspect import text_config
from multiref_cli.tracking.places import check_place, holds_something, make_place
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import Tokenizer

# Rows whose ids are compared with those that TRL would make of their text.
_COMPARED = 1000
_TRAINER = '''from datasets import load_dataset
{plain}from trl import DPOConfig, DPOTrainer


class MixedReferenceTrainer(DPOTrainer):
    """The token ids of the data set as they are, and its columns in place of a pass over a reference model."""

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def _precompute_ref_logps(self, dataset, *_):
        return dataset


rows = load_dataset("{kind}", data_files={files})
settings = DPOConfig(precompute_ref_log_probs=True, {settings}, max_length=None)
trainer = MixedReferenceTrainer(
    {policy!r},
    args=settings,
    train_dataset=rows["train"],{more}
)
trainer.train()'''


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        rows: of each split.
        settings: of DPOConfig, with which TRL's loss is that of the experiment.
        notes: sentences on where the two differ.
    """

    rows: dict[str, int]
    settings: dict[str, Any]
    notes: list[str]


def check_exportable(experiment: Experiment) -> None:
    """Refuse an experiment whose loss no column of reference log-probabilities can hold.

    Raises:
        RequestError: another algorithm than DPO, or a penalty that is no score of one log ratio to one mixed reference.
    """
    if experiment.algorithm.name != "dpo":
        raise RequestError(f"refs export writes preference pairs; give algorithm=dpo, not {experiment.algorithm.name}.")
    penalty = experiment.penalty
    if penalty.level is Level.token:
        raise RequestError(
            f"regularizer={penalty.title} mixes at every token, and TRL reads one number a response: give one of level "
            "sequence, such as rkl."
        )
    several = len(experiment.active_references) > 1
    if several and (penalty.ctro is not None or penalty.arwc is not None):
        raise RequestError(
            f"regularizer={penalty.title} makes another reference of every pair (CTRO, ARWC), which is no policy with "
            "log-probabilities: give regularizer=mrpo, or train with multiref."
        )
    if several and penalty.multi_loss:
        raise RequestError(
            f"regularizer={penalty.title} has one loss a reference and no mixed reference: export each reference alone."
        )
    if not experiment.one_mix or len({(t[0].score, t[0].weight) for t in experiment.terms_by_route.values()}) > 1:
        raise RequestError(
            f"regularizer={penalty.title} has several summands, and TRL's loss one log ratio: give one divergence."
        )
    settings = cast(DpoSettings, experiment.algorithm)
    if settings.loss == "ipo" and _term(experiment).weight != 1:
        raise RequestError(f"regularizer={penalty.title} weighs its divergence, which TRL's ipo cannot: weigh it by 1.")


def trl_settings(experiment: Experiment) -> dict[str, Any]:
    """Arguments of TRL's DPOConfig with which its loss on the exported columns is the experiment's.

    Args:
        experiment: that `check_exportable` accepts.
    """
    term, settings = _term(experiment), cast(DpoSettings, experiment.algorithm)
    found: dict[str, Any] = {"beta": experiment.beta * term.weight, "loss_type": settings.loss}
    if term.score == "jensen_shannon":
        return found | {"f_divergence_type": "js_divergence"}
    order = float(term.score)
    if order in (0.0, 1.0):
        return found | {"f_divergence_type": ("reverse_kl", "forward_kl")[int(order)]}
    return found | {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - order}


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made, or that holds something.

    Raises:
        RequestError: it is taken, or cannot be made.
    """
    check_place(folder, "--out")
    if holds_something(folder):
        raise RequestError(f"{folder} exists already and is not empty; give another folder.")


def write(job: Job, folder: Path, kind: str, progress: Progress) -> Exported:
    """Write train and test (the held-out pairs), and a README.md that says how to train on them.

    The log-probabilities are read from the reference store; what it lacks is computed into it first.

    Args:
        job: of an experiment that `check_exportable` accepts.
        folder: that `check_folder` accepts.
        kind: jsonl or parquet.
        progress: told of passes over references.

    Raises:
        RequestError: the folder cannot be made.
        RunError: it cannot be written.
    """
    splits = {"train": job.data.train, "test": job.data.held_out}
    stored = {name: stored_pairs(job, pairs, progress) for name, pairs in splits.items() if pairs}
    settings, notes = trl_settings(job.experiment), _notes(job)
    result = Exported({name: len(splits[name]) for name in stored}, settings, notes)
    making = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    make_place(making)
    try:
        with writing(folder):
            for name, pairs in stored.items():
                _write(making / f"{name}.{kind}", rows_of(job.tokenizer, splits[name], pairs))
            write_text(making / "README.md", _readme(job, result, kind))
            sync_tree(making)
            if folder.is_dir():
                folder.rmdir()
            making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return result


def rows_of(tokenizer: Tokenizer, pairs: Sequence[Pair], stored: StoredPairs) -> Iterator[dict[str, Any]]:
    """The rows of TRL: text or conversations, log M of both responses in nats, and the ids that these are of.

    Args:
        tokenizer: of the policy; with a chat template rows are conversations, else text.
        pairs: N pairs.
        stored: what the references say of them.
    """
    mixed = stored.mixed[0].tolist()
    for pair, chosen, rejected in zip(pairs, *mixed):
        yield {
            **_texts(tokenizer, pair),
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
            "prompt_ids": list(pair.prompt),
            "chosen_ids": list(pair.chosen),
            "rejected_ids": list(pair.rejected),
        }


def _texts(tokenizer: Tokenizer, pair: Pair) -> dict[str, Any]:
    if not tokenizer.chat_template:
        text = prompt_text(tokenizer, pair.messages)
        return {"prompt": text, "chosen": said(pair.chosen_text), "rejected": said(pair.rejected_text)}
    told = attached_to(tokenizer).rendering.arguments | pair.messages[0].get("chat_template_kwargs", {})
    more = {"chat_template_kwargs": told} if told else {}
    if pair.messages[0].get("tools"):
        more["tools"] = json.dumps(pair.messages[0]["tools"])
    turns = [{key: value for key, value in turn.items() if key not in OF_THE_ROW} for turn in pair.messages]
    return {"prompt": turns, "chosen": [_turn(pair.chosen_text)], "rejected": [_turn(pair.rejected_text)], **more}


def _turn(response: Response) -> Message:
    return {"role": "assistant", "content": response} if isinstance(response, str) else response


def _term(experiment: Experiment) -> Term:
    """The one summand of the penalty; where rows have weights of their own, that of the first of them."""
    return next(iter(experiment.terms_by_route.values()))[0]


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    lines = path.with_suffix(".jsonl")
    with lines.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if path != lines:
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        Dataset.from_json(str(lines), cache_dir=str(path.parent / ".cache")).to_parquet(str(path))
        lines.unlink()
        shutil.rmtree(path.parent / ".cache", ignore_errors=True)


def _notes(job: Job) -> list[str]:
    """Where TRL's loss on these rows is not that of the experiment, and where its tokens are not."""
    experiment, found = job.experiment, list[str]()
    settings, term = cast(DpoSettings, experiment.algorithm), _term(experiment)
    if settings.label_smoothing:
        found.append(
            f"label_smoothing={settings.label_smoothing:g} is left out: TRL's loss_type sigmoid and ipo have none"
        )
    if experiment.penalty.score_clip and term.score != 0:
        found.append(
            f"beyond |A log ratio| = {experiment.penalty.score_clip:g} multiref's score goes on linearly "
            "(regularizer.score_clip), TRL's does not"
        )
    width = _head_width(experiment)
    if width is not None and width > job.vocabulary:
        found.append(
            f"the references are normalized over the {job.vocabulary} ids of the tokenizer, the policy in TRL over all "
            f"{width} outputs of its head"
        )
    pairs = list(islice(iter(job.data.train), _COMPARED))
    other = sum(not _same_ids(job.tokenizer, pair) for pair in pairs)
    if other:
        found.append(
            f"of the first {len(pairs)} training rows TRL would make other tokens of {other} (it also scores what a "
            "template writes behind the end of a turn, cuts nothing at data.max_completion_tokens, and tells templates "
            "today's date): train on prompt_ids, chosen_ids and rejected_ids, as the trainer below does"
        )
    return found


def _head_width(experiment: Experiment) -> int | None:
    policy = experiment.policy
    size = None if policy.new is not None else (text_config(policy) or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def _same_ids(tokenizer: Tokenizer, pair: Pair) -> bool:
    """Whether DPOTrainer (TRL 1.16.0) makes the same ids of an exported row, and parts them at the same place."""
    row = _texts(tokenizer, pair)
    if tokenizer.chat_template:
        told = {"tools": json.loads(row.get("tools", "null")), **row.get("chat_template_kwargs", {})}
        prompt = _ids(tokenizer, row["prompt"], add_generation_prompt=True, **told)
        wholes = [_ids(tokenizer, row["prompt"] + row[side], **told) for side in ("chosen", "rejected")]
    else:
        end = str(tokenizer.eos_token)
        texts = [row[side] if row[side].endswith(end) else row[side] + end for side in ("chosen", "rejected")]
        prompt = tokenizer(row["prompt"])["input_ids"]
        wholes = [tokenizer(row["prompt"] + text)["input_ids"] for text in texts]
    shared = min(_common(prompt, whole) for whole in wholes)
    theirs = (tuple(prompt[:shared]), *(tuple(whole[shared:]) for whole in wholes))
    return theirs == (pair.prompt, pair.chosen, pair.rejected)


def _ids(tokenizer: Tokenizer, turns: Sequence[Message], **told: Any) -> list[int]:
    told |= {"tokenize": True, "return_dict": True}
    encoded = cast(dict[str, list[int]], tokenizer.apply_chat_template(list(turns), **told))
    return encoded["input_ids"]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def _readme(job: Job, exported: Exported, kind: str) -> str:
    """What the data set is and how TRL trains on it."""
    asked, policy, names = job.asked, job.experiment.policy, [one.name for one in job.asked.active_references]
    weights = ", ".join(f"{name} {weight:g}" for name, weight in zip(names, asked.active_weights))
    by = f" (means over rows, which have their own by {asked.routes.column})" if asked.routes is not None else ""
    files = {name: f"{name}.{kind}" for name in exported.rows}
    more = ['\n    eval_dataset=rows["test"],'] * ("test" in files)
    if asked.policy.new is None and not agrees(resolve(policy.path, policy.revision, weights=False), job.tokenizer):
        more.append(f"\n    processing_class=PreTrainedTokenizerFast.from_pretrained({policy.path!r}),")
    code = _TRAINER.format(
        kind="json" if kind == "jsonl" else kind,
        files=files,
        settings=", ".join(f"{key}={value!r}" for key, value in exported.settings.items()),
        policy=policy.path,
        more="".join(more),
        plain="from transformers import PreTrainedTokenizerFast\n" if "Fast" in "".join(more) else "",
    )
    parts = [
        "# Preference pairs with a mixed reference",
        f"Rows: {', '.join(f'{count} in {files[name]}' for name, count in exported.rows.items())} "
        f"({job.data.report.summary()}).",
        f"ref_chosen_logps and ref_rejected_logps are log M of whole responses in nats, M the power mean of order "
        f"{_term(job.experiment).mix.order:g} of the references, with the weights {weights}{by}. Objective: "
        f"{objective(job.experiment)}.",
        "TRL's DPOTrainer (1.16.0) has the same loss on them with these settings:",
        f"```python\n{code}\n```",
        "\n".join(f"* {note}." for note in exported.notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
