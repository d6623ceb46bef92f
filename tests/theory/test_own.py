"""A divergence of one's own in the laboratory: the named ones again from their f, refusals, the study's row for it."""

import sys

import pytest
import torch

from multiref_cli.errors import RequestError
from multiref_cli.objectives.divergence import divergence_of
from multiref_cli.theory import laboratory
from multiref_cli.theory.exact import optimal_policy_of_terms
from multiref_cli.theory.own import own_divergence
from multiref_cli.theory.settings import Laboratory, Selection

SOURCE = """
import torch
def reverse(u): return u * torch.log(u)
def forward(u): return -torch.log(u)
def le_cam(u): return (1 - u) ** 2 / (2 * (1 + u))
def tv(u): return (u - 1).abs() / 2
def broken(u): return undefined(u)
def concave(u): return torch.log(u)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The functions of a module in the working directory."""
    (tmp_path / "my_divergences.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_divergences"
    sys.modules.pop("my_divergences", None)


def test_an_f_has_the_score_the_divergence_and_the_optimum_of_its_name(mine):
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(2, 6, generator=generator, dtype=torch.float64).softmax(-1)
    reward, policy = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    policy = policy.softmax(-1)
    x = torch.linspace(-9, 9, 19, dtype=torch.float64)
    for own, name in (("reverse", "reverse_kl"), ("forward", "forward_kl")):
        found, known = own_divergence(f"{mine}.{own}"), divergence_of(name)
        torch.testing.assert_close(found.score(x), known.score(x))
        value = found.divergence(references[0].log(), policy.log())
        torch.testing.assert_close(value, known.divergence(references[0].log(), policy.log()))
    mixed = [(own_divergence(f"{mine}.reverse"), 0.4), (own_divergence(f"{mine}.forward"), 0.6)]
    best = optimal_policy_of_terms(references, mixed, reward)
    named = optimal_policy_of_terms(references, [("reverse_kl", 0.4), ("forward_kl", 0.6)], reward)
    torch.testing.assert_close(best, named, rtol=0, atol=1e-12)
    references[0, 2] = 0.0  # forbidden by the reverse KL alone
    assert float(optimal_policy_of_terms(references, mixed, reward)[2]) == 0.0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{}.tv", "not strictly convex"),
        ("{}.concave", "not strictly convex"),
        ("{}.broken", "failed on numbers"),
        ("{}.le_can", "did you mean le_cam"),
        ("le_cam", "give a dotted path"),
    ],
)
def test_what_is_no_divergence_is_refused_before_anything_runs(mine, path, words):
    lab = Laboratory(study=Selection("x", ["divergences"]), divergence=path.format(mine))
    with pytest.raises(RequestError, match=words):
        laboratory.check(lab)
    with pytest.raises(RequestError, match="has no effect on study alpha"):
        laboratory.check(Laboratory(study=Selection("x", ["alpha"]), divergence=f"{mine}.le_cam"))


def test_the_study_has_a_row_for_it_and_says_what_is_cut_off(mine, monkeypatch):
    from multiref_cli.theory.studies import divergences

    monkeypatch.setattr(divergences, "KINDS", {"chi-square": divergences.KINDS["chi-square"]})
    lab = Laboratory(study=Selection("x", ["divergences"]), divergence=f"{mine}.le_cam", beta=0.05)
    (study,) = laboratory.run(lab)
    assert [row[0] for row in study.tables[0].rows] == ["chi-square", f"{mine}.le_cam"]
    cut = study.metrics["cut_off/chi-square"]["mean"]
    assert cut > 0.2 and f"chi-square ({100 * cut:.0f} %)" in study.texts[0] and "an inequality there" in study.texts[0]
    assert study.metrics["slack/chi-square"]["mean"] > 0.01
