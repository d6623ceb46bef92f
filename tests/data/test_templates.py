"""The shapes of the templates that people bring: prompt and response are the ids of the rendered conversation."""

import pytest

from multiref_cli.config.schema import Data
from multiref_cli.data.chat import conversation_ids, end_ids, prompt_ids, prompt_text, shape_of
from multiref_cli.data.demonstrations import parse_demonstration
from multiref_cli.data.made import BadRow
from multiref_cli.data.preferences import parse_pair
from multiref_cli.data.probe import verdict
from multiref_cli.data.prompts import parse_prompt
from multiref_cli.data.template import Rendering, attach, render
from multiref_cli.errors import RequestError
from multiref_cli.references.tokens import response_ids, template_fingerprint

LOOP = "{%- for m in messages %}"
HEAD = "{%- if add_generation_prompt %}"
SPECIALS = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|head|>", "<|headend|>", "<|eot|>", "<bos>", "<turn>",
    "<endturn>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<U>", "<A>", "<eos>",
]  # fmt: skip
CHATML = LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
OPEN = HEAD + "{{ '<|im_start|>assistant\n' }}{%- endif %}"
DEFAULT = "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif %}"
THOUGHT = (
    "{%- set thought = m.reasoning_content | default('') %}{%- set text = m.content %}"
    "{%- if '</think>' in text %}{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
)
QWEN3 = (
    "{%- if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{%- endif %}"
    + LOOP
    + "{%- if m.role == 'assistant' %}"
    + THOUGHT
    + "{{ '<|im_start|>assistant\n' }}{%- if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}"
    "{{ text }}{%- for c in m.tool_calls or [] %}{{ '<call>' + (c.function | tojson) + '</call>' }}{%- endfor %}"
    "{{ '<|im_end|>\n' }}{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}"
    + HEAD
    + "{{ '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
LLAMA3 = (
    "{{ '<|begin|>' }}{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set today = 'never' %}{%- endif %}{{ '<|head|>system<|headend|>\n\nToday: ' + today + '\n\n' }}"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content | trim }}{%- endif %}{{ '<|eot|>' }}"
    + LOOP
    + "{%- if m.role != 'system' %}{{ '<|head|>' + m.role + '<|headend|>\n\n' + (m.content | trim) + '<|eot|>' }}"
    "{%- endif %}{%- endfor %}" + HEAD + "{{ '<|head|>assistant<|headend|>\n\n' }}{%- endif %}"
)
GEMMA3 = (
    "{{ '<bos>' }}{%- if messages[0].role == 'system' %}{%- set first = messages[0].content + '\n\n' %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set first = '' %}{%- set rest = messages %}{%- endif %}"
    "{%- for m in rest %}{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first "
    "else '') + (m.content | trim) + '<endturn>\n' }}{%- endfor %}" + HEAD + "{{ '<turn>model\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ '<s>' }}" + LOOP + "{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{%- elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{%- else %}{{ raise_exception('no ' + m.role) }}"
    "{%- endif %}{%- endfor %}"
)
LLAMA2 = MISTRAL.replace("m.content + '</s>'", "m.content + ' </s>'")
PHI = (
    LOOP + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor %}" + HEAD + "{{ '<|assistant|>\n' }}"
    "{%- else %}{{ '<|endoftext|>' }}{%- endif %}"
)
R1 = (
    "{{ '<s>' }}" + LOOP + "{%- if m.role == 'system' %}{{ m.content }}{%- elif m.role == 'user' %}"
    "{{ '<U>' + m.content }}{%- else %}{{ '<A>' + m.content.split('</think>')[-1] + '<eos>' }}{%- endif %}{%- endfor %}"
    + HEAD
    + "{{ '<A><think>\n' }}{%- endif %}"
)
ZEPHYR = (
    LOOP + "{{ '[' + m.role + ']\n' + m.content + '</s>\n' }}{%- endfor %}" + HEAD + "{{ '[assistant]\n' }}{%- endif %}"
)
# template, its eos token, text before a response, token that ends it, what the generation prompt opens
FAMILIES = {
    "qwen2.5": (DEFAULT + CHATML + OPEN, "<|im_end|>", "", "<|im_end|>", ""),
    "qwen3": (QWEN3, "<|im_end|>", "<think>\n\n</think>\n\n", "<|im_end|>", ""),
    "llama3": (LLAMA3, "<|eot|>", "", "<|eot|>", ""),
    "gemma3": (GEMMA3, "<eos>", "", "<endturn>", ""),
    "mistral": (MISTRAL, "</s>", " ", "</s>", ""),
    "llama2": (LLAMA2, "</s>", " ", "</s>", ""),
    "smollm2": (DEFAULT + CHATML + OPEN, "<|im_end|>", "", "<|im_end|>", ""),
    "smollm3": (QWEN3.replace("{%- if tools", "{{ strftime_now('%d %B %Y') }}{%- if tools"), "<|im_end|>",
                "<think>\n\n</think>\n\n", "<|im_end|>", ""),
    "phi": (PHI, "<|endoftext|>", "", "<|end|>", ""),
    "r1": (R1, "<eos>", "", "<eos>", "<think>\n"),
    "zephyr": (ZEPHYR, "</s>", "", "</s>", ""),
}  # fmt: skip
ASKED = [{"role": "user", "content": "Why?"}]
HISTORY = [*ASKED, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
ANSWERS = ["Four", "\nFour ", "four  lines\n\nof <b>text</b>", "i", "<thin soup", "t</think>"]


def tokenizer_of(template, eos, kind="bytes"):
    """Bytes, newlines split as by Llama 3 or GPT-2; SentencePiece, its space before each piece, the first, the text."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind in ("bytes", "gpt2"):
        merges = [("Ċ", "Ċ"), ("Ġ", "F"), ("F", "o")]
        ids = {t: i for i, t in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
        backend = Tokenizer(models.BPE(ids, merges))
        words = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\s+(?!\S)| ?\S+|\s+"), "isolated")
        split = kind == "gpt2"
        one = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
        backend.pre_tokenizer = one if split else pre_tokenizers.Sequence([words, one])
        backend.decoder = decoders.ByteLevel()
    else:
        letters = ["<unk>", "▁", "\n", *map(chr, range(33, 127)), "▁F", "▁f"]
        merges = [("▁", "F"), ("▁", "f")]
        backend = Tokenizer(models.BPE({t: i for i, t in enumerate(letters)}, merges, unk_token="<unk>"))
        if kind == "normalizer":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, chat_template=template)


@pytest.fixture(scope="module", params=["bytes", "always", "first", "normalizer"])
def kind(request):
    return request.param


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_response_are_the_ids_of_the_rendered_conversation(family, kind):
    template, eos, lead, end, opening = FAMILIES[family]
    tokenizer = tokenizer_of(template, eos, kind)
    shape = shape_of(tokenizer)
    assert (shape.lead, shape.opening, tokenizer.convert_ids_to_tokens(end_ids(tokenizer)[0])) == (lead, opening, end)
    for messages in (ASKED, HISTORY):
        for answer in ANSWERS[:4]:
            prompt, (completion,) = conversation_ids(tokenizer, messages, [answer])
            turn = {"role": "assistant", "content": answer}
            whole = tokenizer(render(tokenizer, [*messages, turn], False), add_special_tokens=False)["input_ids"]
            assert prompt + completion == whole[: len(prompt + completion)]
            assert completion[-1] == end_ids(tokenizer)[0]
            if not opening and answer != "\nFour ":
                assert prompt == prompt_ids(tokenizer, messages)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_every_response_is_scored_whole(family, answer):
    template, eos, *_ = FAMILIES[family]
    tokenizer = tokenizer_of(template, eos)
    prompt, (completion,) = conversation_ids(tokenizer, ASKED, [answer])
    assert "".join(answer.split()) in "".join(str(tokenizer.decode(completion)).split())
    text = str(tokenizer.decode(prompt))
    assert prompt_text(tokenizer, ASKED).startswith(text)
    open_ended = conversation_ids(tokenizer, ASKED, [answer], finished=False)[1][0]
    assert not set(open_ended) & set(end_ids(tokenizer)) and open_ended == completion[: len(open_ended)]


def test_responses_share_a_prompt_where_one_of_them_goes_on_with_the_thinking_block():
    tokenizer = tokenizer_of(R1, "<eos>")
    thinking, plain = "<think>\nhm\n</think>\n\nFour", "Four"
    prompt, both = conversation_ids(tokenizer, ASKED, [thinking, plain])
    assert tokenizer.decode(prompt) == "<s><U>Why?<A>"
    assert [tokenizer.decode(ids) for ids in both] == [thinking + "<eos>", plain + "<eos>"]
    prompt, (alone,) = conversation_ids(tokenizer, ASKED, [thinking])
    assert prompt == prompt_ids(tokenizer, ASKED) and tokenizer.decode(alone) == "hm\n</think>\n\nFour<eos>"


def test_arguments_of_a_template_move_the_empty_thinking_block_into_the_prompt():
    tokenizer = tokenizer_of(QWEN3, "<|im_end|>")
    plain = conversation_ids(tokenizer, ASKED, ["Four"])
    before = template_fingerprint(tokenizer)
    attach(tokenizer, Rendering(arguments={"enable_thinking": False}))
    prompt, (completion,) = conversation_ids(tokenizer, ASKED, ["Four"])
    assert tokenizer.decode(completion) == "Four<|im_end|>" and prompt + completion == plain[0] + plain[1][0]
    assert template_fingerprint(tokenizer) != before and "enable_thinking=False" in verdict(tokenizer)
    attach(tokenizer, Rendering(arguments={"enable_thinkin": False}))
    assert template_fingerprint(tokenizer) == before and "does not read enable_thinkin" in verdict(tokenizer)


def test_the_date_of_a_template_stands_still():
    tokenizer = tokenizer_of(LLAMA3, "<|eot|>")
    assert "Today: 26 Jul 2024\n" in prompt_text(tokenizer, ASKED)
    before = template_fingerprint(tokenizer)
    attach(tokenizer, Rendering(date="2026-01-02"))
    assert "Today: 02 Jan 2026\n" in prompt_text(tokenizer, ASKED)
    assert template_fingerprint(tokenizer) != before and "taken to be 2026-01-02" in verdict(tokenizer)


def test_reasoning_tools_and_calls_are_rendered():
    tokenizer, data = tokenizer_of(QWEN3, "<|im_end|>"), Data(name="d", path="")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"unit": None}}}
    call = {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    turns = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
    ]
    answer = [{"role": "assistant", "content": "It rains.", "reasoning_content": "look"}]
    row = {"prompt": turns, "completion": answer, "tools": [tool]}
    found = parse_demonstration(1, row, data, tokenizer)
    text, said = tokenizer.decode(found.prompt), tokenizer.decode(found.completion)
    assert '"name": "weather"' in text and '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call>' in text
    assert "unit" not in text and text.count("rain") == 1
    assert said == "<think>\nlook\n</think>\n\nIt rains.<|im_end|>"
    asked = parse_prompt(1, {"prompt": turns, "tools": [tool]}, data, tokenizer)
    assert asked.ids == found.prompt
    calls = {"prompt": turns[:1], "chosen": turns[1:2], "rejected": "no idea", "tools": [tool]}
    pair = parse_pair(1, calls, data, tokenizer)
    assert tokenizer.decode(pair.chosen) == (
        '<think>\n\n</think>\n\n<call>{"name": "weather", "arguments": {"city": "Rome"}}</call><|im_end|>'
    )
    told = parse_prompt(1, {"prompt": "a", "chat_template_kwargs": {"enable_thinking": False}}, data, tokenizer)
    assert tokenizer.decode(told.ids).endswith("</think>\n\n")


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "a", "tools": [{"function": {"name": "weather"}}]}, "leaves out tools"),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "weather"}}]}, {"role": "tool", "content": "b"}]}, "leaves out tool_calls"),
        ({"prompt": "a", "tools": "no list"}, "wrong type"),
    ],
)  # fmt: skip
def test_what_a_template_does_not_write_costs_the_row(row, reason):
    tokenizer = tokenizer_of(CHATML + OPEN, "<|im_end|>")
    with pytest.raises(BadRow, match=reason):
        parse_prompt(1, row, Data(name="d", path=""), tokenizer)
    silent = tokenizer_of(CHATML.replace("{%- for", "{%- for m in messages[:0] %}{%- endfor %}{%- for") + OPEN, "</s>")
    assert verdict(silent)
    only_last = tokenizer_of("{%- set m = messages[-1] %}{{ m.content + '<|im_end|>' }}", "<|im_end|>")
    with pytest.raises(RequestError, match="does not write what user and assistant say"):
        verdict(only_last)


def test_reasoning_that_a_template_does_not_know_is_refused():
    tokenizer = tokenizer_of(CHATML + OPEN, "<|im_end|>")
    answer = [{"role": "assistant", "content": "b", "reasoning_content": "hm"}]
    with pytest.raises(RequestError, match="leaves out the reasoning_content"):
        parse_demonstration(1, {"prompt": "a", "completion": answer}, Data(name="d", path=""), tokenizer)


def test_the_verdict_says_what_a_template_does():
    said = {name: verdict(tokenizer_of(template, eos)) for name, (template, eos, *_) in FAMILIES.items()}
    assert all("prompt and response are the ids of the rendered conversation" in text for text in said.values())
    assert "it writes 'You help.'" not in said["phi"] and "You help." in said["qwen2.5"]
    assert "'<think>\\n\\n</think>\\n\\n' before a response" in said["qwen3"]
    assert "opens '<think>\\n'" in said["r1"] and "refuses a system turn" in said["mistral"]
    assert "writes a date" in said["llama3"] and "writes a date" in said["smollm3"]
    assert "ends with <endturn> (or <eos>)" in said["gemma3"] and "ends with <|end|> (or <|endoftext|>)" in said["phi"]
    assert "no chat template" in verdict(tokenizer_of(None, "</s>"))


def test_a_foreign_reference_reads_the_thinking_block_that_the_policy_opened():
    policy, other = tokenizer_of(R1, "<eos>"), tokenizer_of(CHATML + OPEN, "<|im_end|>")
    sampled = shape_of(policy).opening + "hm\n</think>\n\nFour"
    prompt, completion = response_ids(other, ASKED, sampled, finished=True)
    assert other.decode(prompt).endswith("assistant\n")
    assert other.decode(completion) == "<think>\nhm\n</think>\n\nFour<|im_end|>"


def test_without_a_template_a_response_follows_its_prompt(kind):
    tokenizer = tokenizer_of(None, "</s>", kind)
    asked = [{"role": "user", "content": "Question: why?\nAnswer:"}]
    prompt, (completion,) = conversation_ids(tokenizer, asked, [" Four"])
    whole = tokenizer(asked[0]["content"] + " Four", add_special_tokens=False)["input_ids"]
    assert prompt + completion == [*whole, tokenizer.eos_token_id]


def test_a_token_over_the_border_belongs_to_the_response():
    """GPT-2 splits two newlines before a word and joins them at the end of a text."""
    tokenizer = tokenizer_of(LLAMA3, "<|eot|>", "gpt2")
    assert "the first token of a response holds the end of the prompt too" in verdict(tokenizer)
    prompt, both = conversation_ids(tokenizer, ASKED, ["Four", "  five"])
    asked = prompt_ids(tokenizer, ASKED)
    assert prompt == asked[:-1] and {str(tokenizer.decode(ids)) for ids in both} == {
        "\n\nFour<|eot|>",
        "\n\nfive<|eot|>",
    }
