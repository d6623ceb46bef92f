"""One rule from messages to ids: what a prompt holds, where a completion ends, and what is scored."""

import pytest

from multiref_cli.data.chat import completion_mask, conversation_ids, end_ids, prompt_ids, prompt_text
from multiref_cli.errors import RequestError

from .conftest import byte_tokenizer


def completion_ids(tokenizer, text):
    return conversation_ids(tokenizer, QUESTION, [text])[1][0]


QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def test_prompt_ends_where_the_assistant_begins(chatml):
    assert prompt_text(chatml, QUESTION) == "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert chatml.decode(prompt_ids(chatml, QUESTION)) == prompt_text(chatml, QUESTION)


def test_template_newline_behind_the_end_token_is_never_scored(chatml):
    ids = completion_ids(chatml, "Four")
    assert chatml.decode(ids) == "Four<|im_end|>"
    turns = [*QUESTION, {"role": "assistant", "content": "Four"}]
    whole = chatml.apply_chat_template(turns, tokenize=False)
    assert whole == chatml.decode(prompt_ids(chatml, QUESTION) + ids) + "\n"


def test_end_of_turn_comes_from_the_template_not_from_eos():
    # As Qwen's base models: the template ends turns with <|im_end|> while eos is <|endoftext|>; both end a completion.
    tokenizer = byte_tokenizer(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    im_end, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert end_ids(tokenizer) == [im_end, eos]
    assert completion_ids(tokenizer, "x")[-1] == im_end


def test_a_separator_ends_a_text_where_there_is_no_eos():
    # As of BERT, the trunk of a small reward model.
    tokenizer = byte_tokenizer(template=None, eos_token=None, sep_token="<|im_end|>")
    assert tokenizer.eos_token_id is None
    assert end_ids(tokenizer) == [tokenizer.sep_token_id]
    assert tokenizer.decode(completion_ids(tokenizer, "Four")) == "Four<|im_end|>"
    with pytest.raises(RequestError, match="set its eos_token"):
        end_ids(byte_tokenizer(template=None, eos_token=None))


def test_end_follows_a_changed_template():
    tokenizer = byte_tokenizer(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    assert len(end_ids(tokenizer)) == 2
    tokenizer.chat_template = None
    assert end_ids(tokenizer) == [tokenizer.eos_token_id]


def test_without_a_template_the_contents_are_concatenated():
    tokenizer = byte_tokenizer(template=None)
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    assert tokenizer.decode(prompt_ids(tokenizer, messages)) == "Be brief.\nWhat is 2 + 2?"


def test_without_a_template_the_opening_token_stays_and_the_closing_one_goes():
    from tokenizers import processors

    tokenizer = byte_tokenizer(template=None, bos_token="<|im_start|>")
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", start), ("<|im_end|>", end)]
    )
    ids = prompt_ids(tokenizer, QUESTION)
    assert ids[0] == start and end not in ids
    assert start not in completion_ids(tokenizer, "Four")


def test_no_way_to_end_a_turn_is_refused():
    with pytest.raises(RequestError, match="eos"):
        end_ids(byte_tokenizer(template=None, eos_token=None, pad_token=None))


def test_a_template_that_refuses_names_the_roles():
    tokenizer = byte_tokenizer(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x<|im_end|>"
    )
    with pytest.raises(RequestError, match=r"system, user.*no system"):
        prompt_ids(tokenizer, [{"role": "system", "content": "Be brief."}, *QUESTION])


@pytest.mark.parametrize("answer", ["Four", "Ça fait 4 €", "😀 四"])
def test_mask_scores_the_completion_alone_and_loses_no_character(chatml, answer):
    prompt, completion = prompt_ids(chatml, QUESTION), completion_ids(chatml, answer)
    pieces = completion_mask(chatml, prompt, completion)
    assert "".join(text for text, scored in pieces if scored) == answer + "<|im_end|>"
    assert "".join(text for text, scored in pieces if not scored) == prompt_text(chatml, QUESTION)
    assert not any("\ufffd" in text for text, _ in pieces)


def test_toy_tokenizer_is_under_the_same_rule(toy):
    assert toy.decode(prompt_ids(toy, [{"role": "user", "content": "max has 12 books"}])) == (
        "<|user|> max has 12 books <|assistant|>"
    )
    assert end_ids(toy) == [toy.eos_token_id] and toy.pad_token_id != toy.eos_token_id
