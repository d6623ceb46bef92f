"""`multiref refs` over real folders: build, list, verify, prune."""

import json

import pytest

from multiref_cli.cli import refs
from multiref_cli.errors import RequestError, RunError


@pytest.fixture
def overrides(tmp_path, monkeypatch, references):
    """An offline run over two local models and eight rows of text."""
    monkeypatch.setenv("MULTIREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"Anna has {i} . how many ?", "chosen": f"#### {i}", "rejected": f"Anna has {i} + {i}"}
        for i in range(8)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        "algorithm=dpo",
        "references=pair",
        f"first={references[0].path}",
        f"second={references[1].path}",
        "policy=folder",
        f"policy.path={references[0].path}",
        "data=jsonl",
        f"data.path={tmp_path / 'pairs.jsonl'}",
        "data.held_out=0.25",
    ]


def test_build_list_verify_prune(overrides, capsys):
    refs.build(overrides)
    assert "4 new entries" in capsys.readouterr().out  # two references, training and held-out rows
    refs.build([*overrides, "beta=3", "alpha=0.9", "regularizer=fkl", "optimizer.learning_rate=1", "run.name=other"])
    assert "0 new entries" in capsys.readouterr().out
    refs.list_entries()
    listed = capsys.readouterr().out
    assert listed.count("logps") == 4 and "first" in listed and "second" in listed
    refs.verify()
    assert "4 entries, all good" in capsys.readouterr().out
    refs.prune(older_than=None, everything=True, dry_run=True)
    assert "4 entries" in capsys.readouterr().out
    refs.prune(older_than=1.0, everything=False, dry_run=False)
    refs.prune(older_than=None, everything=True, dry_run=False)
    out = capsys.readouterr().out
    assert "0 entries" in out and "4 entries" in out
    refs.list_entries()
    assert "0 entries" in capsys.readouterr().out


def test_a_reference_of_weight_zero_is_never_built(overrides, capsys):
    refs.build([*overrides, "alpha=1.0"])
    assert "2 new entries" in capsys.readouterr().out


def test_token_level_stores_normalizers_beside_what_is_there(overrides, capsys):
    refs.build([*overrides, "regularizer.level=token", "alpha=0.3"])
    assert "6 new entries" in capsys.readouterr().out
    refs.build([*overrides, "regularizer.level=token", "alpha=0.4"])
    assert "2 new entries" in capsys.readouterr().out


def test_online_algorithms_have_nothing_to_build(overrides):
    with pytest.raises(RequestError, match="asks its references as it goes"):
        refs.build(["experiment=online_toy"])


def test_verify_fails_where_something_is_damaged(overrides, tmp_path, capsys):
    refs.build([*overrides, "alpha=1.0"])
    next((tmp_path / "cache" / "store").glob("*/data.safetensors")).write_bytes(b"damaged")
    with pytest.raises(RunError, match="1 of 2 entries are bad"):
        refs.verify()
