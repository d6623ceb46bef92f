"""Rollouts from a vLLM server, against one of the standard library: weights, samples, faults."""

import copy

import pytest
import torch

from multiref_cli.config.schema import Model, Rollout
from multiref_cli.errors import RequestError, RunError
from multiref_cli.models.load import load_causal_lm
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import pack
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.rollouts.handoff import Handoff
from multiref_cli.rollouts.vllm_engine import seed_of
from multiref_cli.rollouts.vllm_server import VllmServer

PROMPTS, SEEDS = [[5, 6, 7], [8, 9]], [11, 12]
SAMPLING = Sampling(max_new_tokens=5, end_ids=(2,))


@pytest.fixture
def policy(world):
    return load_causal_lm(Model(path=str(world / "one")), trainable=True)


def engine_of(server, policy, place, vocabulary=None, **keys):
    return VllmServer(Handoff(policy, server.tokenizer, vocabulary), Rollout("vllm", server=server.url, **keys), place)


def test_samples_are_the_policys_own_with_a_seed_each_and_follow_its_weights(server, policy, tmp_path):
    engine = engine_of(server, policy, tmp_path)
    groups = engine.generate(PROMPTS, 3, SAMPLING, SEEDS)
    assert [len(group) for group in groups] == [3, 3]
    drawn = [body for body in server.drawn if body["max_tokens"] == 5]
    wanted = [(prompt, seed_of(seed, g)) for prompt, seed in zip(PROMPTS, SEEDS) for g in range(3)]
    assert sorted((body["prompt"], body["seed"]) for body in drawn) == sorted(wanted)
    body = {"prompt": PROMPTS[1], "seed": seed_of(SEEDS[1], 2)} | {"max_tokens": 5, "temperature": 1.0, "top_k": -1}
    ids, logps, _ = server.draw(PROMPTS[1], {**body, "stop_token_ids": [2]})
    assert (groups[1][2].ids, groups[1][2].logps) == (ids, logps)
    for repeat in range(2):
        packed = pack(PROMPTS, [[one.ids for one in group] for group in groups], 0, False)
        own = token_logps(policy, packed).logps[packed.mask]
        said = torch.tensor([logp for group in groups for one in group for logp in one.logps])
        torch.testing.assert_close(own.detach(), said, atol=1e-5, rtol=0)
        if repeat == 0:
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.mul_(1.1)
            groups = engine.generate(PROMPTS, 3, SAMPLING, SEEDS)
    assert len(server.reloads) == 3 and len({folder for folder, _ in server.reloads}) == 3
    assert server.calls == ["/reset_prefix_cache"] * 3
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_padding_of_the_head_is_biased_and_greedy_is_greedy(server, policy, tmp_path):
    head = policy.get_output_embeddings().weight.shape[0]
    engine = engine_of(server, policy, tmp_path, vocabulary=head - 3)
    engine.generate(PROMPTS, 1, Sampling(0.7, 0.9, 4, 0.05, 3, (2,)), SEEDS)
    (body, *_) = [one for one in server.drawn if one["max_tokens"] == 3]
    assert body["logit_bias"] == {str(one): -100.0 for one in range(head - 3, head)}
    asked = {key: body[key] for key in ("temperature", "top_p", "top_k", "min_p", "ignore_eos", "repetition_penalty")}
    assert asked == {"temperature": 0.7, "top_p": 0.9, "top_k": 4, "min_p": 0.05, "ignore_eos": True} | {
        "repetition_penalty": 1.0
    }


@pytest.mark.parametrize("deaf", ["mlp", "norm", "lm_head"])
def test_weights_that_are_not_taken_over_are_found_though_the_server_began_with_the_policys_own(
    server, policy, tmp_path, deaf
):
    """What a server did not take at first is the negative of the policy's, and nothing is drawn from it."""
    server.model = copy.deepcopy(policy).double()
    head, body = server.model.lm_head, server.model.model
    head.weight = torch.nn.Parameter(body.embed_tokens.weight.detach().clone())  # as vLLM's copy on a CPU
    engine = engine_of(server, policy, tmp_path)
    client_of = engine._opened()  # the negative weights arrive, and then
    server.deaf = deaf
    engine._client = client_of
    with pytest.raises(RunError, match=r"did not take over the policy's weights .* nats a token off"):
        engine.generate(PROMPTS, 2, SAMPLING, SEEDS)
    assert not [one for one in server.drawn if one["max_tokens"] == 5]


def test_a_server_that_is_started_anew_while_it_samples_is_found(server, policy, world, tmp_path):
    engine = engine_of(server, policy, tmp_path)
    other = load_causal_lm(Model(path=str(world / "two"))).double()

    def restarted(number, body):
        if body["max_tokens"] == 5:
            server.model = other

    server.draw_faults = restarted
    with pytest.raises(RunError, match="did not take over the policy's weights"):
        engine.generate(PROMPTS, 2, SAMPLING, SEEDS)


@pytest.mark.parametrize("fault", [503, (429, 0), "hang up", "half"])
def test_a_fault_that_passes_changes_nothing(server, policy, tmp_path, fault):
    engine = engine_of(server, policy, tmp_path)
    expected = engine.generate(PROMPTS, 2, SAMPLING, SEEDS)
    first = len(server.drawn)
    server.draw_faults = lambda number, body: fault if number in (first, first + 2) else None
    server.faults = lambda number, body: fault if number % 2 == 0 else None
    assert engine.generate(PROMPTS, 2, SAMPLING, SEEDS) == expected


@pytest.mark.parametrize(
    ("fault", "words"),
    [("hang", "has answered nothing for 1 s"), (400, "answers with status 400: too busy"), (500, "status 500")],
)
def test_a_fault_that_stays_is_one_sentence(server, policy, tmp_path, fault, words):
    engine = engine_of(server, policy, tmp_path, timeout_seconds=1.0)
    engine.generate(PROMPTS, 2, SAMPLING, SEEDS)
    server.draw_faults = lambda number, body: fault
    with pytest.raises(RunError, match=words):
        engine.generate(PROMPTS, 2, SAMPLING, SEEDS)
    engine.close()


def test_a_server_that_cannot_be_used_is_refused_before_it_samples(server, policy, tmp_path):
    """One that takes no weights, says raw log-probabilities, or is not there."""
    server.takes_weights = False
    with pytest.raises(RequestError, match=r"takes no weights .* start it with VLLM_SERVER_DEV_MODE=1"):
        engine_of(server, policy, tmp_path).generate(PROMPTS, 2, SAMPLING, SEEDS)
    server.takes_weights, server.processed = True, False
    with pytest.raises(RequestError, match="--logprobs-mode processed_logprobs"):
        engine_of(server, policy, tmp_path).generate(PROMPTS, 2, SAMPLING, SEEDS)
    nowhere = Rollout("vllm", server="http://127.0.0.1:9")
    engine = VllmServer(Handoff(policy, server.tokenizer), nowhere, tmp_path)
    with pytest.raises(RequestError, match=r"rollout.server=http://127.0.0.1:9: .* gives no usable answer"):
        engine.generate(PROMPTS, 2, SAMPLING, SEEDS)
    engine.close()
    assert not [one for one in server.drawn if one["max_tokens"] == 5]


def test_a_server_that_sleeps_is_woken_for_weights_and_then_for_its_memory(server, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(Rollout, "starts_server", property(lambda self: True))
    engine = engine_of(server, policy, tmp_path, options={"sleep": True})
    monkeypatch.setattr(Rollout, "starts_server", property(lambda self: False))
    engine.generate(PROMPTS, 1, SAMPLING, SEEDS)
    slept, reset = "/sleep?level=2", "/reset_prefix_cache"
    assert server.calls == [reset, slept, "/wake_up?tags=weights", reset, "/wake_up?tags=kv_cache", slept]


def test_folders_of_processes_that_are_gone_are_deleted(server, policy, tmp_path):
    import socket
    import subprocess

    process = subprocess.Popen(["true"])
    process.wait()
    old, other = tmp_path / f"{socket.gethostname()}-{process.pid}-abc", tmp_path / f"elsewhere-{process.pid}-abc"
    for folder in (old, other):
        (folder / "weights-1").mkdir(parents=True)
    engine = engine_of(server, policy, tmp_path)
    engine.generate(PROMPTS, 1, SAMPLING, SEEDS)
    assert not old.exists() and other.exists()
    engine.close()
    assert list(tmp_path.iterdir()) == [other]
