"""What people type who know other tools, or who slip: one sentence with the right form, nothing written."""

import json
import os
import re
from pathlib import Path

import pytest

from multiref_cli.cli.overrides import complete_study
from multiref_cli.config.compose import expand_axes, known_keys
from multiref_cli.config.folders import groups, options
from multiref_cli.config.sentences import ELSEWHERE


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["train", "--regularizer", "fkl"],
            "settings are written without dashes: regularizer=fkl; options are --dry-run",
        ),
        (["train", "--alpha=0.3"], "settings are written without dashes: alpha=0.3"),
        (["train", "--beta"], "settings are written without dashes: beta=VALUE"),
        (["train", "--max-steps", "3"], "settings are written without dashes: steps"),
        (["train", "--dryrun"], "there is no option --dryrun; did you mean --dry-run."),
        (["sweep", "--worker", "2"], "there is no option --worker; did you mean --workers."),
        (
            ["refs", "mix", "--alpha", "0.3"],
            "settings are written without dashes: alpha=0.3; options are --conf, --help.",
        ),
        (["eval", "RUN", "--prompts=3"], "settings are written without dashes: prompts=3"),
        (
            ["train", "alpha=0.3,", "0.5"],
            "alpha=0.3,0.5 gives several values for one key: use `multiref sweep` for axes",
        ),
        (["train", "alpha=[0.3,", "0.7"], "alpha=[0.3,0.7 has no closing ]; what has brackets or blanks is quoted: "),
        (["sweep", "alpha=0.3", "0.5"], "'0.5' is not an override; write key=value, with what has blanks in quotes"),
        (["sweep", "alpha=range(0.1,0.9,0.2"], "has no closing ); what has brackets or blanks is quoted: "),
        (["theory", "n=(3"], "n=(3 has no closing )"),
        (["refs", "mix", "alpha=0.1;0.2"], "alpha=0.1;0.2 cannot be read; alpha takes a number, a word, or a list"),
        (["train", "model=a/b"], "there is no key 'model'; here it is policy=folder policy.path=PATH."),
        (["train", "num_generations=8"], "here it is rollout.group_size."),
        (["train", "lr=1e-4"], "here it is optimizer.learning_rate."),
        (["train", "policy=Qwen/Qwen2.5-0.5B"], "a path is given as policy=folder policy.path=Qwen/Qwen2.5-0.5B."),
        (["train", "data=my/pairs.jsonl"], "a path is given as data=jsonl data.path=my/pairs.jsonl."),
        (["train", "data=my pairs.jsonl"], 'a path is given as data=jsonl data.path="my pairs.jsonl".'),
        (["train", "references=a/b"], "a path is given as references='[{name: a, path: a/b}]'."),
        (["train", "tracking=false"], "tracking=false is no option of tracking; give one of off, "),
        (["train", "evaluation.max_new_tokens=128"], "leaves no room for a prompt in the 128 positions of the policy"),
    ],
)
def test_one_sentence_with_the_right_form(tmp_path, monkeypatch, multiref, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert multiref(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and os.listdir() == []


def test_a_key_that_is_given_twice_is_said(tmp_path, monkeypatch, multiref, capsys):
    monkeypatch.chdir(tmp_path)
    twice = ["alpha=0.3", "alpha=0.5", "seed=1", "seed=1"]
    assert multiref("train", "experiment=offline_toy", *twice, "--dry-run") == 0
    printed = capsys.readouterr()
    assert printed.err == "note: alpha is given twice; alpha=0.5 counts, not alpha=0.3\n"
    assert "dpo-rkl-a0.5-b1" in printed.out


def test_values_that_a_shell_took_apart_are_one_value(tmp_path, monkeypatch, multiref, capsys):
    monkeypatch.chdir(tmp_path)
    command = [
        "experiment=offline_toy",
        "alpha=[0.3,",
        "0.7]",
        "beta",
        "=",
        "0.5",
        "run.name=naïve (1), #2",
        "--dry-run",
    ]
    assert multiref("train", *command) == 0
    printed = capsys.readouterr().out
    assert "dpo-rkl-a0.3-b0.5" in printed and "runs/naïve (1), #2" in printed
    assert multiref("sweep", "experiment=offline_toy", "alpha=0.3", "alpha=0.5", "--dry-run") == 0
    assert capsys.readouterr().err.endswith("alpha=0.5 counts, not alpha=0.3; alpha=0.3,0.5 is an axis\n")


def test_the_names_of_other_tools_lead_to_keys_and_options_that_exist():
    keys = known_keys() | {"first", "second"}
    for name, here in ELSEWHERE.items():
        assert name not in keys, f"{name} is a key of its own"
        for word in here.replace(",", " ").replace(";", " ").split():
            key, _, value = word.partition("=")
            if "." in key or word.count("="):
                known = any(one == key or one.startswith(f"{key}.") for one in keys) or key in groups()
                assert known or key in ("seeds", "policy.lora.rank"), (name, key)
                if key in groups() and value.islower():
                    assert value in options(key), (name, word)


def test_a_range_of_decimals_has_the_numbers_that_people_mean():
    axes, _ = expand_axes(["alpha=range(0.1,0.9,0.2)", "seed=range(0,3)"])
    assert axes == {"alpha": ["0.1", "0.3", "0.5", "0.7"], "seed": ["0", "1", "2"]}


def test_a_file_that_is_named_so_is_still_an_option(tmp_path, monkeypatch, multiref, capsys):
    """A path is recognised by its form: a name without slash or dot has the nearest option."""
    monkeypatch.chdir(tmp_path)
    assert multiref("train", "policy=foldr") == 2
    assert "did you mean 'folder'" in capsys.readouterr().err and not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["train"], "train experiment=offline_toy regularizer=fkl"),
        (["sweep"], "sweep sweep=paper_grid"),
        (["eval"], "evaluation.samples_per_prompt=8"),
        (["report"], "--against runs/published/embedded.csv"),
        (["theory"], "theory study=sample_complexity"),
        (["refs", "mix"], "refs mix experiment=online_toy"),
        (["refs", "build"], "refs build experiment=offline_toy"),
        (["refs", "weights"], "refs weights experiment=online_toy"),
        (["refs", "export"], "refs export experiment=offline_toy"),
        (["compare"], "compare runs/A runs/B"),
        (["convert"], "convert trl.yaml"),
        (["push"], "push runs/NAME owner/name"),
        (["runs"], "runs --where"),
    ],
)
@pytest.mark.parametrize("width", [80, 130])
def test_help_has_the_commands_own_examples_and_follows_the_terminal(multiref, capsys, monkeypatch, words, own, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert multiref(*words, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    examples = lines[lines.index("  Examples:") + 1 :]
    assert any(own in line for line in examples) and all(
        line.startswith(f"    multiref {words[0]}") for line in examples
    )
    assert max(map(len, lines[: -len(examples)])) <= width
    if width == 130 and words[0] not in ("report", "compare", "push", "runs"):
        assert max(map(len, lines[: -len(examples)])) > 80


def test_help_of_the_laboratory_names_its_settings(multiref, capsys):
    from dataclasses import fields

    from multiref_cli.theory.settings import Laboratory

    assert multiref("theory", "--help") == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert all(re.search(rf"\b{one.name}\b", said) for one in fields(Laboratory))


def test_studies_and_settings_of_the_laboratory_are_completed():
    assert complete_study("study=ef") == ["study=effects"]
    assert complete_study("study=effects,al") == ["study=effects,all", "study=effects,alpha"]
    assert "study=all" in complete_study("stu") and complete_study("reward_") == ["reward_max="]
    assert complete_study("n") == ["n="] and complete_study("beta=0") == []


def test_a_plan_says_that_its_folder_is_there(tmp_path, monkeypatch, multiref, capsys):
    monkeypatch.chdir(tmp_path)
    Path("old").mkdir()
    Path("old/status.json").write_text('{"state": "stopped"}')
    assert multiref("train", "experiment=offline_toy", "run.dir=old", "--dry-run") == 0
    assert "old exists already (stopped): another run.dir, or multiref train --resume old" in capsys.readouterr().out
    assert multiref("train", "experiment=offline_toy", "run.dir=new", "--dry-run") == 0
    assert "exists already" not in capsys.readouterr().out and os.listdir() == ["old"]


def test_text_that_is_templated_already_is_told_from_text(tmp_path, monkeypatch, multiref, capsys):
    """The control tokens of the embedded world's own template, written out in every prompt."""
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "<|user|> ned has 5 stamps . <|assistant|>", "chosen": "5", "rejected": "6"}
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    data = ["policy=folder", "policy.path=toy:instruct", "data=jsonl", "data.path=rows.jsonl", "evaluation=none"]
    assert multiref("train", *data, "--dry-run") == 2
    said = capsys.readouterr().err
    assert "3 dropped: control token in prompt (rows 1, 2, 3)" in said and "templated already" in said
    row["prompt"] = "ned has 5 stamps ."
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    assert multiref("train", *data, "data.held_out=0", "--dry-run") == 0
