"""What a model folder holds, looked at before anything is built: kinds, types, sizes, damage. No weight is read."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from multiref_cli.config.schema import Model, Policy
from multiref_cli.errors import RequestError
from multiref_cli.models.files import resolve, safetensors_header, weight_files

_FLOATS = ("F64", "F32", "F16", "BF16")
_CLASSIFIERS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "RewardModel")
_SCORE_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "v_head.summary.weight")
# Names of what is computed with; GPT-2 and GPT-NeoX call a mask so too.
_COMPUTED = (".weight", ".bias", "_proj", ".lora_A", ".lora_B")
_MASKS = (".attn.bias", ".attention.bias")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def check_language_model(model: Model, name: str) -> None:
    """Refuse a folder that is no causal language model, or a damaged one.

    Args:
        model: policy or reference.
        name: what it is, for the sentence: `policy.path`, `reference first`.

    Raises:
        RequestError: naming the folder and what is wrong with it.
    """
    folder = _checked(model, name)
    architectures = [str(one) for one in config_of(folder, name).get("architectures") or ()]
    heads = [tensor for tensor in headers(folder, name) if tensor.endswith(_SCORE_HEADS)]
    if any(kind in one for one in architectures for kind in _CLASSIFIERS) or heads:
        kind = architectures[0] if architectures else heads[0]
        raise RequestError(f"{name}={model.path} is a classifier or reward model ({kind}): give a language model.")


def check_reward_model(model: Model, name: str) -> None:
    """Refuse a folder without a trained score head, or a damaged one; see `check_language_model`."""
    folder = _checked(model, name)
    found = headers(folder, name)
    if not any("score" in tensor or "classifier" in tensor or "v_head" in tensor for tensor in found):
        raise RequestError(
            f"{name}={model.path} has no score head: it is another kind of model than a reward model; "
            "train one with algorithm=reward_model."
        )


def check_trunk(model: Model, name: str) -> None:
    """Refuse a damaged folder, whatever model it holds; see `check_language_model`."""
    _checked(model, name)


def check_lora_targets(policy: Policy) -> None:
    """Refuse LoRA targets that name no module of the policy, or its output head.

    Raises:
        RequestError: naming the target.
    """
    if policy.lora is None or isinstance(policy.lora.target_modules, str):
        return
    folder = resolve(policy.path, policy.revision)
    modules = {tensor.rpartition(".")[0] for tensor in headers(folder, "policy.path")}
    for target in policy.lora.target_modules:
        if target.rpartition(".")[2] in ("lm_head", "embed_out", "output", "embed_tokens", "wte", "word_embeddings"):
            raise RequestError(
                f"policy.lora.target_modules names {target}, an embedding or output head, which adapters cannot change "
                "here: name layers inside the decoder, or all-linear."
            )
        if not any(module == target or module.endswith(f".{target}") for module in modules):
            known = sorted({m.rpartition(".")[2] for m in modules if m.rpartition(".")[2].isidentifier()})
            raise RequestError(
                f"policy.lora.target_modules names {target}, which {policy.path} does not have; it has "
                f"{', '.join(known)}."
            )


def position_limit(model: Model) -> int | None:
    """The longest sequence in tokens that a model has positions for; None where its config names none."""
    config = text_config(model)
    found = [config[key] for key in _POSITIONS if isinstance(config.get(key), int) and config[key] > 0]
    return min(found) if found else None


def output_ids(model: Model) -> int | None:
    """How many ids a language model's output head has; None where the config does not say."""
    size = text_config(model).get("vocab_size")
    return size if isinstance(size, int) else None


def text_config(model: Model) -> dict[str, Any]:
    """The config of the part that reads text: of models that also see, a part of their own."""
    config = config_of(resolve(model.path, model.revision, weights=False), model.path)
    text = config.get("text_config") or config
    if not isinstance(text, dict):
        raise RequestError(f"{model.path}: text_config in its config.json is {text!r}, no JSON object.")
    return text


def config_of(folder: Path, name: str) -> dict[str, Any]:
    """Content of a folder's config.json.

    Raises:
        RequestError: it is missing, or no JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise RequestError(f"{name}={folder} holds no config.json: give the folder of a model.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{name}={folder}: its config.json cannot be read ({error}).") from error
    if not isinstance(config, dict):
        raise RequestError(f"{name}={folder}: its config.json is no JSON object.")
    return config


def headers(folder: Path, name: str, adapter: bool = False) -> dict[str, dict[str, Any]]:
    """Types, shapes and places of all tensors of a folder, each file as long as its header says.

    Raises:
        RequestError: a damaged file, or one that the index names and that is not there.
    """
    found: dict[str, dict[str, Any]] = {}
    _refuse_gaps(folder, name)
    for path in weight_files(folder, adapter):
        try:
            header, start = safetensors_header(path)
            stop = start + max((int(one["data_offsets"][1]) for one in header.values()), default=0)
            shapes = [[int(size) for size in one["shape"]] for one in header.values()]
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            OverflowError,
            struct.error,
        ) as error:
            raise RequestError(f"{name}={folder}: {path.name} is damaged ({type(error).__name__}).") from error
        if stop != path.stat().st_size or any(size < 0 for shape in shapes for size in shape):
            raise RequestError(f"{name}={folder}: {path.name} is damaged: its length is not what its header says.")
        found |= header
    return found


def refuse_types(tensors: Iterable[tuple[str, dict[str, Any]]], name: str) -> None:
    """Refuse weights that are no floating-point numbers; buffers such as masks and position ids may be others."""
    for tensor, entry in tensors:
        computed = tensor.endswith(_COMPUTED) and not tensor.endswith(_MASKS)
        if computed and entry.get("dtype") not in _FLOATS:
            raise RequestError(
                f"{name}: the weights {tensor} are of type {entry.get('dtype')}, not floating point: quantized or "
                "relabelled weights cannot be trained on or compared; save the model in float32, float16 or bfloat16."
            )


def _checked(model: Model, name: str) -> Path:
    folder = resolve(model.path, model.revision, code=model.trust_remote_code)
    if (folder / "config.yaml").is_file() and (folder / "policy").is_dir():
        raise RequestError(f"{name}={model.path} is a run folder: give the model in it, {Path(model.path) / 'policy'}.")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = _base_of(folder)
        raise RequestError(f"{name}={model.path} is an adapter of {base}: give path={base} and adapter={model.path}.")
    config_of(folder, name)
    refuse_types(headers(folder, name).items(), f"{name}={model.path}")
    if model.adapter:
        place = resolve(model.adapter)
        if not (place / "adapter_config.json").is_file():
            raise RequestError(f"{model.adapter} holds no adapter_config.json: give the folder of a peft adapter.")
        refuse_types(headers(place, "adapter", adapter=True).items(), f"adapter={model.adapter}")
    return folder


def _base_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another model"


def _refuse_gaps(folder: Path, name: str) -> None:
    """Refuse a model in several files whose index names one that is not there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        files = {str(file) for file in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{name}={folder}: {index.name} cannot be read ({type(error).__name__}).") from error
    absent = sorted(file for file in files if not (folder / file).is_file())
    if absent:
        raise RequestError(f"{name}={folder} lacks {absent[0]}, which {index.name} names.")
