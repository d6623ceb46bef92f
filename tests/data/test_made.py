"""Rows that helpers make are those that this process makes, bit for bit, in order, whatever happens to them."""

import pytest

from multiref_cli.config.schema import Data
from multiref_cli.data import made as module
from multiref_cli.data import rows
from multiref_cli.data.chat import conversation_ids, end_ids, prompt_text, text_ids
from multiref_cli.data.encode import prompt_key
from multiref_cli.data.made import Encoder, Helpers, Maker, made
from multiref_cli.data.preferences import load_preferences, parse_pair
from multiref_cli.data.template import Rendering, attach
from tests.data.conftest import CHATML, byte_tokenizer

# Date and arguments that a run gives its template, the response trimmed, and a system turn that must come first.
STRICT = (
    "{{ strftime_now('%d %b %Y') }}{{ mood }}\n{% for m in messages %}"
    "{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["", " ", "a <|im_end|> b", "two\nlines ", "  ünïcode 漢字 \U0001f600", "half \ud800", "w" * 300, "x<|im_end|>"]
TALKS = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1."}, {"role": "user", "content": "2?"}],
    [{"role": "user", "content": "1?"}, {"role": "system", "content": "late"}, {"role": "user", "content": "2?"}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "say <|im_start|>system"}],
]
ROWS = [{"prompt": p, "chosen": f"{c}", "rejected": "no", "score_chosen": 1, "score_rejected": 2}
        for p in [*TEXTS, *TALKS, "why"] for c in [*TEXTS, "yes"]]  # fmt: skip
NUMBERED = list(enumerate(ROWS, 1))


def _encoder(tokenizer, **settings):
    attach(tokenizer, Rendering("2020-02-02", {"mood": "calm"}), (1,))
    return Encoder(parse_pair, Data(name="t", path="x", max_prompt_tokens=200, **settings), tokenizer)


def _here(maker):
    return [maker(*row) for row in NUMBERED]


def _helped(maker, recipe, count=1, size=30):
    helpers = Helpers(maker, recipe, count)
    try:
        return [
            one
            for chunk in helpers.made(NUMBERED[i : i + size] for i in range(0, len(NUMBERED), size))
            for one in chunk
        ]
    finally:
        helpers.close()


@pytest.mark.parametrize("template", [STRICT, None], ids=["template", "no template"])
def test_helpers_make_the_same_bytes(template, monkeypatch):
    encoder = _encoder(byte_tokenizer(template, bos_token="<|endoftext|>"), max_completion_tokens=250)
    maker = Maker(encoder, prompt_key, 3)
    wanted = _here(maker)
    used = [one.problem for one in wanted]
    reasons = {problem.split(":")[0] for problem in used if problem}
    assert {"control token in prompt", "empty chosen", "chosen is no Unicode text"} <= reasons and used.count(None) > 20
    assert ("refused" in reasons) == (template is not None) and any(one.truncated for one in wanted)
    own = []
    monkeypatch.setattr(Maker, "__call__", lambda *_: own.append(1))  # what is made here is made wrongly
    assert _helped(maker, encoder.recipe, count=2) == wanted and not own


def test_what_a_batch_of_texts_gives_is_what_each_gives_alone():
    for template in (CHATML, STRICT):
        tokenizer = byte_tokenizer(template)
        attach(tokenizer, Rendering())
        for talk in ([{"role": "user", "content": "Hi"}], *TALKS[:2], TALKS[4]):
            both = ["yes", "", "  no ", "a <|im_end|> b", TEXTS[4]]
            prompt, completions = conversation_ids(tokenizer, talk, both)
            opened = prompt_text(tokenizer, talk)
            assert conversation_ids(tokenizer, talk, both, opened=(opened, text_ids(tokenizer, opened))) == (
                prompt,
                completions,
            )
            for response, ids in zip(both, completions):
                said = response.strip() if template is STRICT else response
                alone = text_ids(tokenizer, f"{opened}{said}<|im_end|>")
                assert prompt + ids == alone and ids[-1] in end_ids(tokenizer)


def test_a_chunk_whose_helper_is_gone_is_made_here():
    encoder = _encoder(byte_tokenizer())
    maker = Maker(encoder, prompt_key, 0)
    wanted = _here(maker)
    assert _helped(maker, "another recipe") == wanted
    helpers = Helpers(maker, encoder.recipe, 1)
    chunks = iter([NUMBERED[:100], NUMBERED[100:]])
    first = helpers._make(next(chunks))
    helpers._all[0].kill()
    assert first + helpers._make(next(chunks)) == wanted
    helpers.close()
    local = Maker(Encoder(lambda *given: parse_pair(*given), encoder.data, encoder.tokenizer), prompt_key, 0)
    assert _helped(local, "cannot be sent") == wanted


def test_helpers_are_asked_only_where_they_save_time(monkeypatch):
    asked = []

    class Spy(Helpers):
        def __init__(self, maker, recipe, count):
            asked.append((recipe, count))
            super().__init__(maker, recipe, 0)

    maker = Maker(_encoder(byte_tokenizer()), prompt_key, 0)
    monkeypatch.setattr(module, "Helpers", Spy)
    monkeypatch.setattr(module, "CHUNK", 50)
    for seconds, recipe, count in [(0.0, "r", 3), (3600.0, "r", 3), (0.0, None, 3), (0.0, "r", 1)]:
        monkeypatch.setattr(module, "WORTH_SECONDS", seconds)
        monkeypatch.setattr(module, "helpers", lambda count=count: count)
        found = [one for chunk in made(NUMBERED, maker, recipe) for one in chunk]
        assert found == _here(maker)
    assert asked == [("r", 3)]


class _Bar:
    """Notes what is said."""

    def __init__(self):
        self.seen = []

    def note(self, text):
        raise AssertionError(text)

    def advance(self, phase, done, total, **figures):
        self.seen.append((phase, done, total, figures))


def test_a_bar_counts_rows_and_tokens_a_second_from_the_first_rows_on(write, config, monkeypatch, chatml):
    path = write([{"prompt": f"Sum {n}?", "chosen": f"{n}", "rejected": "no"} for n in range(90)])
    monkeypatch.setattr(module, "CHUNK", 40)
    quiet, bar = _Bar(), _Bar()
    load_preferences(config(path), chatml, quiet)
    monkeypatch.setattr(rows, "_LONG", 0.0)
    split = load_preferences(config(path), chatml, bar)
    assert quiet.seen == [] and [seen[:3] for seen in bar.seen] == [
        ("tokenize", 40, 90),
        ("tokenize", 80, 90),
        ("tokenize", 90, 90),
    ]
    assert all(seen[3]["tokens_per_second"] > 0 for seen in bar.seen) and len(split.train) == 90
