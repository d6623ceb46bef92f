"""The reward of a run: a weighted sum of reward functions, none of which can hang a run or fail silently."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multiref_cli.config.schema import Reward, RewardTerm
from multiref_cli.errors import RequestError, RunError
from multiref_cli.rewards.call import WrongValue, call, weighted_sum
from multiref_cli.rewards.resolve import check_options, resolve
from multiref_cli.rewards.sample import RewardFunction, Sample
from multiref_cli.rewards.worker import RewardError, RewardTimeout, Worker

# A function that hangs on so many rows and has never answered hangs on all of them; one that has is hung by responses.
HANGING_ROWS = 8


@dataclass(frozen=True)
class RewardBatch:
    """Rewards of a batch of responses.

    Args:
        total: (B,) weighted sums.
        terms: name of the term -> (B,) values before weighting; None where it does not apply.
        timeouts: name of the term -> rows that took too long and count 0.
        cut: inputs of reward models that lost their end.
    """

    total: list[float]
    terms: Mapping[str, Sequence[float | None]]
    timeouts: dict[str, list[int]] = field(default_factory=dict)
    cut: int = 0


@dataclass(frozen=True)
class ResolvedTerm:
    """One reward function with its options and its weight.

    Args:
        name: of the term in the config.
        path: dotted path of the function.
        function: the function itself.
        options: keyword arguments.
        weight: factor in the sum.
        answered: holds something once the function has answered for any sample.
    """

    name: str
    path: str
    function: RewardFunction
    options: dict[str, Any]
    weight: float
    answered: list[bool] = field(default_factory=list)


def build_reward(reward: Reward) -> Callable[[Sequence[Sample]], RewardBatch]:
    """Resolve the reward of a config.

    Functions marked `in_process` are called directly, all others in a worker process. One that takes longer than
    `reward.timeout_seconds` for a batch is killed and asked again row by row; rows that hang count 0 and are reported.
    `timeout_seconds: 0` calls everything directly, without protection.

    Args:
        reward: the reward part of the config; each term's `function` is `{_target_: dotted.path, **options}`.

    Returns:
        A function (B samples) -> RewardBatch. It raises RunError naming the row and the function where a function
        raises, gives the wrong number of values, or a value that is not finite.

    Raises:
        RequestError: no term, a function that cannot be found, or an option that it does not take.
    """
    if not reward.terms:
        raise RequestError(f"reward={reward.name} has no terms; give reward.terms.NAME.function._target_.")
    terms = [_term(name, term) for name, term in reward.terms.items()]
    worker, seconds = Worker(), float(reward.timeout_seconds)

    def score(samples: Sequence[Sample]) -> RewardBatch:
        """Weighted sum of the terms for B samples."""
        samples = list(samples)
        values: dict[str, list[float | None]] = {}
        timeouts, before = {}, _cut(terms)
        for term in terms:
            values[term.name], late = _call(term, samples, worker, seconds)
            if late:
                timeouts[term.name] = late
        weights = [term.weight for term in terms]
        total = [weighted_sum([values[term.name][i] for term in terms], weights) for i in range(len(samples))]
        return RewardBatch(total, values, timeouts, _cut(terms) - before)

    return score


def _cut(terms: Sequence[ResolvedTerm]) -> int:
    """Inputs that the functions have cut so far."""
    return sum(getattr(function, "cut", 0) for function in {term.function for term in terms})


def lack_of(reward: Reward) -> Callable[[Sample], str | None]:
    """What a sample lacks for the terms of a reward, as words for a sentence; None: nothing (see `sample.needs`).

    Raises:
        RequestError: as `build_reward`.
    """
    checks = [one for name, term in reward.terms.items() if (one := getattr(_term(name, term).function, "lacks", None))]
    return lambda sample: next((found for check in checks if (found := check(sample)) is not None), None)


def probe(reward: Reward, sample: Sample) -> None:
    """Call the functions of a reward once, so that one which cannot work is known before a run begins.

    Functions marked with what they need are known to work, and one that opens a model is left for later.

    Raises:
        RequestError: one raises, hangs, or gives something else than a number.
    """
    worker = Worker()
    try:
        for name, entry in reward.terms.items():
            term = _term(name, entry)
            if hasattr(term.function, "lacks") or getattr(term.function, "opens_a_model", False):
                continue
            _call(term, [sample], worker, float(reward.timeout_seconds))
    except RunError as error:
        raise RequestError(str(error).splitlines()[0]) from error
    finally:
        worker.close()


def _term(name: str, term: RewardTerm) -> ResolvedTerm:
    settings = dict(term.function)
    path = settings.pop("_target_", None)
    if path is None:
        raise RequestError(f"reward.terms.{name}.function has no _target_, the dotted path of a function.")
    function = resolve(path)
    check_options(path, function, settings)
    return ResolvedTerm(name, path, function, settings, float(term.weight))


def _call(
    term: ResolvedTerm, samples: list[Sample], worker: Worker, seconds: float
) -> tuple[list[float | None], list[int]]:
    """Values of one term for all samples, and the rows on which it hangs."""
    if not samples:
        return [], []
    late: list[int] = []
    try:
        values = _run(term, samples, worker, seconds)
    except RewardTimeout:
        values, late = _row_by_row(term, samples, worker, seconds)
    except RewardError as error:
        raise _named(term, samples, worker, seconds, error) from error
    except WrongValue as error:
        raise RunError(f"The reward function {term.path} {error}.") from error
    for i, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise RunError(f"The reward function {term.path} gave {value} for {_row(samples, i)}.")
    return values, late


def _run(term: ResolvedTerm, samples: list[Sample], worker: Worker, seconds: float) -> list[float | None]:
    if seconds > 0 and not getattr(term.function, "in_process", False):
        values = worker.call(term.path, samples, term.options, seconds)
        term.answered[:] = [True]
        return values
    try:
        return call(term.function, samples, term.options)
    except WrongValue:
        raise
    except Exception as error:  # a user's function raises anything
        raise RewardError(f"{type(error).__name__}: {error}", "") from error


def _row_by_row(
    term: ResolvedTerm, samples: list[Sample], worker: Worker, seconds: float
) -> tuple[list[float | None], list[int]]:
    values: list[float | None] = []
    late: list[int] = []
    for i, sample in enumerate(samples):
        try:
            values += _run(term, [sample], worker, seconds)[:1]
        except RewardTimeout:
            values.append(0.0)
            late.append(i)
        except RewardError as error:
            raise RunError(f"The reward function {term.path} raised {error} for {_row(samples, i)}.") from error
        except WrongValue as error:
            raise RunError(f"The reward function {term.path} {error}.") from error
        if len(late) >= HANGING_ROWS and not term.answered:
            raise RunError(
                f"The reward function {term.path} took over {seconds:g} s for each of {len(late)} responses, the last "
                f"{_row(samples, i)}; raise reward.timeout_seconds or mend the function."
            ) from None
    return values, late


def _named(term: ResolvedTerm, samples: list[Sample], worker: Worker, seconds: float, error: RewardError) -> RunError:
    """The error of a batch with the first row that raises it alone; a function of the whole batch may have none."""
    where = f"a batch of {len(samples)} responses"
    for i, sample in enumerate(samples):
        try:
            _run(term, [sample], worker, seconds)
        except WrongValue:
            continue
        except (RewardError, RewardTimeout) as alone:
            where = _row(samples, i)
            error = alone if isinstance(alone, RewardError) else error
            break
    trace = f"\n{error.trace}" if error.trace else ""
    return RunError(f"The reward function {term.path} raised {error} for {where}.{trace}")


def _row(samples: list[Sample], i: int) -> str:
    sample = samples[i]
    number = f"data row {sample.row}" if sample.row is not None else f"response {i} of the batch"
    return f"{number} (prompt {_short(sample.prompt)}, response {_short(sample.completion)})"


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
