"""Opening models: a pinned revision, safetensors only, no foreign code unless asked."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from multiref_cli.config.schema import Lora, Model, Policy
from multiref_cli.data.template import Rendering, attach
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_object
from multiref_cli.models.decoder import check_head
from multiref_cli.models.files import resolve, safetensors_header, weight_files
from multiref_cli.models.inspect import headers, refuse_types
from multiref_cli.models.lora import added
from multiref_cli.models.precision import compute_mixed, parameter_type
from multiref_cli.models.quantize import quantize
from multiref_cli.types import Device, LanguageModel, Tokenizer

_PROBE = "The answer is 42."
# How byte-level and SentencePiece vocabularies write a space within a token; decoded text has none.
_MARKS = ("\u0120", "\u2581")


def load_tokenizer(model: Model, rendering: Rendering | None = None) -> Any:
    """Open the tokenizer of a model and check that it makes tokens.

    Where config.json says `qwen2`, AutoTokenizer ignores a tokenizer.json of another kind and returns empty or unknown
    ids without an error; so its ids are compared with those of tokenizer.json, and the plain class is used instead.

    Args:
        model: a schema.Model; its `tokenizer` path, else its own path.
        rendering: what its chat template is told; None: the defaults.

    Returns:
        A transformers tokenizer as it was saved, with what the model stops at attached (see `data.template.attach`).

    Raises:
        RequestError: a path that leads nowhere, no tokenizer there, or one that turns text into nothing.
    """
    path = model.tokenizer or model.path
    folder = resolve(path, None if model.tokenizer else model.revision, weights=False, code=model.trust_remote_code)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    written = folder / "tokenizer.json"
    try:
        expected = _ids_of(written) if written.is_file() else None
    except Exception as error:  # tokenizers raises bare ones
        raise RequestError(f"{written} is damaged ({_first_line(error)}): restore it.") from error
    ids: list[int] = []
    for kind in (AutoTokenizer, PreTrainedTokenizerFast) if expected else (AutoTokenizer,):
        try:
            tokenizer = kind.from_pretrained(str(folder), trust_remote_code=model.trust_remote_code)
            ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
            text = str(tokenizer.decode(ids))
        except Exception as error:  # a damaged folder raises anything, from KeyError to a validator's own
            raise RequestError(f"{path} has no tokenizer that can be opened ({_first_line(error)}).") from error
        if ids and ids == (expected or ids):
            _refuse_garbling(tokenizer, text, path)
            attach(tokenizer, rendering or Rendering(), _ends(model, folder, tokenizer))
            return tokenizer
    what = f"other tokens than {written} does" if ids else "no tokens"
    raise RequestError(f"the tokenizer of {path} turns {_PROBE!r} into {what}: give another one with tokenizer=PATH.")


def _refuse_garbling(tokenizer: Tokenizer, decoded: str, path: str) -> None:
    """Refuse a tokenizer whose tokens share ids, that gives no text back, or whose template is empty."""
    vocabulary = tokenizer.get_vocab()
    if 2 * len(set(vocabulary.values())) < len(vocabulary):
        raise RequestError(
            f"the tokenizer of {path} has {len(vocabulary)} tokens, most of which share an id: restore it."
        )
    if any(mark in decoded for mark in _MARKS):
        raise RequestError(
            f"the tokenizer of {path} turns the tokens of {_PROBE!r} into {decoded!r}: its decoder is lost, restore it."
        )
    if tokenizer.chat_template == "":
        raise RequestError(
            f"the chat template of {path} is empty: restore it, or delete its file to train without one."
        )


def _ends(model: Model, tokenizer_folder: Path, tokenizer: Tokenizer) -> list[int]:
    """The ids that the model's own settings end at: Llama 3 and Phi-3 name some there that no template writes.

    Raises:
        RequestError: settings that cannot be read, or that name an id which the tokenizer does not have.
    """
    known = set(tokenizer.get_vocab().values())
    folders = [tokenizer_folder]
    if model.tokenizer:
        folders.insert(0, resolve(model.path, model.revision, weights=False))
    found: list[int] = []
    for folder in folders:
        for name in ("generation_config.json", "config.json"):
            try:
                ends = (read_object(folder / name) or {}).get("eos_token_id")
            except RunError as error:
                raise RequestError(str(error)) from error
            if ends is None:  # config.json counts where there are no generation settings
                continue
            ids = ends if isinstance(ends, list) else [ends]
            strange = [i for i in ids if type(i) is not int or i not in known]
            if strange and name == "generation_config.json":
                raise RequestError(
                    f"{folder / name} ends responses at {strange[0]!r}, which is no id of its tokenizer: correct its "
                    "eos_token_id."
                )
            found += [i for i in ids if i not in strange]
            break
    return found


def load_causal_lm(
    model: Model, device: Device = "cpu", dtype: str | None = None, trainable: bool = False, probe: bool = True
) -> Any:
    """Open a causal language model, checked for what is done with its hidden states.

    Args:
        model: a schema.Model, Reference or Policy. Its adapter is merged into a frozen model and trained on in a
            trainable one; a Policy's `lora` puts a new adapter on a trainable one.
        device: torch device.
        dtype: parameter type, float32, bfloat16 or float16; of a frozen model also bf16_mixed, see
            `precision.compute_mixed`; None follows the model's own setting, else float32.
        trainable: with gradients; else frozen.
        probe: run it over a few tokens to compare its output head with its logits.

    Returns:
        A transformers model, or a peft model around one, in evaluation mode.

    Raises:
        RequestError: see `resolve`; also missing weights, an unknown architecture, a head of another kind, no peft.
    """
    from transformers import AutoModelForCausalLM

    mixed = (dtype or model.dtype) == "bf16_mixed" and not trainable
    loaded = _open(AutoModelForCausalLM, model, "bfloat16" if mixed and halves(model) else dtype, may_miss=False)
    if model.adapter:
        loaded = _with_adapter(loaded, model.adapter, trainable and not _lora(model))
    kind = getattr(model, "quantization", None)
    if kind is not None:
        _refuse_lost_weights(loaded, model.path)
        quantize(loaded, kind)
    loaded = loaded.to(device).eval()
    if kind is None:
        _refuse_lost_weights(loaded, model.path)
    if probe:
        check_head(loaded)
    if mixed:
        compute_mixed(loaded)
    if not trainable:
        return loaded.requires_grad_(False)
    return _with_new_lora(loaded, _lora(model)) if _lora(model) else loaded


def halves(model: Model) -> bool:
    """Whether a frozen model that computes in bf16_mixed is held in bfloat16: its files are, they are all of it, and
    its numbers are the same then.

    Raises:
        RequestError: see `resolve`.
    """
    if model.adapter or getattr(model, "quantization", None) or getattr(model, "update", None):
        return False  # what is added to the weights is rounded in float32 alone
    folder = resolve(model.path, model.revision)
    types = {one["dtype"] for file in weight_files(folder) for one in safetensors_header(file)[0].values()}
    return types == {"BF16"} and not model.trust_remote_code and _same_in_halves(folder)


def _same_in_halves(folder: Path) -> bool:
    """Whether all weights of a model are in modules that `precision.compute_mixed` knows.

    Gemma's embeddings round their scale to the type of their weights, a mixture of experts multiplies outside of linear
    maps.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"), _quiet():
            skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
    except Exception:  # whatever it is, opening the model says it
        return False
    owners = {type(module) for module in skeleton.modules() if next(module.parameters(recurse=False), None) is not None}
    return all(
        kind in (torch.nn.Embedding, torch.nn.Linear) or kind.__name__.endswith(("LayerNorm", "RMSNorm", "Conv1D"))
        for kind in owners
    )


def new_causal_lm(
    spec: Mapping[str, Any], tokenizer: Tokenizer, device: Device = "cpu", dtype: str | None = None
) -> Any:
    """A randomly initialized causal language model (seed torch before).

    Args:
        spec: `architecture` (a transformers model type: qwen2, llama, ...) and keys of its config.
        tokenizer: gives the vocabulary and the special ids.
        device: torch device.
        dtype: parameter type; None is float32.

    Raises:
        RequestError: an unknown architecture, a key that its config does not have, or sizes that fit no network.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(spec)
    architecture = settings.pop("architecture", None)
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    try:
        config = AutoConfig.for_model(architecture, vocab_size=max(tokenizer.get_vocab().values()) + 1, **special)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"policy.new.architecture is {architecture!r}, which transformers does not know.") from error
    unknown = sorted(key for key in settings if not hasattr(config, key))
    if unknown:
        raise RequestError(
            f"policy.new.{unknown[0]} is no key of a {architecture} config: remove it or correct its name."
        )
    try:
        config = AutoConfig.for_model(
            architecture, vocab_size=max(tokenizer.get_vocab().values()) + 1, **special, **settings
        )
        return AutoModelForCausalLM.from_config(config, dtype=_dtype(dtype)).to(device).eval()
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # sizes that fit no network
        raise RequestError(f"policy.new makes no {architecture} model: {_first_line(error)}.") from error


def load_reward_model(model: Model, device: Device = "cpu", dtype: str | None = None, trainable: bool = False) -> Any:
    """Open a sequence classifier with one output.

    Args:
        model: a schema.Model: a reward model, or for training also a bare language model or encoder.
        device: torch device.
        dtype: parameter type.
        trainable: with gradients, and with a new score head where the weights hold none (seed torch before).

    Raises:
        RequestError: see `resolve`; also a model to score with that has no trained score head.
    """
    from transformers import AutoModelForSequenceClassification

    loaded = _open(AutoModelForSequenceClassification, model, dtype, may_miss=trainable, num_labels=1)
    if model.adapter:
        loaded = _with_adapter(loaded, model.adapter, trainable and not _lora(model))
    loaded = loaded.to(device).eval()
    _refuse_lost_weights(loaded, model.path)
    if not trainable:
        return loaded.requires_grad_(False)
    return _with_new_lora(loaded, _lora(model), "SEQ_CLS") if _lora(model) else loaded


def parameter_count(model: Model, tokenizer: Tokenizer) -> int | None:
    """Number of parameters, read from the headers of the weights (or the config of a new model); None if out of reach.

    Args:
        model: a schema.Policy; with `new` set its size is that of the config.
        tokenizer: gives a new model its vocabulary.
    """
    if isinstance(model, Policy) and model.new is not None:
        import torch

        with torch.device("meta"):
            return sum(p.numel() for p in new_causal_lm(model.new, tokenizer, "meta").parameters())
    try:
        folder = resolve(model.path, model.revision)
    except RequestError:
        return None
    shapes = [entry["shape"] for file in weight_files(folder) for entry in safetensors_header(file)[0].values()]
    return sum(math.prod(shape) for shape in shapes)


def require_peft() -> Any:
    """The peft package.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise RequestError("adapters need peft, which is not installed: pip install peft.") from error
    return peft


def _ids_of(tokenizer_file: Path) -> list[int]:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        # Sentence encoders pad and cut there; transformers does neither unless asked.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer.encode(_PROBE, add_special_tokens=False).ids
    except Exception as error:  # tokenizers raises a bare Exception
        raise RequestError(f"{tokenizer_file} cannot be read ({_first_line(error)}).") from error


def _open(kind: Any, model: Model, dtype: str | None, may_miss: bool, **settings: Any) -> Any:
    import transformers

    folder = resolve(model.path, model.revision, code=model.trust_remote_code)
    refuse_types(headers(folder, "path").items(), model.path)
    wanted = _dtype(dtype or model.dtype)
    transformers.utils.logging.disable_progress_bar()
    try:
        with _without_adapter(folder) as place, _quiet():
            loaded, report = kind.from_pretrained(
                str(place),
                dtype=wanted,
                use_safetensors=True,
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
                **settings,
            )
    except Exception as error:  # a damaged or unknown folder raises anything, from KeyError to SafetensorError
        hint = " (set trust_remote_code=true if you trust its code)" if "trust_remote_code" in str(error) else ""
        raise RequestError(f"{model.path} cannot be opened: {_first_line(error)}{hint}.") from error
    loaded.config._name_or_path = str(folder)
    missing = sorted(report["missing_keys"])
    if missing and not may_miss:
        raise RequestError(
            f"{model.path} lacks {len(missing)} weights of a {type(loaded).__name__}, the first is {missing[0]}: "
            "it is another kind of model."
        )
    own = {_numberless(name) for name in loaded.state_dict()}
    more = sorted(name for name in report["unexpected_keys"] if _numberless(name) in own)
    if more:
        raise RequestError(
            f"{model.path} has {len(more)} weights more than its config.json asks for, the first is {more[0]}: config "
            "and weights are of different models."
        )
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the table of weights that do not fit, which transformers prints: what of it is a fault is said here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _numberless(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


@contextmanager
def _without_adapter(folder: Path) -> Iterator[Path]:
    """The folder, or where adapter files lie beside a whole model a view of it without them.

    transformers puts such an adapter on top of the model, in which it mostly is merged already.
    """
    if not (folder / "adapter_config.json").is_file():
        yield folder
        return
    with TemporaryDirectory() as view:
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                (Path(view) / path.name).symlink_to(path.resolve())
        yield Path(view)


def _refuse_lost_weights(model: LanguageModel, path: str) -> None:
    bad = next((name for name, value in model.named_parameters() if not bool(value.isfinite().all())), None)
    if bad is not None:
        raise RequestError(f"{path}: the weights {bad} hold numbers that are not finite.")
    embeddings: Any = model.get_input_embeddings()
    if not bool(embeddings.weight.any()):
        raise RequestError(f"{path}: its input embeddings are all zero: its weights are lost, restore them.")


def _dtype(name: str | None) -> Any:
    import torch

    name = parameter_type(name or "float32")
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if name not in allowed:
        raise RequestError(f"dtype is {name!r}; allowed: {', '.join(allowed)}.")
    return allowed[name]


def _lora(model: Model) -> Any:
    return getattr(model, "lora", None)


def _with_adapter(model: LanguageModel, adapter: str, trainable: bool) -> Any:
    peft = require_peft()
    folder = resolve(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise RequestError(f"{adapter} holds no adapter_config.json: give the folder of a peft adapter.")
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except Exception as error:  # sizes, targets or types that do not fit raise anything
        raise RequestError(f"the adapter {adapter} does not fit its model: {_first_line(error)}.") from error
    check_adapter(adapted, folder, "default")
    if not trainable:
        try:
            return adapted.merge_and_unload()
        except RuntimeError as error:  # an adapter with biases on maps without
            raise RequestError(
                f"the adapter {adapter} cannot be merged into its model: {_first_line(error)}."
            ) from error
    other = next((name for name, module in adapted.named_modules() if not added(module)), None)
    if other is not None:
        raise RequestError(
            f"the adapter {adapter} is no plain LoRA (DoRA, or own biases, at {other}) and cannot be trained on: "
            "merge it into its model first."
        )
    return adapted


def check_adapter(model: Any, folder: Path, name: str) -> None:
    """Refuse an adapter whose weights are not those that its model asks for; peft warns and goes on without them.

    Args:
        model: a peft model with the adapter loaded.
        folder: where the adapter lies.
        name: of the adapter in the model.

    Raises:
        RequestError: the adapter lacks a weight, or brings one that has no place.
    """
    asked = set(require_peft().get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    brought = set(headers(folder, "adapter", adapter=True))
    missing, more = sorted(asked - brought), sorted(brought - asked - set(model.state_dict()))
    if missing or more:
        what = f"it lacks {missing[0]}" if missing else f"{more[0]} has no place in it"
        raise RequestError(
            f"the adapter {folder} does not fit its model: {what} ({len(missing)} missing, {len(more)} too many)."
        )


def _with_new_lora(model: LanguageModel, lora: Lora, task: str = "CAUSAL_LM") -> Any:
    peft = require_peft()
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type=task
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise RequestError(
            f"policy.lora.target_modules={targets} does not fit the model: {_first_line(error)}."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
