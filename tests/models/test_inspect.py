"""Model folders that are not what they should be: refused by name, before anything is built."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from multiref_cli.config.schema import Lora, Model, Policy, ReferenceSpec
from multiref_cli.data.chat import end_ids
from multiref_cli.errors import RequestError
from multiref_cli.models.files import fingerprint
from multiref_cli.models.inspect import (
    check_language_model,
    check_lora_targets,
    check_reward_model,
    output_ids,
    position_limit,
)
from multiref_cli.models.load import load_causal_lm, load_reward_model, load_tokenizer
from multiref_cli.models.save import save_policy
from multiref_cli.references.adapters import shared_openers
from multiref_cli.world.tokenizer import tokenizer as toy_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    from .conftest import build

    folder = tmp_path_factory.mktemp("models") / "model"
    save_policy(build("llama", vocab_size=len(toy_tokenizer())), toy_tokenizer(), folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "model")
    return tmp_path / "model"


def reheaded(folder, change):
    """Rewrites the header of model.safetensors."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = change(json.loads(data[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])


def relabeled(kind):
    def change(folder):
        reheaded(folder, lambda h: {k: {**v, "dtype": kind} if k != "__metadata__" else v for k, v in h.items()})

    return change


def configured(**keys):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **keys}))

    return change


def run_folder(folder):
    (folder / "policy").mkdir()
    (folder / "config.yaml").touch()


def retyped(tensor, kind):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        weights[tensor] = torch.zeros(4, dtype=kind)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


def emptied(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({k: torch.zeros_like(v) for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def sharded(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001.safetensors"}}))


KNOWN_AT_ONCE = {
    "float32 called int32": (relabeled("I32"), "of type I32, not floating point"),
    "bool": (relabeled("BOOL"), "of type BOOL, not floating point"),
    "complex": (relabeled("C64"), "of type C64, not floating point"),
    "an integer bias": (retyped("model.layers.0.self_attn.q_proj.bias", torch.int32), "q_proj.bias are of type I32"),
    "cut off": (cut, "model.safetensors is damaged: its length"),
    "no header": (lambda f: reheaded(f, lambda h: b"{nonsense"), "model.safetensors is damaged"),
    "header a list": (lambda f: reheaded(f, lambda h: []), "model.safetensors is damaged"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json is no JSON object"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "config.json cannot be read"),
    "a shard is missing": (sharded, "lacks model-00001.safetensors"),
    "a run folder": (run_folder, "is a run folder: give the model in it, .*/policy"),
    "a classifier": (configured(architectures=["LlamaForSequenceClassification"]), "reward model .*give a language"),
}
KNOWN_WHEN_OPENED = {
    "fewer layers in the config": (configured(num_hidden_layers=1), "more than its config.json asks for"),
    "more layers in the config": (configured(num_hidden_layers=3), "lacks .* weights"),
    "another width": (configured(hidden_size=64), "cannot be opened"),
    "weights all zero": (emptied, "its input embeddings are all zero"),
    "unknown type": (configured(model_type="llama9"), "cannot be opened"),
    "type of another kind": (configured(model_type=7), "cannot be opened"),
}


@pytest.mark.parametrize("case", KNOWN_AT_ONCE)
def test_known_before_anything_is_opened(folder, case):
    change, sentence = KNOWN_AT_ONCE[case]
    change(folder)
    with pytest.raises(RequestError, match=sentence) as caught:
        check_language_model(ReferenceSpec(path=str(folder), name="first"), "reference first")
    assert str(folder) in str(caught.value) and "reference first" in str(caught.value)


@pytest.mark.parametrize("case", KNOWN_WHEN_OPENED)
def test_known_when_opened(folder, case):
    change, sentence = KNOWN_WHEN_OPENED[case]
    change(folder)
    with pytest.raises(RequestError, match=sentence) as caught:
        load_causal_lm(Model(path=str(folder)))
    assert str(folder) in str(caught.value)


def test_a_mask_that_is_called_bias_is_none(folder):
    retyped("transformer.h.0.attn.bias", torch.uint8)(folder)
    check_language_model(ReferenceSpec(path=str(folder), name="first"), "reference first")


def test_a_text_config_that_is_none(folder):
    configured(text_config=7)(folder)
    for look in (position_limit, output_ids):
        with pytest.raises(RequestError, match=f"{folder}: text_config in its config.json is 7, no JSON object"):
            look(Model(path=str(folder)))


def test_weights_that_are_not_finite(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for load in (load_causal_lm, lambda model: load_reward_model(model, trainable=True)):
        with pytest.raises(RequestError, match="not finite"):
            load(Model(path=str(folder)))


def test_reward_models_and_language_models_are_told_apart(folder, tmp_path):
    check_language_model(Model(path=str(folder)), "policy.path")
    with pytest.raises(RequestError, match="no score head"):
        check_reward_model(Model(path=str(folder)), "evaluation.scorer.path")
    save_policy(load_reward_model(Model(path=str(folder)), trainable=True), toy_tokenizer(), tmp_path / "judge")
    check_reward_model(Model(path=str(tmp_path / "judge")), "evaluation.scorer.path")
    with pytest.raises(RequestError, match="is a classifier or reward model"):
        check_language_model(Model(path=str(tmp_path / "judge")), "reference first")
    configured(architectures=None)(tmp_path / "judge")
    with pytest.raises(RequestError, match=r"reward model \(score.weight\)"):
        check_language_model(Model(path=str(tmp_path / "judge")), "reference first")


def test_positions(folder, make_model, tmp_path):
    configured(max_position_embeddings=77)(folder)
    assert position_limit(Model(path=str(folder))) == 77
    save_policy(make_model("gpt2", vocab_size=len(toy_tokenizer())), toy_tokenizer(), tmp_path / "gpt2")
    assert position_limit(Model(path=str(tmp_path / "gpt2"))) == 128


@pytest.mark.parametrize(
    "targets, sentence", [(["lm_head"], "output head"), (["q_prj"], "does not have; it has .*q_proj")]
)
def test_lora_targets(folder, targets, sentence):
    check_lora_targets(Policy(path=str(folder), lora=Lora(target_modules=["q_proj", "self_attn.v_proj"])))
    with pytest.raises(RequestError, match=sentence):
        check_lora_targets(Policy(path=str(folder), lora=Lora(target_modules=targets)))


class TestAdapters:
    """Adapters that fit, that do not, and that lie where a whole model lies."""

    @pytest.fixture
    def adapter(self, folder, tmp_path):
        peft = pytest.importorskip("peft")
        model = AutoModelForCausalLM.from_pretrained(folder)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
        torch.manual_seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    def opened_in_both_ways(self, folder, adapter):
        """Alone, and beside its bare base."""
        specs = [
            ReferenceSpec(path=str(folder), name="a"),
            ReferenceSpec(path=str(folder), adapter=str(adapter), name="b"),
        ]
        return [lambda: load_causal_lm(specs[1]), shared_openers(specs, "cpu", "float32")[1]]

    @pytest.mark.parametrize("way", [0, 1])
    def test_weights_missing_or_too_many(self, folder, adapter, way):
        weights = load_file(adapter / "adapter_model.safetensors")
        first = min(weights)
        for changed in (
            {name: value for name, value in weights.items() if name != first},
            {**weights, first.replace("layers.0", "layers.7"): weights[first].clone()},
            {name.replace("base_model.", "bass_model."): value for name, value in weights.items()},
        ):
            save_file(changed, adapter / "adapter_model.safetensors")
            with pytest.raises(RequestError, match=r"does not fit its model: .*missing"):
                self.opened_in_both_ways(folder, adapter)[way]()

    @pytest.mark.parametrize("way", [0, 1])
    def test_another_model(self, adapter, make_model, tmp_path, way):
        other = tmp_path / "other"
        save_policy(make_model("llama", vocab_size=len(toy_tokenizer()), hidden_size=64), toy_tokenizer(), other)
        with pytest.raises(RequestError, match="does not fit its model"):
            self.opened_in_both_ways(other, adapter)[way]()

    @pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
    def test_an_adapter_that_is_no_sum_of_matrices_is_not_trained_on(self, folder, tmp_path, settings):
        """What is saved of a policy is its weights with matrices added to them; DoRA can be merged, biases cannot."""
        peft = pytest.importorskip("peft")
        bare = AutoModelForCausalLM.from_pretrained(folder)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
        peft.get_peft_model(bare, config).save_pretrained(tmp_path / "other")
        adapted = {"path": str(folder), "adapter": str(tmp_path / "other")}
        if "use_dora" in settings:
            load_causal_lm(Model(**adapted))
        else:
            with pytest.raises(RequestError, match=r"cannot be merged into its model: .*no bias"):
                load_causal_lm(Model(**adapted))
        with pytest.raises(RequestError, match=r"is no plain LoRA .*cannot be trained on"):
            load_causal_lm(Policy(**adapted), trainable=True)

    def test_an_adapter_beside_the_model_that_it_is_merged_in_counts_once(self, folder, adapter, tmp_path):
        merged = load_causal_lm(Model(path=str(folder), adapter=str(adapter)))
        save_policy(merged, toy_tokenizer(), tmp_path / "both")
        bare = fingerprint(Model(path=str(tmp_path / "both")))
        for path in adapter.glob("adapter_*"):
            shutil.copy(path, tmp_path / "both")
        loaded = load_causal_lm(Model(path=str(tmp_path / "both")))
        assert torch.equal(loaded(IDS).logits, merged(IDS).logits)
        assert loaded.config._name_or_path == str(tmp_path / "both")
        assert fingerprint(Model(path=str(tmp_path / "both"))) == bare
        assert (load_causal_lm(Model(path=str(folder)))(IDS).logits - merged(IDS).logits).abs().max() > 0.01

    def test_an_adapter_offered_as_a_model(self, folder, adapter):
        with pytest.raises(RequestError, match=f"is an adapter of {folder}: give path={folder} and adapter="):
            check_language_model(Model(path=str(adapter)), "policy.path")


def test_what_is_saved_is_what_was_opened(folder, tmp_path):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"padding_side": "left", "note": "kept"}
    settings.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {"eos_token_id": [2, 7], "temperature": 0.6, "top_p": 0.9, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = load_tokenizer(Model(path=str(folder)))
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", None) and end_ids(tokenizer) == [2, 7]
    save_policy(load_causal_lm(Model(path=str(folder)), trainable=True), tokenizer, tmp_path / "policy")
    for path in folder.glob("tokenizer*"):
        assert (tmp_path / "policy" / path.name).read_bytes() == path.read_bytes()
    saved = json.loads((tmp_path / "policy" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [2, 7] and saved["temperature"] == 0.6
    again = load_tokenizer(Model(path=str(tmp_path / "policy")))
    assert (again.padding_side, end_ids(again)) == ("left", [2, 7])


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_stays_tied(make_model, tmp_path, tied):
    model = make_model("qwen2", vocab_size=len(toy_tokenizer()), tie_word_embeddings=tied)
    save_policy(model, toy_tokenizer(), tmp_path / "first")
    opened = load_causal_lm(Model(path=str(tmp_path / "first")), trainable=True)
    save_policy(opened, toy_tokenizer(), tmp_path / "second")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
    assert ("lm_head.weight" in load_file(tmp_path / "second" / "model.safetensors")) is not tied
