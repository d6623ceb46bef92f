"""References behind a server on the command line: the numbers of local ones, refusals, servers that go and change."""

import json
import math
from pathlib import Path

import pytest

from multiref_cli.config.schema import Model
from multiref_cli.files import read_json
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.references import client
from tests.references.fake_server import serving

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def server(world, monkeypatch):
    monkeypatch.setattr(client, "_PAUSES", (0.01,) * 4)
    model = Model(path=str(world / "two"))
    with serving(load_causal_lm(model), load_tokenizer(model)) as found:
        yield found


def towards(world, url, **keys):
    """The override that names the references: one at a path, the other at a server."""
    second = "".join(f", {key}: {value}" for key, value in keys.items())
    return f"references=[{{name: first, path: {world}/one}}, {{name: second, server: {url}, model: teacher{second}}}]"


def without_pair(overrides):
    return [one for one in overrides if not one.startswith(("references=", "first=", "second="))]


def assert_near(found, expected):
    """The same figures up to the rounding of a server in float64."""
    for row, wanted in zip(found, expected, strict=True):
        assert row.keys() == wanted.keys()
        for key, value in row.items():
            assert math.isclose(value, wanted[key], rel_tol=2e-3, abs_tol=1e-4), (key, value, wanted[key])


def test_the_offline_job_is_that_of_a_local_reference(place, server, multiref, offline, figures):
    served = [*without_pair(offline), towards(place, server.url), "alpha=0.4"]
    assert multiref("train", *served, "regularizer=fkl", "run.dir=served") == 0
    assert multiref("train", *offline, "regularizer=fkl", "alpha=0.4", "run.dir=local") == 0
    assert_near(figures(Path("served")), figures(Path("local")))
    found, wanted = (read_json(Path(name, "results.json"))["metrics"] for name in ("served", "local"))
    assert found.keys() == wanted.keys()
    for name in ("preference_accuracy", "kl/second", "kl/mixed"):
        assert math.isclose(found[name]["mean"], wanted[name]["mean"], rel_tol=1e-3, abs_tol=1e-5)
    manifest = read_json(Path("served", "manifest.json"))
    assert len(manifest["references"]["second"]) == 64 and "model served:teacher" in json.dumps(manifest["inputs"])
    assert multiref("refs", "list") == multiref("refs", "verify") == 0


def test_the_online_job_is_that_of_a_local_reference(place, server, multiref, online, figures):
    how = ["regularizer=mrpo", "regularizer.estimator=reward", "evaluation.prompts=0"]
    assert multiref("train", *without_pair(online), towards(place, server.url), *how, "run.dir=served") == 0
    assert multiref("train", *online, *how, "run.dir=local") == 0
    local = figures(Path("local"))
    for row in local:  # of the references over the whole vocabulary
        row.pop("disagreement")
    assert_near(figures(Path("served")), local)


def test_another_model_during_a_run_is_caught_and_the_run_goes_on_with_the_first(
    place, server, multiref, online, figures, capsys
):
    how = [*without_pair(online), towards(place, server.url), "regularizer=rkl", "hardware.checkpoint_every=1"]
    how += ["evaluation.prompts=0"]
    assert multiref("train", *how, "run.dir=whole") == 0
    before, first = len(server.asked), server.model
    other = load_causal_lm(Model(path=str(place / "one"))).double()

    def restarted(number, body):
        if number - before > 2 * 12 + 8:  # after two steps of twelve rows
            server.model = other

    server.faults = restarted
    assert multiref("train", *how, "run.dir=broken") == 1
    said = capsys.readouterr().err
    assert "serves another model than before" in said and "--resume broken" in said
    server.faults, server.model = (lambda number, body: None), first
    with serving(first, server.tokenizer) as moved:
        assert multiref("train", "--resume", "broken", f"references.1.server={moved.url}") == 0
        assert len(moved.asked) > 0
    assert figures(Path("broken")) == figures(Path("whole"))


def test_a_dry_run_asks_no_server_and_a_run_writes_nothing_without_one(place, server, multiref, offline, capsys):
    how = [*without_pair(offline), towards(place, NOWHERE), "alpha=0.5", "run.dir=out"]
    assert multiref("train", *how, "--dry-run") == 0
    assert f"teacher at {NOWHERE}, 16 questions at once; not asked by a dry run" in " ".join(
        capsys.readouterr().out.split()
    )
    assert multiref("train", *how) == 2
    assert "reference second: http://127.0.0.1:9 gives no usable answer" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["regularizer=rkl_token"], "use regularizer.level=sequence, which is exact for every mean"),
        (["regularizer=rkl", "regularizer.estimator=exact"], "use regularizer.estimator=reward"),
        (["regularizer=rkl", "rollout.temperature=0.7"], "use rollout.temperature=1"),
    ],
    ids=["token", "exact", "temperature"],
)
def test_what_a_server_cannot_say_is_refused_before_anything_runs(place, multiref, online, capsys, changes, words):
    assert multiref("train", *without_pair(online), towards(place, NOWHERE), *changes, "run.dir=out") == 2
    assert words in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize(
    ("references", "words"),
    [
        ("[{name: a, server: 'localhost:8000', model: x}]", "give the URL of a server"),
        ("[{name: a, server: 'http://me:secret@host', model: x}]", "name its environment variable"),
        ("[{name: a, server: 'http://host'}]", "a has a server alone"),
        ("[{name: a, model: x}]", "a has a model alone"),
        ("[{name: a, path: b, server: 'http://host', model: x}]", "has a path and a server"),
        ("[{name: a, server: 'http://host', model: x, dtype: float32}]", "the server's own affair"),
        ("[{name: a, server: 'http://host', model: x, concurrency: 0}]", "concurrency is 0"),
        ("[{name: a, server: 'http://host', model: x, timeout_seconds: 0}]", "timeout_seconds is 0"),
    ],
)
def test_a_reference_that_is_written_wrongly_is_refused(place, multiref, offline, capsys, references, words):
    assert multiref("train", *without_pair(offline), f"references={references}", "run.dir=out") == 2
    said = capsys.readouterr().err
    assert words in said and "secret" not in said and not Path("out").exists()


def test_mixed_references_are_not_drawn_from_a_server(place, multiref, online, capsys):
    how = [*without_pair(online), towards(place, NOWHERE), "regularizer=rkl"]
    assert multiref("refs", "mix", *how) == 2
    assert "second is served" in capsys.readouterr().err


def test_the_untrained_mixed_reference_is_not_drawn_from_a_server(place, multiref, online, capsys):
    how = [one for one in without_pair(online) if "batch_prompts" not in one and not one.startswith("steps")]
    how += [towards(place, NOWHERE), "regularizer=rkl", "algorithm=untrained", "algorithm.sampler=mixed"]
    assert multiref("train", *how, "run.dir=out") == 2
    assert "use algorithm.sampler=policy" in capsys.readouterr().err and not Path("out").exists()


def test_a_sweep_leaves_out_the_rivals_that_need_weights(place, multiref, offline, capsys):
    how = [*without_pair(offline), towards(place, NOWHERE), "alpha=0.5", "rivals=true", "run.dir=out"]
    assert multiref("sweep", *how, "--dry-run") == 0
    said = capsys.readouterr()
    assert "the weights of second are on a server" in said.out + said.err


def test_keys_of_a_server_change_no_hash_but_its_model_does(place, offline):
    from multiref_cli.config.compose import compose

    def hash_of(url, **keys):
        return compose([*without_pair(offline), towards(place, url, **keys), "alpha=0.5"]).hash

    first = hash_of(NOWHERE)
    assert first == hash_of("http://elsewhere:8000/v1", concurrency=3, timeout_seconds=5, api_key_env="KEY")
    assert first != compose([*offline, "alpha=0.5"]).hash
