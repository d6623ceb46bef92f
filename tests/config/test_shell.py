"""What shells take apart or the grammar does not read: put together again, or answered with the right quoting."""

import shlex

import pytest

from multiref_cli.config.compose import compose_unchecked, expand_axes
from multiref_cli.config.shell import joined, shell_word, unclosed
from multiref_cli.errors import RequestError

BASE = ["policy=folder", "policy.path=x", "data=jsonl", "data.path=y"]
SIGNS = "~ ( ) = # { } ; [ ] ' \" é ß 日本 & | $ ! < >"


@pytest.mark.parametrize(
    ("line", "together"),
    [
        ("alpha=0.3, 0.5", ["alpha=0.3,0.5"]),
        ("alpha=0.3 , 0.5 seed=1", ["alpha=0.3,0.5", "seed=1"]),
        ("alpha=[0.3, 0.7]", ["alpha=[0.3,0.7]"]),
        ("alpha=[0.3, 0.7],[0.5, 0.5] beta=1", ["alpha=[0.3,0.7],[0.5,0.5]", "beta=1"]),
        ("beta = 0.1", ["beta=0.1"]),
        ("beta= 0.1 seed =1", ["beta=0.1", "seed=1"]),
        ("references=[{name: a, path: X}]", ["references=[{name: a,path: X}]"]),
        ("data.columns={prompt: q} --dry-run", ["data.columns={prompt: q}", "--dry-run"]),
        ("alpha=0.3 0.5", ["alpha=0.3", "0.5"]),
        ("alpha=0.3, --dry-run", ["alpha=0.3,", "--dry-run"]),
        ("beta", ["beta"]),
        ("2+2= 3+3= , = seed=1", ["2+2=", "3+3=", ",", "=", "seed=1"]),
    ],
)
def test_words_that_a_shell_took_apart_are_put_together(line, together):
    assert joined(line.split()) == together


@pytest.mark.parametrize(
    ("value", "missing"),
    [("[a,b]", ""), ("[a,{b", "}]"), ("range(0,3", ")"), ("'[a'", ""), ('"a', '"'), ("a]", ""), ("", "")],
)
def test_what_is_not_closed_is_found(value, missing):
    assert unclosed(value) == missing


@pytest.mark.parametrize("key", ["run.name", "run.dir", "policy.path", "data.path", "data.columns.prompt"])
def test_texts_with_any_signs_are_taken_as_they_are(key):
    found = compose_unchecked([*BASE, f"{key}=a {SIGNS} b"])
    for part in key.split(".")[:2]:
        found = getattr(found, part)
    assert (found["prompt"] if isinstance(found, dict) else found) == f"a {SIGNS} b"


@pytest.mark.parametrize("key", ["run.name", "run.dir"])
def test_a_folder_may_have_commas_in_its_name(key):
    assert getattr(compose_unchecked([*BASE, f"{key}=a,b"]).run, key[4:]) == "a,b"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("beta=(0.1)", "beta=(0.1) cannot be read; beta takes one number, with a dot for decimals."),
        ("beta=0;1", "beta takes one number, with a dot for decimals."),
        ("beta=0,1", "beta=0,1 gives several values for one key: use `multiref sweep` for axes."),
        ("alpha=0.3,0.5", "use `multiref sweep` for axes; a list is written 'alpha=[0.3,0.5]'."),
        (
            "alpha=[0.3,0.7",
            "alpha=[0.3,0.7 has no closing ]; what has brackets or blanks is quoted: 'alpha=[0.3,0.7]'.",
        ),
        ("data.path=a,b", "use `multiref sweep` for axes; one text with a comma is written 'data.path=\"a,b\"'."),
        ("tracking.tags=[a;b]", "a list, 'tracking.tags=[a,b]', with signs in its texts 'tracking.tags=[\"a;b\"]'."),
        ("data.columns={prompt=a}", "data.columns takes names with values, 'data.columns={name: value}'."),
        ("regularizer=rkl(2)", "regularizer has no option 'rkl(2)'; did you mean 'rkl'."),
        ("beta =0.1", "'beta =0.1' is not an override; write beta=VALUE, without blanks or quotes around the key."),
        ("sead=1", "there is no key 'sead'; did you mean 'seed'."),
        ("béta=1", "there is no key 'béta'; did you mean 'beta'."),
        ("beta", "'beta' is not an override; write key=value"),
        ("hardware.deterministic=#", "hardware.deterministic takes true or false."),
    ],
)
def test_what_cannot_be_read_is_answered_without_a_parsers_words(override, sentence):
    with pytest.raises(RequestError) as refused:
        compose_unchecked([*BASE, override])
    said = str(refused.value)
    assert sentence in said and "\n" not in said
    assert not any(word in said for word in ("Lexer", "viable", "mismatched", "EOF", "++"))
    if "several values" not in said:  # of a sweep they are no mistake
        with pytest.raises(RequestError) as refused:
            expand_axes([override])
            compose_unchecked([*BASE, override])
        assert str(refused.value) == said


@pytest.mark.parametrize(
    ("axis", "sentence"),
    [
        (
            "alpha=range(0.9,0.1,0.2)",
            "alpha=range(0.9,0.1,0.2) is empty: no number lies from 0.9 to below 0.1 in steps of 0.2; give "
            "range(FROM,BELOW,STEP).",
        ),
        ("seed=range(3,0)", "seed=range(3,0) is empty: no number lies from 3 to below 0 in steps of 1; give"),
        ("beta=range(0.1,0.9,-0.2)", "beta=range(0.1,0.9,-0.2) is empty: no number lies from 0.1 to above 0.9"),
        ("alpha=range(0.1,0.9,0)", "alpha=range(0.1,0.9,0) has no end: its step, the third number, is 0."),
        ("seed=range(0,3,0)", "seed=range(0,3,0) has no end"),
        ("beta=range(0,inf,0.1)", "beta=range(0,inf,0.1) has more than 100000 values; give a larger step."),
        ("beta=range(0,nan,0.1)", "beta=range(0,nan,0.1) cannot be read"),
        ("regularizer=glob(zzz*)", "regularizer=glob(zzz*) names no option; allowed: "),
    ],
)
def test_an_axis_without_values_is_refused(axis, sentence, multiref, tmp_path, monkeypatch, capsys):
    with pytest.raises(RequestError) as refused:
        expand_axes([axis])
    assert str(refused.value).startswith(sentence)
    monkeypatch.chdir(tmp_path)
    assert multiref("sweep", "experiment=offline_toy", axis) == 2 and sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_range_may_go_down():
    assert expand_axes(["alpha=range(0.9,0.1,-0.4)", "seed=range(2)"])[0] == {
        "alpha": ["0.9", "0.5"],
        "seed": ["0", "1"],
    }


@pytest.mark.parametrize(
    ("shell", "word"),
    [
        ("/bin/bash", """'it'"'"'s [a,b]'"""),
        ("/usr/bin/zsh", """'it'"'"'s [a,b]'"""),
        ("/usr/bin/fish", r"""'it\'s [a,b]'"""),
        ("/usr/bin/pwsh", "'it''s [a,b]'"),
        ("", """'it'"'"'s [a,b]'"""),
    ],
)
def test_quoting_is_that_of_the_shell_in_use(monkeypatch, shell, word):
    monkeypatch.setenv("SHELL", shell)
    assert shell_word("it's [a,b]") == word


def test_what_is_shown_is_what_a_shell_gives_back(monkeypatch):
    """The quoting of bash, taken apart again, is an override that is accepted."""
    monkeypatch.setenv("SHELL", "/bin/bash")
    with pytest.raises(RequestError) as refused:
        compose_unchecked([*BASE, "alpha=0.3,0.7", "references=pair", "first=a", "second=b"])
    (shown,) = shlex.split(str(refused.value).rpartition("written ")[2].rstrip("."))
    assert compose_unchecked([*BASE, "references=pair", "first=a", "second=b", shown]).alpha == [0.3, 0.7]
