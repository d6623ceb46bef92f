"""Loss and gradient beside TRL 1.16.0's DPOTrainer, computed by its own collator and compute_loss on one tiny model.

With one reference TRL scores the frozen model itself. With several, it is handed the mixed reference's values as the
columns that it would have precomputed. The model runs in float64 where TRL can (its alpha_divergence cannot); TRL's
head rounds token log-probabilities to float32 in any case, which the exponential of a log ratio magnifies.
"""

import copy

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import pack
from multiref_cli.objectives.divergence import kind_of
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.objectives.mrpo import TrustRegion, adjusted_references
from multiref_cli.objectives.preference import implicit_reward, multi_preference_loss, preference_loss

trl = pytest.importorskip("trl", reason="parity needs the dev extra: pip install 'multiref[dev]'")

BETA = 0.3
WORDS = 40
# TRL's name of the divergence -> order of the score. Its alpha_divergence of coefficient a has order 1 - a here.
REVERSE = {"f_divergence_type": "reverse_kl"}
FORWARD = {"f_divergence_type": "forward_kl"}
HELLINGER = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5}
QUARTER = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.75}
CHI2 = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2.0}
JENSEN_SHANNON = {"f_divergence_type": "js_divergence"}
IPO = {"loss_type": "ipo"}
WEIGHTS = {1: [1.0], 2: [0.3, 0.7], 3: [0.5, 0.2, 0.3]}


def dtype_of(settings: dict) -> torch.dtype:
    return torch.float32 if settings.get("f_divergence_type") == "alpha_divergence" else torch.float64


def tiny_model(seed: int) -> GPT2LMHeadModel:
    # GPT-2, because its layers stay in float64 (the norms of newer families go through float32)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=WORDS + 3,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config).eval()


def relative_of(model: GPT2LMHeadModel, seed: int) -> GPT2LMHeadModel:
    """A copy that moved a little, as references of one family do: about a nat apart on a response."""
    generator = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return copied


class World:
    """Four pairs of unequal lengths, a policy and three references, built once."""

    def __init__(self, folder) -> None:
        disable_progress_bars()
        vocabulary = {w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(WORDS))])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
        self.folder, self.policy = folder, tiny_model(0).double()
        self.references = [relative_of(self.policy, seed) for seed in (1, 2, 3)]
        generator = torch.Generator().manual_seed(4)
        lengths = [(3, 5, 6), (1, 7, 2), (6, 1, 4), (4, 6, 6)]
        texts = [[self.text(n, generator) for n in row] for row in lengths]
        self.rows = Dataset.from_list([{"prompt": p, "chosen": " " + c, "rejected": " " + r} for p, c, r in texts])

    def text(self, length: int, generator: torch.Generator) -> str:
        return " ".join(f"w{i}" for i in torch.randint(WORDS, (length,), generator=generator).tolist())

    def trainer(self, reference=None, **settings):
        """TRL's trainer; without a reference model it expects precomputed columns."""
        args = trl.DPOConfig(
            output_dir=str(self.folder),
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            beta=BETA,
            precompute_ref_log_probs=reference is None,
            **settings,
        )
        dtype = dtype_of(settings)
        return trl.DPOTrainer(
            model=copy.deepcopy(self.policy).to(dtype),
            ref_model=reference and copy.deepcopy(reference).to(dtype),
            args=args,
            train_dataset=self.rows,
            processing_class=self.tokenizer,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("trl"))


def logps(model, rows) -> torch.Tensor:
    """(2, N) log-probabilities of chosen and rejected, by multiref's packed pass."""
    prompts = [row["prompt_ids"] for row in rows]
    packed = pack(prompts, [(row["chosen_ids"], row["rejected_ids"]) for row in rows], pad_id=0, share_prompt=True)
    return token_logps(model, packed).logps.sum(-1).reshape(-1, 2).T


def mixed_columns(world, rows, count: int, order: float, trust_region=None, adaptive=False) -> torch.Tensor:
    with torch.no_grad():
        references = torch.stack([logps(model, rows) for model in world.references[:count]])
    weights = torch.tensor(WEIGHTS[count])
    *pair, weights = adjusted_references(references[:, 0], references[:, 1], weights, trust_region, adaptive)
    return torch.stack([power_mean(one, weights, order) for one in pair])


def ours(world, rows, mixed, order, loss="sigmoid", label_smoothing=0.0):
    """Loss and gradient of every parameter of the policy, as the DPO algorithm puts them together."""
    model = copy.deepcopy(world.policy)
    policy = logps(model, rows)
    if order != 0:
        assert (policy - mixed).abs().max() > 0.5 and not kind_of(order).is_clipped(policy - mixed, 10.0).any()
    chosen, rejected = implicit_reward(policy, mixed, BETA, order, clip=10.0)
    lengths = torch.tensor([[len(row[f"{side}_ids"]) for row in rows] for side in ("chosen", "rejected")])
    losses = preference_loss(chosen, rejected, loss, label_smoothing, BETA, lengths)
    return backward(model, losses.mean())


def theirs(trainer, rows, mixed=None):
    """The same by TRL; `mixed` stands in for the two columns of its precomputed reference log-probabilities."""
    batch = trainer.data_collator(rows)
    if mixed is not None:
        batch["ref_chosen_logps"], batch["ref_rejected_logps"] = mixed.to(trainer.model.dtype)
    trainer.model.zero_grad()
    return backward(trainer.model, trainer.compute_loss(trainer.model, batch))


def backward(model, loss) -> tuple[float, dict[str, torch.Tensor]]:
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found, expected) -> None:
    """Loss to 1e-6 and gradient to 1e-5, relative where they are above 1."""
    loss_error = abs(found[0] - expected[0]) / max(1.0, abs(expected[0]))
    assert found[1].keys() == expected[1].keys() and len(found[1]) > 10
    largest = max(g.abs().max().item() for g in expected[1].values())
    error = max((found[1][n] - g).abs().max().item() for n, g in expected[1].items()) / max(1.0, largest)
    print(f"loss {expected[0]:.3f} differs by {loss_error:.1e}, gradient (up to {largest:.3f}) by {error:.1e}")
    assert largest > 1e-3
    assert loss_error <= 1e-6
    assert error <= 1e-5


def plain_rows(trainer) -> list[dict]:
    return [{k: row[k] for k in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in trainer.train_dataset]


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        (REVERSE, 0.0),
        (FORWARD, 1.0),
        (HELLINGER, 0.5),
        (QUARTER, 0.25),
        (CHI2, -1.0),
        (JENSEN_SHANNON, "jensen_shannon"),
        (IPO, 0.0),
        ({**IPO, **FORWARD}, 1.0),
        ({**IPO, **HELLINGER}, 0.5),
    ],
)
def test_one_reference(world, settings, order):
    trainer = world.trainer(reference=world.references[0], **settings)
    rows = plain_rows(trainer)
    mixed = mixed_columns(world, rows, 1, 0.0)
    found = ours(world, rows, mixed, order, settings.get("loss_type", "sigmoid"))
    assert_equal(found, theirs(trainer, rows))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("settings", "mean_order", "score_order"),
    [
        (REVERSE, 0.0, 0.0),
        (FORWARD, 1.0, 1.0),
        (HELLINGER, 0.5, 0.5),
        (CHI2, -1.0, -1.0),
        (REVERSE, -1.0, 0.0),
        (IPO, 0.0, 0.0),
    ],
)
def test_several_references_as_mixed_columns(world, settings, mean_order, score_order, count):
    trainer = world.trainer(**settings)
    rows = plain_rows(trainer)
    mixed = mixed_columns(world, rows, count, mean_order)
    found = ours(world, rows, mixed, score_order, settings.get("loss_type", "sigmoid"))
    assert_equal(found, theirs(trainer, rows, mixed))


def test_mrpo_with_trust_region_and_adaptive_weights(world):
    trainer = world.trainer(**REVERSE)
    rows = plain_rows(trainer)
    mixed = mixed_columns(world, rows, 3, -1.0, TrustRegion(1, 0.1, True), adaptive=True)
    assert (mixed - mixed_columns(world, rows, 3, -1.0)).abs().max() > 0.1
    assert_equal(ours(world, rows, mixed, 0.0), theirs(trainer, rows, mixed))


def test_multi_dpo_is_the_weighted_sum_of_trl_losses(world):
    trainer = world.trainer(**REVERSE)
    rows, weights = plain_rows(trainer), WEIGHTS[3]
    with torch.no_grad():
        references = torch.stack([logps(model, rows) for model in world.references])
    model = copy.deepcopy(world.policy)
    rewards = implicit_reward(logps(model, rows), references, BETA, 0.0)
    losses = multi_preference_loss(preference_loss(rewards[:, 0], rewards[:, 1]), torch.tensor(weights))
    parts = [theirs(trainer, rows, one) for one in references]
    loss = sum(w * part[0] for w, part in zip(weights, parts))
    gradient = {n: sum(w * part[1][n] for w, part in zip(weights, parts)) for n in parts[0][1]}
    assert_equal(backward(model, losses.mean()), (loss, gradient))


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_label_smoothing(world, smoothing):
    """TRL smooths labels in this form only in its `aot` loss, which is DPO's where a batch is one pair."""
    trainer = world.trainer(loss_type="aot", label_smoothing=smoothing)
    for row in plain_rows(trainer):
        mixed = mixed_columns(world, [row], 2, 0.0)
        found = ours(world, [row], mixed, 0.0, label_smoothing=smoothing)
        assert_equal(found, theirs(trainer, [row], mixed))
