"""Training on the command line with a vLLM server that samples: a run, one that loses its server, refusals."""

import sys
from pathlib import Path

import pytest

from multiref_cli.files import read_json
from tests.references.fake_server import serving

ROOT = Path(__file__).parents[2]


def sampled_by(online, where, *more):
    how = ["rollout=vllm", f"rollout.server={where}", "rollout.group_size=4", "rollout.max_new_tokens=6"]
    return [*online, *how, "evaluation.prompts=0", "hardware.checkpoint_every=1", *more]


def test_a_run_loses_its_server_and_goes_on_with_another(place, server, multiref, online, figures, capsys):
    """What it drew after that is what it would have drawn; the policy of every step had been handed over."""
    assert multiref("train", *sampled_by(online, server.url), "run.dir=whole") == 0, capsys.readouterr().err
    whole = figures(Path("whole"))
    assert len(server.reloads) == 4 + 1 and server.calls.count("/reset_prefix_cache") == 5
    assert all(row["rollout/kl"] < 1e-9 and row["rollout/beyond_fraction"] == 0 for row in whole)
    before = len(server.drawn)
    server.draw_faults = lambda number, body: "hang up" if number > before + 2 * 12 + 3 else None
    assert multiref("train", *sampled_by(online, server.url), "run.dir=cut") == 1
    said = capsys.readouterr().err
    assert f"{server.url}/v1/completions gives no usable answer" in said and "--resume cut" in said
    assert read_json(Path("cut/status.json"))["state"] == "failed" and len(figures(Path("cut"))) == 2
    with serving(server.model, server.tokenizer, "policy") as moved:
        assert multiref("train", "--resume", "cut", f"rollout.server={moved.url}") == 0, capsys.readouterr().err
        assert len(moved.reloads) == 2 + 1
    assert figures(Path("cut")) == whole


def test_one_server_samples_for_all_processes_of_a_run(place, server, multiref, online, figures):
    for count in (1, 2):
        how = [f"hardware.processes={count}", "steps=1", f"run.dir=out{count}"]
        assert multiref("train", *sampled_by(online, server.url, *how)) == 0
    assert len(server.reloads) == 2 * (1 + 1)
    assert sorted(map(str, server.drawn[:13])) == sorted(map(str, server.drawn[13:]))
    for one, two in zip(figures(Path("out1")), figures(Path("out2")), strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_a_run_starts_its_server_and_ends_it(place, world, multiref, online, tmp_path, capsys):
    python = tmp_path / "python"
    path = f'PYTHONPATH={ROOT} exec {sys.executable} -m tests.rollouts.serve_fake "$@"'
    python.write_text(f"#!/bin/sh\nshift 2\n{path}\n")
    python.chmod(0o755)
    cache = f"hardware.cache_dir={tmp_path}/cache"
    arguments = sampled_by(online, "start", f"rollout.python={python}", "steps=2", cache, "run.dir=out")
    assert multiref("train", *arguments) == 0, capsys.readouterr().err
    assert read_json(Path("out/status.json"))["state"] == "done"
    assert list((tmp_path / "cache" / "rollouts").iterdir()) == []


def test_a_server_that_does_not_start_is_one_sentence_and_nothing_is_written(place, multiref, online, tmp_path, capsys):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'RuntimeError: no such device'\nexit 1\n")
    python.chmod(0o755)
    assert multiref("train", *sampled_by(online, "start", f"rollout.python={python}"), "run.dir=out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rollout.server=start: the vLLM server ended by itself (exit code 1; RuntimeError: no such device)." in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["rollout.server=localhost:8000"], "rollout.server=localhost:8000 is no server: give start, or the URL"),
        (["rollout.server=http://a", "rollout.devices=1"], "rollout.devices=1 is of a server that the run starts"),
        (["rollout.python=/bin/sh"], "add rollout.server=start, or remove it"),
        (["rollout.server=start", "rollout.python=/nowhere"], "rollout.python=/nowhere is no program"),
        (["rollout.server=start", "rollout.engine=transformers"], "is of a vLLM server: add rollout=vllm"),
        (["rollout.timeout_seconds=0"], "rollout.timeout_seconds is 0"),
        (["hardware.processes=2"], "samples in one process, hardware.processes is 2; give rollout.server=start"),
    ],
)
def test_a_wrong_server_is_refused_before_anything_runs(place, multiref, online, capsys, changes, words):
    assert multiref("train", *online, "rollout=vllm", *changes, "run.dir=out") == 2
    assert words in " ".join(capsys.readouterr().err.split()) and not Path("out").exists()


def test_where_a_server_is_does_not_change_what_a_run_is():
    from multiref_cli.config.compose import compose

    def of(*overrides):
        return compose(["experiment=online_toy", "rollout=vllm", *overrides])

    here = of("rollout.server=http://a")
    assert here.hash == of("rollout.server=http://b", "rollout.timeout_seconds=9").hash
    assert here.hash == of("rollout.server=start", "rollout.python=/bin/sh", "rollout.devices=1").hash
    assert here.hash != of("rollout.server=http://a", "rollout.temperature=0.9").hash
