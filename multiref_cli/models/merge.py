"""Merged models: the weighted sum of the weights of models of one architecture, made once per machine.

theta = sum_i w_i theta_i (a soup, arXiv 2203.05482), or base + sum_i w_i (theta_i - base) (task arithmetic, arXiv
2212.04089), computed tensor by tensor in float32 and kept in the type of the first model. What is made lies in the
cache, addressed by the content of all parts and by their factors; a merge with all weight on one model is that model.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from filelock import FileLock
from torch import Tensor

from multiref_cli.config.merges import members
from multiref_cli.config.schema import Experiment, Model, Part
from multiref_cli.errors import RequestError
from multiref_cli.files import read_object, sync_folder, sync_tree, write_json
from multiref_cli.models.auto import before_opening
from multiref_cli.models.files import file_sha256, fingerprint, resolve, weight_files
from multiref_cli.models.inspect import check_language_model, config_of, headers
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.references.tokens import first_difference

M = TypeVar("M", bound=Model)
# In the folder of a merge: its formula, and the sha256 and factor of every part.
RECIPE = "merge.json"
# Keys of config.json in which merged models may differ: none of them changes what is computed.
_FREE = {
    *("_name_or_path", "transformers_version", "architectures", "use_cache", "torch_dtype", "dtype"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"),
}
# Part of the address: another one where the same parts would give other weights.
_VERSION = 1


def without_merges(experiment: Experiment, looking: bool = False) -> Experiment:
    """The experiment with a folder in place of every merge, made now if it is not there yet.

    Args:
        experiment: with local folders in place of `toy:` names.
        looking: write nothing: where a merge is not there, its first model, which has the same shapes, stands for it.

    Raises:
        RequestError: models that cannot be merged; see `check_alike`.
    """
    cache = experiment.hardware.cache_folder
    references = [_placed(one, cache, looking) for one in experiment.references]
    policy = _placed(experiment.policy, cache, looking)
    if policy is experiment.policy and all(a is b for a, b in zip(references, experiment.references)):
        return experiment
    return replace(experiment, policy=policy, references=references)


def recipe_of(model: Model) -> dict[str, Any] | None:
    """What the folder of a model was merged from; None where it is no merge."""
    folder = Path(model.path).expanduser()
    return read_object(folder / RECIPE) if (folder / RECIPE).is_file() else None


def check_alike(parts: Sequence[Model]) -> None:
    """Refuse models that are no two sets of weights of one network over one vocabulary.

    Raises:
        RequestError: naming the first two that differ and in what: config, names or shapes of weights, tokenizer.
    """
    first = parts[0]
    for part in parts:
        check_language_model(part, "models")
    own, weights, tokenizer = _settings(first), _shapes(first), load_tokenizer(first)
    for other in parts[1:]:
        both = f"{first.path} and {other.path} cannot be merged"
        theirs, shapes = _settings(other), _shapes(other)
        key = next((one for one in sorted({*own, *theirs}) if own.get(one) != theirs.get(one)), None)
        if key is not None:
            raise RequestError(
                f"{both}: {key} is {own.get(key)!r} in the config of one and {theirs.get(key)!r} in that of the other; "
                "merged models have one architecture and one shape."
            )
        name = next((one for one in sorted({*weights, *shapes}) if weights.get(one) != shapes.get(one)), None)
        if name is not None:
            raise RequestError(
                f"{both}: the weights {name} have shape {weights.get(name, 'none')} in one and "
                f"{shapes.get(name, 'none')} in the other."
            )
        difference = first_difference(tokenizer, load_tokenizer(other))
        if difference is not None:
            raise RequestError(
                f"{both}: they have other vocabularies ({difference.replace('the policy', 'the first')})."
            )


def combined(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """sum_i c_i theta_i, in the type of the first and summed in float32 or wider; theta_i itself where c_i = 1 alone.

    Args:
        tensors: N of one shape; of whole numbers and flags (buffers) the first is taken.
        factors: N, those of 0 are left out.
    """
    import torch

    first = tensors[0]
    active = [(tensor, factor) for tensor, factor in zip(tensors, factors) if factor != 0]
    if not first.is_floating_point():
        return first
    if len(active) == 1 and active[0][1] == 1:
        return active[0][0].to(first.dtype)
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    total = torch.zeros(first.shape, dtype=wide)
    for tensor, factor in active:
        total += factor * tensor.to(wide)
    return total.to(first.dtype)


def _placed(model: M, cache: Path, looking: bool) -> M:
    """The model at the place of its merge; itself where it is none."""
    if model.kind is None:
        return model
    found = members(model)
    check_alike([_model(part) for part, _ in found])
    active = [(part, factor) for part, factor in found if factor != 0]
    plain: dict[str, Any] = {"kind": None, "models": None, "weights": None, "base": None}
    if len(active) == 1 and active[0][1] == 1:
        (alone, _), *_ = active
        return replace(model, path=alone.path, revision=alone.revision, adapter=alone.adapter, **plain)
    parts = [{"sha256": fingerprint(_model(part)), "factor": factor} for part, factor in found]
    small = {path.name: file_sha256(path) for path in _small_files(_folder(found[0][0]))}
    content = json.dumps([_VERSION, parts, small], sort_keys=True)
    target = cache / "merged" / hashlib.sha256(content.encode()).hexdigest()[:16]
    if not target.is_dir():
        if looking:
            return replace(model, path=found[0][0].path, revision=found[0][0].revision, **plain)
        _make(found, target, {"formula": model.path, "parts": parts})
    return replace(model, path=str(target), **plain)


def _make(found: Sequence[tuple[Part, float]], target: Path, recipe: dict[str, Any]) -> None:
    """Write the folder of a merge in one piece; whoever comes second waits and finds it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"), TemporaryDirectory() as bare:
        if target.is_dir():
            return
        folders = [_without_adapter(part, Path(bare) / str(number)) for number, (part, _) in enumerate(found)]
        making = target.with_name(f".{target.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        first = _folder(found[0][0])
        for path in _small_files(first):
            shutil.copyfile(path, making / path.name)
        _write_weights(first, folders, [factor for _, factor in found], making)
        write_json(making / RECIPE, recipe)
        sync_tree(making)
        making.rename(target)
        sync_folder(target.parent)


def _write_weights(first: Path, folders: Sequence[Path], factors: Sequence[float], target: Path) -> None:
    """Combine the weights file by file, as the first model divides them; one file is in memory at a time."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with ExitStack() as stack:
        opened: list[dict[str, Any]] = []
        for folder in folders:
            files = [stack.enter_context(safe_open(str(path), "pt")) for path in weight_files(folder)]
            opened.append({name: file for file in files for name in list(file.keys())})
        for path in weight_files(first):
            with safe_open(str(path), "pt") as file:
                # A tied output head is in some files and not in others; it is that of the embeddings in all of them.
                shared = [name for name in list(file.keys()) if all(name in one for one in opened)]
                types = {name: file.get_tensor(name).dtype for name in shared}
            merged = {
                name: combined([one[name].get_tensor(name) for one in opened], factors).to(kind).contiguous()
                for name, kind in types.items()
            }
            save_file(merged, str(target / path.name), {"format": "pt"})


def _without_adapter(part: Part, place: Path) -> Path:
    """The folder of a part's whole weights; with an adapter a new one, into which it is merged in float32."""
    if not part.adapter:
        return _folder(part)
    load_causal_lm(_model(part), dtype="float32").save_pretrained(str(place))
    return place


def _model(part: Part) -> Model:
    return Model(path=part.path, revision=part.revision, adapter=part.adapter)


def _folder(part: Part) -> Path:
    return resolve(part.path, part.revision)


def _small_files(folder: Path) -> list[Path]:
    """Config, tokenizer and settings of a model; not its weights, nor an adapter that lies beside them."""
    skipped = (".safetensors", ".bin", ".pt", ".pth", ".md", ".lock")
    files = (path for path in folder.iterdir() if path.is_file() and path.suffix not in skipped)
    return sorted(path for path in files if not path.name.startswith((".", "adapter_")) and path.name != RECIPE)


def _settings(model: Model) -> dict[str, Any]:
    config = before_opening(config_of(resolve(model.path, model.revision), "a model of a merge"))
    return {key: value for key, value in config.items() if key not in _FREE}


def _shapes(model: Model) -> dict[str, list[int]]:
    found = headers(resolve(model.path, model.revision), "a model of a merge")
    return {name: one["shape"] for name, one in found.items()}
