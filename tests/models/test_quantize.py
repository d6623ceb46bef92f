"""References in fewer bits: close to the whole model, apart in the store, refused in a sentence where they fail."""

from importlib.util import find_spec

import pytest
import torch

from multiref_cli.config.compose import compose
from multiref_cli.config.schema import ReferenceSpec
from multiref_cli.errors import RequestError
from multiref_cli.models import quantize
from multiref_cli.models.packing import pack
from multiref_cli.references.local import LocalReference
from multiref_cli.rollouts import lean
from multiref_cli.runs.job import check_parts

KINDS = ["int8", "nf4"]
WIDE = {"hidden_size": 128, "intermediate_size": 256}


def available(kind):
    return pytest.mark.skipif(
        find_spec(quantize.PACKAGES[kind]) is None, reason=f"{quantize.PACKAGES[kind]} is not here"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose maps have blocks of 64 weights."""
    from tests.models.conftest import build

    place = tmp_path_factory.mktemp("wide")
    build("llama", **WIDE).save_pretrained(place)
    return place


def reference(folder, kind):
    return LocalReference(ReferenceSpec(path=str(folder), name="one", quantization=kind))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=available(kind)) for kind in KINDS])
def test_close_to_the_whole_model_in_a_fraction_of_its_bytes(folder, kind):
    """Outputs of every map within the bits' rounding; log-probabilities with and without shared prompts."""
    whole, few = reference(folder, None), reference(folder, kind)
    for share in (True, False):
        rows = pack([[5, 6, 7], [3, 4]], [[[1, 2, 3], [9]], [[7, 8], [4, 4]]], 0, share)
        one, other = whole.token_logps(rows), few.token_logps(rows)
        assert 0 < (one - other)[rows.mask].abs().mean() < {"int8": 0.1, "nf4": 3.0}[kind]
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    for name, plain in whole.model.model.named_modules():
        if type(plain) is torch.nn.Linear and plain.in_features == 128:
            off = few.model.model.get_submodule(name)(x) - plain(x)
            assert 0 < off.norm() / plain(x).norm() < {"int8": 0.02, "nf4": 0.15}[kind]
    assert not lean.supports(few.model) and not any(p.requires_grad for p in few.model.parameters())
    assert type(few.model.lm_head) is torch.nn.Linear and few.model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=available(kind)) for kind in KINDS])
def test_the_store_knows_it_apart(folder, kind):
    whole, few = reference(folder, None), reference(folder, kind)
    assert (whole.dtype, few.dtype) == ("float32", f"float32+{kind}") and whole.fingerprint() == few.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_package_it_is_refused_before_anything(monkeypatch, kind):
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    references = f"references=[{{name: a, path: toy:instruct}}, {{name: b, path: toy:math, quantization: {kind}}}]"
    experiment = compose(["experiment=online_toy", references])
    with pytest.raises(RequestError, match=rf"quantization={kind} needs .*pip install (torchao|bitsandbytes)\.$"):
        check_parts(experiment)


def test_wrong_kinds_are_refused():
    for more, sentence in (("quantization: int4", "int8, nf4"), ("quantization: int8, update: {reset: 2}", "frozen")):
        with pytest.raises(RequestError, match=sentence):
            compose(
                [
                    "experiment=online_toy",
                    f"references=[{{name: a, path: toy:instruct}}, {{name: b, path: toy:math, {more}}}]",
                ]
            )


def test_experiments_without_it_are_known_as_before():
    references = "references=[{name: a, path: toy:instruct}, {name: b, path: toy:math%s}]"
    plain, few = (compose(["experiment=online_toy", references % more]) for more in ("", ", quantization: int8"))
    assert plain.hash != few.hash
    assert "quantization" not in plain.content()["references"][0]
