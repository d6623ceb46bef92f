"""Reward-model scores: at the last real token, the same in every batch and padding, even where pad is eos."""

import pytest
import torch

from multiref_cli.data.chat import conversation_ids
from multiref_cli.errors import RequestError, RunError
from multiref_cli.rewards.model import RewardModelScorer, reward_model, sequence_scores
from multiref_cli.rewards.sample import Sample
from multiref_cli.world import tokenizer as toy_tokenizer

SMALL = {
    "vocab_size": 89,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_labels": 1,
    "max_position_embeddings": 64,
}


def classifier(kind="llama", **keys):
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=89, n_embd=16, n_layer=2, n_head=2, num_labels=1, **keys)
        return transformers.GPT2ForSequenceClassification(config).eval()
    if kind in ("bert", "roberta"):
        sizes = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
        config = getattr(transformers, f"{kind.title()}Config")(**sizes, **keys)
        return getattr(transformers, f"{kind.title()}ForSequenceClassification")(config).eval()
    name = {"llama": "Llama", "qwen2": "Qwen2"}[kind]
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **keys})
    return getattr(transformers, f"{name}ForSequenceClassification")(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer.tokenizer()


def texts(count=9):
    return [
        Sample([{"role": "user", "content": "max has 8 books . how many ?"}], " ; ".join(["8 - 6 = 2"] * (1 + i % 4)))
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "bert"])
def test_score_does_not_depend_on_the_batch(kind, tokenizer):
    model = classifier(kind)
    samples = texts()
    alone = [RewardModelScorer(model, tokenizer).score([sample])[0] for sample in samples]
    for batch_tokens in (1, 60, 10_000):
        together = RewardModelScorer(model, tokenizer, batch_tokens=batch_tokens).score(samples)
        assert together == pytest.approx(alone, abs=1e-6)
    assert len(set(alone)) > 1


def test_score_is_that_of_the_last_token_even_where_pad_is_eos(tokenizer):
    # Skywork's Llama heads: pad and eos are one token, so searching for the pad id reads one token early.
    model = classifier(pad_token_id=2, eos_token_id=2)
    prompt, (completion,) = conversation_ids(tokenizer, texts()[0].messages, ["8 - 6 = 2"])
    ids = prompt + completion
    assert ids[-1] == tokenizer.eos_token_id == 2
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        expected = model.score(hidden)[0, :, 0]
        theirs = model(torch.tensor([ids])).logits[0, 0]
        short, long = sequence_scores(model, [ids, [*ids, *ids]])
    assert torch.allclose(short, expected[-1], atol=1e-6)
    assert torch.allclose(theirs, expected[-2], atol=1e-6) and abs(float(theirs - short)) > 1e-5
    assert not torch.allclose(short, long, atol=1e-5)


def test_padding_agrees_with_a_forward_pass_without_padding():
    model = classifier(pad_token_id=0)
    sequences = [[5, 6, 7], [5, 0, 7, 0], list(range(10, 30)), [9]]
    with torch.no_grad():
        expected = [float(model.score(model.model(torch.tensor([s])).last_hidden_state)[0, -1, 0]) for s in sequences]
        assert sequence_scores(model, sequences).tolist() == pytest.approx(expected, abs=1e-6)
        left = [float(x) for x in sequence_scores(model, sequences[::-1])]
    assert left[::-1] == pytest.approx(expected, abs=1e-6)


def test_scores_are_float32_and_differentiable():
    model = classifier().to(torch.bfloat16)
    scores = sequence_scores(model, [[5, 6], [7, 8, 9]])
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert model.score.weight.grad is not None and model.score.weight.grad.abs().sum() > 0


def test_empty_sequence():
    with pytest.raises(RunError, match="empty"):
        sequence_scores(classifier(), [[1], []])


def test_several_outputs_are_refused(tokenizer):
    with pytest.raises(RequestError, match="has 3"):
        RewardModelScorer(classifier(num_labels=3), tokenizer)


def test_input_of_a_scorer(tokenizer):
    scorer = RewardModelScorer(classifier(), tokenizer)
    sample = texts()[0]
    prompt, (completion,) = conversation_ids(tokenizer, sample.messages, [sample.completion])
    assert scorer.encode(sample) == prompt + completion
    cut = Sample(sample.messages, sample.completion, finished=False)
    assert scorer.encode(cut) == scorer.encode(sample)[:-1]
    assert len(RewardModelScorer(classifier(), tokenizer, max_tokens=5).encode(sample)) == 5
    long = Sample(sample.messages, "8 - 6 = 2 ; " * 40)
    assert len(scorer.encode(long)) == 64


def test_whole_template_ends_as_the_template_does():
    tokenizer = toy_tokenizer.tokenizer()
    tokenizer.chat_template += "{% if not add_generation_prompt %};{% endif %}"
    sample = texts()[0]
    turn, whole = (
        RewardModelScorer(classifier(), tokenizer, whole_template=flag).encode(sample) for flag in (False, True)
    )
    assert whole == [*turn, tokenizer.convert_tokens_to_ids(";")]


def test_reward_model_by_path(tmp_path, tokenizer):
    model = classifier("qwen2", pad_token_id=0, eos_token_id=2)
    model.save_pretrained(str(tmp_path))
    tokenizer.save_pretrained(str(tmp_path))
    samples = texts()
    expected = RewardModelScorer(model, tokenizer).score(samples)
    assert reward_model(samples, path=str(tmp_path), device="cpu") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "tokens"), [("bert", 64), ("roberta", 62)])
def test_a_conversation_is_cut_to_the_positions_that_a_model_has(tokenizer, kind, tokens):
    """RoBERTa has two positions more than it reads: its first one is behind that of its padding."""
    scorer = RewardModelScorer(classifier(kind), tokenizer)
    (score,) = scorer.score([Sample([{"role": "user", "content": "one"}], "two " * 100)])
    assert scorer.cut == 1 and scorer.max_tokens == tokens and score == score
    assert sequence_scores(scorer.model, [[5] * tokens]).shape == (1,)


def test_inputs_that_two_reward_models_cut_are_counted_once(monkeypatch):
    from multiref_cli.config.schema import Reward, RewardTerm
    from multiref_cli.rewards.combine import build_reward

    model = classifier()
    monkeypatch.setattr("multiref_cli.rewards.model._open", lambda *given: (model, toy_tokenizer.tokenizer()))
    term = {"_target_": "multiref_cli.rewards.model.reward_model", "path": "x", "max_tokens": 4}
    for names in ("a", "ab"):
        score = build_reward(Reward(name="r", terms={name: RewardTerm(function=term) for name in names}))
        cut = score([Sample([{"role": "user", "content": "one"}], "two " * 9)] * 3).cut
        assert cut == 3 * len(names)
