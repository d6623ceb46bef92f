"""Two trained models side by side: what each answers, and what the references say of every answer and token of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multiref_cli.config.compose import compose_saved
from multiref_cli.config.schema import TOY, Data, Experiment, Hardware, ReferenceSpec
from multiref_cli.data.chat import end_ids, token_pieces
from multiref_cli.data.made import BadRow
from multiref_cli.data.prompts import parse_prompt
from multiref_cli.data.rows import read_rows
from multiref_cli.data.template import Message, Rendering, rendering_of
from multiref_cli.errors import RequestError
from multiref_cli.evaluation.answers import Answer, Compared, Comparison, Piece
from multiref_cli.models.files import hub_id
from multiref_cli.models.packing import pack
from multiref_cli.references.base import Reference, references_of
from multiref_cli.references.served import Serving
from multiref_cli.references.tokens import first_difference, response_ids
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.runs.job import check_parts
from multiref_cli.runs.run import train_embedded
from multiref_cli.seeding import derive
from multiref_cli.tracking.progress import Progress
from multiref_cli.types import Tokenizer
from multiref_cli.world.worlds import World, ensure, localized

# Answers that one pass scores.
_ROWS = 8


@dataclass
class _Side:
    """A model that answers, with what its prompts are made by."""

    name: str
    model: Reference
    data: Data
    tokenizer: Tokenizer
    asked: list[tuple[tuple[int, ...], list[Message]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Given:
    """What one of the two names leads to."""

    path: str
    experiment: Experiment | None

    @property
    def data(self) -> Data:
        """How prompts are made: as in the run; for a bare model as they are."""
        return replace(self.experiment.data, columns={}, options={}) if self.experiment else Data()

    @property
    def rendering(self) -> Rendering:
        """What its chat template is told."""
        return rendering_of(self.data)


def compare(
    names: Sequence[str],
    prompts: Sequence[dict[str, Any]],
    sampling: Sampling,
    seed: int,
    hardware: Hardware,
    progress: Progress,
    fit: bool = False,
) -> Compared:
    """Let two models answer the same prompts and score every answer by both and by the references of their runs.

    Args:
        names: two of: a run folder, a model's folder, a Hub id, `toy:NAME`.
        prompts: rows with a prompt, see `prompts_of`.
        sampling: how they answer; where answers end is each model's own.
        seed: of the sampling.
        hardware: device and cache.
        progress: told of every model.
        fit: write fewer tokens where a model has fewer positions; else that is refused.

    Raises:
        RequestError: a name that leads to no model, a run that wrote none, or a prompt that one cannot read.
    """
    given = [_given(name, hardware, progress) for name in names]
    titles = _titles(names)
    device, dtype = hardware.device_name, hardware.dtype_name()
    sides = []
    for title, one in zip(titles, given):
        (model,) = references_of([ReferenceSpec(name=title, path=one.path)], device, dtype, rendering=one.rendering)
        sides.append(_Side(title, model, one.data, model.tokenizer))
    references = _references(given, sides, hardware)
    for side in sides:
        side.asked = [_asked(side, number, row) for number, row in enumerate(prompts, 1)]
    written = [_written(side, sampling, seed, fit, progress) for side in sides]
    scorers: list[tuple[str, Reference]] = [(side.name, side.model) for side in sides]
    scorers += [(one.name, one) for one in references]
    pieces, totals, apart = _scored(sides, written, scorers, progress)
    comparisons = []
    for number in range(len(prompts)):
        answers = [
            Answer(
                side.name,
                pieces[i][number],
                len(written[i][number].ids),
                written[i][number].finished,
                totals[i][number],
            )
            for i, side in enumerate(sides)
        ]
        comparisons.append(Comparison(sides[0].asked[number][1][-1]["content"], answers))
    return Compared(titles, [one.name for one in references], comparisons, apart)


def prompts_of(texts: Sequence[str], file: str | None, limit: int) -> list[dict[str, Any]]:
    """Rows with a prompt: texts, then those of a file (a prompt a line in .txt; else rows as `data.path` takes them).

    Raises:
        RequestError: no prompt at all, or a file that cannot be read.
    """
    rows: list[dict[str, Any]] = [{"prompt": text} for text in texts]
    if file is not None and Path(file).suffix == ".txt":
        try:
            lines = Path(file).read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise RequestError(f"--prompts {file} cannot be read ({error}).") from error
        rows += [{"prompt": line} for line in lines if line.strip()][:limit]
    elif file is not None:
        rows += [row for _, row in read_rows(file, max_rows=limit)]
    if not rows:
        raise RequestError('nothing to answer: give a prompt in quotation marks, "PROMPT", or --prompts FILE.')
    return rows


def _given(name: str, hardware: Hardware, progress: Progress) -> _Given:
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file():
        experiment = compose_saved(folder / "config.yaml")
        if not experiment.algorithm.writes:
            raise RequestError(f"{name} trained a reward model, which writes no answers; give a policy.")
        if not (folder / "policy" / "config.json").is_file():
            raise RequestError(f"{name} holds no trained policy yet; finish it with --resume.")
        check_parts(experiment)
        return _Given(str(folder / "policy"), localized(experiment, progress, train_embedded))
    if name.startswith(TOY):
        world = World(0, hardware.cache_folder)
        return _Given(str(ensure(name.removeprefix(TOY), world, progress, train_embedded)), None)
    if (folder / "sweep.yaml").is_file():
        raise RequestError(f"{name} is a sweep; give two of the runs in it.")
    if not (folder / "config.json").is_file() and not hub_id(name):
        raise RequestError(f"{name} is neither a run nor a model; give a run folder, a model's folder or a Hub id.")
    return _Given(name, None)


def _titles(names: Sequence[str]) -> list[str]:
    """The last part of each name where these differ, else the names, else with a number."""
    short = [Path(name).name if not name.startswith(TOY) else name for name in names]
    long = short if len(set(short)) == 2 else list(names)
    return long if len(set(long)) == 2 else [f"{name} ({i})" for i, name in enumerate(long, 1)]


def _references(given: Sequence[_Given], sides: Sequence[_Side], hardware: Hardware) -> list[Reference]:
    """The references of both runs, the same one once; of two that share a name the second has its run's beside it."""
    found: dict[str, Reference] = {}
    places: list[object] = []
    titles, device, dtype = [side.name for side in sides], hardware.device_name, hardware.dtype_name()
    for title, side, one in zip(titles, sides, given):
        experiment, serving = one.experiment, Serving(side.tokenizer, hardware.cache_folder / "served")
        for spec in experiment.active_references if experiment is not None and experiment.regularized else ():
            place = replace(spec, name="")
            if place in places:
                continue
            places.append(place)
            name = spec.name if spec.name not in {*found, *titles} else f"{spec.name} of {title}"
            spec = replace(spec, name=name)
            (found[name],) = references_of([spec], device, dtype, rendering=one.rendering, serving=serving)
            if spec.server is not None:
                found[name].fingerprint()  # before anybody answers: is it there, with these tokens
    return list(found.values())


def _asked(side: _Side, number: int, row: dict[str, Any]) -> tuple[tuple[int, ...], list[Message]]:
    try:
        prompt = parse_prompt(number, row, side.data, side.tokenizer)
    except BadRow as error:
        raise RequestError(f"prompt {number} cannot be asked of {side.name}: {error}.") from error
    return prompt.ids, prompt.messages


def _written(side: _Side, sampling: Sampling, seed: int, fit: bool, progress: Progress) -> list[Any]:
    """One completion a prompt."""
    progress.advance(f"answers of {side.name}", 0, len(side.asked))
    how = replace(sampling, end_ids=tuple(end_ids(side.tokenizer)))
    positions = getattr(getattr(side.model.model, "config", None), "max_position_embeddings", None)
    if fit and positions is not None:
        room = positions - max(len(ids) for ids, _ in side.asked)
        how = replace(how, max_new_tokens=max(1, min(how.max_new_tokens, room)))
    seeds = [derive(seed, "compare", i) for i in range(len(side.asked))]
    vocabulary = max(side.tokenizer.get_vocab().values()) + 1
    groups = side.model.generate([ids for ids, _ in side.asked], 1, how, seeds, _ROWS, vocabulary)
    side.model.release()
    return [group[0] for group in groups]


def _scored(
    sides: Sequence[_Side],
    written: Sequence[Sequence[Any]],
    scorers: Sequence[tuple[str, Reference]],
    progress: Progress,
) -> tuple[list[list[list[Piece]]], list[list[dict[str, float]]], list[str]]:
    """Pieces and totals of every answer of both sides, and notes on scorers that read other tokens."""
    texts = [[token_pieces(side.tokenizer, one.ids) for one in answers] for side, answers in zip(sides, written)]
    pieces = [[[Piece(text, {}) for text, _ in parts] for parts in side] for side in texts]
    totals: list[list[dict[str, float]]] = [[{} for _ in answers] for answers in written]
    notes: dict[str, None] = {}
    for number, (name, scorer) in enumerate(scorers):
        progress.advance("scores", number, len(scorers))
        for i, side in enumerate(sides):
            own = first_difference(side.tokenizer, scorer.tokenizer) is None
            if not own:
                notes[f"{name} has other tokens than {side.name}: it scores whole answers, without colors"] = None
            found = _logps(side, written[i], scorer, own)
            for j, values in enumerate(found):
                totals[i][j][name] = float(sum(values))
                place = 0
                for piece, (_, count) in zip(pieces[i][j], texts[i][j]) if own else ():
                    piece.logps[name] = float(sum(values[place : place + count]))
                    place += count
        scorer.release()
    progress.advance("scores", len(scorers), len(scorers))
    return pieces, totals, list(notes)


def _logps(side: _Side, answers: Sequence[Any], scorer: Reference, own: bool) -> list[list[float]]:
    """Log-probabilities of the tokens of every answer under a scorer, as that one reads it."""
    vocabulary = max(side.tokenizer.get_vocab().values()) + 1 if own else None
    rows = [(list(ids), list(one.ids)) for (ids, _), one in zip(side.asked, answers)]
    if not own:
        rows = []
        for (_, messages), one in zip(side.asked, answers):
            text = str(side.tokenizer.decode(one.ids, skip_special_tokens=True))
            rows.append(response_ids(scorer.tokenizer, messages, text, one.finished))
    found: list[list[float]] = []
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        packed = pack([prompt for prompt, _ in part], [[ids] for _, ids in part], 0, share_prompt=False)
        logps = scorer.token_logps(packed, vocabulary=vocabulary).cpu()
        found += [values[mask].tolist() for values, mask in zip(logps, packed.mask)]
    return found
