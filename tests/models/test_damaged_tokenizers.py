"""Tokenizers that are damaged are refused in one sentence with the name of their folder, before anything is trained."""

import json
import shutil

import pytest

from multiref_cli.config.schema import Model
from multiref_cli.errors import RequestError
from multiref_cli.models.load import load_tokenizer
from tests.bench.inputs_world import tokenizer_of


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers") / "model"
    tokenizer = tokenizer_of()
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "model")
    return tmp_path / "model"


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def edited(name, change):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def vocabulary(change):
    return edited(
        "tokenizer.json", lambda c: c["model"].update(vocab={k: change(v) for k, v in c["model"]["vocab"].items()})
    )


UNOPENED = "no tokenizer that can be opened"
TOKENIZER, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
DAMAGES = {
    **{f"{n} {how}": (written(n, content), ".") for n in (TOKENIZER, SETTINGS, GENERATION) for how, content in (
        ("empty", ""), ("zeroed", b"\0" * 400), ("no UTF-8", b"\xff\xfe\xfa"), ("a list", "[]"), ("deep", "[" * 60_000),
    )},
    **{f"{name} cut off": (cut(name), ".") for name in (TOKENIZER, SETTINGS)},
    "gone": (lambda f: (f / TOKENIZER).unlink(), UNOPENED),
    "no model": (edited(TOKENIZER, lambda c: c.pop("model")), "damaged"),
    "no vocabulary": (edited(TOKENIZER, lambda c: c["model"].update(vocab={})), "no tokens"),
    "ids are text": (vocabulary(str), "damaged"),
    "all tokens share an id": (vocabulary(lambda i: 0), "share an id"),
    "unknown kind": (edited(TOKENIZER, lambda c: c["model"].update(type="Other")), "damaged"),
    "no decoder": (edited(TOKENIZER, lambda c: c.update(decoder=None)), "its decoder is lost"),
    "strange length": (edited(SETTINGS, lambda c: c.update(model_max_length="long")), UNOPENED),
    "strange side": (edited(SETTINGS, lambda c: c.update(padding_side="middle")), UNOPENED),
    "eos is a number": (edited(SETTINGS, lambda c: c.update(eos_token=5)), UNOPENED),
    "ends at text": (edited(GENERATION, lambda c: c.update(eos_token_id="<end>")), "ends responses at '<end>'"),
    "ends beyond the ids": (edited(GENERATION, lambda c: c.update(eos_token_id=[0, 99999])), "ends responses at 99999"),
    "ends below 0": (edited(GENERATION, lambda c: c.update(eos_token_id=-5)), "ends responses at -5"),
    "an empty template": (written("chat_template.jinja", ""), "the chat template of .* is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_tokenizer_is_refused_by_name(folder, case):
    damage, sentence = DAMAGES[case]
    damage(folder)
    with pytest.raises(RequestError, match=sentence) as caught:
        load_tokenizer(Model(path=str(folder)))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_an_undamaged_one_opens_whatever_the_config_says_of_ends(folder):
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 50256}))  # a default of its class, of other tokens
    assert load_tokenizer(Model(path=str(folder))).decode([0]) == "!"
    (folder / GENERATION).unlink()
    assert load_tokenizer(Model(path=str(folder))).eos_token == "<|im_end|>"
