"""The vLLM engine without vLLM: the message, the requests it makes, the weights it hands over."""

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multiref_cli.errors import RequestError
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.vllm_engine import VllmEngine, named_weights


def seed_everything():
    """What vLLM does to the process that it lives in."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


class FakeLLM:
    """Answers every request with its seed and an end token."""

    def __init__(self, **options):
        self.options, self.calls, self.loaded = options, [], {}
        seed_everything()

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        self.loaded = dict(kwargs["weights_iterator"])
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

        self.requests, self.params = requests, params
        seed_everything()
        return [answer(*pair) for pair in zip(requests, params)]


@pytest.fixture
def fake_vllm(monkeypatch):
    """A module with the names that the engine uses."""
    module = SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **k: SimpleNamespace(**k), TokensPrompt=lambda **k: k)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def test_without_vllm_the_message_says_what_to_do(monkeypatch, qwen2):
    """One sentence with what to install and the alternative."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with pytest.raises(RequestError, match=r"pip install vllm.*rollout=transformers"):
        VllmEngine(qwen2, "somewhere")


def test_requests_results_and_weights(fake_vllm, qwen2):
    """One request a response with its own seed; groups in order; the policy's weights under their own names."""
    engine = VllmEngine(qwen2, "somewhere", batch_size=5, vocabulary=30, sleep=True, max_model_len=64)
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


def test_the_generators_of_the_process_are_left_alone(fake_vllm, qwen2):
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
    engine = VllmEngine(qwen2, "somewhere", batch_size=5)
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
    weights = dict(named_weights(adapted))
    assert weights.keys() == names
    merged = dict(adapted.merge_and_unload().named_parameters())
    for name in names:
        torch.testing.assert_close(weights[name], merged[name])
