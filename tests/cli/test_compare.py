"""`multiref compare`: answers side by side, log ratios against a plain forward pass, colors, the page, refusals."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from multiref_cli.config.schema import Hardware
from multiref_cli.evaluation.answers import Answer, Compared, Comparison, Piece, spread
from multiref_cli.reports.side_by_side import page, strength
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.runs.compare import compare, prompts_of
from multiref_cli.tracking.progress import Silent
from multiref_cli.world.tokenizer import tokenizer as toy_tokenizer

PROMPT = "max has 3 books . then max loses 2 . how many ?"


@pytest.fixture
def run(place, multiref, offline, capsys):
    """A trained run over two references, in `run`."""
    assert multiref("train", *offline, "steps=2", "evaluation=none", "run.dir=run") == 0, capsys.readouterr().err
    capsys.readouterr()
    return "run"


def compared(names, prompts=(PROMPT,), seed=0, **sampling):
    rows, how = prompts_of(prompts, None, 9), Sampling(**{"temperature": 0.0, "max_new_tokens": 6, **sampling})
    return compare([str(name) for name in names], rows, how, seed, Hardware(device="cpu"), Silent())


def log_probability(folder, prompt, text_ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logps = model(torch.tensor([[*prompt, *text_ids]])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(text_ids) - 1)
    return [float(logps[place, token]) for place, token in zip(places, text_ids)]


def test_log_ratios_are_those_of_a_plain_forward_pass(place, run):
    found = compared([run, place / "two"], [PROMPT, "ada has 4 pens . how many ?"])
    assert found.models == ["run", "two"] and found.references == ["first", "second"] and not found.notes
    tokenizer = toy_tokenizer()
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)
    prompt = prompt["input_ids"] if not isinstance(prompt, list) else prompt
    folders = {"run": "run/policy", "two": place / "two", "first": place / "one", "second": place / "two"}
    for answer in found.comparisons[0].answers:
        ids = tokenizer("".join(piece.text for piece in answer.pieces), add_special_tokens=False)["input_ids"]
        assert len(ids) == answer.tokens == len(answer.pieces)
        for name, folder in folders.items():
            expected = log_probability(folder, prompt, ids)
            assert [piece.logps[name] for piece in answer.pieces] == pytest.approx(expected, abs=1e-4)
            assert answer.totals[name] == pytest.approx(sum(expected), abs=1e-4)
        greedy = log_probability(folders[answer.model], prompt, ids)
        assert min(greedy) > -5  # the likeliest token at every place
    assert found.comparisons[1].prompt == "ada has 4 pens . how many ?"


def test_greedy_by_default_and_a_seed_that_draws_the_same_again(place):
    pair = [place / "one", place / "two"]
    texts = lambda found: [["".join(p.text for p in a.pieces) for a in c.answers] for c in found.comparisons]  # noqa: E731
    assert texts(compared(pair)) == texts(compared(pair, seed=5))
    warm = {"temperature": 1.0, "max_new_tokens": 12}
    assert texts(compared(pair, seed=5, **warm)) == texts(compared(pair, seed=5, **warm))
    assert texts(compared(pair, seed=5, **warm)) != texts(compared(pair, seed=6, **warm))


def test_two_bare_models_are_set_beside_each_other(place):
    found = compared([place / "one", place / "two"])
    assert found.references == [] and found.voices(found.comparisons[0].answers[0]) == ["one", "two"]
    again = compared([place / "one", place / "one"])
    assert again.models == [f"{place}/one (1)", f"{place}/one (2)"]
    assert all(spread(piece, again.models)[0] < 1e-5 for a in again.comparisons[0].answers for piece in a.pieces)


def test_a_single_reference_is_set_beside_the_model_itself(place, multiref, offline, capsys):
    alone = [one for one in offline if not one.startswith(("references", "first", "second"))]
    assert multiref("train", *alone, "steps=2", "evaluation=none", "run.dir=alone") == 0, capsys.readouterr().err
    found = compared(["alone", place / "two"])
    answer = found.comparisons[0].answers[0]
    assert len(found.references) == 1 and found.voices(answer) == [found.references[0], "alone"]
    assert "the model itself" in page(found, [])


def test_another_tokenizer_scores_whole_answers(place, run, tmp_path):
    """The same words under other ids: the same model, so the same totals, and no colors."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(place / "two")
    tokenizer = toy_tokenizer()
    size = len(tokenizer)
    order = torch.cat([torch.arange(6), 6 + torch.randperm(size - 6, generator=torch.Generator().manual_seed(0))])
    model.save_pretrained(other)
    weights = load_file(other / "model.safetensors")
    for name in [name for name in weights if "embed_tokens" in name or "lm_head" in name]:
        moved = weights[name].clone()
        moved[order] = weights[name]
        weights[name] = moved
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules["model"]["vocab"] = {word: int(order[number]) for word, number in rules["model"]["vocab"].items()}
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<|end|>"}
    moved = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(rules)), **special)
    moved.chat_template = tokenizer.chat_template
    moved.save_pretrained(other)
    found, plain = compared([run, other]), compared([run, place / "two"])
    assert any("other has other tokens than run" in note for note in found.notes)
    for one, two in zip(found.comparisons[0].answers, plain.comparisons[0].answers):
        assert [p.text for p in one.pieces] == [p.text for p in two.pieces]
        for name, same in (("first", "first"), ("run", "run"), ("other", "two")):
            assert one.totals[name] == pytest.approx(two.totals[same], abs=1e-3)
    first, second = found.comparisons[0].answers
    assert "other" not in first.pieces[0].logps and set(second.pieces[0].logps) == {"other"}
    assert page(found, [])  # an answer without colors is text


class Reader(HTMLParser):
    """Tags and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_text_as_text_and_needs_nothing():
    evil = "<script>alert('x')</script>\"&"
    piece = Piece(evil, {"a": -1.0, "b": -1.0, evil: -9.0, "r": -1.0})
    answers = [
        Answer(name, [piece, Piece(" calm", dict.fromkeys(piece.logps, -1.0))], 2, False, piece.logps) for name in "ab"
    ]
    found = Compared(["a", "b"], [evil, "r"], [Comparison(evil, answers)], [evil])
    text = page(found, [evil])
    reader = Reader()
    reader.feed(text)
    assert "script" not in reader.tags and reader.text.count(evil) >= 5
    assert not any(name.startswith("on") or name in ("src", "href") for name, _ in reader.attributes)
    colors = [value for name, value in reader.attributes if name == "style"]
    assert "--h:28;--a:1.00" in colors  # r, the second voice, eight nats above the first
    assert len(re.findall('class="t"', text)) == 4 and text.count("--a:") == 4  # two keys, two colored tokens
    assert [strength(nats) for nats in (0, 0.49, 4, 40)] == [0, 0, 1, 1] and 0.25 <= strength(0.5) < strength(1) < 1


def test_the_command(place, run, multiref, capsys):
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "ada has 4 pens . how many ?"}) + "\n")
    Path("prompts.txt").write_text("\nben has 5 . how many ?\n\n")
    arguments = ["compare", run, place / "two", PROMPT, "max_new_tokens=5", "device=cpu"]
    assert multiref(*arguments, "--prompts", "prompts.jsonl", "--html", "out.html") == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert PROMPT in out and "ada has 4 pens" in out and "log ratio to two" in out and "first" in out
    assert "run beside two" in Path("out.html").read_text()
    assert multiref("compare", run, place / "two", "--prompts", "prompts.txt", "max_new_tokens=3", "device=cpu") == 0
    assert "ben has 5 . how many ?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["one", "two"], 'nothing to answer: give a prompt in quotation marks, "PROMPT", or --prompts FILE.'),
        (["one", "nowhere", "x"], "nowhere is neither a run nor a model"),
        (["one", "judge", "x"], "judge lacks 1 weights of a Qwen2ForCausalLM"),
        (["one", "two", "x", "temprature=1"], "compare has no setting 'temprature'; did you mean 'temperature'"),
        (["one", "two", "x", "seed=a"], "seed is 'a'; give a number."),
        (["one", "two", "x", "max_new_tokens=0"], "max_new_tokens is 0; give 1 or more."),
        (["one", "two", "x", "temperature=-1"], "temperature"),
        (["one", "two", "x", "--html", "one"], "--html"),
        (["one", "two", "--prompts", "none.txt"], "none.txt cannot be read"),
        (["one", "two", "x <|user|> y"], "control token"),
        (["one", "two", "x", "--seed", "3"], "settings are written without dashes"),
    ],
)
def test_refused_in_a_sentence(place, multiref, capsys, arguments, sentence):
    names = [str(place / one) if one in ("one", "two", "judge") else one for one in arguments]
    assert multiref("compare", *names) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
