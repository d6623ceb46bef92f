"""From a request to points: axes x single-reference baselines x seeds, each point known by the hash of its config."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multiref_cli.config import build
from multiref_cli.config.check import REGULARIZED, check
from multiref_cli.config.compose import compose, compose_plain, expand_axes, typed
from multiref_cli.config.schema import ALGORITHMS, Experiment, Level
from multiref_cli.errors import RequestError
from multiref_cli.sweeps.request import Request, key_of

# A reference alone is the same under every mean: these names stand for it (see `canonical`).
_EXACT_NAMES = {0.0: "rkl", 1.0: "fkl", 0.5: "hellinger", -1.0: "chi2"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


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
    config: dict[str, Any] = field(repr=False)

    def line(self) -> dict[str, Any]:
        """What plan.jsonl holds of the point; its config is in the run folder."""
        return {k: v for k, v in asdict(self).items() if k != "config"}


@dataclass(frozen=True)
class Pass:
    """Work that points share, done once before them: an embedded model or data set, a reference's pass over the data.

    `toy` is the name behind `toy:` where that is what is made; `needs` are ids of passes that come before this one.
    """

    id: str
    title: str
    toy: str | None
    needs: tuple[str, ...]
    config: dict[str, Any] = field(repr=False)


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
    conditions: dict[str, tuple[DictConfig, tuple[str, ...]]] = {}
    for overrides in condition_overrides(request):
        config = composer.compose(overrides)
        for one, given in [(config, overrides), *(_baselines(config, overrides) if request.baselines else ())]:
            one = canonical(one)
            conditions.setdefault(_same_result(one), (one, given))
    points, passes = [], {}
    for seed in request.seeds:
        for config, overrides in conditions.values():
            needed = _passes(config)
            passes |= {one.id: one for one in needed}
            points.append(_point(config, seed, overrides, [one.id for one in needed]))
    return Plan(tuple(points), tuple(passes.values()))


def condition_overrides(request: Request) -> list[tuple[str, ...]]:
    """The overrides of every condition that the grids name, without seeds, in the order given."""
    found: dict[tuple[str, ...], None] = {}
    for grid in request.grids:
        axes, fixed = expand_axes([*request.common, *grid])
        for values in itertools.product(*axes.values()):
            found[(*fixed, *(f"{key}={value}" for key, value in zip(axes, values)))] = None
    return list(found)


def canonical(config: DictConfig) -> DictConfig:
    """Give a single-reference condition one name whatever mean it was asked under: every mean of one is that one."""
    r = config.regularizer
    if r is None or not config.references or max(build.weights(config)) < 1 or r.mean_order == r.score_order:
        return config
    name = _EXACT_NAMES.get(float(r.score_order))
    if name is None or r.ctro is not None or r.arwc or r.multi_loss:
        return config
    config = config.copy()
    config.regularizer.mean_order = r.score_order
    config.regularizer.name = name if r.level == Level.sequence else f"{name}_token"
    return config


def restore(config: dict[str, Any]) -> DictConfig:
    """The typed config of a point from its plain values."""
    return typed(OmegaConf.create(config), Experiment(algorithm=ALGORITHMS[config["algorithm"]["name"]]()))


class _Composer:
    """Composes each choice of groups once and sets numbers afterwards: 300 points would cost Hydra half a minute."""

    def __init__(self) -> None:
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: tuple[str, ...]) -> DictConfig:
        """Compose, type and check one condition; an error names its overrides."""
        try:
            config = self._fast(overrides) or compose(list(overrides))
            check(config)
        except RequestError as error:
            raise RequestError(f"{error} (in the point {' '.join(overrides) or 'of the defaults'})") from error
        return config

    def _fast(self, overrides: tuple[str, ...]) -> DictConfig | None:
        numbers = [text for text in overrides if _is_number(text)]
        rest = tuple(text for text in overrides if not _is_number(text))
        try:
            if rest not in self._composed:
                self._composed[rest] = compose_plain(list(rest))
            plain = self._composed[rest].copy()
            for text in numbers:
                key, _, value = text.partition("=")
                OmegaConf.update(plain, key, OmegaConf.create(f"v: {value}").v, force_add=False)
            return typed(plain, Experiment(algorithm=ALGORITHMS[plain.algorithm.name]()))
        except (RequestError, OmegaConfBaseException, KeyError):
            return None  # compose() says in one sentence what is wrong


def _is_number(override: str) -> bool:
    """Whether an override sets a number or a list of numbers by its plain key."""
    key, _, value = override.partition("=")
    items = value[1:-1].split(",") if value[:1] == "[" and value[-1:] == "]" else [value]
    return bool(re.fullmatch(r"[A-Za-z_][\w.]*", key)) and all(_NUMBER.fullmatch(item.strip()) for item in items)


def _baselines(config: DictConfig, overrides: tuple[str, ...]) -> Iterable[tuple[DictConfig, tuple[str, ...]]]:
    """The same condition with each reference of the set alone."""
    count = len(config.references)
    if config.algorithm.name not in REGULARIZED or count < 2 or config.beta == 0:
        return
    for index in range(count):
        alpha = [float(i == index) for i in range(count)]
        alone = config.copy()
        alone.alpha = alpha
        text = "alpha=[" + ",".join(f"{a:g}" for a in alpha) + "]"
        yield alone, (*(o for o in overrides if key_of(o) != "alpha"), text)


def _same_result(config: DictConfig) -> str:
    """Hash of what a condition's result depends on: with beta 0 the references and the regularizer do not matter."""
    if config.regularizer is not None and config.algorithm.name in REGULARIZED and config.beta == 0:
        content = {k: v for k, v in build.plain(config).items() if k not in ("regularizer", "alpha", "seed")}
        return _hash(content)
    return build.config_hash(config, without_seed=True)


def _point(config: DictConfig, seed: int, overrides: tuple[str, ...], passes: Sequence[str]) -> Point:
    config = config.copy()
    config.seed = seed
    condition, identity = build.condition(config), build.config_hash(config)
    return Point(
        id=identity,
        name=f"{condition}-s{seed}-{identity[:6]}",
        condition=condition,
        condition_id=build.config_hash(config, without_seed=True),
        seed=seed,
        role=role(config),
        overrides=(*(o for o in overrides if key_of(o) != "seed"), f"seed={seed}"),
        passes=tuple(passes),
        config=build.plain(config),
    )


def role(config: DictConfig) -> str:
    """What a condition is in a comparison: beta0, single (one reference alone) or grid."""
    if config.algorithm.name not in REGULARIZED or not config.references:
        return "grid"
    if config.beta == 0:
        return "beta0"
    return "single" if len(config.references) > 1 and max(build.weights(config)) == 1 else "grid"


def _passes(config: DictConfig) -> list[Pass]:
    """Embedded models and data first, then one pass for each reference that the condition uses, then normalizers."""
    plain = build.plain(config)
    made = [Pass(_hash(["toy", name]), f"toy:{name}", name, (), plain) for name in _toy_names(plain)]
    if config.algorithm.name not in REGULARIZED or not config.references:
        return made
    weights, needs = build.weights(config), tuple(one.id for one in made)
    found = []
    for index, weight in enumerate(weights):
        if weight > 0:
            alone = config.copy()
            alone.alpha = [float(i == index) for i in range(len(weights))]
            title = f"{config.references[index].name} over {config.data.name}"
            found.append(_reference_pass(build.plain(canonical(alone)), title, [index], needs))
    if config.algorithm.name == "dpo" and config.regularizer.level == Level.token and max(weights) < 1:
        active = [index for index, weight in enumerate(weights) if weight > 0]
        title = f"normalizers of {build.condition(config)} over {config.data.name}"
        mixed = {**plain, "alpha": weights}
        found.append(_reference_pass(mixed, title, active, (*needs, *(one.id for one in found))))
    return made + found


def _reference_pass(plain: dict[str, Any], title: str, references: list[int], needs: tuple[str, ...]) -> Pass:
    regularizer = plain["regularizer"]
    key = [plain[name] for name in ("algorithm", "policy", "data", "evaluation", "reward")]
    key += [[plain["references"][index] for index in references], regularizer["level"], regularizer["states"]]
    if len(references) > 1:
        key += [regularizer["mean_order"], plain["alpha"]]
    return Pass(_hash(key), title, None, needs, plain)


def _toy_names(value: Any) -> list[str]:
    """The names behind `toy:` in a plain config, in order, each once."""
    if isinstance(value, str):
        return [value.removeprefix("toy:")] if value.startswith("toy:") else []
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return list(dict.fromkeys(name for child in children for name in _toy_names(child)))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
