"""Choosing alpha before a run, `alpha=auto` and `alpha=balanced`: once per machine, from responses of the references.

Every reference answers the first training prompts; all references score all answers. The answers were then drawn from
the equal mixture of the references, and weigh M_alpha / mean_i pi_i, divided by their sum, for every alpha of a lattice
(theory.choosing). `auto` takes the largest mean over prompts of the normalized value, by the reward that training sees:
online the run's, offline the reward model of its evaluation. `balanced` takes the largest disagreement of the
references, in whole responses whatever the level, and reads no reward. Neither depends on the seed.

Samples of the references lack what their mixture alone answers: between references that are far apart the values are
somewhat high, by the share of the mass of M / F that lies there.

Where responses are so long that one of them has all the weight, such values compare noise: `auto` then compares the
mean reward of samples of the untrained mixed reference, the limit of beta -> infinity.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiref_cli.algorithms.base import Job
from multiref_cli.config.plain import changed, digest, from_plain, to_plain
from multiref_cli.config.regularizer import Level, Mix
from multiref_cli.config.schema import Experiment, Model
from multiref_cli.config.weights import AUTO
from multiref_cli.data.chat import end_ids
from multiref_cli.errors import HubUnreachable, RequestError, RunError
from multiref_cli.evaluation.evaluate import Evaluator
from multiref_cli.evaluation.mixed import mixture_scores
from multiref_cli.files import read_object, write_json
from multiref_cli.models.files import fingerprint
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.references import store
from multiref_cli.references.samples import stored_responses
from multiref_cli.rollouts.engine import Completion
from multiref_cli.runs.job import check_devices
from multiref_cli.runs.measure import build_evaluator
from multiref_cli.runs.run import open_job
from multiref_cli.theory.choosing import disagreement, effective_samples, lattice, optimal_value
from multiref_cli.tracking.progress import Progress, Silent
from multiref_cli.world.worlds import missing

# Training prompts, and responses of each reference to each.
PROMPTS, RESPONSES = 256, 8
# Most points of the lattice; and where every point needs a sum over the vocabulary at every token.
POINTS, POINTS_WITH_NORMALIZERS = 1001, 21
# Least median over prompts of the effective number of responses, at every point of the lattice.
LEAST_EFFECTIVE = 2.0
# Instead: points from one reference to the other, and responses of each mixed reference to each prompt.
SAMPLED_POINTS, SAMPLED_RESPONSES = 11, 2
# Counts in the address of a choice: another one where the same request would give another choice.
_VERSION = 1


@dataclass(frozen=True)
class Choice:
    """Weights that a rule chose, and from what; L points, K references.

    Attributes:
        address: digest of all that it depends on.
        rule: auto or balanced.
        regularizer: title.
        beta: of the run.
        world: of the run.
        references: K names.
        score: name of what scored, None for balanced.
        method: `importance`, or `samples` of the untrained mixed reference.
        prompts: number of training prompts.
        responses: to each prompt, of each reference or of each mixed reference.
        weights: K that were chosen, whole hundredths.
        points: L rows of K weights.
        values: L means over prompts of what the rule compares, reward units or nats.
        errors: L standard errors over prompts of the difference to the chosen point.
        effective: L medians over prompts of the effective number of responses; empty for samples.
    """

    address: str
    rule: str
    regularizer: str
    beta: float
    world: int
    references: list[str]
    score: str | None
    method: str
    prompts: int
    responses: int
    weights: list[float]
    points: list[list[float]]
    values: list[float]
    errors: list[float]
    effective: list[float]

    @property
    def alpha(self) -> float | list[float]:
        """As people type it: one number for two references."""
        return self.weights[0] if len(self.weights) == 2 else self.weights


def choose(experiment: Experiment, progress: Progress, kept: Sequence[Mapping[str, Any]] = ()) -> Choice:
    """The weights for an experiment whose alpha is a rule, made now where this machine has not made them before.

    Args:
        experiment: checked, with `alpha: auto` or `alpha: balanced`.
        progress: told while references are sampled and asked.
        kept: choices that a folder holds, as plain values; one that fits is taken.

    Raises:
        RequestError: as `open_job`; references with tokenizers of their own; or responses too far apart to compare.
    """
    check_devices(experiment)
    job = _open(experiment, progress)
    found = _found(job, experiment, kept)
    if found is None:
        found = _chosen(job, experiment, progress)
        write_json(_place(experiment, found.address), asdict(found))
    return found


def known(experiment: Experiment, kept: Sequence[Mapping[str, Any]] = ()) -> Choice | None:
    """The choice if it was made before; makes nothing. Arguments as of `choose`."""
    if missing(experiment):
        return None
    try:
        return _found(_open(experiment, Silent(), looking=True), experiment, kept)
    except HubUnreachable:
        return None


def _open(experiment: Experiment, progress: Progress, looking: bool = False) -> Job:
    """The experiment's job, its evaluation made one of training prompts by what training is rewarded with."""
    online, rollout, settings = experiment.algorithm.online, experiment.rollout, experiment.evaluation
    scored = experiment.rule == AUTO
    evaluation = replace(
        settings,
        split="train",
        prompts=PROMPTS,
        samples_per_prompt=SAMPLED_RESPONSES,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=rollout.max_new_tokens if online else settings.max_new_tokens,
        batch_size=rollout.batch_size if online else settings.batch_size,
        gold=scored and online,
        scorer=settings.scorer if scored and not online else None,
        win_rate=False,
    )
    job = open_job(replace(experiment.evenly, evaluation=evaluation), progress, looking)
    for reference in job.references():
        if job.foreign_tokenizer(reference) is not None:
            raise RequestError(
                f"alpha={experiment.rule} samples every reference in the policy's tokens; {reference.name} has another "
                "tokenizer: give numbers."
            )
    return job


def _place(experiment: Experiment, address: str) -> Path:
    return experiment.hardware.cache_folder / "alpha" / f"{address}.json"


def _found(job: Job, experiment: Experiment, kept: Sequence[Mapping[str, Any]]) -> Choice | None:
    address = _address(job, str(experiment.rule))
    try:
        there = read_object(_place(experiment, address))
    except RunError:  # damaged: it is made again
        there = None
    for content in (*kept, there):
        if content is not None and content.get("address") == address:
            return from_plain(Choice, content)
    return None


def _address(job: Job, rule: str) -> str:
    """Digest of all that a choice depends on: rows, models and scorers by content."""
    experiment, penalty = job.experiment, job.experiment.penalty
    content: list[Any] = [_VERSION, rule, PROMPTS, RESPONSES, experiment.evaluation.max_new_tokens, penalty.mean_order]
    content += [job.data.sha256, [list(prompt.ids) for prompt in job.prompts]]
    content += [[reference.fingerprint(), reference.dtype] for reference in job.references()]
    if rule == AUTO:
        content += [penalty.score_order, penalty.level.name, penalty.normalized, experiment.beta]
        named, local = (
            to_plain(one.reward if one.algorithm.online else one.evaluation.scorer) for one in (job.asked, experiment)
        )
        content += [named, _models_in(local)]
    return digest(content)


def _models_in(scored: object) -> list[str]:
    """Fingerprints of the models whose folders are named somewhere."""
    found: list[str] = []

    def look(text: str) -> str:
        """Take note of a folder of a model."""
        if os.path.isfile(os.path.join(text, "config.json")):
            found.append(fingerprint(Model(path=text)))
        return text

    changed(scored, look)
    return found


def _chosen(job: Job, experiment: Experiment, progress: Progress) -> Choice:
    """Apply the rule."""
    penalty, rule, count = job.experiment.penalty, str(experiment.rule), len(job.experiment.references)
    responses = _responses(job, progress)
    sequences = [
        store.Sequence(tuple(prompt.ids), tuple(ids)) for prompt, group in zip(job.prompts, responses) for ids in group
    ]
    opened = job.open_store()
    logps = [opened.logps(reference, sequences, progress) for reference in job.references()]
    lengths = torch.tensor([len(one.completion) for one in sequences])
    tokens = torch.stack([torch.cat([torch.tensor(row) for row in one]).double() for one in logps])
    shape = (len(job.prompts), count * RESPONSES)
    sums = _sums(tokens, lengths).reshape(count, *shape)
    proposal = torch.logsumexp(sums, 0)  # of the equal mixture, up to log K
    order, score = float(penalty.mean_order or 0), None
    by_token = rule == AUTO and penalty.level is Level.token
    points = lattice(count, POINTS_WITH_NORMALIZERS if by_token and penalty.normalized and order != 1 else POINTS)
    if by_token:
        mixed = _sums(_token_means(job, tokens, sequences, points, progress), lengths).reshape(-1, *shape)
    else:
        mixed = torch.stack([power_mean(sums, weights, order) for weights in points])
    effective = effective_samples(mixed - proposal)
    useless = float(effective.median(-1).values.min()) < LEAST_EFFECTIVE
    if rule == AUTO:
        evaluator = _evaluator(job, progress)
        (score,) = evaluator.scorers
        if useless:
            return _choice(job, experiment, score, *_sampled(job, evaluator, order, progress))
        reward = _rewards(evaluator, responses).reshape(shape)
        values = optimal_value(mixed - proposal, reward, experiment.beta, float(penalty.score_order or 0))
    elif useless:
        raise RequestError(
            "alpha=balanced cannot be estimated: one response has all the weight, so far apart are these references; "
            "give numbers, or a regularizer with an arithmetic mean (fkl)."
        )
    else:
        values = torch.stack([disagreement(sums, weights, order, proposal) for weights in points])
    return _choice(job, experiment, score, points, values, effective)


def _responses(job: Job, progress: Progress) -> list[list[list[int]]]:
    """[P][N] token ids: RESPONSES of each reference in turn, drawn independently of one another."""
    settings, ends = job.experiment.evaluation, end_ids(job.tokenizer)
    rollout = replace(
        job.experiment.rollout,
        group_size=RESPONSES,
        temperature=1.0,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )
    opened, rows = job.open_store(), range(len(job.prompts))
    found: list[list[list[int]]] = [[] for _ in rows]
    for number, reference in enumerate(job.references()):
        groups = stored_responses(opened, reference, job.prompts, rows, rollout, ends, progress, root=number)
        reference.release()
        for row in rows:
            found[row] += groups[row]
    return found


def _sums(tokens: Tensor, lengths: Tensor) -> Tensor:
    """(..., T) numbers of the tokens of S responses, one behind the other -> (..., S) sums."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return tokens.new_zeros(*tokens.shape[:-1], len(lengths)).index_add(-1, owner, tokens)


def _token_means(
    job: Job, tokens: Tensor, sequences: Sequence[store.Sequence], points: Tensor, progress: Progress
) -> Tensor:
    """(K, T) -> (L, T) log M of every token, divided by its sum over the vocabulary where the regularizer says so."""
    order = float(job.experiment.penalty.mean_order or 0)
    means = torch.stack([power_mean(tokens, weights, order) for weights in points])
    if not job.experiment.penalty.normalized:
        return means
    mixes = [Mix(order, tuple(weights.tolist())) for weights in points]
    found = job.open_store().normalizers_of(job.references(together=True), sequences, mixes, progress)
    return means - torch.stack([torch.cat([torch.tensor(row) for row in one]) for one in found])


def _evaluator(job: Job, progress: Progress) -> Evaluator:
    """The evaluator of the job, which asks no reference anything; it has one scorer."""
    evaluator, notes = build_evaluator(job)
    for note in notes:
        progress.note(note)
    return replace(evaluator, references=[], reference_samples=None)


def _rewards(evaluator: Evaluator, responses: Sequence[Sequence[list[int]]]) -> Tensor:
    """Rewards of all responses, prompt by prompt."""
    ends = set(evaluator.end_ids)
    completions = [[Completion(ids, [], bool(ids) and ids[-1] in ends) for ids in group] for group in responses]
    (scorer,) = evaluator.scorers.values()
    return torch.tensor(scorer(evaluator.samples(completions)), dtype=torch.float64)


def _sampled(job: Job, evaluator: Evaluator, order: float, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
    """(L, 2) points and (L, P) mean rewards of samples of the untrained mixed reference, drawn token by token."""
    references = job.references()
    if len(references) != 2:
        raise RequestError(
            f"alpha=auto cannot weigh these {len(references)} references: one response has all the weight, so far "
            "apart are they; give numbers (multiref refs mix compares two at a time)."
        )
    if job.experiment.served:
        raise RequestError(
            f"alpha=auto would sample the mixed reference token by token, so far apart are these references, and "
            f"{job.experiment.served[0]} is served, which cannot be mixed so: give numbers."
        )
    models = references[0].model, references[1].model
    points, values = lattice(2, SAMPLED_POINTS), []
    for done, weights in enumerate(points):
        progress.advance("mixed references", done, len(points))
        values.append(torch.from_numpy(mixture_scores(evaluator, models, order, float(weights[0]))))
    return points, torch.stack(values), torch.empty(0, len(job.prompts))


def _choice(
    job: Job, experiment: Experiment, score: str | None, points: Tensor, values: Tensor, effective: Tensor
) -> Choice:
    """The point with the largest mean of (L, P) values; of equal ones that with the most even weights."""
    means = values.mean(1)
    best = means >= means.max() - 1e-9 * max(1.0, float(means.max().abs()))
    chosen = int(torch.where(best, points.square().sum(1), torch.inf).argmin())
    spread = (values - values[chosen]).std(1, correction=min(1, values.shape[1] - 1))
    sampled = len(effective) == 0
    return Choice(
        address=_address(job, str(experiment.rule)),
        rule=str(experiment.rule),
        regularizer=experiment.penalty.title,
        beta=experiment.beta,
        world=experiment.world,
        references=[reference.name for reference in experiment.references],
        score=score,
        method="samples" if sampled else "importance",
        prompts=values.shape[1],
        responses=SAMPLED_RESPONSES if sampled else RESPONSES,
        weights=[round(weight, 2) for weight in points[chosen].tolist()],
        points=[[round(weight, 2) for weight in row] for row in points.tolist()],
        values=means.tolist(),
        errors=(spread / values.shape[1] ** 0.5).tolist(),
        effective=effective.median(-1).values.tolist(),
    )
