"""Overrides as people write them: paths, texts, lists of references, columns; and the references that nobody named."""

import pytest

from multiref_cli.config.compose import compose_saved, compose_unchecked, expand_axes
from multiref_cli.config.written import text_keys, written
from multiref_cli.errors import RequestError

BASE = ["policy=folder", "policy.path=x", "data=jsonl", "data.path=y"]


def value_of(override, key=None):
    found = compose_unchecked([*BASE, override])
    for part in (key or override.partition("=")[0]).split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(
    "override, value",
    [
        ("policy.path=~/models/q", "~/models/q"),
        ("policy.path=ckpt/epoch=3", "ckpt/epoch=3"),
        ("policy.path='ckpt/epoch=3'", "ckpt/epoch=3"),
        ("data.path=my files/a (1).jsonl", "my files/a (1).jsonl"),
        ("data.path=C:\\a\\", "C:\\a\\"),
        ('data.path=it\'s "a".jsonl', 'it\'s "a".jsonl'),
        ("run.name=1e5", "1e5"),
        ("run.name=007", "007"),
        ("run.name=1_000", "1_000"),
        ("run.name=true", "true"),
        ("run.name=null", None),
        ("policy.revision=2", "2"),
        ("data.system_prompt=Be brief, and kind: {x}.", "Be brief, and kind: {x}."),
        ("data.system_prompt=", ""),
        ("data.system_prompt=''", ""),
        ("data.system_prompt=null", None),
        (r"data.prompt_template='{prompt}\n\nIn \boxed{}, please.'", "{prompt}\n\nIn \\boxed{}, please."),
        (r"data.prompt_template={prompt}\n\text{so} \neq \\n", "{prompt}\n\\text{so} \\neq \\n"),
        ('data.prompt_template="Q: {prompt}"', "Q: {prompt}"),
        ("data.prompt_template=Say [a], (b) = 3?", "Say [a], (b) = 3?"),
    ],
)
def test_texts_are_what_was_written(override, value):
    assert value_of(override) == value


def test_what_has_been_read_once_is_read_alike_again():
    given = [
        "policy.path=~/a=b",
        "references=[{name: a, path: X}]",
        r"data.prompt_template=a\nb, c",
        "alpha=0.5",
        "seed=1",
    ]
    assert written(written(given)) == written(given)
    assert {"policy.path", "data.system_prompt", "run.name", "first"} <= text_keys() and "alpha" not in text_keys()


def test_commas_are_axes_but_in_free_texts():
    axes, fixed = expand_axes(["policy.path=~/a,b=1", "data.system_prompt=a, b", "seed=0,1", "references=[{path: X}]"])
    assert axes == {"policy.path": ['"~/a"', '"b=1"'], "seed": ["0", "1"]}
    assert fixed == ['data.system_prompt="a, b"', "references=_list", '++own=[{path:"X",name:"X"}]']


def test_an_evaluation_reads_overrides_alike(tmp_path):
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(compose_unchecked([*BASE, "run.name=a"]).plain))
    saved = compose_saved(tmp_path / "config.yaml", ["data.path=b=c", "data.system_prompt=a, b"])
    assert (saved.data.path, saved.data.system_prompt) == ("b=c", "a, b")


@pytest.mark.parametrize(
    "key, value",
    [
        ("data.columns.prompt=question", {"prompt": "question"}),
        ("data.chat_template_kwargs.enable_thinking=false", {"enable_thinking": False}),
        ("data.options.ties=drop", {"ties": "drop"}),
    ],
)
def test_keys_of_ones_own_need_no_plus(key, value):
    assert value_of(key, ".".join(key.split(".")[:2])) == value


class TestReferences:
    """Which references an experiment has."""

    def test_nobody_named_any(self):
        found = compose_unchecked([*BASE, "policy.adapter=z", "policy.revision=v1"])
        (start,) = found.references
        assert (start.name, start.path, start.adapter, start.revision) == ("start", "x", "z", "v1")
        assert found.weights == [1.0] and found.condition == "dpo-rkl-single_start-b0.1"
        assert [r.path for r in compose_unchecked([*BASE, "experiment=offline_toy"]).references] == ["x"]

    def test_the_embedded_world_and_named_references_stay(self):
        assert len(compose_unchecked([]).references) == 2
        assert len(compose_unchecked([*BASE, "references=toy_trio", "alpha=[0.2,0.2,0.6]"]).references) == 3
        named = compose_unchecked([*BASE, "references=pair", "first=~/a", "second=b=c"])
        assert [r.path for r in named.references] == ["~/a", "b=c"]

    def test_weights_without_references_are_refused(self):
        with pytest.raises(RequestError, match="none is named"):
            compose_unchecked([*BASE, "alpha=0.3"])

    @pytest.mark.parametrize("override", ["first=X", "+first=X", "second=X", "++second=X"])
    def test_paths_of_a_pair_that_is_not_asked_for(self, override):
        with pytest.raises(RequestError, match="add references=pair"):
            compose_unchecked([*BASE, override])

    def test_a_list_needs_no_file(self):
        text = "references=[{name: a, path: ~/X}, {path: 'Y/z=1', adapter: A b, dtype: bfloat16}]"
        found = compose_unchecked([*BASE, text, "alpha=0.3"])
        first, second = found.references
        assert (first.name, first.path, first.dtype) == ("a", "~/X", None)
        assert (second.name, second.path, second.adapter, second.dtype) == ("z=1", "Y/z=1", "A b", "bfloat16")
        assert found.weights == [0.3, 0.7]

    @pytest.mark.parametrize(
        "text, sentence",
        [("[{name: a}]", "needs a path"), ("[a, b]", "no list of references"), ("[]", "no list of references"),
         ("[{path: X, typo: 1}]", "there is no key 'typo'"), ("[{path: X", "no list of references")],
    )  # fmt: skip
    def test_a_list_that_is_none(self, text, sentence):
        with pytest.raises(RequestError, match=sentence):
            compose_unchecked([*BASE, f"references={text}"])


LONE = [*BASE, "references=[{name: a, path: X}]"]


@pytest.mark.parametrize("alpha", ["alpha=0.3", "alpha=[0.3]", "alpha=0", "'alpha={by: c, weights: {x: a}}'"])
def test_weights_beside_a_single_reference_are_refused(alpha):
    with pytest.raises(RequestError, match="alpha weighs several references, and a is the only one here"):
        compose_unchecked([*LONE, alpha.strip("'")])


@pytest.mark.parametrize("more", [[], ["alpha=1"], ["alpha=[1.0]"], ["alpha=null"], ["experiment=offline_toy"]])
def test_its_whole_weight_or_that_of_a_file_is_none_to_refuse(more):
    found = compose_unchecked([*more, *LONE])
    assert [one.name for one in found.references] == ["a"] and found.weights == [1.0]


def test_a_sweep_has_a_countable_number_of_seeds(multiref, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert multiref("sweep", "experiment=offline_toy", "seeds=99999999999999999999") == 2
    assert "it is a number of seeds, at most 10000." in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "references=[{name: a, path: x}, {nme: b, path: y}]",
            "references[1]: there is no key 'nme'; did you mean 'name'.",
        ),
        ("references=[{name: a, paht: x}]", "references[0]: there is no key 'paht'; did you mean 'path'."),
        ("references={first: x}", "references is a list of references; write references='[{name: a, path: X}, ...]'."),
        ("optimizer={learning_rate: 1}", "optimizer is chosen by name; give one of adamw, muon, and its keys as"),
        ("=3", "'=3' has no key before its sign; write KEY=VALUE."),
        ("alpha=null", "alpha is null; give a number, a list of numbers, auto or balanced."),
        ("seed=99999999999999999999", "seed is 1e+20; it must be at most 9007199254740992."),
    ],
)
def test_mistakes_are_told_by_their_own_keys(override, sentence, multiref, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in ("train", "sweep"):
        assert multiref(command, "experiment=offline_toy", override) == 2
        assert capsys.readouterr().err.startswith(f"multiref: {sentence}")
    assert not list(tmp_path.iterdir())
