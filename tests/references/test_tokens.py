"""Which references fit a policy, and what happens with those of another tokenizer."""

import pytest
import torch

from multiref_cli.config.schema import Level, ReferenceSpec
from multiref_cli.data.chat import prompt_ids
from multiref_cli.errors import RequestError
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import pack
from multiref_cli.references.base import references_of
from multiref_cli.references.tokens import (
    check_compatible,
    first_difference,
    rescored_ids,
    template_fingerprint,
    tokenizer_fingerprint,
)


def test_the_same_tokenizer_gives_the_shared_vocabulary(tokenizer, references):
    others = {r.name: load_tokenizer(r) for r in references}
    assert check_compatible(tokenizer, others, Level.token) == len(tokenizer)


def test_another_tokenizer_is_refused_at_token_level_naming_the_first_token(tokenizer, foreign):
    other = {"foreign": load_tokenizer(foreign)}
    with pytest.raises(
        RequestError, match=r"reference foreign .* token '<pad>' is id 0 for the policy and no token there"
    ):
        check_compatible(tokenizer, other, Level.token)
    assert check_compatible(tokenizer, other, Level.sequence) == len(tokenizer)


def test_one_moved_token_is_found_and_further_tokens_are_not_held_against_a_reference(tokenizer, references):
    further = load_tokenizer(references[0])
    further.add_tokens(["more"])
    assert first_difference(tokenizer, further) is None
    assert "'more' is id 89 for the policy and no token there" in first_difference(further, tokenizer)


def test_fingerprints_follow_rules_and_template(tokenizer, references, foreign):
    same, other = load_tokenizer(references[0]), load_tokenizer(foreign)
    same(["a text", "another"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(other)
    assert template_fingerprint(same) == template_fingerprint(tokenizer) != template_fingerprint(other)


def test_a_text_under_other_tokens(tokenizer, foreign, sequences):
    """One id a character; the end token only where the response had one."""
    other = load_tokenizer(foreign)
    prompt, completion = rescored_ids(sequences[0], tokenizer, other)
    assert prompt == prompt_ids(other, sequences[0].messages) != list(sequences[0].prompt)
    assert other.decode(completion[:-1]).replace(" ", "") == sequences[0].text.replace(" ", "")
    assert completion[-1] == other.eos_token_id
    _, cut = rescored_ids(sequences[-1], tokenizer, other)
    assert cut[-1] != other.eos_token_id
    assert len(cut) == len(tokenizer.decode(sequences[-1].completion))


def test_adapters_of_one_base_share_its_memory(tmp_path, references):
    peft = pytest.importorskip("peft")
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = peft.get_peft_model(
            load_causal_lm(references[0], trainable=True), peft.LoraConfig(r=2, target_modules="all-linear")
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        folders.append(tmp_path / f"adapter{seed}")
        model.save_pretrained(folders[-1])
    base = references[0].path
    wanted = [
        ReferenceSpec(path=base, name="a", adapter=str(folders[0])),
        ReferenceSpec(path=base, name="bare"),
        ReferenceSpec(path=base, name="b", adapter=str(folders[1])),
        references[2],
    ]
    models = [reference.model for reference in references_of(wanted, together=True)]
    assert models[0].model is models[1].model is models[2].model
    packed = pack([[5, 6, 7]], [[[8, 9, 10], [11]]], 0, False)
    with torch.no_grad():
        for _ in range(2):  # whatever was switched on before
            for model, reference in zip(models, wanted, strict=True):
                alone = token_logps(load_causal_lm(reference), packed).logps
                torch.testing.assert_close(token_logps(model, packed).logps, alone, rtol=1e-4, atol=1e-4)
