"""The embedded world: `toy:<name>` models and data sets, made on first use and kept by content hash.

Models are ordinary runs of conf/experiment/embedded/<name>.yaml, data sets come from world/problems.py; both go
through the very code that models and data of the Hub go through.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from multiref_cli.config.compose import compose
from multiref_cli.config.folders import options
from multiref_cli.config.plain import changed
from multiref_cli.config.schema import Experiment, Model
from multiref_cli.data.chat import end_ids, prompt_ids
from multiref_cli.errors import RequestError
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.rewards.combine import RewardBatch, build_reward
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.seeding import derive
from multiref_cli.tracking.progress import Progress
from multiref_cli.world import problems as toy
from multiref_cli.world import tokenizer as toy_tokenizer

# Trains a run with these overrides and returns its folder: the recipe of a model is itself a run.
Train = Callable[[list[str], Progress], Path]

PREFIX = "toy:"
MAX_NEW_TOKENS = 40
# Part of every key; raised when a change of the training code makes other weights of the same recipe.
RECIPE_VERSION = 2


@dataclass(frozen=True)
class Corpus:
    """A corpus for supervised fine-tuning: how its answers are written, which verbs appear, how many rows."""

    style: toy.Style
    rows: int
    verbs: tuple[str, ...] = toy.ALL


@dataclass(frozen=True)
class SampledPairs:
    """Preference pairs sampled from embedded models and labeled by the gold reward (Bradley-Terry)."""

    models: tuple[str, ...] = ("instruct", "instruct_large")
    samples: int = 2
    splits: tuple[tuple[str, str], ...] = (("train", "train"), ("dev", "dev"), ("test", "test"))


# How many problems each split has; texts never appear in two of them, nor in a corpus.
SPLITS = {"train": 1050, "dev": 500, "test": 512, "reward_train": 2500, "reward_test": 500}

CORPORA = {
    "corpus_instruct": Corpus(toy.Style(0.35, courtesy=0.4, skip=0.08, repeat=0.15, incomplete=0.05), rows=57_600),
    "corpus_instruct_large": Corpus(
        toy.Style(0.12, courtesy=0.5, skip=0.08, repeat=0.15, incomplete=0.03), rows=32_000
    ),
    "corpus_math": Corpus(toy.Style(courtesy=0.3), rows=22_400, verbs=toy.HALF),
    "corpus_judge": Corpus(toy.Style(courtesy=0.5, skip=0.1, repeat=0.1, incomplete=0.1), rows=22_400),
}

PAIRS = {
    "preferences": SampledPairs(),
    "tiny_preferences": SampledPairs(models=("tiny_one", "tiny_two")),
    "reward_pairs": SampledPairs(splits=(("train", "reward_train"), ("test", "reward_test"))),
}


def localized(experiment: Experiment, progress: Progress, train: Train) -> Experiment:
    """The same experiment with a local folder in place of every `toy:<name>`, made now if it is not there yet.

    Raises:
        RequestError: an unknown name.
    """
    cache = experiment.hardware.cache_folder

    def folder(text: str) -> str:
        return str(ensure(text.removeprefix(PREFIX), cache, progress, train)) if text.startswith(PREFIX) else text

    return changed(experiment, folder)


def needed(experiment: Experiment, made: Callable[[str], bool] = lambda name: False) -> dict[str, list[str]]:
    """Embedded models and data sets that an experiment needs, each after what it is made from.

    Args:
        experiment: with `toy:` names.
        made: says of a name that it need not be made; neither need what it is made from.

    Returns:
        name -> names that must exist before it; names whose own lists are done can be made side by side.

    Raises:
        RequestError: an unknown name.
    """
    found: dict[str, list[str]] = {}

    def visit(name: str) -> None:
        """Add a name behind everything that it is made from."""
        if name in found:
            return
        _refuse_unknown(name)
        if not made(name):
            for other in _uses(name):
                visit(other)
            found[name] = list(_uses(name))

    for name in _names_in(experiment):
        visit(name)
    return found


def missing(experiment: Experiment) -> list[str]:
    """Embedded models and data sets, as `toy:<name>`, that this machine would have to make before a run.

    Raises:
        RequestError: an unknown name.
    """
    cache = experiment.hardware.cache_folder
    return [PREFIX + name for name in needed(experiment, lambda name: _target(name, cache).is_dir())]


@cache
def names() -> list[str]:
    """What can stand after `toy:`."""
    return sorted(["tokenizer", "prompts", *CORPORA, *PAIRS, *_models()])


def ensure(name: str, cache: Path, progress: Progress, train: Train) -> Path:
    """The folder of an embedded model or data set, made once per machine.

    Args:
        name: what stands after `toy:`.
        cache: folder of everything that is made once.
        progress: told while something is made.
        train: trains a model, see `Train`.

    Raises:
        RequestError: an unknown name.
    """
    _refuse_unknown(name)
    target = _target(name, cache)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            making = target.with_name(f".{target.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            _make(name, making, cache, progress, train)
            making.rename(target)
    return target


def _refuse_unknown(name: str) -> None:
    if name not in names():
        raise RequestError(f"there is no {PREFIX}{name}; allowed: {', '.join(PREFIX + n for n in names())}.")


def _make(name: str, folder: Path, cache: Path, progress: Progress, train: Train) -> None:
    if name == "tokenizer":
        toy_tokenizer.tokenizer().save_pretrained(str(folder))
    elif name == "prompts":
        for split in SPLITS:
            _write(folder / f"{split}.jsonl", toy.prompt_rows(_problems(split)))
    elif name in CORPORA:
        corpus = CORPORA[name]
        held_out = {p.text for split in SPLITS for p in _problems(split)}
        problems = toy.problems(derive(0, name), corpus.rows, corpus.verbs, exclude=held_out)
        _write(folder / "train.jsonl", toy.corpus_rows(problems, corpus.style, derive(0, name, "style")))
    elif name in PAIRS:
        _make_pairs(name, folder, cache, progress, train)
    else:
        _train_model(name, folder, cache, progress, train)


def _train_model(name: str, folder: Path, cache: Path, progress: Progress, train: Train) -> None:
    progress.note(f"making {PREFIX}{name} (once per machine)")
    run = folder / "run"
    overrides = [*_recipe(name), f"run.dir={run}", f"hardware.cache_dir={cache}"]
    train(overrides, progress)
    for path in (run / "policy").iterdir():
        path.rename(folder / path.name)
    shutil.copy(run / "results.json", folder / "made_by.json")
    shutil.rmtree(run)


def _make_pairs(name: str, folder: Path, cache: Path, progress: Progress, train: Train) -> None:
    recipe = PAIRS[name]
    progress.note(f"making {PREFIX}{name} (once per machine)")
    texts: dict[str, list[list[list[str]]]] = {split: [] for _, split in recipe.splits}
    for model_name in recipe.models:
        source = Model(path=str(ensure(model_name, cache, progress, train)))
        tokenizer, model = load_tokenizer(source), load_causal_lm(source, "cpu", "float32")
        engine = TransformersEngine(model, pad_id=0, batch_size=512)
        sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, end_ids=tuple(end_ids(tokenizer)))
        for _, split in recipe.splits:
            prompts = [prompt_ids(tokenizer, _messages(p)) for p in _problems(split)]
            seeds = [derive(0, name, model_name, split, i) for i in range(len(prompts))]
            groups = engine.generate(prompts, recipe.samples, sampling, seeds)
            texts[split].append(
                [[tokenizer.decode(c.ids, skip_special_tokens=True) for c in group] for group in groups]
            )
    reward = compose(["reward=toy_gold"]).reward
    assert reward is not None
    gold = build_reward(reward)
    for file, split in recipe.splits:
        _write(
            folder / f"{file}.jsonl", _labeled(_problems(split), texts[split], gold, derive(0, name, "labels", split))
        )


def _labeled(
    problems: list[toy.Problem],
    texts: list[list[list[str]]],
    gold: Callable[[Sequence[Sample]], RewardBatch],
    seed: int,
) -> list[dict[str, Any]]:
    """Sample s of the first model against sample s of the second, labeled with the gold reward's odds."""
    first, second = texts
    found = [(p, (a, b)) for p, one, two in zip(problems, first, second) for a, b in zip(one, two) if a != b]
    rewards = [gold([Sample(_messages(p), pair[side]) for p, pair in found]).total for side in (0, 1)]
    return toy.preference_rows([p.text for p, _ in found], [pair for _, pair in found], list(zip(*rewards)), seed)


def _messages(problem: toy.Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.text}]


def _problems(split: str) -> list[toy.Problem]:
    # One long draw without repetition, cut into splits in a fixed order.
    names, sizes = list(SPLITS), list(SPLITS.values())
    start = sum(sizes[: names.index(split)])
    return toy.problems(derive(0, "problems"), sum(sizes))[start : start + SPLITS[split]]


@cache
def _models() -> list[str]:
    return [name.removeprefix("embedded/") for name in options("experiment") if name.startswith("embedded/")]


def _recipe(name: str) -> list[str]:
    return [f"experiment=embedded/{name}", "tracking=off"]


def _target(name: str, cache: Path) -> Path:
    return cache / "embedded" / f"{name}-{_key(name)}"


@cache
def _key(name: str) -> str:
    """Content hash: the world's source, the recipe, and the keys of what the recipe uses."""
    recipe = repr(CORPORA.get(name) or PAIRS.get(name))
    if name in _models():
        recipe = compose(_recipe(name)).hash
    parts = [RECIPE_VERSION, name, _source_hash(), SPLITS, recipe, *[_key(other) for other in _uses(name)]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@cache
def _uses(name: str) -> list[str]:
    """What the recipe of an embedded model or data set is made from."""
    if name in PAIRS:
        return list(PAIRS[name].models)
    if name in _models():
        return _names_in(compose(_recipe(name)))
    return []


def _names_in(experiment: Experiment) -> list[str]:
    """The names behind `toy:` in an experiment, sorted."""
    found: set[str] = set()

    def collect(text: str) -> str:
        if text.startswith(PREFIX):
            found.add(text.removeprefix(PREFIX))
        return text

    changed(experiment, collect)
    return sorted(found)


def _source_hash() -> str:
    sources = [Path(module.__file__ or "").read_bytes() for module in (toy, toy_tokenizer)]
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
