"""Tiny models, tokenizers and data files of the forms that people bring, and the command line in process."""

import contextlib
import io
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from multiref_cli.cli.app import app, run_guarded
from multiref_cli.files import read_json, read_lines

TURNS = "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
OPEN = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
CHATML = TURNS + OPEN
DATED = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML
THINKING = TURNS + OPEN.replace("assistant\n", "assistant\n<think>\n")
STRICT = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{%- endif %}" + CHATML
EMPTY_THOUGHT = CHATML.replace(
    "m.role + '\n' + m.content",
    "m.role + '\n' + ('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + m.content",
).replace(
    "'<|im_start|>assistant\n' }}",
    "'<|im_start|>assistant\n' + ('' if enable_thinking | default(true) else '<think>\n\n</think>\n\n') }}",
)
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>"]


@dataclass
class World:
    """Where models and data lie, and how a command is run.

    Attributes:
        root: folder of everything.
        gsm8k: the file given on the command line, if any.
    """

    root: Path
    gsm8k: Path | None = None
    tokenizers: dict[str, Any] = field(default_factory=dict)

    def model(self, name: str) -> str:
        """Path of a model."""
        return str(self.root / "models" / name)

    def data(self, rows: list, name: str = "rows.jsonl") -> str:
        """Write rows, or lines as they are, and return the path."""
        path = self.root / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code and what was printed, one line."""
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = run_guarded(lambda: app([str(a) for a in arguments], standalone_mode=True))
        return code, " ".join(re.sub(r"\x1b\[[\d;]*m|[│─╭╮╰╯]", " ", text.getvalue()).split())

    def train(self, *arguments: str, policy: str = "one", data: str | None = None, **keys: str) -> tuple[int, str]:
        """`multiref train` of a small offline run; see `offline`."""
        return self.run("train", *self.offline(policy, data), *arguments)

    def offline(self, policy: str = "one", data: str | None = None) -> list[str]:
        """Overrides of two steps of DPO."""
        return [
            "policy=folder", f"policy.path={self.model(policy)}", "data=jsonl", f"data.path={data or self.data(PAIRS)}",
            "evaluation=none", "tracking=off", "hardware=cpu", "algorithm.batch_pairs=4", "steps=2", "run.dir=run",
        ]  # fmt: skip

    def online(self, policy: str = "one", data: str | None = None, reward: str = "gsm8k") -> list[str]:
        """Overrides of two steps of GRPO."""
        return [
            "algorithm=grpo", "policy=folder", f"policy.path={self.model(policy)}", "references=pair",
            f"first={self.model(policy)}", f"second={self.model('two')}", "data=jsonl",
            f"data.path={data or self.data(PROBLEMS)}", f"reward={reward}", "regularizer=rkl_token", "evaluation=none",
            "tracking=off", "hardware=cpu", "algorithm.batch_prompts=2", "rollout.group_size=2",
            "rollout.max_new_tokens=4", "steps=2", "run.dir=run",
        ]  # fmt: skip


PAIRS = [{"prompt": f"question {i}", "chosen": f"good answer {i} ok", "rejected": f"bad {i}"} for i in range(12)]
PROBLEMS = [{"prompt": f"what is {i}+1?", "answer": str(i + 1)} for i in range(12)]
SHOWN = [{"prompt": f"question {i}", "completion": f"good answer {i}"} for i in range(12)]


def tokenizer_of(template: str | None = CHATML, hole: bool = False, **special: Any) -> Any:
    """A byte-level tokenizer."""
    ids = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    if hole:
        ids |= {token: 300 + i for i, token in enumerate(SPECIALS)}
    backend = Tokenizer(models.BPE(ids, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    options = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **options)


def build(root: Path) -> World:
    """Make the models."""
    world, plain = World(root), tokenizer_of()
    _save(world, "one", plain)
    _save(world, "two", plain, seed=2)
    _save(world, "short", plain, max_position_embeddings=64)
    _save(world, "short_gpt2", plain, kind="gpt2", n_positions=64)
    _save(world, "narrow", plain, vocab_size=200)
    _save(world, "tied", plain, tie_word_embeddings=True)
    for name, template in (
        ("dated", DATED), ("thinking", THINKING), ("strict", STRICT), ("empty_thought", EMPTY_THOUGHT),
    ):  # fmt: skip
        _save(world, name, tokenizer_of(template))
    _save(world, "hole", tokenizer_of(hole=True))
    _save(world, "left", tokenizer_of(pad_token=None, padding_side="left"))
    end = plain.convert_tokens_to_ids("<|end_of_text|>")
    _save(world, "stops", plain, kind="gpt2", always=end)
    settings = {"eos_token_id": [plain.eos_token_id, end], "temperature": 0.6, "do_sample": False}
    (Path(world.model("stops")) / "generation_config.json").write_text(json.dumps(settings))
    torch.manual_seed(4)
    judge = AutoModelForSequenceClassification.from_pretrained(world.model("one"), num_labels=1)
    judge.save_pretrained(world.model("judge"))
    plain.save_pretrained(world.model("judge"))
    _adapters(world)
    return world


def _save(
    world: World, name: str, tokenizer: Any, kind: str = "qwen2", seed: int = 1, always: int | None = None, **keys
):
    torch.manual_seed(seed)
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
    if kind != "gpt2":
        size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
    size |= {"vocab_size": max(tokenizer.get_vocab().values()) + 1, "tie_word_embeddings": False}
    config = AutoConfig.for_model(kind, **{**size, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0, **keys})
    model = AutoModelForCausalLM.from_config(config)
    if always is not None:  # a head that always says one token
        with torch.no_grad():
            model.transformer.ln_f.weight.zero_()
            model.transformer.ln_f.bias.fill_(1.0)
            model.lm_head.weight.zero_()
            model.lm_head.weight[always] = 10.0
    model.save_pretrained(world.model(name))
    tokenizer.save_pretrained(world.model(name))


def _adapters(world: World) -> None:
    import peft

    base = AutoModelForCausalLM.from_pretrained(world.model("one"))
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    adapted.save_pretrained(world.model("adapter"))
    merged = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(world.model("one")), world.model("adapter")
    ).merge_and_unload()
    merged.save_pretrained(world.model("both"))
    tokenizer_of().save_pretrained(world.model("both"))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(Path(world.model("adapter")) / file, Path(world.model("both")) / file)


def results() -> dict[str, Any]:
    """Metrics of the run in the working directory."""
    return read_json(Path("run/results.json"))["metrics"]


def steps() -> list[dict[str, Any]]:
    """Logged figures of the run in the working directory."""
    return read_lines(Path("run/metrics.jsonl"))
