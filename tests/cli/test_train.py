"""`multiref train` and `eval` end to end, as a user types them."""

import json
import math
from pathlib import Path

import pytest
import torch

from multiref_cli.files import read_json, read_lines
from multiref_cli.reports.collect import read_run

FILES = (
    "config.yaml overrides.txt manifest.json status.json metrics.jsonl samples.jsonl results.json evaluation.jsonl "
    "answers.jsonl pairs.jsonl report logs checkpoints policy"
)


@pytest.mark.parametrize(
    "regularizer",
    ["rkl", "fkl", "mrpo", "hellinger", "chi2", "rkl_token", "mrpo_token", "multi_dpo", "mrpo_ctro", "mrpo_arwc"],
)
def test_every_regularizer_trains_evaluates_and_reports(place, multiref, offline, regularizer, figures, capsys):
    assert multiref("train", *offline, f"regularizer={regularizer}", "alpha=0.4", "run.dir=out") == 0, (
        capsys.readouterr().err
    )
    folder = Path("out")
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == sorted(FILES.split())
    results = read_json(folder / "results.json")
    wanted = {
        "preference_accuracy",
        "ranking_accuracy",
        "win_rate_lc/reward_model/first",
        "toy_gold",
        "reward_model",
        "kl/first",
        "kl/second",
        "kl/mixed",
        "length",
    }
    wanted |= {"win_rate/toy_gold/first", "win_rate/reward_model/second", "objective/toy_gold"}
    assert wanted <= set(results["metrics"])
    for value in results["metrics"].values():
        assert value["ci_low"] <= value["mean"] <= value["ci_high"]
    rows = figures(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    ratios = {f"log_ratio/{name}" for name in ("first", "second", "mixed")}
    assert {"loss", "reward_margin", "accuracy", *ratios, "score_clip_fraction"} <= set(rows[0])
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert read_json(folder / "status.json")["state"] == "done"
    assert (folder / "report" / "index.html").is_file()


def test_one_reference_starts_at_ln_2_and_never_opens_the_other(place, multiref, offline, tmp_path, figures, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (place / "two").iterdir():
        if path.suffix != ".safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    arguments = [*offline, f"second={broken}", "alpha=1", "evaluation.prompts=0", "run.dir=out"]
    assert multiref("train", *arguments) == 0, capsys.readouterr().err
    assert "(ln 2)" in capsys.readouterr().out
    assert figures(Path("out"))[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_policy_opens_with_transformers_and_learned(place, multiref, offline, figures):
    from transformers import AutoModelForCausalLM

    assert multiref("train", *offline, "steps=30", "evaluation.prompts=0", "run.dir=out") == 0
    model = AutoModelForCausalLM.from_pretrained("out/policy")
    start = AutoModelForCausalLM.from_pretrained(str(place / "one"))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters()))
    rows = figures(Path("out"))
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_same_config_gives_the_same_numbers_bitwise(place, multiref, offline, figures):
    for name in ("a", "b"):
        assert multiref("train", *offline, f"run.dir={name}") == 0
    assert figures(Path("a")) == figures(Path("b"))
    assert read_json(Path("a/results.json"))["metrics"] == read_json(Path("b/results.json"))["metrics"]


def test_kill_9_and_resume_is_bitwise_the_undisturbed_run(place, multiref, offline, killed_train, figures):
    arguments = [*offline, "steps=40", "hardware.checkpoint_every=3"]
    assert multiref("train", *arguments, "run.dir=whole") == 0
    killed_train([*arguments, "run.dir=cut"], Path("cut"), 7)
    assert multiref("train", "--resume", "cut") == 0
    assert figures(Path("cut")) == figures(Path("whole"))
    assert read_json(Path("cut/results.json"))["metrics"] == read_json(Path("whole/results.json"))["metrics"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["regularizer=rkll"], "did you mean 'rkl'"),
        (["+typo=1"], "no key 'typo'"),
        (["alpha=2"], "between 0 and 1"),
        (["data.path=./nowhere.jsonl"], "does not exist"),
        (["algorithm=sft"], "no key 'algorithm.batch_pairs'; did you mean 'algorithm.batch_rows'"),
        (["data.path=toy:nothing"], "there is no toy:nothing"),
    ],
)
def test_a_wrong_request_is_one_sentence_exit_2_and_writes_nothing(place, multiref, offline, overrides, words, capsys):
    before = sorted(Path().rglob("*"))
    assert multiref("train", *offline, *overrides, "run.dir=out") == 2
    assert words in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


def test_dpo_without_pairs_is_refused(place, multiref, offline, capsys):
    assert multiref("train", *offline, f"data.path={place}/prompts.jsonl", "run.dir=out") == 2
    assert "chosen" in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_existing_folder_is_never_written_into(place, multiref, offline, capsys):
    assert multiref("train", *offline, "evaluation.prompts=0", "run.dir=out") == 0
    before = Path("out/metrics.jsonl").read_text()
    assert multiref("train", *offline, "evaluation.prompts=0", "run.dir=out") == 2
    assert "out is done already; `multiref eval out` scores it again" in capsys.readouterr().err
    assert multiref("train", "--resume", "out") == 2
    assert "is done" in capsys.readouterr().err
    assert Path("out/metrics.jsonl").read_text() == before


def test_dry_run_shows_the_plan_and_the_mask_and_writes_nothing(place, multiref, offline, capsys):
    assert multiref("train", *offline, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "reference passes" in printed
    assert printed.rstrip().endswith("<|end|>»")
    assert list(Path().iterdir()) == []


def test_a_failure_on_the_way_is_exit_1_and_says_where(place, multiref, offline, capsys):
    Path("failing_reward.py").write_text(
        "def fails(samples):\n    assert not samples[0].completion, 'no'\n    return [0.0]\n"
    )
    own = ["reward=custom", "reward.terms.mine.function._target_=failing_reward.fails"]
    assert multiref("train", *offline, *own, "run.dir=out") == 1
    assert "failing_reward.fails raised AssertionError: no" in capsys.readouterr().err
    assert read_json(Path("out/status.json"))["state"] == "failed"
    assert Path("out/logs/error.txt").is_file()


def test_eval_scores_again_and_refuses_what_training_depends_on(place, multiref, offline, capsys):
    assert multiref("train", *offline, "run.dir=out") == 0
    first = read_json(Path("out/results.json"))
    assert multiref("eval", "out", "evaluation.prompts=3") == 0
    second = read_json(Path("out/results.json"))
    assert (first["metrics"]["toy_gold"]["n"], second["metrics"]["toy_gold"]["n"]) == (6, 3)
    assert first["config_hash"] == second["config_hash"]
    # The report says how it was measured now, and config.yaml how it was trained and measured then.
    assert read_run(Path("out")).experiment.evaluation.prompts == 3
    assert multiref("eval", "out") == 0 and read_run(Path("out")).experiment.evaluation.prompts == 6
    assert read_json(Path("out/results.json"))["metrics"] == first["metrics"]
    assert multiref("eval", "out", "beta=2") == 2
    assert "cannot change 'beta'" in capsys.readouterr().err


def test_eval_keeps_the_scorer_of_an_earlier_one(place, multiref, offline):
    """What scores stays until another is named; how much is scored is the run's own."""
    assert multiref("train", *offline, "run.dir=out") == 0
    assert multiref("eval", "out", "evaluation.scorer=null", "evaluation.prompts=3") == 0
    assert multiref("eval", "out") == 0
    metrics = read_json(Path("out/results.json"))["metrics"]
    assert "reward_model" not in metrics and metrics["toy_gold"]["n"] == 6


def test_stored_references_are_computed_once(place, multiref, offline, capsys):
    assert multiref("train", *offline, "evaluation.prompts=0", "run.dir=a") == 0
    assert "reference second" in capsys.readouterr().out
    assert multiref("train", *offline, "evaluation.prompts=0", "beta=0.7", "alpha=0.2", "run.dir=b") == 0
    assert "reference second" not in capsys.readouterr().out


def test_sft_and_reward_model(place, multiref, world):
    common = [
        "references=none",
        "regularizer=none",
        "policy=folder",
        "hardware=cpu",
        "tracking=off",
        "evaluation=none",
        "data=jsonl",
    ]
    common += [
        f"policy.path={world}/one",
        f"data.path={world}/pairs.jsonl",
        "data.held_out=0.2",
        "optimizer.learning_rate=1e-2",
    ]
    assert multiref("train", "algorithm=sft", *common, "algorithm.batch_rows=8", "steps=40", "run.dir=sft") == 0
    losses = [row["loss"] for row in read_lines(Path("sft/metrics.jsonl"))]
    assert losses[-1] < 0.7 * losses[0]
    assert (
        multiref("train", "algorithm=reward_model", *common, "algorithm.batch_pairs=8", "steps=40", "run.dir=rm") == 0
    )
    metrics = read_json(Path("rm/results.json"))["metrics"]
    assert 0 <= metrics["held_out_accuracy"]["mean"] <= 1
    losses = [row["loss"] for row in read_lines(Path("rm/metrics.jsonl"))]
    assert sum(losses[-8:]) < sum(losses[:8])


def test_bad_rows_are_named(place, multiref, offline, tmp_path, capsys):
    rows = (place / "pairs.jsonl").read_text().splitlines()
    rows[3] = json.dumps({"prompt": "max has 1", "chosen": "x", "rejected": "x"})
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(rows) + "\nnot json\n")
    assert multiref("train", *offline, f"data.path={path}", "data.bad_rows=refuse", "run.dir=out") == 2
    assert "4" in capsys.readouterr().err
    assert multiref("train", *offline, f"data.path={path}", "evaluation.prompts=0", "run.dir=out") == 0
    assert "2 dropped" in capsys.readouterr().out or "dropped" in read_json(Path("out/manifest.json"))["data"]["rows"]


def test_lora_trains_an_adapter_and_saves_merged_weights(place, multiref, offline, capsys):
    from transformers import AutoModelForCausalLM

    arguments = [*offline, "policy=lora", "policy.lora.rank=2", "alpha=1", "evaluation.prompts=4", "run.dir=out"]
    assert multiref("train", *arguments) == 0, capsys.readouterr().err
    assert "(ln 2)" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained("out/policy")
    start = AutoModelForCausalLM.from_pretrained(str(place / "one"))
    assert any(not torch.equal(a, b) for a, b in zip(merged.parameters(), start.parameters()))
    assert Path("out/policy/adapter/adapter_model.safetensors").is_file()
    assert multiref("eval", "out") == 0, capsys.readouterr().err


def test_gradient_checkpointing_changes_nothing(place, multiref, offline, figures):
    for name, flag in (("plain", "false"), ("recomputed", "true")):
        run = [f"policy.gradient_checkpointing={flag}", "evaluation.prompts=0", f"run.dir={name}"]
        assert multiref("train", *offline, *run) == 0
    for a, b in zip(figures(Path("plain")), figures(Path("recomputed"))):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
