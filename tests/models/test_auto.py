"""Saved policies open as anybody opens a model folder: AutoTokenizer and AutoModelForCausalLM."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from multiref_cli.config.schema import Model, Policy
from multiref_cli.files import read_json
from multiref_cli.models.auto import as_trained, open_right
from multiref_cli.models.load import load_causal_lm, load_reward_model, load_tokenizer
from multiref_cli.models.save import save_policy
from multiref_cli.rollouts import lean
from multiref_cli.world.tokenizer import tokenizer as toy_tokenizer
from multiref_cli.world.worlds import SHIPPED

TEXT = "max has 12 pens . then"
# What a notebook does; nothing of multiref is imported.
NOTEBOOK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
ids = tokenizer(sys.argv[2])["input_ids"]
chat = [{"role": "user", "content": sys.argv[3]}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
made = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0, prompt["input_ids"].shape[1]:]
assert not any("multiref" in name for name in sys.modules)
print(json.dumps([ids, tokenizer.decode(ids), prompt["input_ids"][0].tolist(), made.tolist(), tokenizer.decode(made)]))
"""


def model_type(folder):
    return read_json(folder / "config.json")["model_type"]


def test_a_notebook_reads_and_writes_the_words_of_an_embedded_policy(tmp_path):
    source = Model(path=str(SHIPPED / "math"))
    ours = load_tokenizer(source)
    save_policy(load_causal_lm(source), ours, tmp_path / "policy", for_auto=True)
    problem = json.loads((SHIPPED / "prompts" / "test.jsonl").read_text().splitlines()[0])["prompt"]
    problem = problem if isinstance(problem, str) else problem[0]["content"]
    command = [sys.executable, "-c", NOTEBOOK, str(tmp_path / "policy"), TEXT, problem]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    ids, text, prompt, made, answer = json.loads(printed.splitlines()[-1])
    assert ids == ours(TEXT)["input_ids"] and text == TEXT and 1 not in ids
    assert ours.decode(prompt) == f"<|user|> {problem} <|assistant|>"
    assert answer == ours.decode(made) and "####" in answer.split() and answer.endswith("<|end|>")


@pytest.mark.parametrize("kind", ["lm", "classifier"])
def test_it_is_the_same_model(tmp_path, kind):
    """Bitwise the same logits, by transformers and by the decoder that samples."""
    opener, name = {"lm": (load_causal_lm, "instruct"), "classifier": (load_reward_model, "reward_model")}[kind]
    before = opener(Model(path=str(SHIPPED / name)))
    save_policy(before, load_tokenizer(Model(path=str(SHIPPED / name))), tmp_path / "policy", for_auto=True)
    assert model_type(tmp_path / "policy") == "seed_oss"
    ids = torch.tensor([[3, 20, 50, 8, 9, 4, 2]])
    for trainable in (False, True):
        after = opener(Model(path=str(tmp_path / "policy")), trainable=trainable)
        assert torch.equal(after(ids).logits, before(ids).logits)
    if kind == "lm":
        after.train()  # a Seed-OSS model has dropout where a config does not say otherwise
        assert torch.equal(after(ids).logits, before(ids).logits)
        assert lean.supports(before) and lean.supports(after)
        sessions = [lean.LeanSession(lean.Weights(model), [[3, 20, 4]], 2, 5, 0) for model in (before, after)]
        assert torch.equal(sessions[0].logits, sessions[1].logits)


def test_what_is_trained_from_it_opens_too(place, multiref, offline, capsys):
    """Runs, also of adapters and classifiers, and runs that begin at another run's policy."""
    assert multiref("train", *offline, "steps=1", "run.dir=a", "evaluation=none") == 0, capsys.readouterr().err
    again = [one for one in offline if not one.startswith("policy")]
    start = ["policy=folder", "policy.path=a/policy", "steps=1", "evaluation=none"]
    assert multiref("train", *again, *start, "policy.lora.rank=2", "run.dir=b") == 0, capsys.readouterr().err
    assert multiref("train", *again, *start, "algorithm=reward_model", "run.dir=c") == 0, capsys.readouterr().err
    single = [text for text in again if not text.startswith(("references", "first", "second"))]
    assert multiref("train", *single, *start, "run.dir=d") == 0, capsys.readouterr().err
    for name in "abcd":
        assert model_type(place / "one") == "qwen2" and model_type(Path(name) / "policy") == "seed_oss"
        opened = AutoTokenizer.from_pretrained(f"{name}/policy")
        assert opened(TEXT)["input_ids"] == toy_tokenizer()(TEXT)["input_ids"]
    merged = load_causal_lm(Model(path="a/policy", adapter="b/policy/adapter"))
    whole = AutoModelForCausalLM.from_pretrained("b/policy")
    ids = torch.tensor([[3, 20, 50, 8, 9, 4, 2]])
    torch.testing.assert_close(merged(ids).logits, whole(ids).logits)


def test_other_folders_stay_as_they_are(tmp_path, make_model):
    """A tokenizer that AutoTokenizer opens right, another model type, layers with windows; and worlds that are made."""
    words = toy_tokenizer()
    saved = {
        "llama": make_model("llama", vocab_size=len(words)),
        "windowed": make_model(
            "qwen2", vocab_size=len(words), use_sliding_window=True, sliding_window=4, max_window_layers=1
        ),
        "plain": make_model("qwen2", vocab_size=len(words)),
    }
    for name, model in saved.items():
        save_policy(model, words, tmp_path / name, for_auto=name != "plain")
    assert [model_type(tmp_path / name) for name in saved] == ["llama", "qwen2", "qwen2"]
    fitting = AutoTokenizer.from_pretrained(tmp_path / "plain")
    config = (tmp_path / "plain" / "config.json").read_bytes()
    open_right(tmp_path / "plain", fitting)  # agrees with itself, as a Qwen2 tokenizer does
    assert (tmp_path / "plain" / "config.json").read_bytes() == config
    shutil.copytree(SHIPPED / "instruct", tmp_path / "shipped")
    written = (tmp_path / "shipped" / "config.json").read_bytes()
    open_right(tmp_path / "shipped", words)
    assert model_type(tmp_path / "shipped") == "seed_oss"
    as_trained(tmp_path / "shipped")
    assert (tmp_path / "shipped" / "config.json").read_bytes() == written
    before = (tmp_path / "llama" / "config.json").read_bytes()
    as_trained(tmp_path / "llama")
    assert (tmp_path / "llama" / "config.json").read_bytes() == before


def test_a_policy_of_random_weights(tmp_path):
    """`policy=new architecture=qwen2`, as the recipes of the world have it."""
    from multiref_cli.models.load import new_causal_lm

    spec = Policy(new={"architecture": "qwen2", "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "num_key_value_heads": 1}).new  # fmt: skip
    save_policy(new_causal_lm(spec, toy_tokenizer()), toy_tokenizer(), tmp_path / "new", for_auto=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "new")(TEXT)["input_ids"] == toy_tokenizer()(TEXT)["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "new").config.head_dim == 8
