"""Defaults have one home, conf/: where the schema has one too, for files of a user's own, both agree."""

from dataclasses import MISSING, fields, is_dataclass

import pytest
from omegaconf import OmegaConf

from multiref_cli.config import schema
from multiref_cli.config.algorithms import ALGORITHMS
from multiref_cli.config.compose import compose_plain
from multiref_cli.config.plain import to_plain

# Group -> (the file in which every key of it is explained, its schema).
GROUPS = {
    "optimizer": ("adamw", schema.Optimizer),
    "rollout": ("transformers", schema.Rollout),
    "evaluation": ("standard", schema.Evaluation),
    "hardware": ("auto", schema.Hardware),
    "regularizer": ("rkl", schema.Regularizer),
}


def defaults(kind) -> dict[str, object]:
    """Field -> default of a schema, those without one left out."""
    found = {}
    for one in fields(kind):
        value = one.default if one.default is not MISSING else one.default_factory()
        if value != "???":
            found[one.name] = to_plain(value)
    return found


def shown(group: str, option: str) -> dict[str, object]:
    """What a file says."""
    return OmegaConf.to_container(compose_plain([f"{group}={option}"])[group], resolve=True)


@pytest.mark.parametrize("group", GROUPS)
def test_the_schema_says_what_the_file_says(group):
    option, kind = GROUPS[group]
    assert is_dataclass(kind)
    written, own = shown(group, option), defaults(kind)
    compared = {key for key in own if key in written and key != "name"}
    assert len(compared) >= 5
    assert {key: own[key] for key in compared} == {key: written[key] for key in compared}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_says_what_its_file_says(name):
    written, own = shown("algorithm", name), defaults(ALGORITHMS[name])
    assert set(own) - {"name"} <= set(written)
    assert {key: written[key] for key in own} == own


def test_a_file_of_ones_own_gets_the_shipped_defaults(tmp_path, monkeypatch):
    from multiref_cli.config.compose import compose

    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text("# Mine.\nname: adamw\nlearning_rate: 1.0e-4\n")
    monkeypatch.chdir(tmp_path)
    assert compose(["optimizer=mine"]).optimizer.warmup == compose([]).optimizer.warmup == 0.1
