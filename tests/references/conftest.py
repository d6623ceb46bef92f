"""Small reference folders over one tokenizer, and one over another."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from multiref_cli.config.schema import ReferenceSpec
from multiref_cli.data.chat import conversation_ids
from multiref_cli.models.save import save_policy
from multiref_cli.references.store import ReferenceStore, Scoring, Sequence
from multiref_cli.world import tokenizer as toy_tokenizer

WORDS = ["Anna", "has", "then", "how", "many", ".", "?", "+", "=", "1", "2", "7", "####"]


def save_model(folder, tokenizer, seed, vocab_size=None, architecture="qwen2", hidden_size=16):
    """A random model in a folder."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=vocab_size or len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    save_policy(AutoModelForCausalLM.from_config(config), tokenizer, folder)
    return ReferenceSpec(path=str(folder), name=folder.name)


def other_tokenizer():
    """Characters instead of words, and another chat template."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["<unk>", "<end>", "<turn>", *map(chr, range(32, 127))]
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<turn>"],
        chat_template="{% for m in messages %}<turn>{{ m['content'] }}<end>{% endfor %}<turn>",
    )


@pytest.fixture(scope="session")
def tokenizer():
    return toy_tokenizer.tokenizer()


@pytest.fixture(scope="session")
def references(tmp_path_factory, tokenizer):
    """Three references over the policy's tokenizer, the second with a padded head, the third of another family."""
    root = tmp_path_factory.mktemp("references")
    return [
        save_model(root / "first", tokenizer, 1),
        save_model(root / "second", tokenizer, 2, vocab_size=len(tokenizer) + 7),
        save_model(root / "third", tokenizer, 3, architecture="llama", hidden_size=24),
    ]


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("foreign") / "foreign", other_tokenizer(), 4)


@pytest.fixture(scope="session")
def sequences(tokenizer):
    """Twelve pairs of responses to six prompts, of many lengths; the last response is truncated."""
    generator = torch.Generator().manual_seed(0)

    def words(count):
        return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (count,), generator=generator).tolist())

    found = []
    for number in range(12):
        messages = [{"role": "user", "content": f"Anna has {number % 6} . how many ?"}]
        for text in (words(1 + number), words(12 - number)):
            prompt, (ids,) = conversation_ids(tokenizer, messages, [text])
            found.append(Sequence(tuple(prompt), tuple(ids), messages, text))
    cut = conversation_ids(tokenizer, found[-1].messages, [words(5)])[1][0][:3]
    return [*found[:-1], replace(found[-1], completion=tuple(cut))]


@pytest.fixture
def store(tmp_path, tokenizer):
    return ReferenceStore(tmp_path / "store", Scoring(tokenizer, len(tokenizer)))
