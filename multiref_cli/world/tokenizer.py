"""The word-level tokenizer of the mini-GSM world: one token a word, one token a digit, with a chat template."""

from typing import TYPE_CHECKING

from multiref_cli.world.problems import CLOSINGS, MINUS, NAMES, OBJECTS, PLUS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END, USER, ASSISTANT, SYSTEM = "<pad>", "<unk>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vocabulary() -> list[str]:
    """The words of the world in the order of their ids; pad is 0, unknown 1, end of turn 2."""
    special = [PAD, UNKNOWN, END, USER, ASSISTANT, SYSTEM]
    words = ["has", "then", "how", "many", ".", "?", "+", "-", "=", ";", "####"]
    closings = dict.fromkeys(word for closing in CLOSINGS for word in closing.split())
    return [*special, *"0123456789", *words, *PLUS, *MINUS, *NAMES, *OBJECTS, *closings]


def tokenizer() -> "PreTrainedTokenizerFast":
    """Build the tokenizer; `decode` gives back the very text that was encoded, numbers in one piece.

    Returns:
        A tokenizer whose end of turn is its eos token and whose pad token is another. Saved in a folder whose
        config.json says `qwen2`, it must be loaded as PreTrainedTokenizerFast: AutoTokenizer would take the Qwen2 class
        from the config, ignore tokenizer.json and return empty ids without an error.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocabulary())}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    # WordLevel decodes with a space between tokens; digits that follow each other belong to one number.
    words.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"\A(?=.)"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=\d) (?=\d)"), ""),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
