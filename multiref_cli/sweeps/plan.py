"""From a request to points: axes x single-reference baselines x seeds, each point known by the hash of its config."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multiref_cli.config import build
from multiref_cli.config.check import REGULARIZED, check, simplex
from multiref_cli.config.compose import compose, expand_axes, typed
from multiref_cli.config.schema import ALGORITHMS, Experiment
from multiref_cli.errors import RequestError
from multiref_cli.sweeps.request import Request, key_of

# A reference alone is the same under every mean: these names stand for it (see `canonical`).
_EXACT_NAMES = {0.0: "rkl", 1.0: "fkl", 0.5: "hellinger", -1.0: "chi2"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

# A config as JSON-ready dictionaries, lists and numbers: copies and hashes of it cost nothing beside OmegaConf's.
Plain = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run of a sweep: `id` is its config's hash, `condition_id` the hash without the seed."""

    id: str
    name: str
    condition: str
    condition_id: str
    seed: int
    role: str
    overrides: tuple[str, ...]
    passes: tuple[str, ...]
    config: Plain = field(repr=False)

    def line(self) -> dict[str, Any]:
        """What plan.jsonl holds of the point; its config is in the run folder."""
        return {k: v for k, v in asdict(self).items() if k != "config"}


@dataclass(frozen=True)
class Pass:
    """Work that points share, done once before them: an embedded model or data set, a reference's pass over the data.

    `toy` is the name behind `toy:` where that is what is made; `needs` are ids of passes that come before this one;
    `mixes`, (order, weights) each, are the token-level mixes whose normalizers one pass computes together.
    """

    id: str
    title: str
    toy: str | None
    needs: tuple[str, ...]
    config: Plain = field(repr=False)
    mixes: tuple[tuple[float, tuple[float, ...]], ...] = ()


@dataclass(frozen=True)
class Plan:
    """All points of a sweep in the order in which they start, and the passes that they need."""

    points: tuple[Point, ...]
    passes: tuple[Pass, ...]

    @property
    def conditions(self) -> list[str]:
        """The distinct conditions by their hash, in order."""
        return list(dict.fromkeys(point.condition_id for point in self.points))

    def count(self, role: str) -> int:
        """Number of conditions with a role: grid, single or beta0."""
        return len({point.condition_id for point in self.points if point.role == role})


def make_plan(request: Request) -> Plan:
    """Expand a request; a point that several grids name is in the plan once.

    Args:
        request: grids in override syntax, seeds, and whether the single-reference baselines belong to it.

    Returns:
        The plan: one seed of every condition before the next seed, so that a comparison shows early.

    Raises:
        RequestError: an override or a combination of values is wrong; one sentence naming the point.
    """
    composer = _Composer()
    conditions: dict[str, tuple[Plain, tuple[str, ...]]] = {}
    for overrides in condition_overrides(request):
        config = composer.compose(overrides)
        for one, given in [(config, overrides), *(_baselines(config, overrides) if request.baselines else ())]:
            one = canonical(one)
            conditions.setdefault(_same_result(one), (one, given))
    _check_parts(config for config, _ in conditions.values())
    needed = {identity: _passes(config) for identity, (config, _) in conditions.items()}
    points = [
        _point(config, seed, overrides, tuple(one.id for one in needed[identity]))
        for seed in request.seeds
        for identity, (config, overrides) in conditions.items()
    ]
    return Plan(tuple(points), _merged(one for passes in needed.values() for one in passes))


def _check_parts(configs: Iterable[Plain]) -> None:
    """What every run checks of its parts, once for all points with the same ones."""
    from multiref_cli.training.job import check_parts

    named = ("algorithm", "policy", "reward", "rollout")
    different = {json.dumps([config[name] for name in named], sort_keys=True): config for config in configs}
    for config in different.values():
        check_parts(restore(config))


def condition_overrides(request: Request) -> list[tuple[str, ...]]:
    """The overrides of every condition that the grids name, without seeds, in the order given."""
    found: dict[tuple[str, ...], None] = {}
    for grid in request.grids:
        axes, fixed = expand_axes([*request.common, *grid])
        for values in itertools.product(*axes.values()):
            found[(*fixed, *(f"{key}={value}" for key, value in zip(axes, values)))] = None
    return list(found)


def canonical(config: Plain) -> Plain:
    """Give a single-reference condition one name whatever mean it was asked under: every mean of one is that one."""
    r = config["regularizer"]
    if r is None or not config["references"] or max(_weights(config)) < 1 or r["mean_order"] == r["score_order"]:
        return config
    name = _EXACT_NAMES.get(float(r["score_order"]))
    if name is None or r["ctro"] is not None or r["arwc"] or r["multi_loss"]:
        return config
    name = name if r["level"] == "sequence" else f"{name}_token"
    return {**config, "regularizer": {**r, "mean_order": r["score_order"], "name": name}}


def restore(config: Plain) -> DictConfig:
    """The typed config of a point from its plain values."""
    return typed(OmegaConf.create(config), Experiment(algorithm=ALGORITHMS[config["algorithm"]["name"]]()))


class _Composer:
    """Composes each choice of groups once and sets numbers afterwards: 300 points would cost Hydra half a minute."""

    def __init__(self) -> None:
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: tuple[str, ...]) -> Plain:
        """Compose, type and check one condition; an error names its overrides."""
        try:
            found = self._fast(overrides)
            if found is None:
                config = compose(list(overrides))
                check(config)
                found = build.plain(config)
        except RequestError as error:
            raise RequestError(f"{error} (in the point {' '.join(overrides) or 'of the defaults'})") from error
        return found

    def _fast(self, overrides: tuple[str, ...]) -> Plain | None:
        numbers = [text for text in overrides if _is_number(text)]
        rest = tuple(text for text in overrides if not _is_number(text))
        if rest not in self._composed:
            self._composed[rest] = compose(list(rest))
        config, before = self._composed[rest], {}
        try:
            for text in numbers:
                key, _, value = text.partition("=")
                before[key] = OmegaConf.select(config, key)
                OmegaConf.update(config, key, OmegaConf.create(f"v: {value}").v, force_add=False)
            check(config)
            return build.plain(config)
        except OmegaConfBaseException:
            return None  # compose() says in one sentence what is wrong
        finally:
            for key, value in before.items():
                OmegaConf.update(config, key, value, force_add=False)


def _is_number(override: str) -> bool:
    """Whether an override sets a number or a list of numbers that nothing else in the config is made from."""
    key, _, value = override.partition("=")
    items = value[1:-1].split(",") if value[:1] == "[" and value[-1:] == "]" else [value]
    return key in ("alpha", "beta", "optimizer.learning_rate") and all(_NUMBER.fullmatch(i.strip()) for i in items)


def _baselines(config: Plain, overrides: tuple[str, ...]) -> Iterable[tuple[Plain, tuple[str, ...]]]:
    """The same condition with each reference of the set alone."""
    count = len(config["references"])
    if config["algorithm"]["name"] not in REGULARIZED or count < 2 or config["beta"] == 0:
        return
    for index in range(count):
        text = "alpha=[" + ",".join(f"{float(i == index):g}" for i in range(count)) + "]"
        yield _alone(config, index), (*(o for o in overrides if key_of(o) != "alpha"), text)


def _alone(config: Plain, index: int) -> Plain:
    return {**config, "alpha": [float(i == index) for i in range(len(config["references"]))]}


def _weights(config: Plain) -> list[float]:
    return simplex(config["alpha"], len(config["references"])) if config["references"] else []


def _same_result(config: Plain) -> str:
    """Hash of what a condition's result depends on: with beta 0 the references and the regularizer do not matter."""
    if role(config) == "beta0":
        return _hash({k: v for k, v in config.items() if k not in ("regularizer", "alpha", "seed", "run", "tracking")})
    return build.plain_hash(config, without_seed=True)


def _point(config: Plain, seed: int, overrides: tuple[str, ...], passes: tuple[str, ...]) -> Point:
    config = {**config, "seed": seed}
    identity = build.plain_hash(config)
    # build.condition reads attributes; an OmegaConf would cost a hundred times as much as this view.
    condition = build.condition(json.loads(json.dumps(config), object_hook=lambda values: SimpleNamespace(**values)))
    return Point(
        id=identity,
        name=f"{condition}-s{seed}-{identity[:6]}",
        condition=condition,
        condition_id=build.plain_hash(config, without_seed=True),
        seed=seed,
        role=role(config),
        overrides=(*(o for o in overrides if key_of(o) != "seed"), f"seed={seed}"),
        passes=passes,
        config=config,
    )


def role(config: Plain) -> str:
    """What a condition is in a comparison: beta0, single (one reference of several alone) or grid."""
    if config["algorithm"]["name"] not in REGULARIZED or not config["references"]:
        return "grid"
    if config["beta"] == 0:
        return "beta0"
    return "single" if len(config["references"]) > 1 and max(_weights(config)) == 1 else "grid"


def _passes(config: Plain) -> list[Pass]:
    """Embedded models and data first, then one pass for each reference that the condition uses, then normalizers."""
    from multiref_cli.training.embedded import needed

    made = [
        Pass(_toy_pass(name), f"toy:{name}", name, tuple(_toy_pass(other) for other in uses), config)
        for name, uses in needed(config).items()
    ]
    if config["algorithm"]["name"] not in REGULARIZED or not config["references"]:
        return made
    needs, data = tuple(one.id for one in made), config["data"]["name"]
    active = [index for index, weight in enumerate(_weights(config)) if weight > 0]
    found = [
        _reference_pass(canonical(_alone(config, i)), f"{config['references'][i]['name']} over {data}", [i], needs)
        for i in active
    ]
    regularizer = config["regularizer"]
    mixed = regularizer["level"] == "token" and regularizer["normalized"] and len(active) > 1
    if config["algorithm"]["name"] == "dpo" and mixed:
        everyone = list(range(len(config["references"])))
        before = (*needs, *(one.id for one in found))
        one = _reference_pass(config, f"normalizers of the mixes over {data}", everyone, before)
        found.append(replace(one, mixes=((float(regularizer["mean_order"]), tuple(_weights(config))),)))
    return made + found


def _merged(passes: Iterable[Pass]) -> tuple[Pass, ...]:
    """Each pass once; what two conditions want of the same pass is done in one."""
    found: dict[str, Pass] = {}
    for one in passes:
        before = found.get(one.id, one)
        mixes, needs = (dict.fromkeys((*getattr(before, key), *getattr(one, key))) for key in ("mixes", "needs"))
        found[one.id] = replace(before, mixes=tuple(mixes), needs=tuple(needs))
    return tuple(found.values())


def _reference_pass(config: Plain, title: str, references: list[int], needs: tuple[str, ...]) -> Pass:
    key: list[Any] = [config[name] for name in ("algorithm", "policy", "data", "evaluation", "reward", "rollout")]
    key += [title, [config["references"][index] for index in references], config["regularizer"]["states"]]
    return Pass(_hash(key), title, None, needs, config)


def _toy_pass(name: str) -> str:
    return _hash(["toy", name])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
