"""From a checked job to the model and the algorithm that the training loop takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from multiref_cli.config import build
from multiref_cli.config.schema import Level, Model
from multiref_cli.data.preferences import Pair
from multiref_cli.models.decoder import sharing_width
from multiref_cli.models.load import fingerprint, load_causal_lm, load_reward_model, new_causal_lm
from multiref_cli.models.logprobs import Mix
from multiref_cli.references.store import Sequence as Response
from multiref_cli.seeding import derive
from multiref_cli.tracking.progress import Progress
from multiref_cli.training.dpo import Dpo, StoredPairs, store_pairs
from multiref_cli.training.job import Job
from multiref_cli.training.loop import Algorithm
from multiref_cli.training.reward_model import RewardModel
from multiref_cli.training.sft import Sft


@dataclass
class Trainee:
    """A model with what it is trained on; `notes` are sentences that every report of the run must carry."""

    model: nn.Module
    algorithm: Algorithm
    notes: list[str] = field(default_factory=list)


def assemble(job: Job, progress: Progress) -> Trainee:
    """Load the policy and build the algorithm; reads or fills the reference store first, with no policy in memory."""
    builders = {"dpo": _dpo, "sft": _sft, "reward_model": _reward_model, "grpo": _grpo}
    return builders[job.config.algorithm.name](job, progress)


def load_policy(job: Job, path: str | None = None) -> nn.Module:
    """The trainable policy: fresh, from its folder, or (for evaluation) from a run's policy folder.

    Args:
        job: says which model, device and type.
        path: a trained policy's folder to load in place of the configured start.
    """
    policy, device = job.config.policy, build.device_name(job.config)
    dtype = build.dtype_name(job.config, policy.dtype)
    if path is not None:
        return load_causal_lm(Model(path=path), device, dtype)
    torch.manual_seed(derive(job.config.seed, "initialization"))
    if policy.new is not None:
        return new_causal_lm(policy.new, job.tokenizer, device, dtype)
    model = load_causal_lm(policy, device, dtype, trainable=True)
    if policy.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def pair_sequences(pairs: list[Pair]) -> list[Response]:
    """The responses of every pair for the reference store, chosen and rejected in turn."""
    return [
        Response(pair.prompt, ids, pair.messages, text)
        for pair in pairs
        for ids, text in ((pair.chosen, pair.chosen_text), (pair.rejected, pair.rejected_text))
    ]


def stored_pairs(job: Job, pairs: list[Pair], progress: Progress) -> StoredPairs:
    """What the references say of some pairs, from the store; computed now for what it does not hold yet."""
    config, store = job.config, job.open_store()
    references, weights = build.active_references(config)
    sequences = pair_sequences(pairs)
    tokens = [store.logps(r, sequences, progress) for r in references]
    normalizers = None
    if config.regularizer.level == Level.token and config.regularizer.normalized:
        normalizers = store.normalizers(references, sequences, config.regularizer.mean_order, weights, progress)
    return store_pairs(config, tokens, normalizers, job.vocabulary)


def fill_store(job: Job, progress: Progress) -> None:
    """Compute all that runs of this job read from the reference store, whatever their seed, for what is not there yet.

    Log-probabilities of all pairs for algorithm=dpo; samples of the references for `states: reference` online; nothing
    for other jobs, which ask their references as they go.
    """
    config = job.config
    if config.algorithm.name == "dpo":
        for pairs in filter(None, (job.data.train, job.data.held_out)):
            stored_pairs(job, pairs, progress)
    elif build.reads_samples(config):
        from multiref_cli.training.online import reference_samples

        reference_samples(job, range(len(job.data.train)), progress)


def store_normalizers(job: Job, mixes: Iterable[tuple[float, Sequence[float]]], progress: Progress) -> None:
    """Compute log F_t of several token-level mixes over all pairs in one pass, for those that are not stored yet.

    Args:
        job: of algorithm=dpo.
        mixes: (order of the mean, weights of all references of the config), weights of 0 allowed.
        progress: told tokens done.
    """
    wanted = [Mix(order, tuple(weights)) for order, weights in mixes]
    for pairs in filter(None, (job.data.train, job.data.held_out)):
        job.open_store().normalizers_of(list(job.config.references), pair_sequences(pairs), wanted, progress)


def _dpo(job: Job, progress: Progress) -> Trainee:
    stored = stored_pairs(job, job.data.train, progress)
    model = load_policy(job)
    start = _own_reference(job)
    algorithm = Dpo(job.config, job.data.train, stored, sharing_width(model), start)
    notes = []
    if start is None:
        notes.append(
            "the policy's start is none of the active references, so the loss before the first step is not known"
        )
    return Trainee(model, algorithm, notes)


def _sft(job: Job, progress: Progress) -> Trainee:
    return Trainee(load_policy(job), Sft(job.config, job.data.train, job.vocabulary))


def _reward_model(job: Job, progress: Progress) -> Trainee:
    policy, device = job.config.policy, build.device_name(job.config)
    torch.manual_seed(derive(job.config.seed, "initialization"))
    model = load_reward_model(policy, device, build.dtype_name(job.config, policy.dtype), trainable=True)
    return Trainee(model, RewardModel(job.config, job.data.train))


def _grpo(job: Job, progress: Progress) -> Trainee:
    from multiref_cli.training.online import build_grpo

    model = load_policy(job)
    algorithm = build_grpo(job, model, progress)
    return Trainee(model, algorithm, list(algorithm.notes))


def _own_reference(job: Job) -> int | None:
    """Which active reference is the policy's own start, by content."""
    if job.config.policy.new is not None:
        return None
    own = fingerprint(job.config.policy)
    found = [i for i, r in enumerate(build.active_references(job.config)[0]) if fingerprint(r) == own]
    return found[0] if found else None
