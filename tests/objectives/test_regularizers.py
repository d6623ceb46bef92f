"""The files of conf/regularizer: what they say, and that a new one costs one file."""

import itertools
import re
from functools import cache

import pytest
import torch

from multiref_cli.config.check import check
from multiref_cli.config.compose import compose
from multiref_cli.config.folders import conf_directory, options
from multiref_cli.config.regularizer import Arwc
from multiref_cli.config.schema import Estimator, Level, States
from multiref_cli.errors import RequestError
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.objectives.preference import implicit_reward

# name: orders of mean and score, level
ORDERS = {
    "rkl": (0, 0, "sequence"),
    "fkl": (1, 1, "sequence"),
    "hellinger": (0.5, 0.5, "sequence"),
    "chi2": (-1, -1, "sequence"),
    "power": (0.25, 0.25, "sequence"),
    "mrpo": (-1, 0, "sequence"),
    "mrpo_ctro": (-1, 0, "sequence"),
    "mrpo_ctro_adaptive": (-1, 0, "sequence"),
    "mrpo_arwc": (-1, 0, "sequence"),
    "multi_dpo": (0, 0, "sequence"),
    "rkl_token": (0, 0, "token"),
    "fkl_token": (1, 1, "token"),
    "mrpo_token": (-1, 0, "token"),
    "rkl_paper": (0, 0, "token"),
    "fkl_paper": (1, 0, "token"),
    "mrpo_full": (-1, 0, "sequence"),
    "multi_dpo_ctro": (0, 0, "sequence"),
    "fkl_reference_states": (1, 1, "sequence"),
    "js": (None, None, "sequence"),
    "chipo": (None, None, "sequence"),
    "jeffreys": (None, None, "sequence"),
    "anchor": (None, None, "sequence"),
    "extrapolate": (0, 0, "sequence"),
    "opd": (0, 0, "token"),
    "mopd": (0, 0, "token"),
    "gopd": (0, 0, "token"),
    "shiftmopd": (0, 0, "token"),
    "kdrl": (0, 0, "token"),
}


@cache
def regularizer(name: str, *overrides: str):
    online = ["algorithm=grpo", "steps=1", "reward=toy_verifier"] if name == "fkl_reference_states" else []
    return compose([f"regularizer={name}", *online, *overrides]).regularizer


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_orders_level_and_name(name):
    r = regularizer(name)
    assert (r.mean_order, r.score_order, r.level.value) == ORDERS[name]
    assert r.name == name


def test_every_file_is_listed_here_and_the_base_is_no_choice():
    assert options("regularizer") == sorted([*ORDERS, "none"])
    assert (conf_directory() / "regularizer" / "_base.yaml").is_file()


def test_what_sets_the_variants_apart():
    clipped = ["mrpo_ctro", "mrpo_ctro_adaptive", "mrpo_full", "multi_dpo_ctro"]
    assert [n for n in ORDERS if regularizer(n).ctro] == clipped
    assert not regularizer("mrpo_ctro").ctro.adaptive and regularizer("mrpo_ctro_adaptive").ctro.adaptive
    assert regularizer("mrpo_ctro").ctro.epsilon == 0.1
    assert [n for n in ORDERS if regularizer(n).arwc is Arwc.paper] == ["mrpo_arwc", "mrpo_full"]
    assert regularizer("mrpo_full").ctro.adaptive
    assert [n for n in ORDERS if regularizer(n).multi_loss] == ["multi_dpo", "multi_dpo_ctro"]
    assert [n for n in ORDERS if regularizer(n).states == States.reference] == ["fkl_reference_states"]
    assert [n for n in ORDERS if regularizer(n).estimator == Estimator.k3] == ["rkl_paper", "fkl_paper"]
    assert {regularizer(n).score_clip for n in ORDERS} == {10.0}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["regularizer=rkl", "regularizer.mean_order=1", "regularizer.score_order=1"], "fkl"),
        (["regularizer=rkl_token", "regularizer.level=sequence"], "rkl"),
        (["regularizer=power", "regularizer.mean_order=-0.5"], "power-0.5"),
        (["regularizer=power", "regularizer.mean_order=0"], "rkl"),
        (["regularizer=rkl", "regularizer.mean_order=-1"], "mrpo"),
        (["regularizer=rkl", "regularizer.mean_order=1"], "mean1_score0"),
        (["regularizer=rkl_token", "regularizer.normalized=false"], "rkl_token_unnormalized"),
        (["regularizer=mrpo_ctro", "regularizer.ctro.adaptive=true"], "mrpo_ctro_adaptive"),
        (["regularizer=mrpo_arwc", "regularizer.score_order=-1"], "chi2_arwc"),
        (["regularizer=mrpo_arwc", "regularizer.arwc=authors"], "mrpo_arwc_authors"),
        (["regularizer=rkl_paper", "regularizer.estimator=exact"], "rkl_token"),
        (["regularizer=rkl", "regularizer.name=mine"], "rkl"),
        (["regularizer=js", "regularizer.terms=[{divergence: jensen_shannon, weight: 2}]"], "2xjs"),
        (["regularizer=js", "regularizer.terms=[{divergence: amari, order: 0.5}]"], "hellinger"),
        (["regularizer=chipo", "regularizer.terms=[{divergence: reverse_kl}]"], "rkl"),
        (
            [
                "regularizer=js",
                "regularizer.terms=[{divergence: reverse_kl, reference: start}, {divergence: forward_kl, "
                "reference: instruct_large}]",
            ],
            "reverse_kl.start+forward_kl.instruct_large",
        ),
    ],
)
def test_an_override_that_changes_the_numbers_changes_the_name(overrides, name):
    experiment = compose(overrides)
    assert experiment.regularizer.title == name
    assert experiment.condition == f"dpo-{name}-a0.5-b0.1"


def test_two_names_of_the_same_numbers_are_one_result():
    numbers = ["regularizer=rkl_token", "regularizer.estimator=k3", "regularizer.to_go=false"]
    paper, own = compose(["regularizer=rkl_paper"]), compose(numbers)
    assert (paper.regularizer.title, own.regularizer.title) == ("rkl_paper", "rkl_token")
    assert paper.hash == own.hash


def test_terms_that_are_one_amari_divergence_are_that_regularizer():
    terms = compose(["regularizer=js", "regularizer.terms=[{divergence: forward_kl}]"])
    assert (
        terms.regularizer == compose(["regularizer=fkl"]).regularizer
        and terms.hash == compose(["regularizer=fkl"]).hash
    )


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ("{divergence: total_variation}", "slope zero almost everywhere"),
        ("{divergence: kl}", "divergence 'kl' is unknown; allowed: reverse_kl"),
        ("{divergence: amari}", "amari needs an order"),
        ("{divergence: jeffreys, order: 1}", "only amari has one"),
        ("{divergence: jeffreys, weight: 0}", "must be above 0"),
        ("{divergence: jeffreys, reference: nobody}", "allowed: instruct, instruct_large, start, others"),
        ("{divergence: jeffreys, reference: start}", "reference ['instruct_large'] has a weight"),
        ("", "mean_order and score_order, or terms"),
    ],
)
def test_terms_that_say_nothing_usable_are_refused(terms, words):
    with pytest.raises(RequestError, match=re.escape(words)):
        compose(["regularizer=js", f"regularizer.terms=[{terms}]"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["regularizer=js", "regularizer.mean_order=0"], "score_order are null"),
        (["regularizer=extrapolate", "alpha=[-0.5,1.2]"], "must sum to 1"),
        (["regularizer=extrapolate", "alpha=nan"], "finite number"),
        (["regularizer=rkl", "alpha=[-0.5,1.5]"], "regularizer=extrapolate takes negative weights"),
        (["regularizer=fkl", "regularizer.signed=true"], "exact for reverse KL alone"),
        (["regularizer=multi_dpo", "regularizer.signed=true"], "exact for reverse KL alone"),
        (["regularizer=rkl", "regularizer.terms=[{divergence: jeffreys}]"], "score_order are null"),
        (["regularizer=js", "regularizer.level=token"], "loss terms of the online job"),
        (["regularizer=js", "regularizer.arwc=paper"], "belong to one mixed reference"),
        (["experiment=online_toy", "regularizer=js", "regularizer.estimator=k3"], "whatever regularizer.terms say"),
        (
            ["regularizer=anchor", "policy=folder", "policy.path=a/b", "references=pair", "first=c", "second=d"],
            "needs a reference at policy.path",
        ),
    ],
)
def test_what_does_not_go_with_terms_is_refused(overrides, words):
    with pytest.raises(RequestError, match=re.escape(words)):
        compose(overrides)


def test_signed_weights():
    beyond = compose(["regularizer=extrapolate", "alpha=-0.25"])
    assert beyond.weights == [-0.25, 1.25] and beyond.role == "grid"
    assert beyond.condition == "dpo-extrapolate-a-0.25-b0.1"
    shift = compose(["references=toy_trio", "regularizer=extrapolate", "alpha=[1,1,-1]"])
    assert shift.role == "grid" and shift.alone is None and shift.active_weights == [1.0, 1.0, -1.0]
    assert compose(["regularizer=extrapolate", "alpha=1"]).role == "single"


def test_an_own_file_with_a_shipped_name_is_refused_where_it_would_be_read(tmp_path, monkeypatch):
    folder = tmp_path / "conf" / "regularizer"
    folder.mkdir(parents=True)
    (folder / "rkl.yaml").write_text("defaults: [_base, _self_]\nmean_order: 3\nscore_order: 3\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"conf/regularizer/rkl\.yaml has the name of a file that multiref ships"):
        compose(["regularizer=rkl"])
    assert compose(["regularizer=fkl"]).regularizer.title == "fkl"


def test_the_score_of_power_follows_its_mean():
    r = regularizer("power", "regularizer.mean_order=-0.5")
    assert (r.mean_order, r.score_order) == (-0.5, -0.5)


def test_a_new_regularizer_is_one_file(tmp_path, monkeypatch):
    """Order 3/4 under a name of its own; log u = log 16 has the score (1 - 1/8) / (3/4)."""
    folder = tmp_path / "conf" / "regularizer"
    folder.mkdir(parents=True)
    text = "defaults: [_base, _self_]\nname: mine\nmean_order: 0.75\nscore_order: 0.75\n"
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = compose(["regularizer=mine"])
    check(config)
    r = config.regularizer
    assert (r.name, r.mean_order, r.level) == ("mine", 0.75, Level.sequence)
    mixed = power_mean(torch.zeros(2, 1, dtype=torch.float64), torch.tensor([0.5, 0.5]), r.mean_order)
    reward = implicit_reward(torch.tensor([16.0], dtype=torch.float64).log(), mixed, 1.0, r.score_order, r.score_clip)
    assert reward.item() == pytest.approx((1 - 1 / 8) / 0.75, rel=1e-14)
    (folder / "mine.yaml").write_text(text.replace("score_order: 0.75\n", ""), encoding="utf-8")
    with pytest.raises(RequestError, match="score_order has no value"):
        compose(["regularizer=mine"])


def test_every_key_has_a_comment():
    for path in sorted((conf_directory() / "regularizer").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) > 3
        for above, line in itertools.pairwise(lines):
            if line.strip() and not line.lstrip().startswith(("#", "-")):
                assert above.lstrip().startswith("#"), f"{path.name}: {line}"
