"""Embedded worlds: the shipped one is used as it is and checked, every other follows from its seed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from multiref_cli.config.compose import compose
from multiref_cli.errors import RequestError
from multiref_cli.files import read_json, write_json
from multiref_cli.models.load import load_causal_lm, load_reward_model, load_tokenizer
from multiref_cli.runs import run
from multiref_cli.tracking.progress import Silent
from multiref_cli.world import recipes, worlds
from multiref_cli.world.worlds import PARTS, SHIPPED, World, check_files, ensure, fingerprints, localized, make_world


def no_training(experiment, progress):
    raise AssertionError("a shipped world trains nothing")


class Trainer:
    """Stands for training: a random model of the recipe's seed, as small as a model can be."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen, self.stop_at = [], stop_at

    def __call__(self, experiment, progress) -> Path:
        import torch

        from multiref_cli.models.load import new_causal_lm
        from multiref_cli.models.save import save_policy

        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(experiment)
        tokenizer = load_tokenizer(experiment.policy)
        torch.manual_seed(experiment.seed * 100 + len(self.seen))
        size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = new_causal_lm({"architecture": "qwen2", "num_key_value_heads": 1, **size}, tokenizer)
        save_policy(model, tokenizer, experiment.folder / "policy")
        write_json(experiment.folder / "results.json", {"seed": experiment.seed})
        return experiment.folder


@pytest.fixture
def small(monkeypatch):
    """Recipes of a few rows."""
    monkeypatch.setattr(recipes, "SPLITS", {name: 3 for name in recipes.SPLITS})
    few = {name: replace(corpus, rows=4) for name, corpus in recipes.CORPORA.items()}
    monkeypatch.setattr(recipes, "CORPORA", few)


def content(folder: Path) -> dict[str, dict[str, str]]:
    """Part -> file -> sha256, whatever the part's folder is called."""
    return {path.name.rpartition("-")[0]: fingerprints(path) for path in sorted(folder.iterdir()) if path.is_dir()}


def test_the_shipped_world_is_whole_and_needs_no_training(tmp_path):
    for name in PARTS:
        assert ensure(name, World(0, tmp_path), Silent(), no_training) == SHIPPED / name
    assert not list(tmp_path.iterdir())
    for job in ("offline_toy", "online_toy", "distill_toy"):
        experiment = compose([f"experiment={job}", f"hardware.cache_dir={tmp_path}"])
        assert worlds.missing(experiment) == [] and worlds.needed(experiment) == {}
        assert not localized(experiment, Silent(), no_training).toy_names


def test_the_shipped_world_opens_and_is_what_its_recipes_say(tmp_path):
    """Text follows from the recipe on every machine; the sizes of the models are those of their files."""
    for name in ("tokenizer", "prompts"):
        (tmp_path / name).mkdir()
        recipes.make(name, 0, tmp_path / name, lambda other: SHIPPED / other, Silent(), no_training)
    assert fingerprints(tmp_path / "prompts") == fingerprints(SHIPPED / "prompts")
    words = load_tokenizer(model(tmp_path / "tokenizer")).get_vocab()
    for name in ("instruct", "instruct_large", "math", "judge"):
        opened = load_causal_lm(model(SHIPPED / name))
        assert opened.config.hidden_size == recipes._recipe(name).policy.new["hidden_size"]
        assert load_tokenizer(model(SHIPPED / name)).get_vocab() == words
    assert load_reward_model(model(SHIPPED / "reward_model")).config.num_labels == 1


def model(folder: Path):
    from multiref_cli.config.schema import Model

    return Model(path=str(folder))


@pytest.mark.parametrize("harm", ["changed", "missing", "unknown"])
def test_a_shipped_file_that_is_another_one_is_refused(harm, tmp_path):
    shutil.copytree(SHIPPED / "tokenizer", tmp_path / "tokenizer")
    write_json(tmp_path / worlds.FINGERPRINTS, {"tokenizer": read_json(SHIPPED / worlds.FINGERPRINTS)["tokenizer"]})
    check_files(tmp_path, "tokenizer")
    check_files.cache_clear()
    file = tmp_path / "tokenizer" / "tokenizer.json"
    if harm == "changed":
        file.write_text(file.read_text().replace("buys", "bays"))
    elif harm == "missing":
        file.unlink()
    else:
        (tmp_path / worlds.FINGERPRINTS).unlink()
    with pytest.raises(RequestError, match="install multiref again"):
        check_files(tmp_path, "tokenizer")


def test_a_world_follows_from_its_seed_and_from_nothing_else(small, tmp_path):
    """Models included: each recipe is trained on parts of the same world, under the world's seed."""
    made = {}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        train = Trainer()
        make_world(World(seed, tmp_path / name), Silent(), train)
        made[name] = content(tmp_path / name / "embedded" / f"world_{seed}")
        assert len(train.seen) == len(recipes.models()) == 5
        for experiment in train.seen:
            assert experiment.seed == seed and not experiment.toy_names
            assert str(tmp_path / name) in experiment.policy.path and str(tmp_path / name) in experiment.data.path
    assert set(PARTS) <= set(made["one"]) and made["one"] == made["again"]
    changed = {name for name in PARTS if made["one"][name] != made["other"][name]}
    assert changed == set(PARTS) - {"tokenizer"}


def test_another_world_is_made_on_first_use(small, tmp_path):
    experiment = compose(["experiment=online_toy", "world=5", f"hardware.cache_dir={tmp_path}"])
    assert worlds.missing(experiment)[-1] == "toy:prompts" and "toy:instruct" in worlds.missing(experiment)
    local = localized(experiment, Silent(), Trainer())
    assert Path(local.policy.path).parent == tmp_path / "embedded" / "world_5" and worlds.missing(experiment) == []
    assert localized(experiment, Silent(), no_training) == local


def test_the_command_makes_lists_and_copies_a_world(small, place, tmp_path, multiref, monkeypatch, capsys):
    train = Trainer(stop_at=2)
    monkeypatch.setattr(run, "train_embedded", lambda *given: train(*given))
    assert multiref("world", "make", "6") == 130
    assert "go on with: multiref world make 6" in capsys.readouterr().err
    finished = {experiment.folder.parent.name for experiment in train.seen}
    train.stop_at = None
    assert multiref("world", "make", "6", "--out", "copy") == 0
    assert len(train.seen) == len(recipes.models()) and len(finished) == 2
    written = read_json(Path("copy") / worlds.FINGERPRINTS)
    assert list(written) == list(PARTS)
    for name in PARTS:
        check_files(Path("copy"), name)
    capsys.readouterr()
    assert multiref("world", "make", "6") == 0 and "use it with world=6" in capsys.readouterr().out
    assert multiref("world", "list") == 0
    shown = capsys.readouterr().out
    assert "shipped" in shown and f"{len(PARTS)} of {len(PARTS)} parts made" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0"], "world 0 comes with multiref"),
        (["3", "--out", "full"], "full exists already"),
        (["-1"], "-1"),
        (["x"], "SEED"),
        ([], "SEED"),
    ],
)
def test_the_command_refuses_before_anything_is_made(words, said, place, multiref, capsys):
    Path("full").mkdir()
    Path("full/file").touch()
    before = sorted(Path().rglob("*"))
    assert multiref("world", "make", *words) == 2
    assert said in capsys.readouterr().err and sorted(Path().rglob("*")) == before
