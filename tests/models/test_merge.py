"""Merged models: the arithmetic by hand, the corner bitwise, where the result lies, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Model
from multiref_cli.errors import RequestError
from multiref_cli.models.files import fingerprint
from multiref_cli.models.load import load_causal_lm
from multiref_cli.models.merge import combined, recipe_of, without_merges


def merged(world, *more, looking=False):
    """The policy of a config with a merge of the two models of the tiny world, at its folder."""
    base = ["policy=merge", f"policy.models=[{world}/one,{world}/two]", "data=jsonl", f"data.path={world}/pairs.jsonl"]
    return without_merges(compose([*base, *more]), looking).policy


def weights(path):
    return load_file(f"{path}/model.safetensors")


def test_the_arithmetic_by_hand():
    a, b, c = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]), torch.tensor([-1.0, 8.0])
    assert combined([a, b, c], [0.5, 0.25, 0.25]).tolist() == [1.0, 1.125]
    assert combined([a, b, c], [2.0, -1.0, 0.0]).tolist() == [-1.0, -4.5]
    whole = torch.tensor([3, 4])
    assert combined([whole, whole + 1], [0.5, 0.5]) is whole  # a buffer is no weight


def test_the_sum_is_taken_in_float32():
    """In bfloat16 256 + 1 is 256: the sum of three thirds would lose what the cast at the end keeps."""
    big, one = torch.tensor([256.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.bfloat16)
    found = combined([big, one, one], [1.0, 1.0, 1.0])
    assert found.dtype == torch.bfloat16 and float(found) == 258.0
    assert combined([one, torch.tensor([1.0], dtype=torch.float64)], [0.5, 0.5]).dtype == torch.bfloat16


def test_a_weight_of_one_is_the_model_and_not_a_sum():
    strange = torch.tensor([-0.0, 1e-42, 3.0])
    found = combined([torch.full((3,), float("inf")), strange], [0.0, 1.0])
    assert found is strange  # 0 x inf would be NaN, and -0 + 0 is 0


def test_a_soup_on_disk(place):
    one, two = weights(place / "one"), weights(place / "two")
    found = merged(place, "policy.weights=[0.25,0.75]")
    assert found.kind is None and found.models is None
    for name, value in weights(found.path).items():
        assert torch.equal(value, 0.25 * one[name] + 0.75 * two[name])
    assert recipe_of(found)["parts"] == [
        {"sha256": fingerprint(Model(path=str(place / name))), "factor": factor}
        for name, factor in (("one", 0.25), ("two", 0.75))
    ]
    loaded = load_causal_lm(Model(path=found.path))
    assert torch.isfinite(loaded(torch.tensor([[5, 6, 7]])).logits).all()
    again = merged(place, "policy.weights=[0.25,0.75]")
    assert again.path == found.path and merged(place).path != found.path


def test_task_arithmetic(place):
    one, two = weights(place / "one"), weights(place / "two")
    found = merged(place, f"policy.models=[{place}/two]", "policy.weights=[0.4]", f"policy.base={place}/one")
    for name, value in weights(found.path).items():
        assert torch.allclose(value, one[name] + 0.4 * (two[name] - one[name]), atol=1e-7)
    equal = merged(place, "policy.weights=[0.5,0.5]", f"policy.base={place}/one")
    soup = merged(place)
    assert all(torch.equal(value, weights(soup.path)[name]) for name, value in weights(equal.path).items())


@pytest.mark.parametrize("more", [[], ["base"]])
def test_a_corner_is_the_model_itself(place, more):
    """Its folder, so its bits, its fingerprint and its address in the store; no second copy is written."""
    given = [f"policy.base={place}/one"] if more else []
    found = merged(place, "policy.weights=[0,1]", *given)
    assert found.path == f"{place}/two" and not (place.parent / "cache" / "merged").exists()
    assert fingerprint(found) == fingerprint(Model(path=f"{place}/two"))


def test_a_look_writes_nothing(place, tmp_path):
    found = merged(place, looking=True)
    assert found.path == f"{place}/one" and not (tmp_path / "cache").exists()
    made = merged(place)
    assert merged(place, looking=True).path == made.path != found.path


def test_parts_keep_their_hash_apart(place):
    def hashed(*more):
        base = ["policy=merge", f"policy.models=[{place}/one,{place}/two]", "data=jsonl", "data.path=pairs"]
        return compose([*base, f"data.path={place}/pairs.jsonl", *more]).hash

    assert hashed() == hashed("policy.weights=[0.5,0.5]") != hashed("policy.weights=[0.4,0.6]")
    assert hashed() != hashed(f"policy.models=[{place}/two,{place}/one]")


def test_adapters_of_one_base(place, tmp_path):
    peft = pytest.importorskip("peft")
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(load_causal_lm(Model(path=f"{place}/one")), config).save_pretrained(str(tmp_path / name))
    parts = ",".join(f"{{path:{place}/one,adapter:{tmp_path}/{name}}}" for name in ("a", "b"))
    found = weights(merged(place, f"policy.models=[{parts}]").path)
    each = [
        dict(load_causal_lm(Model(path=f"{place}/one", adapter=str(tmp_path / n))).named_parameters()) for n in "ab"
    ]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(found[name], (each[0][name] + each[1][name]) / 2, atol=1e-7)
    assert not torch.equal(found[name], weights(place / "one")[name])


@pytest.fixture
def other(place, tmp_path):
    """A copy of model two that a test changes."""
    shutil.copytree(place / "two", tmp_path / "other")
    return tmp_path / "other"


def test_another_shape_is_refused(place, other):
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(RequestError, match=r"cannot be merged: num_hidden_layers is 2 .* and 3"):
        merged(place, f"policy.models=[{place}/one,{other}]")


def test_a_model_that_was_saved_under_another_name_of_its_network_is_merged(place, other):
    """A trained qwen2 is saved as seed_oss where AutoTokenizer would misread its tokenizer; its start is not."""
    config = json.loads((other / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    named = {"model_type": "seed_oss", "architectures": ["SeedOssForCausalLM"], "head_dim": 8}
    fixed = {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "residual_dropout": 0.0}
    (other / "config.json").write_text(json.dumps(config | named | fixed))
    found = merged(place, f"policy.models=[{other}]", f"policy.base={place}/one", "policy.weights=[0.5]")
    one, two = weights(place / "one"), weights(place / "two")
    assert all(torch.equal(value, 0.5 * one[name] + 0.5 * two[name]) for name, value in weights(found.path).items())
    (other / "config.json").write_text(json.dumps(config | named | fixed | {"mlp_bias": True}))
    with pytest.raises(RequestError, match="cannot be merged"):
        merged(place, f"policy.models=[{other}]", f"policy.base={place}/one", "policy.weights=[0.5]")


def test_another_vocabulary_is_refused(place, other):
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = sorted(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(content))
    with pytest.raises(RequestError, match="other vocabularies"):
        merged(place, f"policy.models=[{place}/one,{other}]")


def test_lost_weights_are_refused(place, other):
    from safetensors.torch import save_file

    kept = weights(other)
    kept.pop("model.norm.weight")
    save_file(kept, str(other / "model.safetensors"), {"format": "pt"})
    with pytest.raises(RequestError, match=r"model\.norm\.weight have shape \[16\] in one and none in the other"):
        merged(place, f"policy.models=[{place}/one,{other}]")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["policy.weights=[0.5,0.6]"], "sum to 1.1"),
        (["policy.weights=[1]"], "weights are 1 and models 2"),
        (["policy.weights=[a,b]"], "give a list of numbers"),
        (["policy.path=somewhere"], "no path of its own"),
        (["policy.revision=main"], "no revision of its own"),
        (["policy.kind=mix"], "add kind=merge"),
        (["policy.kind=null"], "add kind=merge"),
        (["policy.models=[]"], "needs models"),
        (["policy.models=[{path:x,size:3}]"], "no key 'size'"),
        (["policy.trust_remote_code=true"], "code of their own"),
        (["policy.models=[/nowhere/a,/nowhere/b]"], "model 1 is '/nowhere/a', which does not exist"),
    ],
)
def test_what_is_refused_before_anything_is_opened(place, more, said):
    with pytest.raises(RequestError, match=said):
        merged(place, *more)


def test_a_merge_of_embedded_models_keeps_the_embedded_references():
    toys = compose(["policy=merge", "policy.models=[toy:instruct,toy:judge]"])
    assert [one.name for one in toys.references] == ["instruct", "instruct_large"]
    others = compose(["policy=merge", "policy.models=[toy:instruct,a/b]", "data=jsonl", "data.path=a/b"])
    assert [(one.name, one.kind, one.path) for one in others.references] == [("start", "merge", others.policy.path)]


def test_configs_without_a_merge_keep_their_hash():
    found = compose([])
    assert "kind" not in found.content()["policy"] and "models" not in found.content()["references"][0]
    scorer = compose(["experiment=offline_toy"]).content()["evaluation"]["scorer"]
    assert scorer["path"] == "toy:reward_model" and not {"kind", "models", "weights", "base"} & set(scorer)
    assert replace(found, policy=replace(found.policy, kind="merge")).hash != found.hash


@pytest.mark.parametrize("job", ["offline", "online"])
def test_a_run_from_and_towards_merges(place, multiref, request, job, capsys):
    """Both kinds of merge through the command line; the store, the manifest and a resume know the parts."""
    given = [o for o in request.getfixturevalue(job) if not o.startswith(("policy", "references", "first", "second"))]
    models = f"models: [{place}/one, {place}/two]"
    references = f"references=[{{name: soup, kind: merge, {models}}}, {{name: two, path: {place}/two}}]"
    merge = ["policy=merge", f"policy.models=[{place}/one,{place}/two]", references, "alpha=0.5", "steps=2"]
    assert multiref("train", *given, *merge, "run.dir=run", "--dry-run") == 0
    assert multiref("train", *given, *merge, "run.dir=run", "--plain") == 0
    with open("run/manifest.json") as file:
        manifest = json.load(file)
    assert manifest["references"]["soup"] == manifest["policy"] != manifest["references"]["two"]
    assert [part["factor"] for part in manifest["merges"][0]["parts"]] == [0.5, 0.5]
    with open("run/results.json") as file:
        assert "kl/soup" in json.load(file)["metrics"]
    wrong = [o for o in merge if not o.startswith("policy.models")] + [f"policy.models=[{place}/one,{place}/judge]"]
    capsys.readouterr()
    assert multiref("train", *given, *wrong, "run.dir=wrong") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("multiref: ") and "judge" in said[-1] and not Path("wrong").exists()
