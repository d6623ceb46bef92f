"""The vLLM engine without vLLM: the message, the requests it makes, the weights it hands over, the probe of them."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multiref_cli.errors import RequestError, RunError
from multiref_cli.models.load import load_tokenizer
from multiref_cli.models.precision import Precision
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.handoff import Handoff
from multiref_cli.rollouts.vllm_engine import VllmEngine


def seed_everything():
    """What vLLM does to the process that it lives in."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


class FakeLLM:
    """A network of the folder's config without weights; answers every request with its seed and an end token.

    Attributes:
        stale_head: its output head is a copy made when it was opened, as vLLM's on CPUs is where it is tied.
    """

    stale_head = False

    def __init__(self, **options):
        from transformers import AutoConfig, AutoModelForCausalLM

        self.options, self.calls, self.loaded = options, [], {}
        self.folder = {path.name: path.read_bytes() for path in Path(options["model"]).iterdir()}
        config = AutoConfig.from_pretrained(options["model"])
        self.tied = config.tie_word_embeddings
        config.tie_word_embeddings = False
        self.network = AutoModelForCausalLM.from_config(config).eval()
        seed_everything()

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        assert not torch.is_autocast_enabled("cpu")
        self.loaded = dict(kwargs["weights_iterator"])
        weights = dict(self.loaded)
        if self.tied and not self.stale_head:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        missing, unexpected = self.network.load_state_dict(weights, strict=False)
        assert not unexpected and missing == (["lm_head.weight"] if self.tied and self.stale_head else [])
        seed_everything()

    def reset_prefix_cache(self):
        self.calls.append("reset")

    def sleep(self, level):
        self.calls.append("sleep")

    def wake_up(self, tags):
        self.calls.append(tags[0])

    def generate(self, requests, params, use_tqdm):
        def answer(request, one):
            ids = [one.seed % 7, one.stop_token_ids[0]]
            logprobs = [{token: SimpleNamespace(logprob=-0.5 * token)} for token in ids]
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=logprobs)])

        if getattr(params[0], "prompt_logprobs", None) is not None:
            return [self.probed(request["prompt_token_ids"]) for request in requests]
        self.requests, self.params = requests, params
        seed_everything()
        return [answer(*pair) for pair in zip(requests, params)]

    @torch.no_grad()
    def probed(self, ids):
        logps = self.network(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        said = [None, *({token: SimpleNamespace(logprob=float(logps[i, token]))} for i, token in enumerate(ids[1:]))]
        return SimpleNamespace(prompt_logprobs=said)


@pytest.fixture
def fake_vllm(monkeypatch):
    """A module with the names that the engine uses."""
    module = SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **k: SimpleNamespace(**k), TokensPrompt=lambda **k: k)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def test_without_vllm_the_message_says_what_to_do(monkeypatch, qwen2, tmp_path):
    """One sentence with what to install and the alternative."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with pytest.raises(RequestError, match=r"pip install vllm.*rollout=transformers"):
        VllmEngine(Handoff(qwen2, None), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_requests_results_and_weights(fake_vllm, qwen2, tmp_path):
    """One request a response with its own seed; groups in order; the policy's weights under their own names."""
    engine = VllmEngine(Handoff(qwen2, None, 30), tmp_path, batch_size=5, sleep=True, max_model_len=64)
    assert engine.llm.options["max_num_seqs"] == 5 and engine.llm.options["max_model_len"] == 64
    groups = engine.generate([[2, 3], [4]], 3, Sampling(max_new_tokens=4, end_ids=(9,)), [100, 200])
    assert [r["prompt_token_ids"] for r in engine.llm.requests] == [[2, 3]] * 3 + [[4]] * 3
    assert len({p.seed for p in engine.llm.params}) == 6
    assert [len(group) for group in groups] == [3, 3]
    assert all(c.finished and c.ids[-1] == 9 and c.logps[-1] == -4.5 for group in groups for c in group)
    assert engine.llm.params[0].logit_bias == dict.fromkeys(range(30, 40), -100.0)
    assert engine.llm.calls == ["sleep", "weights", "kv_cache", "reset", "sleep"]
    loaded = engine.llm.loaded
    assert loaded.keys() == dict(qwen2.named_parameters()).keys()
    assert all(torch.equal(loaded[name], value) for name, value in qwen2.named_parameters())


def test_the_generators_of_the_process_are_left_alone(fake_vllm, qwen2, tmp_path):
    """What is drawn behind the engine is what would be drawn without it."""

    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    without = [drawn() for _ in range(3)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    engine = VllmEngine(Handoff(qwen2, None), tmp_path, batch_size=5)
    found = [drawn()]
    for seed in (1, 2):
        engine.generate([[2, 3]], 2, Sampling(max_new_tokens=4, end_ids=(9,)), [seed])
        found.append(drawn())
    assert found == without


def test_adapters_are_merged_into_what_they_adapt(make_model):
    """Names of the bare architecture, weights of base plus adapter."""
    peft = pytest.importorskip("peft")
    plain = make_model("qwen2")
    names = dict(plain.named_parameters()).keys()
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(plain, settings)
    weights = dict(Handoff(adapted, None).weights())
    assert weights.keys() == names
    merged = dict(adapted.merge_and_unload().named_parameters())
    for name in names:
        torch.testing.assert_close(weights[name], merged[name])


def test_what_it_opens_is_the_policy_with_the_tokenizer_of_the_trainer(fake_vllm, world, tmp_path):
    """Config and tokenizer files of the policy and no weights; the folder is gone once vLLM has opened it."""
    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_causal_lm

    spec = Model(path=str(world / "one"))
    model = load_causal_lm(spec, trainable=True)
    engine = VllmEngine(Handoff(model, load_tokenizer(spec)), tmp_path)
    llm = engine.llm
    assert llm.folder["tokenizer.json"] == (world / "one" / "tokenizer.json").read_bytes()
    assert json.loads(llm.folder["config.json"])["vocab_size"] == model.config.vocab_size
    assert not any(name.endswith(".safetensors") for name in llm.folder) and llm.options["load_format"] == "dummy"
    assert list(tmp_path.iterdir()) == []
    engine.close()
    assert engine.llm is None


def test_a_tied_head_on_a_cpu_is_sent_by_itself(fake_vllm, make_model, tmp_path):
    """vLLM's own head there does not follow the embedding: it opens a model whose head is its own."""
    model = make_model("llama")
    assert model.config.tie_word_embeddings
    engine = VllmEngine(Handoff(model, None), tmp_path)
    assert not engine.llm.tied and model.config.tie_word_embeddings
    sampling = Sampling(max_new_tokens=4, end_ids=(9,))
    engine.generate([[2, 3, 4]], 1, sampling, [1])
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.5)
    engine.generate([[2, 3, 4]], 1, sampling, [1])
    assert torch.equal(engine.llm.loaded["lm_head.weight"], model.get_input_embeddings().weight)


def test_weights_that_do_not_arrive_are_found_before_anything_is_sampled(fake_vllm, make_model, tmp_path, monkeypatch):
    """A head that stays behind is noise at first, so the first probe finds it; one that follows passes."""
    policy = Handoff(make_model("llama"), None)
    policy.separate = False  # as on a GPU, where vLLM's tied head follows
    sampling = Sampling(max_new_tokens=4, end_ids=(9,))
    assert VllmEngine(policy, tmp_path).generate([[2, 3, 4]], 1, sampling, [1])
    monkeypatch.setattr(FakeLLM, "stale_head", True)
    engine = VllmEngine(policy, tmp_path)
    with pytest.raises(RunError, match=r"vLLM did not take over the policy's weights .* nats a token off"):
        engine.generate([[2, 3, 4]], 1, sampling, [1])
    assert not hasattr(engine.llm, "requests")


def test_it_computes_in_the_type_of_the_trainers_products(fake_vllm, make_model, tmp_path):
    """Under autocast float32 parameters are handed over in bfloat16, and vLLM itself runs without autocast."""
    model = make_model("qwen2")
    with Precision("bf16_mixed").autocast():
        engine = VllmEngine(Handoff(model, None), tmp_path)
        engine.llm.network.bfloat16()
        engine.generate([[2, 3, 4]], 1, Sampling(max_new_tokens=4, end_ids=(9,)), [1])
    assert engine.llm.options["dtype"] == "bfloat16"
    assert {weight.dtype for weight in engine.llm.loaded.values()} == {torch.bfloat16}


def test_an_adapter_arrives_with_the_weights_that_it_adapts(fake_vllm, make_model, tmp_path):
    """vLLM opens the bare architecture; its probe is that of the adapted policy, and again after the adapter moved."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(make_model("qwen2"), settings)
    engine = VllmEngine(Handoff(adapted, None), tmp_path)
    sampling = Sampling(max_new_tokens=4, end_ids=(9,))
    for _ in range(2):
        engine.generate([[2, 3, 4]], 1, sampling, [1])
        before = engine.llm.loaded["model.layers.0.self_attn.q_proj.weight"]
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.mul_(1.5)
    assert not torch.equal(before, dict(engine.policy.weights())["model.layers.0.self_attn.q_proj.weight"])
    assert not any("lora" in name for name in engine.llm.loaded)


def test_what_keeps_vllm_from_starting_is_one_sentence(fake_vllm, qwen2, tmp_path, monkeypatch):
    def full(self, **options):
        raise ValueError("Available memory is less\n than desired. ")

    monkeypatch.setattr(FakeLLM, "__init__", full)
    with pytest.raises(RequestError, match=r"^vLLM does not start: Available memory is less than desired\.$"):
        VllmEngine(Handoff(qwen2, None), tmp_path)
    assert list(tmp_path.iterdir()) == []
