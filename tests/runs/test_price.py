"""What a run takes, beside hand arithmetic, and priced for models that are not on this machine."""

import re
import socket
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Model
from multiref_cli.models.known import CONFIGS, counted, remote_parameters
from multiref_cli.runs import price as price_module
from multiref_cli.runs.arrange import arrangement, spread
from multiref_cli.runs.cards import CARDS, here
from multiref_cli.runs.engines import GRAPHS, TRANSFORMERS, VLLM, chosen, rollout_bytes, seconds_of_each
from multiref_cli.runs.forecast import fitted, forecast
from multiref_cli.runs.price import USE, Rows, known_rows, price, sizes_of, total_steps

H100 = next(card for card in CARDS if card.name.startswith("H100"))
SMALL_CARD = replace(H100, memory=24e9)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever asks the network fails the test."""

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-Math-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664),
        ("Skywork/Skywork-Reward-Llama-3.1-8B-v0.2", 7_504_928_768),
    ],
)
def test_sizes_as_their_makers_state_them(name, parameters):
    assert remote_parameters(Model(path=name)) == parameters


@pytest.mark.parametrize("name", [n for n in CONFIGS if "Instruct" in n and "Math" not in n])
def test_counting_equals_the_network_itself(name):
    settings = dict(CONFIGS[name])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    assert counted(CONFIGS[name]) == sum(parameter.numel() for parameter in network.parameters())


def paper(*overrides):
    return compose(
        ["experiment=offline_ultrafeedback", "hardware.device=cuda", "hardware.precision=bf16_mixed", *overrides]
    )


def test_an_offline_run_by_hand():
    """DPO at 0.5B: 16 bytes a parameter, 6 operations a parameter and token, two references in the stored pass."""
    experiment = paper("steps=100", "evaluation.prompts=0", "hardware.dtype=bfloat16")
    rows = Rows(train=50_000, held_out=5_000, prompt=143.0, row=800.0)
    cost = price(experiment, sizes_of(experiment), rows, H100)
    speed = USE * H100.operations
    assert cost.memory == 494_032_768 * 16
    assert cost.training == pytest.approx(6 * 494_032_768 * 100 * 32 * 800 / speed)
    assert cost.references == pytest.approx(2 * (494_032_768 + 1_543_714_304) * 55_000 * 800 / speed)
    assert cost.checkpoint == 494_032_768 * 12 and cost.evaluation == 0
    assert cost.total == cost.memory + cost.activations


@pytest.mark.parametrize(
    ("overrides", "memory", "checkpoint"),
    [
        (["hardware.precision=bf16_master"], 16, 14),
        (["hardware.precision=bf16_kahan"], 14, 12),
        (["hardware.precision=bf16"], 8, 6),
        (["hardware.precision=bf16_mixed", "optimizer=muon"], 16, 12),
    ],
)
def test_bytes_of_a_parameter_by_hand(overrides, memory, checkpoint):
    """Weight, gradient, two moments (one of Muon's matrices: 24 layers of 14.9 M at 0.5B), what is kept beside them."""
    experiment = paper(*overrides, "evaluation.prompts=0")
    cost = price(experiment, sizes_of(experiment), Rows(100, 0, 100.0, 100.0), H100)
    layer = 2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864
    saved = 4 * 24 * layer if "optimizer=muon" in overrides else 0
    assert cost.memory == 494_032_768 * memory - saved and cost.checkpoint == 494_032_768 * checkpoint - saved


def test_bytes_of_an_adapter_by_hand():
    """7B frozen in bfloat16; of an adapter of rank 16 on all maps weight, gradient and moments in float32."""
    one = compose(
        ["experiment=offline_ultrafeedback", "hardware.device=cuda", "policy=qwen_7b_lora", "references=qwen_7b_14b"]
    )
    sizes, rank = sizes_of(one), one.policy.lora.rank
    adapter = 28 * rank * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    cost = price(one, sizes, known_rows(one), H100)
    assert cost.checkpoint == pytest.approx(12 * adapter) and cost.memory == pytest.approx(
        2 * 7_615_616_512 + 16 * adapter
    )


def test_an_adapter_to_start_from_is_trained_alone_as_a_new_one_is():
    one = compose(
        ["experiment=offline_ultrafeedback", "hardware.device=cuda", "policy=qwen_7b_lora", "references=qwen_7b_14b"]
    )
    sizes, rows = sizes_of(one), known_rows(one)
    old = replace(one, policy=replace(one.policy, lora=None, adapter="adapter"))
    full = replace(one, policy=replace(one.policy, lora=None))
    new, own, all_of_it = (price(each, sizes, rows, H100) for each in (one, old, full))
    assert own.training == new.training < all_of_it.training
    assert (
        own.memory - 2 * 7_615_616_512 == pytest.approx(16 * 0.02 * 7_615_616_512) and own.memory < all_of_it.memory / 5
    )


def test_live_references_count_where_they_are():
    experiment = compose(["experiment=online_gsm8k", "hardware.device=cuda", "hardware.dtype=bfloat16"])
    beside = price(experiment, sizes_of(experiment), known_rows(experiment), H100)
    away = replace(experiment, hardware=replace(experiment.hardware, reference_device="cuda:1"))
    assert beside.memory - price(away, sizes_of(away), known_rows(away), H100).memory == 2 * (
        494_032_768 + 1_543_714_304
    )


def test_steps_are_those_of_the_run():
    rows = Rows(train=1000, held_out=0, prompt=1, row=1)
    assert total_steps(paper("algorithm.batch_pairs=32"), rows) == 32
    assert total_steps(paper("epochs=0.5"), rows) == 16 and total_steps(paper("steps=7"), rows) == 7


def test_what_does_not_fit_is_made_smaller_in_order():
    """24 GB: shorter passes are enough at 0.5B; 7B in full fits nothing below the bytes of its optimizer."""
    found = [
        arrangement(one := paper(*more), sizes_of(one), known_rows(one), SMALL_CARD)
        for more in (["evaluation.scorer=null"], ["policy=qwen_7b", "references=qwen_7b_14b", "evaluation.scorer=null"])
    ]
    assert found[0].fits and found[0].overrides == ("algorithm.micro_tokens=4096",)
    assert found[0].cost.total <= 0.9 * SMALL_CARD.memory
    assert not found[1].fits and found[1].overrides == ()


def test_divided_models_by_hand():
    """Four processes at 0.5B: a quarter of weights, gradients and moments; whole at once are embeddings, two layers of
    weights and one of gradients. Of each live reference a quarter, and the policy's share of what is whole at once."""
    several = ["hardware.processes=4", "hardware.sharding=full"]
    one = paper(*several, "evaluation.prompts=0")
    layer = 2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864
    root = 494_032_768 - 24 * layer
    found = price(one, sizes_of(one), known_rows(one), H100)
    assert found.memory == 494_032_768 * 16 / 4 + 4 * (2 * root + 3 * layer)
    live = ["experiment=online_gsm8k", "hardware.device=cuda", "hardware.dtype=bfloat16", "rollout=transformers"]
    alone, divided = (compose([*live, "evaluation.prompts=0", *more]) for more in ([], several))
    both = [price(each, sizes_of(each), known_rows(each), H100) for each in (alone, divided)]
    share = 1 / 4 + (root + 2 * layer) / 494_032_768
    references = 2 * (494_032_768 + 1_543_714_304)
    assert both[1].memory == pytest.approx(found.memory + share * references)
    assert both[1].rollout - both[0].rollout == 494_032_768 * 4


def test_what_one_device_does_not_hold_several_do():
    one = paper("policy=qwen_7b", "references=qwen_7b_14b", "evaluation.scorer=null")
    facts = (one, sizes_of(one), known_rows(one))
    assert not arrangement(*facts, H100).fits
    found = spread(*facts, H100)
    assert found.processes == 2 and found.overrides[:2] == ("hardware.processes=2", "hardware.sharding=full")
    assert found.cost.total <= 0.9 * H100.memory < arrangement(*facts, H100).cost.total
    assert spread(*facts, SMALL_CARD) is None
    said = dict(fitted(*facts))["H100, 80 GB"]
    assert "; on 2 of them it fits with hardware.processes=2 hardware.sharding=full " in said and " GiB each, " in said
    replicated = paper("policy=qwen_7b", "references=qwen_7b_14b", "evaluation.scorer=null", "hardware.processes=8")
    found = arrangement(replicated, sizes_of(replicated), known_rows(replicated), H100)
    assert found.fits and "hardware.sharding=full" in found.overrides


def test_references_visit_only_where_the_estimator_lets_them():
    one = compose(["experiment=online_gsm8k", "hardware.device=cuda", "policy=qwen_7b_lora", "references=qwen_7b_14b"])
    card, overrides = replace(H100, memory=70e9), {}
    for estimator in ("exact", "reward"):
        own = replace(one, regularizer=replace(one.regularizer, estimator=type(one.estimator)[estimator]))
        found = arrangement(own, sizes_of(own), known_rows(own), card)
        overrides[estimator] = found.overrides
    assert "hardware.reference_device=cpu" not in overrides["exact"]
    assert "hardware.reference_device=cpu" in overrides["reward"]


def test_a_run_of_models_that_are_not_here_is_priced(monkeypatch):
    """The paper's runs: fetched models are named, and nothing is fetched or asked for."""
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    rows = dict(forecast(paper()).rows)
    assert "Qwen/Qwen2.5-1.5B-Instruct" in rows["not on this machine, fetched by the run"]
    assert rows["policy"] == "494.03 M parameters" and "62135" in rows["data, as known"]
    assert re.match(r"5\.5 GiB, .* each at .* a second, 2 kept$", rows["a checkpoint"])
    assert rows["on H100, 80 GB"].startswith("fits") and "does not fit" not in rows["on H200, 141 GB"]


def test_this_machine_is_measured():
    card = here("cpu")
    assert card.operations > 1e9 and card.bandwidth > 1e8 and card.memory > 1e9 and not card.gpu


def test_a_large_file_is_looked_at_in_part(tmp_path, world, offline, monkeypatch):
    """20,000 pairs are counted, 2,000 become tokens, and steps, passes and prices are those of all."""
    row = (world / "pairs.jsonl").read_text().splitlines()
    place = tmp_path / "pairs.jsonl"
    place.write_text("".join(row[number % len(row)] + "\n" for number in range(20_000)))
    experiment = compose([*offline, f"data.path={place}", "epochs=1", "steps=null", "data.held_out=0.1"])
    seen = price_module.look(experiment)
    assert seen.times == 10 and seen.experiment.data.max_rows == 2_000
    rows = dict(forecast(experiment).rows)
    assert rows["data"].startswith("of the first 2000 rows: ")
    train, held_out = (int(part) for part in rows["training rows, held-out rows"].removeprefix("about ").split(", "))
    assert train + held_out == 20_000 and abs(held_out - 2_000) < 1_500
    batch = experiment.algorithm.batch_size
    assert rows["optimizer steps"] == f"about {-(-train // batch)} of {batch} rows"
    assert rows["reference passes"].startswith(f"2 x about {2 * train} ")


def test_engines_by_hand():
    """1.5B on an H100: 16 prompts x 8 responses at once read two bytes a parameter a token, or start 38 operations for
    each of 28 layers; vLLM's share of the memory is held throughout unless it sleeps, and is nowhere on other GPUs."""
    one = compose(["experiment=online_gsm8k", "hardware.device=cuda", "rollout.max_new_tokens=512", "steps=10"])
    sizes = sizes_of(one)
    each = seconds_of_each(one, sizes.policy, sizes.shape, 10, H100)
    assert chosen(one) == TRANSFORMERS and set(each) == {TRANSFORMERS, GRAPHS, VLLM}
    computed = 2 * sizes.policy * 128 / (USE * H100.operations)
    assert each[TRANSFORMERS] == pytest.approx(10 * 512 * (38 * sizes.shape.layers * 5e-6 + computed))
    assert each[VLLM] == pytest.approx(10 * 512 * (2 * sizes.policy / H100.bandwidth + computed))
    assert each[GRAPHS] == each[VLLM]
    by_vllm = replace(one, rollout=replace(one.rollout, engine="vllm", options={"gpu_memory_utilization": 0.25}))
    assert chosen(by_vllm) == VLLM and rollout_bytes(by_vllm, sizes.shape, 100.0, H100) == (20e9, 0.0)
    held = price(by_vllm, sizes, known_rows(one), H100).memory - price(one, sizes, known_rows(one), H100).memory
    assert held == 20e9
    asleep = replace(by_vllm.rollout, options={"gpu_memory_utilization": 0.25, "sleep": True})
    assert rollout_bytes(replace(by_vllm, rollout=asleep), sizes.shape, 100.0, H100) == (0.0, 20e9)
    for away in ({"server": "start", "devices": "1"}, {"server": "http://a"}):
        elsewhere = replace(by_vllm, rollout=replace(by_vllm.rollout, **away))
        assert rollout_bytes(elsewhere, sizes.shape, 100.0, H100) == (0.0, 0.0)


def test_a_dry_run_says_what_each_engine_would_take(monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setattr("multiref_cli.runs.forecast.find_spec", lambda name: None)
    one = compose(["experiment=online_gsm8k", "hardware.device=cuda"])
    said = dict(forecast(one).rows)["of which rollouts, roughly"]
    assert "by rollout=transformers, as asked" in said and "by rollout.options.cuda_graphs=true" in said
    assert said.endswith("by rollout=vllm (not installed: pip install vllm)")
    served = replace(one, rollout=replace(one.rollout, engine="vllm", server="start", options={}))
    rows = dict(forecast(served).rows)
    assert "by rollout=vllm, as asked" in rows["of which rollouts, roughly"]
    assert rows["weights to the server, each rollout"] == "942.3 MiB, written and read as files"
