"""How the embedded world is made: recipes of its models and data sets, each a pure function of the world's seed.

Models are ordinary runs of conf/experiment/embedded/<name>.yaml, data sets come from world/problems.py; both go
through the very code that models and data of the Hub go through. World 0 is shipped (world/worlds.py says from where);
the same recipes made it, and make every other world.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from multiref_cli.config.compose import compose
from multiref_cli.config.folders import options
from multiref_cli.config.plain import changed
from multiref_cli.config.schema import TOY, Experiment, Model, RunSettings
from multiref_cli.data.chat import end_ids, prompt_ids
from multiref_cli.models.auto import as_trained
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.rewards.combine import RewardBatch, build_reward
from multiref_cli.rewards.sample import Sample
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.seeding import derive
from multiref_cli.tracking.progress import Progress
from multiref_cli.world import problems as toy
from multiref_cli.world import tokenizer as toy_tokenizer

# Trains an experiment and returns its run folder: the recipe of a model is itself a run.
Train = Callable[[Experiment, Progress], Path]
# Name -> folder of another part of the same world, made if it is not there yet.
Find = Callable[[str], Path]

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
    "reward_pairs": SampledPairs(splits=(("train", "reward_train"), ("test", "reward_test"))),
}


@cache
def names() -> tuple[str, ...]:
    """What can stand after `toy:`."""
    return tuple(sorted(["tokenizer", "prompts", *CORPORA, *PAIRS, *models()]))


@cache
def models() -> tuple[str, ...]:
    """The models among `names`."""
    return tuple(n.removeprefix("embedded/") for n in options("experiment") if n.startswith("embedded/"))


@cache
def uses(name: str) -> tuple[str, ...]:
    """What the recipe of a model or data set is made from."""
    if name in PAIRS:
        return PAIRS[name].models
    return tuple(_recipe(name).toy_names) if name in models() else ()


@cache
def key(name: str, seed: int) -> str:
    """Content hash: the world's seed and source, the recipe, and the keys of what the recipe uses."""
    recipe = _recipe(name).hash if name in models() else repr(CORPORA.get(name) or PAIRS.get(name))
    parts = [RECIPE_VERSION, seed, name, _source_hash(), SPLITS, recipe, *[key(other, seed) for other in uses(name)]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def make(name: str, seed: int, folder: Path, find: Find, progress: Progress, train: Train) -> None:
    """Make a model or data set of a world.

    Args:
        name: one of `names`.
        seed: of the world; everything random is drawn from it.
        folder: empty, to write into.
        find: finds what it is made from.
        progress: told of every step.
        train: trains a model, see `Train`.
    """
    progress.note(f"making {TOY}{name} of world {seed}")
    if name == "tokenizer":
        toy_tokenizer.tokenizer().save_pretrained(str(folder))
    elif name == "prompts":
        for split in SPLITS:
            _write(folder / f"{split}.jsonl", toy.prompt_rows(_problems(split, seed)))
    elif name in CORPORA:
        corpus = CORPORA[name]
        held_out = {p.text for split in SPLITS for p in _problems(split, seed)}
        problems = toy.problems(derive(seed, name), corpus.rows, corpus.verbs, exclude=held_out)
        _write(folder / "train.jsonl", toy.corpus_rows(problems, corpus.style, derive(seed, name, "style")))
    elif name in PAIRS:
        _make_pairs(name, seed, folder, find, progress)
    else:
        _train_model(name, seed, folder, find, progress, train)


def _train_model(name: str, seed: int, folder: Path, find: Find, progress: Progress, train: Train) -> None:
    run = folder / "run"
    paths = {TOY + other: str(find(other)) for other in uses(name)}
    recipe: Experiment = changed(_recipe(name), lambda text: paths.get(text, text))
    try:
        train(replace(recipe, seed=seed, run=RunSettings(dir=str(run))), progress)
    except KeyboardInterrupt:
        message = f"interrupted while making {TOY}{name} of world {seed}; the same command makes it again"
        raise KeyboardInterrupt(message) from None
    (run / "policy" / "README.md").unlink(missing_ok=True)  # it tells of this machine, the world is the same on all
    as_trained(run / "policy")  # fingerprints of worlds, which published results name, are of this form
    for path in (run / "policy").iterdir():
        path.rename(folder / path.name)
    shutil.copy(run / "results.json", folder / "made_by.json")
    shutil.rmtree(run)


def _make_pairs(name: str, seed: int, folder: Path, find: Find, progress: Progress) -> None:
    recipe = PAIRS[name]
    texts: dict[str, list[list[list[str]]]] = {split: [] for _, split in recipe.splits}
    for number, model_name in enumerate(recipe.models):
        source = Model(path=str(find(model_name)))
        tokenizer, model = load_tokenizer(source), load_causal_lm(source, "cpu", "float32")
        engine = TransformersEngine(model, pad_id=0, batch_size=512)
        sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, end_ids=tuple(end_ids(tokenizer)))
        for index, (_, split) in enumerate(recipe.splits):
            progress.advance(
                f"sampling {TOY}{name}", number * len(recipe.splits) + index, len(recipe.models) * len(texts)
            )
            prompts = [prompt_ids(tokenizer, _messages(p)) for p in _problems(split, seed)]
            seeds = [derive(seed, name, model_name, split, i) for i in range(len(prompts))]
            groups = engine.generate(prompts, recipe.samples, sampling, seeds)
            texts[split].append(
                [[tokenizer.decode(c.ids, skip_special_tokens=True) for c in group] for group in groups]
            )
    reward = compose(["reward=toy_gold"]).reward
    assert reward is not None
    gold = build_reward(reward)
    for file, split in recipe.splits:
        rows = _labeled(_problems(split, seed), texts[split], gold, derive(seed, name, "labels", split))
        _write(folder / f"{file}.jsonl", rows)


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


def _problems(split: str, seed: int) -> list[toy.Problem]:
    # One long draw without repetition, cut into splits in a fixed order.
    names, sizes = list(SPLITS), list(SPLITS.values())
    start = sum(sizes[: names.index(split)])
    return _drawn(seed, sum(sizes))[start : start + SPLITS[split]]


@cache
def _drawn(seed: int, count: int) -> list[toy.Problem]:
    return toy.problems(derive(seed, "problems"), count)


@cache
def _recipe(name: str) -> Experiment:
    """The run that makes a model, of world 0; another world's has its seed."""
    return compose([f"experiment=embedded/{name}", "tracking=off"])


@cache
def _source_hash() -> str:
    sources = [Path(module.__file__ or "").read_bytes() for module in (toy, toy_tokenizer)]
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
