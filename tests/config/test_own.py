"""Config files of a user's own: where they are found, what is wrong in them, and runs begun from a saved config."""

import os
from pathlib import Path

import pytest
import yaml

from multiref_cli.config.compose import compose, compose_like, compose_unchecked
from multiref_cli.config.folders import CONF, options, own_conf_directory
from multiref_cli.errors import RequestError

GOOD = "# Between two means.\ndefaults: [_base, _self_]\nname: mine\nmean_order: -0.5\nscore_order: 0\n"
PAIR = 'references:\n  - {name: a, path: "toy:instruct"}\n  - {name: b, path: "toy:math"}\n'
TOY = "experiment=offline_toy"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a file of an own conf/ in an otherwise empty folder, where the test works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CONF, "")  # whatever `--conf` sets is gone after the test
    monkeypatch.delenv(CONF)

    def write(name: str, text: str) -> None:
        path = Path("conf") / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def test_it_is_found_from_a_subfolder(own, monkeypatch):
    own("regularizer/mine", GOOD)
    Path("deep/er").mkdir(parents=True)
    monkeypatch.chdir("deep/er")
    assert own_conf_directory() == Path.cwd().parents[1] / "conf" and "mine" in options("regularizer")
    assert compose([TOY, "regularizer=mine"]).regularizer.mean_order == -0.5


def test_a_folder_above_that_only_has_the_name_is_left_alone(own, monkeypatch):
    Path("conf").mkdir()
    Path("conf/apache.conf").write_text("")
    Path("deep").mkdir()
    monkeypatch.chdir("deep")
    assert own_conf_directory() is None


def test_it_is_named_by_an_option_or_a_variable(own, tmp_path, monkeypatch, multiref, capsys):
    own("regularizer/mine", GOOD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path("conf").rename(elsewhere / "settings")
    assert multiref("list", "regularizer", "mine") == 2
    assert multiref("list", "regularizer", "mine", "--conf", elsewhere / "settings") == 0
    assert capsys.readouterr().out == GOOD
    monkeypatch.delenv(CONF)
    assert own_conf_directory() is None
    assert multiref("train", TOY, "regularizer=mine", "--dry-run", "--conf", "elsewhere/settings") == 0
    assert os.environ[CONF] == str(elsewhere / "settings")  # workers of a sweep read it too
    monkeypatch.setenv(CONF, str(elsewhere / "settings"))
    assert compose([TOY, "regularizer=mine"]).regularizer.mean_order == -0.5
    assert multiref("train", TOY, "--dry-run", "--conf", "nothing") == 2
    assert "--conf is 'nothing', which is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "override", "said"),
    [
        ("regularizer/x", GOOD.replace("mean_order", "mean_ordr"), "regularizer=x",
         "conf/regularizer/x.yaml: there is no key 'mean_ordr'; did you mean 'mean_order'."),
        ("regularizer/x", GOOD.replace("-0.5", "much"), "regularizer=x",
         "regularizer.mean_order: Value 'much' of type 'str' could not be converted to Float "
         "(in conf/regularizer/x.yaml)."),
        ("data/x", "defaults: [_base, _self_]\nname: x\npath: p.jsonl\nmax_prompt_token: 3\n", "data=x",
         "conf/data/x.yaml: there is no key 'max_prompt_token'; did you mean 'max_prompt_tokens'."),
        ("references/x", "# @package _global_\nreferences:\n  - {name: a, paht: b}\n", "references=x",
         "conf/references/x.yaml: references[0] has no key 'paht'; did you mean 'path'."),
        ("policy/x", "defaults: [folder, _self_]\npath: p\nlora: {rnk: 3}\n", "policy=x",
         "conf/policy/x.yaml: there is no key 'lora.rnk'; did you mean 'rank'."),
        ("references/x", PAIR + "alpha: 0.2\n", "references=x",
         "conf/references/x.yaml: its first line has to be '# @package _global_', for alpha beside references."),
        ("experiment/x", "beta: 0.7\n", "experiment=x",
         "conf/experiment/x.yaml: its first line has to be '# @package _global_': its keys are the run's own."),
        ("experiment/x", "# @package _global_\nbetta: 0.7\n", "experiment=x",
         "conf/experiment/x.yaml: there is no key 'betta'; did you mean 'beta'."),
        ("algorithm/x", "name: dpo\nbatch_pair: 3\n", "algorithm=x",
         "conf/algorithm/x.yaml: there is no key 'batch_pair'; did you mean 'batch_pairs'."),
    ],
)  # fmt: skip
def test_a_slip_in_a_file_is_said_with_the_file_and_the_key(own, name, text, override, said):
    own(name, text)
    with pytest.raises(RequestError) as refused:
        compose_unchecked([override] if override.startswith("experiment") else [TOY, override])
    assert str(refused.value) == said


@pytest.mark.parametrize("header", ["# @package _global_\n", "# Ours.\n"])
def test_references_need_no_header(own, header):
    own("references/ours", header + PAIR)
    found = compose([TOY, "references=ours", "alpha=0.6"])
    assert [one.path for one in found.references] == ["toy:instruct", "toy:math"] and found.alpha == 0.6


def test_a_list_alone_is_a_set_of_references(own):
    own("references/ours", '- {name: a, path: "toy:math"}\n- {name: b, path: "toy:instruct"}\n')
    assert [one.name for one in compose([TOY, "references=ours", "alpha=0.5"]).references] == ["a", "b"]


@pytest.fixture
def saved(own):
    """config.yaml of a run in runs/old."""
    found = compose([TOY, "alpha=0.3", "beta=0.5", "seed=2", "run.dir=runs/old", "optimizer.learning_rate=1e-4"])
    Path("runs/old").mkdir(parents=True)
    path = Path("runs/old/config.yaml")
    path.write_text(yaml.safe_dump(found.plain))
    return path, found


def test_a_run_begins_from_a_saved_config_with_settings_on_top(saved):
    path, old = saved
    same = compose_like(path, [])
    assert same.hash == old.hash and same.run.dir is None
    other = compose_like(path, ["alpha=0.7", "regularizer=fkl", "optimizer.learning_rate=1e-3"])
    wanted = compose([TOY, "alpha=0.7", "beta=0.5", "seed=2", "regularizer=fkl", "optimizer.learning_rate=1e-3"])
    assert other == wanted and other.condition == "dpo-fkl-a0.7-b0.5"
    named = compose_like(path, ["regularizer.mean_order=1", "regularizer.score_order=1"])
    assert named.condition.startswith("dpo-fkl-a0.3")  # a name is that of the numbers
    pair = compose_like(path, ["references=pair", "first=toy:math", "second=toy:instruct"])
    assert [one.path for one in pair.references] == ["toy:math", "toy:instruct"]
    own = compose_like(path, ["references=[{name: a, path: toy:math}]", "alpha=null"])
    assert [one.name for one in own.references] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "nothing"], "--config is 'nothing', which is no run folder and no config file."),
        (
            ["--config", "runs/old", "experiment=online_toy"],
            "experiment= chooses a whole experiment: give it",
        ),
        (
            ["--config", "runs/old", "--resume", "runs/old"],
            "--resume goes on with a run as it is, --config",
        ),
        (["--config", "runs/old", "betta=1"], "betta"),
        (["--config", "conf/other.yaml"], "conf/other.yaml is no config of a run: it has no algorithm"),
        (["--config", "runs/sweep"], "runs/sweep is a sweep: give one of its run folders"),
    ],
)
def test_what_is_no_saved_config_is_said(saved, own, multiref, capsys, arguments, said):
    own("other", "a: 1\n")
    Path("runs/sweep").mkdir()
    Path("runs/sweep/sweep.yaml").write_text("{}")
    assert multiref("train", *arguments, "--dry-run") == 2
    assert said in capsys.readouterr().err and not list(Path("runs/old").glob("*.json"))


def test_the_plan_of_a_saved_config_is_that_of_the_new_run(saved, multiref, capsys):
    assert multiref("train", "--config", "runs/old", "beta=0.25", "--dry-run") == 0
    assert "dpo-rkl-a0.3-b0.25" in capsys.readouterr().out
