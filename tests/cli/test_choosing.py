"""`alpha=auto` and `alpha=balanced` on the tiny world: what is chosen, that it is chosen once, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from multiref_cli.config.compose import compose
from multiref_cli.runs import choose
from multiref_cli.theory.choosing import disagreement, optimal_value
from multiref_cli.tracking.progress import Silent

SHORT = ["evaluation.max_new_tokens=2", "evaluation.win_rate=false", "evaluation.prompts=3", "steps=1"]


def held(path):
    return json.loads(Path(path).read_text())


@pytest.fixture
def few(monkeypatch):
    """Few prompts and responses."""
    monkeypatch.setattr(choose, "PROMPTS", 4)


@pytest.fixture
def once(monkeypatch):
    """After it is called, no choice can be made any more."""

    def forbid():
        monkeypatch.setattr(choose, "_chosen", None)

    return forbid


def test_a_run_has_the_hash_of_the_chosen_weights_and_its_choice_beside_it(place, multiref, offline, few, once, capsys):
    assert multiref("train", *offline, *SHORT, "alpha=auto", "run.name=auto") == 0
    (choice,) = held("runs/auto/alpha.json")
    assert choice["rule"] == "auto" and choice["method"] == "importance" and choice["score"] == "reward_model"
    assert len(choice["points"]) == 101 and choice["prompts"] == 4 and len(choice["effective"]) == 101
    best = max(range(101), key=lambda i: choice["values"][i])
    assert choice["weights"] == choice["points"][best] and choice["errors"][best] == 0
    assert f"is {choice['weights'][0]:g} (" in capsys.readouterr().out
    report = Path("runs/auto/report/report.md").read_text()
    assert "How alpha was chosen" in report and "figures/alpha-chosen.png" in report
    alpha = yaml.safe_load(Path("runs/auto/config.yaml").read_text())["alpha"]
    assert alpha == choice["weights"][0]
    once()  # again at once, whatever the seed; and by hand
    assert multiref("train", *offline, *SHORT, "alpha=auto", "seed=3", "run.name=again") == 0
    assert multiref("train", *offline, *SHORT, f"alpha={alpha}", "run.name=hand") == 0
    hashes = [held(f"runs/{name}/results.json")["config_hash"] for name in ("auto", "hand", "again")]
    assert hashes[0] == hashes[1] != hashes[2]
    assert held("runs/again/alpha.json") == [choice]


def test_a_sweep_has_it_as_a_point_like_any_other_and_keeps_it(place, multiref, online, few, once, tmp_path, capsys):
    grid = [*online, "rollout.max_new_tokens=2", "steps=1", "alpha=0.3,balanced", "run.dir=swept", "baselines=false"]
    assert multiref("sweep", *grid, "--dry-run") == 0
    assert "chosen before anything is trained" in capsys.readouterr().out
    assert not (tmp_path / "swept").exists() and not (tmp_path / "cache").exists()
    assert multiref("sweep", *grid, "--workers", "1") == 0
    (choice,) = held("swept/alpha.json")
    points = [json.loads(line) for line in Path("swept/plan.jsonl").read_text().splitlines()]
    weights = [f"alpha=[{','.join(f'{w:g}' for w in choice['weights'])}]" in point["overrides"] for point in points]
    assert weights == [False, True]
    assert "How alpha was chosen" in Path("swept/report/report.md").read_text()
    capsys.readouterr()
    (path,) = (tmp_path / "cache" / "alpha").iterdir()
    path.write_text("damaged")
    once()  # the folder's own choice is found, without the cache
    assert multiref("sweep", "--resume", "swept") == 0
    assert "2 of 2 points done" in capsys.readouterr().out and held("swept/alpha.json") == [choice]
    assert multiref("sweep", *grid, "--dry-run") == 0
    assert "chosen before" not in capsys.readouterr().out


@pytest.mark.parametrize("regularizer", ["rkl", "rkl_token", "fkl", "mrpo"])
def test_values_of_samples_tend_to_those_of_all_responses(place, offline, monkeypatch, regularizer):
    """Responses of one token: the whole vocabulary is enumerated."""
    monkeypatch.setattr(choose, "PROMPTS", 3)
    monkeypatch.setattr(choose, "RESPONSES", 400)
    experiment = compose(
        [*offline, f"regularizer={regularizer}", "evaluation.max_new_tokens=1", "evaluation.batch_size=1200"]
    )
    asked = replace(experiment, alpha="auto")
    found = choose.choose(asked, Silent())
    job = choose._open(asked, Silent())
    everything = [[[token] for token in range(job.vocabulary)] for _ in job.prompts]
    rewards = choose._rewards(choose._evaluator(job, Silent()), everything).reshape(len(job.prompts), -1)
    sequences = [
        choose.store.Sequence(tuple(prompt.ids), tuple(ids))
        for prompt, group in zip(job.prompts, everything)
        for ids in group
    ]
    logps = torch.stack(
        [
            torch.tensor(job.open_store().sums(reference, sequences)[0]).reshape(rewards.shape)
            for reference in job.references()
        ]
    )
    torch.testing.assert_close(logps.logsumexp(-1), torch.zeros(2, 3, dtype=torch.float64), atol=1e-4, rtol=0)
    penalty = experiment.penalty
    spread = float(rewards.std())
    for at in (0, len(found.points) // 2, len(found.points) - 1):
        weights = torch.tensor(found.points[at], dtype=torch.float64)
        mixed = choose.power_mean(logps, weights, penalty.mean_order)
        exact = optimal_value(mixed, rewards, experiment.beta, penalty.score_order).mean()
        assert found.values[at] == pytest.approx(float(exact), abs=0.25 * spread)
    balanced = choose.choose(replace(experiment, alpha="balanced"), Silent())
    weights = torch.tensor(balanced.weights, dtype=torch.float64)
    expected = float(disagreement(logps, weights, penalty.mean_order).mean())
    assert max(balanced.values) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("order", ["0", "1"])
def test_responses_too_far_apart_are_compared_by_samples_of_the_untrained_mix(
    place, multiref, online, few, monkeypatch, capsys, order
):
    monkeypatch.setattr(choose, "LEAST_EFFECTIVE", 1e9)
    asked = [*online, f"regularizer.mean_order={order}", "regularizer.score_order=0"]
    assert multiref("train", *asked, "alpha=auto", "steps=1", "run.name=far") == 0
    (choice,) = held("runs/far/alpha.json")
    assert choice["method"] == "samples" and choice["effective"] == [] and choice["responses"] == 2
    assert [point[0] for point in choice["points"]] == pytest.approx([i / 10 for i in range(11)])
    assert "untrained mixed reference" in Path("runs/far/report/report.md").read_text()
    assert multiref("train", *online, "alpha=balanced", "steps=1", "run.name=none") == 2
    assert "alpha=balanced cannot be estimated" in capsys.readouterr().err


def test_three_references(place, multiref, offline, few, monkeypatch, capsys):
    kept = [text for text in offline if not text.startswith(("references=", "first=", "second="))]
    listed = ",".join(f"{{name: {name}, path: {place}/{path}}}" for name, path in zip("abc", ("one", "two", "one")))
    asked = [*kept, f"references=[{listed}]", *SHORT]
    assert multiref("train", *asked, "alpha=auto", "run.name=three") == 0
    (choice,) = held("runs/three/alpha.json")
    assert len(choice["points"]) == 231 and sum(choice["weights"]) == pytest.approx(1)
    swapped = {tuple(point): value for point, value in zip(choice["points"], choice["values"])}
    assert all(value == pytest.approx(swapped[c, b, a]) for (a, b, c), value in swapped.items())
    assert "each reference alone" in Path("runs/three/report/report.md").read_text()
    monkeypatch.setattr(choose, "LEAST_EFFECTIVE", 1e9)
    assert multiref("train", *asked, "alpha=auto", "beta=0.2", "run.name=far") == 2
    assert "cannot weigh these 3 references" in capsys.readouterr().err


def test_refs_weights_shows_both_rules(place, multiref, offline, few, capsys):
    assert multiref("refs", "weights", *offline, *SHORT) == 0
    out = capsys.readouterr().out
    assert "alpha=auto" in out and "alpha=balanced" in out and "first alone" in out and "chosen" in out
    assert multiref("refs", "weights", *offline, *SHORT, "evaluation.scorer=null") == 0
    out = capsys.readouterr().out
    assert "needs a reward model" in out and "`alpha=balanced` for rkl" in out


def test_refs_weights_without_a_rule_that_applies_is_refused(place, multiref, offline, few, capsys):
    long = [*SHORT, "evaluation.scorer=null", "evaluation.max_new_tokens=256"]
    assert multiref("refs", "weights", *offline, *long) == 2
    printed = capsys.readouterr()
    assert "alpha=auto needs a reward model" in printed.err and "evaluation.max_new_tokens is 256" in printed.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["alpha=best"], "give a number, a list of numbers, auto or balanced"),
        (["references=[{name: a, path: ONE}]"], "the only one here"),
        (["regularizer=extrapolate"], "weights from 0 to 1"),
        (["regularizer=js"], "a sum of divergences"),
        (["regularizer=mrpo_ctro"], "the same for all pairs"),
        (["evaluation.scorer=null"], "needs a reward model"),
        (["algorithm=sft", "regularizer=none"], "towards none"),
        (["alpha={by: answer, weights: {a: auto}}"], "or weights"),
    ],
)
def test_what_has_nothing_to_choose_is_refused(place, multiref, offline, tmp_path, overrides, said, capsys):
    kept = offline
    if overrides[0].startswith("references="):
        kept = [text for text in offline if not text.startswith(("references=", "first=", "second="))]
    if overrides[0] == "algorithm=sft":
        kept = [text for text in offline if not text.startswith("algorithm.")]
    overrides = [text.replace("ONE", f"{place}/one") for text in overrides]
    assert multiref("train", *kept, "alpha=auto", *overrides) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [(["beta=0"], "nothing to choose"), (["algorithm=distill"], "alpha=balanced needs none")],
)
def test_online_what_has_nothing_to_choose_is_refused(place, multiref, online, overrides, said, capsys):
    assert multiref("train", *online, "alpha=auto", *overrides) == 2
    assert said in capsys.readouterr().err
    assert multiref("refs", "build", *online, "alpha=auto", "regularizer=fkl_reference_states") == 2
    assert "chosen by train, sweep and refs weights alone" in capsys.readouterr().err
