"""Direct preference optimization towards a mixed reference, from stored reference log-probabilities."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from multiref_cli.algorithms.base import Batch, Job, Trainee, load_policy
from multiref_cli.algorithms.scheduled import Scheduled
from multiref_cli.config.algorithms import DpoSettings
from multiref_cli.config.regularizer import Arwc
from multiref_cli.config.schema import Data, Experiment, Level, Mix, Term
from multiref_cli.config.weights import Weighing
from multiref_cli.data.preferences import Pair, load_preferences
from multiref_cli.data.rows import Split
from multiref_cli.dotted import function_of
from multiref_cli.errors import RequestError, RunError
from multiref_cli.evaluation.measures import bits_per_byte
from multiref_cli.evaluation.statistics import wins
from multiref_cli.models.decoder import sharing_width
from multiref_cli.models.files import fingerprint
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.packing import Packed, micro_batches, pack, row_length, sharing_pays
from multiref_cli.objectives.aggregate import widest
from multiref_cli.objectives.divergence import is_clipped, total_score
from multiref_cli.objectives.mixing import log_mixed
from multiref_cli.objectives.mrpo import TrustRegion, adjusted_references
from multiref_cli.objectives.preference import implicit_reward, multi_preference_loss, preference_loss
from multiref_cli.objectives.weighing import PairLogps
from multiref_cli.parallel import ALONE, Parallel
from multiref_cli.references.store import Sequence as Response
from multiref_cli.seeding import epoch_batch
from multiref_cli.sharding import gathered
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import LanguageModel, Tokenizer

# How far the first loss may be from its expectation, relative where that is above 1, besides what rounding does to it;
# that is measured on so many pairs.
_START_TOLERANCE, _ROUNDED_PAIRS = 1e-3, 16
PAIR_METRICS = ("preference_accuracy", "ranking_accuracy", "ranking_accuracy_per_token")


def load(data: Data, tokenizer: Tokenizer, progress: Progress) -> Split[Pair]:
    """Preference pairs."""
    return load_preferences(data, tokenizer, progress)


def assemble(job: Job, progress: Progress) -> Trainee:
    """Fill or read the reference store, with no policy in memory; then load the policy."""
    stored = stored_pairs(job, job.data.train, progress)
    model = load_policy(job)
    objective = Dpo(job.experiment, job.data.train, stored, sharing_width(model), job.total_steps)
    start, told = _own_reference(job), notes(job.experiment)
    if start is None:
        unknown = "the policy's start is none of the active references, so the loss before the first step is not known"
        return Trainee(model, objective, [unknown, *told])
    return Trainee(model, objective, told, lambda progress: objective.check_start(model, start, progress))


def notes(experiment: Experiment) -> list[str]:
    """Sentences that a reader of a run must see: where DPO is not exact, and where its loss sees other references."""
    penalty = experiment.penalty
    cut = (
        f"{penalty.title}: with every order of the score below 0 the optimum may give responses no mass at all; DPO is "
        "exact only while none is cut off"
    )
    terms = [term for routed in experiment.terms_by_route.values() for term in routed]
    found = [cut] if all(not isinstance(term.score, str) and term.score < 0 for term in terms) else []
    if len(experiment.active_references) == 1:
        return found
    seen = ["references that CTRO has clipped"] * (penalty.ctro is not None)
    seen += ["weights that ARWC makes from each pair in place of alpha"] * (penalty.arwc is not None)
    seen += [f"weights that {experiment.weighing.path} makes in place of alpha"] if experiment.weighing else []
    seen += ["one reference at a time, no mix of them"] * penalty.multi_loss
    if not seen:
        return found
    mix = "the mixed reference" if penalty.multi_loss else "the mix in the loss"
    return [
        *found,
        f"{penalty.title}: the loss sees {' and '.join(seen)}; log_ratio/mixed, reward_margin, accuracy and "
        f"preference_accuracy are read against {mix}, while kl/mixed, the weighted KL and J are measured with the "
        "references as they are and the alpha given",
    ]


def fill_store(job: Job, progress: Progress) -> None:
    """Log-probabilities of all pairs, held-out ones included."""
    for pairs in filter(None, (job.data.train, job.data.held_out)):
        stored_pairs(job, pairs, progress)


def fill_normalizers(job: Job, mixes: Iterable[Mix], progress: Progress) -> None:
    """Compute log F_t of several token-level mixes over all pairs in one pass, for those that are not stored yet.

    Args:
        job: of algorithm=dpo.
        mixes: with a weight for every reference of the experiment, 0 allowed.
        progress: told tokens done.
    """
    references, wanted = job.references(active=False, together=True), list(mixes)
    for pairs in filter(None, (job.data.train, job.data.held_out)):
        job.open_store().normalizers_of(references, pair_sequences(pairs), wanted, progress)


def measure_pairs(job: Job, model: LanguageModel, progress: Progress) -> dict[str, np.ndarray]:
    """Metric -> (N,) of the held-out pairs, see `Dpo.measured`; where tokenizers differ also bits per byte."""
    stored = stored_pairs(job, job.data.held_out, progress)
    objective = Dpo(job.experiment, job.data.held_out, stored, sharing_width(model))
    logps = objective.score(model, job.parallel)
    return objective.measured(logps) | _bits(job, stored, logps[0])


def _bits(job: Job, stored: "StoredPairs", chosen: Tensor) -> dict[str, np.ndarray]:
    """bits_per_byte/<who> of the chosen responses under the policy and every reference, if one has other tokens."""
    if all(job.foreign_tokenizer(reference) is None for reference in job.references()):
        return {}
    texts = [str(job.tokenizer.decode(list(p.chosen), skip_special_tokens=True)) for p in job.data.held_out]
    sizes = np.array([len(text.encode()) for text in texts])
    logps = {"policy": chosen, **dict(zip(stored.names, stored.references[:, 0]))}
    found = {f"bits_per_byte/{who}": bits_per_byte(values.numpy(), sizes) for who, values in logps.items()}
    return {name: values for name, values in found.items() if values is not None}


def mean_tokens(job: Job) -> float:
    """Tokens of both rows of a pair."""
    rows = job.data.train[:200]
    return sum(2 * len(r.prompt) + len(r.chosen) + len(r.rejected) for r in rows) / len(rows)


def parts(row: Pair) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    """Both responses."""
    return [("first row, chosen", row.prompt, row.chosen), ("first row, rejected", row.prompt, row.rejected)]


def pair_sequences(pairs: Sequence[Pair]) -> list[Response]:
    """The responses of every pair for the reference store, chosen and rejected in turn."""
    return [
        Response(pair.prompt, ids, pair.messages, text)
        for pair in pairs
        for ids, text in ((pair.chosen, pair.chosen_text), (pair.rejected, pair.rejected_text))
    ]


def stored_pairs(job: Job, pairs: Sequence[Pair], progress: Progress) -> "StoredPairs":
    """What the references say of some pairs, from the store; computed now for what it does not hold yet."""
    experiment, store, sequences = job.experiment, job.open_store(), pair_sequences(pairs)
    tokens = [store.logps(reference, sequences, progress) for reference in job.references()]
    normalizers = None
    if experiment.penalty.mixes_whole_vocabulary:
        mixes = [term.mix for terms in experiment.terms_by_route.values() for term in terms]
        normalizers = store.normalizers_of(job.references(together=True), sequences, mixes, progress)
    weights = None
    if experiment.weighing is not None:
        held_out = job.data.held_out or pairs
        sequences = pair_sequences(held_out)
        others = tokens if held_out is pairs else [store.logps(r, sequences, progress) for r in job.references()]
        rows = pair_logps(experiment, pairs, tokens)
        weights = row_weights(experiment.weighing, rows, pair_logps(experiment, held_out, others))
    routes = [experiment.route_of(pair.extra) for pair in pairs]
    return store_pairs(experiment, tokens, normalizers, job.vocabulary, routes, weights)


def pair_logps(experiment: Experiment, pairs: Sequence[Pair], tokens: Sequence[Sequence[np.ndarray]]) -> PairLogps:
    """What a function that weighs references is given of some pairs.

    Args:
        experiment: names the references.
        pairs: N pairs.
        tokens: for each active reference 2 N arrays (T,) of nats, chosen and rejected in turn.
    """
    chosen, rejected = _sums(tokens).unbind(1)
    lengths = torch.tensor([[len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs]])
    names = [reference.name for reference in experiment.active_references]
    return PairLogps(names, chosen, rejected, lengths, [pair.extra for pair in pairs])


def row_weights(weighing: Weighing, rows: PairLogps, held_out: PairLogps) -> Tensor:
    """(K, N) weights that a function gives the pairs.

    Raises:
        RequestError: no such function, or one that gives something else than weights on the simplex.
    """
    function, (count, pairs) = function_of(weighing.path, "alpha.by"), rows.chosen.shape
    try:
        found = torch.as_tensor(function(rows, held_out, **weighing.options), dtype=torch.float64)
    except Exception as error:  # the user's own code: whatever it raises is theirs to mend
        raise RequestError(f"alpha.by={weighing.path} failed: {type(error).__name__}: {error}.") from error
    if found.shape not in ((count,), (pairs, count)):
        raise RequestError(
            f"alpha.by={weighing.path} gave the shape {tuple(found.shape)}; give ({count},) or ({pairs}, {count})."
        )
    if not ((found >= 0).all() and ((found.sum(-1) - 1).abs() < 1e-6).all()):
        raise RequestError(f"alpha.by={weighing.path} gave weights that are not from 0 to 1 with a sum of 1 a row.")
    return found.expand(pairs, count).T.contiguous()


def _sums(tokens: Sequence[Sequence[np.ndarray]]) -> Tensor:
    """(K, 2, N) log-probabilities of whole responses, chosen and rejected."""
    sums = torch.tensor([[float(np.sum(a, dtype=np.float64)) for a in one] for one in tokens], dtype=torch.float64)
    return sums.reshape(len(tokens), -1, 2).transpose(1, 2).contiguous()


def _own_reference(job: Job) -> int | None:
    """Which active reference is the policy's own start, by content."""
    if job.experiment.policy.new is not None:
        return None
    own = fingerprint(job.experiment.policy)
    found = [i for i, reference in enumerate(job.references()) if reference.fingerprint() == own]
    return found[0] if found else None


@dataclass(frozen=True)
class StoredPairs:
    """What the frozen references say of N pairs, whole responses in nats; R terms of the penalty.

    Attributes:
        names: K names of the references with a positive weight.
        references: (K, 2, N) log pi_i of chosen and rejected, float64.
        mixed: (R, 2, N) log M, float64; normalized token by token at level=token. Where rows have weights of their own,
            R is the most summands that a row has, and zeros stand where it has fewer.
        vocabulary: ids that all of them normalize over, and the policy with them; None: the whole head.
        routes: N keys of `Experiment.terms_by_route`; None: all are alike.
        adjusted: (K, 2, N) `references` as a trust region leaves them; None: as they are.
    """

    names: list[str]
    references: Tensor
    mixed: Tensor
    vocabulary: int | None = None
    routes: list[str | None] | None = None
    adjusted: Tensor | None = None


def store_pairs(
    experiment: Experiment,
    tokens: Sequence[Sequence[np.ndarray]],
    normalizers: Sequence[Sequence[np.ndarray]] | None,
    vocabulary: int | None = None,
    routes: list[str | None] | None = None,
    weights: Tensor | None = None,
) -> StoredPairs:
    """Sum stored token log-probabilities into responses and mix them.

    Args:
        experiment: its penalty says how to mix and at which level.
        tokens: for each reference of positive weight 2 N arrays, chosen and rejected in turn, each (T,) nats.
        normalizers: for each term of each route 2 N arrays (T,) of log F_t in nats, by which a token-level mean is
            divided; None leaves it.
        vocabulary: ids that the stored log-probabilities normalize over.
        routes: which of the experiment's `terms_by_route` each of the N pairs has; None: all are alike.
        weights: (K, N) of a function that weighs the references of each pair; None: alpha's.

    Returns:
        The sums and the mix.
    """
    names = [reference.name for reference in experiment.active_references]
    pairs = _sums(tokens)
    whole = experiment.penalty.level is not Level.token
    adjusted, own_weights = _adjusted(experiment, pairs) if whole else (None, None)
    weights = own_weights if weights is None else weights
    by_route, start = experiment.terms_by_route, 0
    mixed = torch.zeros(max(map(len, by_route.values())), *pairs.shape[1:], dtype=torch.float64)
    for route, terms in by_route.items():
        own = None if normalizers is None else normalizers[start : start + len(terms)]
        start += len(terms)
        rows = [i for i, one in enumerate(routes) if one == route] if routes else list(range(pairs.shape[2]))
        if adjusted is not None:
            found = torch.stack([log_mixed(terms, one, weights=weights) for one in adjusted.unbind(1)], 1)
        else:
            found = _mixed_tokens(terms, tokens, own)
        mixed[: len(terms), :, rows] = found[:, :, rows]
    return StoredPairs(names, pairs, mixed, vocabulary, routes, adjusted)


def _mixed_tokens(
    terms: Sequence[Term], tokens: Sequence[Sequence[np.ndarray]], normalizers: Sequence[Sequence[np.ndarray]] | None
) -> Tensor:
    """(R, 2, N) log M of every term, mixed token by token and summed."""
    per_token = log_mixed(terms, _flat(tokens), None if normalizers is None else _flat(normalizers))
    owner = torch.repeat_interleave(torch.tensor([len(a) for a in tokens[0]]))
    mixed = torch.zeros(len(terms), len(tokens[0]), dtype=torch.float64).index_add(1, owner, per_token)
    return mixed.reshape(len(terms), -1, 2).transpose(1, 2).contiguous()


def _adjusted(experiment: Experiment, pairs: Tensor) -> tuple[Tensor, Tensor | None]:
    """(K, 2, N) sums as a trust region leaves them, and the weights that ARWC makes of them, else None."""
    penalty = experiment.penalty
    if penalty.ctro is None and penalty.arwc is None:
        return pairs, None
    weights, region = torch.tensor(experiment.active_weights, dtype=torch.float64), _trust_region(experiment)
    chosen, rejected, own = adjusted_references(
        pairs[:, 0], pairs[:, 1], weights, region, penalty.arwc is not None, penalty.arwc is Arwc.authors
    )
    return torch.stack([chosen, rejected], 1), own if penalty.arwc else None


def _trust_region(experiment: Experiment) -> TrustRegion | None:
    """CTRO's region around the policy's own start, or the reference that is named; a single reference has none."""
    ctro, active = experiment.penalty.ctro, experiment.active_references
    if ctro is None or len(active) == 1:
        return None
    names = [reference.name for reference in active]
    own = [reference.name for reference in active if reference.path == experiment.policy.path]
    return TrustRegion(names.index(ctro.anchor or (own or names)[0]), ctro.epsilon, ctro.adaptive)


def _flat(arrays: Sequence[Sequence[np.ndarray]]) -> Tensor:
    return torch.stack([torch.from_numpy(np.concatenate(one)).double() for one in arrays])


@dataclass(frozen=True)
class PairMicro:
    """Some pairs of one step: their rows for the model and their row numbers."""

    packed: Packed
    rows: list[int]
    batch_pairs: int


class Dpo:
    """-log sigmoid of the difference of implicit rewards beta sum_r w_r s_r(log pi - log M_r).

    With one summand of order 0 or 1 it is Eq. 60 or 61 of arXiv 2502.01203.
    """

    def __init__(
        self,
        experiment: Experiment,
        pairs: Sequence[Pair],
        stored: StoredPairs,
        hidden_size: int | None,
        total: int | None = None,
    ) -> None:
        """Takes what is stored of the pairs.

        Args:
            experiment: of algorithm=dpo.
            pairs: N pairs.
            stored: what the references say of them.
            hidden_size: of the policy, see `sharing_width`.
            total: optimizer steps, where beta or alpha move over them.
        """
        self.experiment, self.pairs, self.stored = experiment, pairs, stored
        self.scheduled = Scheduled(experiment, total)
        self.settings = cast(DpoSettings, experiment.algorithm)
        self.penalty = experiment.penalty
        self.lengths = torch.tensor([[len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs]])
        self.share = self._shares(hidden_size)

    def _shares(self, hidden_size: int | None) -> bool:
        """Whether both responses of a pair are computed behind one copy of their prompt."""
        if self.settings.share_prompt is not None:
            return self.settings.share_prompt
        responses = [(len(pair.chosen), len(pair.rejected)) for pair in self.pairs]
        return sharing_pays([len(pair.prompt) for pair in self.pairs], responses, hidden_size)

    def batch(self, step: int) -> Batch:
        """The pairs of optimizer step `step`: one random order of all pairs per epoch."""
        self.scheduled.at(step)
        rows = epoch_batch(len(self.pairs), self.settings.batch_pairs, step, self.experiment.seed)
        micros = [PairMicro(self._pack(part), part, len(rows)) for part in self._parts(rows)]
        tokens, metrics = sum(micro.packed.real_tokens for micro in micros), self.scheduled.metrics()
        return Batch(micros, [self.pairs[i].row for i in rows], tokens, metrics)

    def loss(self, model: LanguageModel, micro: PairMicro) -> tuple[Tensor, Averages]:
        """Sum of the pairs' losses over the number of pairs of the whole step, and the step's metrics."""
        device = next(model.parameters()).device
        logps = self._logps(model, micro.packed.to(device))
        return self.loss_of(logps.reshape(-1, 2).T, micro.rows, micro.batch_pairs)

    def loss_of(self, policy: Tensor, rows: list[int], batch_pairs: int) -> tuple[Tensor, Averages]:
        """The loss of some pairs of one route, given (2, n) log-probabilities of the policy for chosen and rejected."""
        terms, mixed = self._terms(rows), self._mixed(rows).to(policy)
        references = self.stored.references[:, :, rows].to(policy)
        if self.penalty.multi_loss:
            score, clip = terms[0].score, self.penalty.score_clip
            alone = self.stored.references if self.stored.adjusted is None else self.stored.adjusted
            reward = implicit_reward(policy, alone[:, :, rows].to(policy), self.scheduled.beta, score, clip)
        else:
            reward = self._implicit_reward(terms, policy, mixed)
        losses = preference_loss(
            reward[..., 0, :],
            reward[..., 1, :],
            loss=self.settings.loss,
            label_smoothing=self.settings.label_smoothing,
            beta=self.scheduled.beta,
            lengths=self.lengths[:, rows].to(policy.device),
        )
        if self.penalty.multi_loss:
            losses = multi_preference_loss(losses, self._weights().to(policy))
        return losses.sum() / batch_pairs, self._metrics(terms, policy.detach(), mixed, references)

    @torch.no_grad()
    def score(self, model: LanguageModel, parallel: Parallel = ALONE) -> Tensor:
        """(2, N) log-probabilities of all chosen and rejected responses under the policy, on the CPU."""
        device = next(model.parameters()).device
        parts = self._parts(list(range(len(self.pairs))))
        with gathered(model):
            own = parallel.each(parts, lambda rows: self._logps(model, self._pack(rows).to(device)).cpu())
        found = torch.zeros(2, len(self.pairs), dtype=torch.float64)
        for rows, flat in zip(parts, parallel.woven(own)):
            found[:, rows] = flat.reshape(-1, 2).T
        return found

    def measured(self, logps: Tensor) -> dict[str, np.ndarray]:
        """Metric -> (N,) 1 where the chosen response is the higher one, one half at a tie, else 0; pairs in order.

        preference_accuracy by the implicit reward, hence against this run's own references, alpha and loss: the same
        policy has another one under others. ranking_accuracy by log pi, and ranking_accuracy_per_token by its mean
        over tokens, need no reference (arXiv 2405.19534).
        """
        found = {name: np.zeros(len(self.pairs)) for name in PAIR_METRICS}
        for rows in self._by_route(list(range(len(self.pairs)))):
            own = logps[:, rows]
            reward = self._implicit_reward(self._terms(rows), own, self._mixed(rows))
            per_token = own / self.lengths[:, rows].clamp(min=1)
            for name, (chosen, rejected) in zip(PAIR_METRICS, (reward, own, per_token)):
                found[name][rows] = wins(chosen.numpy(), rejected.numpy())
        return found

    def check_start(self, model: LanguageModel, start: int, progress: Progress) -> None:
        """Before the first step: the loss must be what the stored log-probabilities of the policy's start say.

        Args:
            model: the policy.
            start: which active reference is its start.
            progress: told both losses.

        Raises:
            RunError: it is not: policy and reference do not see the same tokens, template, type or truncation.
        """
        rows = epoch_batch(len(self.pairs), self.settings.batch_pairs, 0, self.experiment.seed)
        logps = self.stored.references[start]
        expected = self._total(logps, rows)
        live = self._computed(model, self._parts(rows), self.share)
        actual = self._total(live, rows)
        tolerance = _START_TOLERANCE * max(1.0, abs(expected)) + self._rounding(model, live, logps, rows)
        exact = " (ln 2)" if abs(expected - math.log(2)) < 1e-9 else ""
        progress.note(f"loss before the first step: {actual:.6f}, expected {expected:.6f}{exact}")
        if abs(actual - expected) > tolerance:
            raise RunError(
                f"the loss before the first step is {actual:.4f}, from the stored log-probabilities it should be "
                f"{expected:.4f}: policy and reference differ in template, type or truncation (`multiref refs verify`)."
            )

    def _total(self, logps: Tensor, rows: list[int]) -> float:
        """The loss of a step of these pairs, given the (2, N) log-probabilities of all."""
        return sum(float(self.loss_of(logps[:, part], part, len(rows))[0]) for part in self._by_route(rows))

    @torch.no_grad()
    def _computed(self, model: LanguageModel, parts: Sequence[list[int]], share: bool) -> Tensor:
        """(2, N) log-probabilities under the policy of pairs that are computed together; 0 of all others."""
        device, found = next(model.parameters()).device, torch.zeros(2, len(self.pairs), dtype=torch.float64)
        for part in parts:
            found[:, part] = self._logps(model, self._pack(part, share).to(device)).reshape(-1, 2).T.cpu().double()
        return found

    def _rounding(self, model: LanguageModel, live: Tensor, logps: Tensor, rows: list[int]) -> float:
        """How much the loss moves with log-probabilities that are as far off as other rows and layouts make them.

        Some pairs are computed again, each by itself and its prompt once a response; all are taken to be off by the
        root mean square of what that changes, preferred and other responses in opposite directions.
        """
        some = rows[:_ROUNDED_PAIRS]
        change = self._computed(model, [[row] for row in some], False)[:, some] - live[:, some]
        off = change.square().mean().sqrt() * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        expected = self._total(logps, rows)
        return max(abs(self._total(logps + sign * off, rows) - expected) for sign in (1, -1))

    def _terms(self, rows: list[int]) -> tuple[Term, ...]:
        """The summands of some pairs of one route."""
        routes = self.stored.routes
        return self.scheduled.terms[routes[rows[0]] if routes else None]

    def _mixed(self, rows: list[int]) -> Tensor:
        """(R, 2, n) log M of some pairs, with alpha as it stands now."""
        if self.scheduled.share == 0:
            return self.stored.mixed[:, :, rows]
        return log_mixed(self.scheduled.terms[None], self.stored.references[:, :, rows])

    def _weights(self) -> Tensor:
        """(K,) alpha of the active references as it stands now, for a loss a reference."""
        return torch.tensor(self.experiment.weights_moved(self.scheduled.share), dtype=torch.float64)

    def _by_route(self, rows: list[int]) -> list[list[int]]:
        """Pairs of the same summands together, in the order of their first appearance."""
        if self.stored.routes is None:
            return [rows]
        found: dict[str | None, list[int]] = {}
        for row in rows:
            found.setdefault(self.stored.routes[row], []).append(row)
        return list(found.values())

    def _implicit_reward(self, terms: Sequence[Term], policy: Tensor, mixed: Tensor) -> Tensor:
        """(2, n) beta sum_r w_r s_r(log pi - log M_r) of chosen and rejected (arXiv 2502.01203, Eq. 60 and 61)."""
        return self.scheduled.beta * total_score(terms, policy, mixed, self.penalty.score_clip)

    def _logps(self, model: LanguageModel, packed: Packed) -> Tensor:
        return token_logps(model, packed, vocabulary=self.stored.vocabulary).logps.sum(
            -1, dtype=widest(packed.mask.device)
        )

    def _metrics(self, terms: Sequence[Term], policy: Tensor, mixed: Tensor, references: Tensor) -> Averages:
        averages, reward = Averages(), self._implicit_reward(terms, policy, mixed)
        averages.add("reward_margin", reward[0] - reward[1])
        averages.add("accuracy", (reward[0] > reward[1]).float())
        if self.experiment.one_mix:  # several summands have no mixed reference
            # On the data's responses a mean log ratio is no divergence; this one is to the mix that the loss saw.
            averages.add("log_ratio/mixed", policy - mixed[0])
        for name, reference in zip(self.stored.names, references):
            averages.add(f"log_ratio/{name}", policy - reference)
        averages.add("score_clip_fraction", is_clipped(terms, policy, mixed, self.penalty.score_clip).float())
        averages.add("logps/chosen", policy[0])
        averages.add("logps/rejected", policy[1])
        return averages

    def _parts(self, rows: list[int]) -> list[list[int]]:
        return [part for same in self._by_route(rows) for part in self._passes(same)]

    def _passes(self, rows: list[int]) -> list[list[int]]:
        lengths = [self._row_length(self.pairs[i]) for i in rows]
        processes = self.experiment.hardware.processes
        parts = micro_batches(lengths, self.settings.micro_tokens, 1 if self.share else 2, processes)
        return [[rows[i] for i in part] for part in parts]

    def _row_length(self, pair: Pair) -> int:
        return row_length(len(pair.prompt), (len(pair.chosen), len(pair.rejected)), self.share)

    def _pack(self, rows: list[int], share: bool | None = None) -> Packed:
        """Pairs as the loss lays them out, or with their prompts shared or not."""
        pairs, share = [self.pairs[i] for i in rows], self.share if share is None else share
        return pack([p.prompt for p in pairs], [(p.chosen, p.rejected) for p in pairs], pad_id=0, share_prompt=share)
