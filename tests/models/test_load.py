"""Model folders opened, refused and saved."""

import json
import logging
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from multiref_cli.config.schema import Lora, Model, Policy
from multiref_cli.errors import RequestError
from multiref_cli.models.decoder import Adapted
from multiref_cli.models.files import file_sha256, fingerprint, resolve, safetensors_header
from multiref_cli.models.load import (
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    new_causal_lm,
    parameter_count,
)
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import pack
from multiref_cli.models.save import save_policy
from multiref_cli.world.tokenizer import tokenizer as toy_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


@pytest.fixture
def folder(tmp_path, make_model, tokenizer):
    model = make_model("qwen2", vocab_size=len(tokenizer))
    save_policy(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_round_trip(tmp_path, make_model, tokenizer, family):
    model = make_model(family, vocab_size=len(tokenizer))
    save_policy(model, tokenizer, tmp_path / "a")
    loaded = load_causal_lm(Model(path=str(tmp_path / "a")))
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert all(p.requires_grad for p in load_causal_lm(Model(path=str(tmp_path / "a")), trainable=True).parameters())


def test_a_word_level_tokenizer_in_a_qwen2_folder_makes_tokens(folder, tokenizer):
    """AutoTokenizer gives empty ids here and no error."""
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"
    loaded = load_tokenizer(Model(path=str(folder)))
    text = "Anna has 12 ."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"] != []


def test_the_same_without_a_class_in_its_config(folder, tokenizer):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["tokenizer_class"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    text = "Anna has 12 ."
    assert load_tokenizer(Model(path=str(folder)))(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_tokenizer_file_that_pads_and_cuts_as_sentence_encoders_do(folder, tokenizer):
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["padding"] = {
        **{"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": tokenizer.convert_ids_to_tokens(0)},
    }
    saved["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(saved))

    text = "Tom has 3 apples and 4 pears."
    assert load_tokenizer(Model(path=str(folder)))(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_folder_without_a_tokenizer_is_refused(folder):
    for file in [*folder.glob("tokenizer*"), *folder.glob("chat_template*")]:
        file.unlink()
    with pytest.raises(RequestError, match="tokenizer"):
        load_tokenizer(Model(path=str(folder)))


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="is not a folder"):
        resolve(str(tmp_path / "absent"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match="cannot be reached"):
        resolve("nobody/such-a-model")


def test_only_safetensors_are_opened(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"only pytorch_model.bin; weights must be safetensors"):
        load_causal_lm(Model(path=str(folder)))


def test_missing_weights_and_unknown_types_are_refused(folder):
    with pytest.raises(RequestError, match="dtype is 'float8'"):
        load_causal_lm(Model(path=str(folder)), dtype="float8")
    with pytest.raises(RequestError, match="it is another kind of model"):
        load_reward_model(Model(path=str(folder)))


def test_foreign_code_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('foreign code ran')")
    with pytest.raises(RequestError, match="trust_remote_code=true"):
        load_causal_lm(Model(path=str(folder)))


def test_the_fingerprint_follows_content_alone(folder, tmp_path):
    first = fingerprint(Model(path=str(folder)))
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint(Model(path=str(tmp_path / "elsewhere"), dtype="bfloat16", revision="v2")) == first
    weights = tmp_path / "elsewhere" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert fingerprint(Model(path=str(tmp_path / "elsewhere"))) != first


def test_hashes_of_large_files_are_remembered(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("MULTIREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("multiref_cli.models.files._REMEMBERED_BYTES", 0)
    (folder / "model.safetensors").touch()
    fingerprint(Model(path=str(folder)))
    remembered = json.loads((tmp_path / "cache" / "fingerprints.json").read_text())
    assert list(remembered.values()) == [file_sha256(folder / "model.safetensors")]


def test_a_safetensors_header_tells_the_size(folder, make_model, tokenizer):
    model = load_causal_lm(Model(path=str(folder)))
    assert parameter_count(Model(path=str(folder)), tokenizer) == sum(p.numel() for p in model.parameters())
    header, start = safetensors_header(folder / "model.safetensors")
    assert (
        start + max(entry["data_offsets"][1] for entry in header.values())
        == (folder / "model.safetensors").stat().st_size
    )


def test_new_models(tokenizer):
    spec = {"architecture": "qwen2", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    spec |= {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = new_causal_lm(spec, tokenizer)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert parameter_count(Policy(new=spec), tokenizer) == model.num_parameters()
    with pytest.raises(RequestError, match="hiden_size is no key of a qwen2 config"):
        new_causal_lm(spec | {"hiden_size": 3}, tokenizer)
    with pytest.raises(RequestError, match="'qwen99'"):
        new_causal_lm(spec | {"architecture": "qwen99"}, tokenizer)


def test_a_reward_model_grows_a_head_only_for_training(folder, tmp_path, tokenizer):
    said, ear = [], logging.Handler()
    ear.emit = said.append
    logging.getLogger("transformers").addHandler(ear)
    trained = load_reward_model(Model(path=str(folder)), trainable=True)
    logging.getLogger("transformers").removeHandler(ear)
    assert not said  # transformers would print a table of the head that it makes
    assert trained.config.num_labels == 1
    save_policy(trained, tokenizer, tmp_path / "reward")
    loaded = load_reward_model(Model(path=str(tmp_path / "reward")))
    assert torch.equal(loaded.score.weight, trained.score.weight)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").config.num_labels == 1


def test_saving_replaces_a_folder_in_one_piece(folder, make_model, tokenizer):
    (folder / "left_over").touch()
    save_policy(make_model("llama", vocab_size=len(tokenizer)), tokenizer, folder)
    assert not (folder / "left_over").exists()
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


class TestLora:
    """Adapters; peft is an optional extra."""

    @pytest.fixture
    def adapted(self, folder):
        pytest.importorskip("peft")
        model = load_causal_lm(Policy(path=str(folder), lora=Lora(rank=4)), trainable=True)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    def test_only_the_adapter_is_trained(self, adapted):
        trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
        assert trained and all("lora_" in name for name in trained)
        result = token_logps(adapted, pack([[1, 2]], [[[3, 4, 5], [6]]], 0, True))
        result.logps.sum().backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)

    def test_saved_merged_with_the_adapter_beside_it(self, adapted, folder, tmp_path, tokenizer):
        before = adapted(IDS).logits
        save_policy(adapted, tokenizer, tmp_path / "policy")
        assert torch.equal(adapted(IDS).logits, before)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
        torch.testing.assert_close(merged(IDS).logits, before, rtol=1e-4, atol=1e-4)
        reference = Model(path=str(folder), adapter=str(tmp_path / "policy" / "adapter"))
        torch.testing.assert_close(load_causal_lm(reference)(IDS).logits, before, rtol=1e-4, atol=1e-4)
        going_on = load_causal_lm(reference, trainable=True)
        assert torch.equal(going_on(IDS).logits, before)
        assert any(p.requires_grad for p in going_on.parameters())
        assert fingerprint(reference) != fingerprint(Model(path=str(folder)))

    def test_the_base_is_a_reference_without_memory_of_its_own(self, adapted, folder):
        packed = pack([[1, 2]], [[[3, 4, 5], [6]]], 0, False)
        bare = token_logps(load_causal_lm(Model(path=str(folder))), packed).logps
        with torch.no_grad():
            assert torch.equal(token_logps(Adapted(adapted, None), packed).logps, bare)
        assert not torch.equal(token_logps(adapted, packed).logps, bare)
        assert any(p.requires_grad for p in adapted.parameters())

    def test_without_peft_the_message_says_what_to_install(self, folder, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "peft", None)
        with pytest.raises(RequestError, match="pip install peft"):
            load_causal_lm(Policy(path=str(folder), lora=Lora()), trainable=True)

    def test_a_folder_that_is_no_adapter_is_refused(self, folder):
        pytest.importorskip("peft")
        with pytest.raises(RequestError, match="adapter_config"):
            load_causal_lm(Model(path=str(folder), adapter=str(folder)))
