"""A config of TRL's DPO or GRPO trainer as overrides: what is the same, what differs, what has no counterpart.

Names that mean one key are read from `sentences.ELSEWHERE`; here stands what takes more than a name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiref_cli.config.folders import options
from multiref_cli.config.sentences import ELSEWHERE
from multiref_cli.config.trl_names import (
    DEFAULTS,
    DIVERGENCES,
    GRPO_LOSSES,
    NOTHING,
    OTHERS,
    SCHEDULES,
    SHARED,
    TOLD_BY,
    USUAL,
)
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_yaml


@dataclass
class Converted:
    """A config on its way.

    Attributes:
        trainer: dpo or grpo.
        overrides: key -> value as text, in the order of the command.
        differs: sentences on what is otherwise here.
        missing: `name=value` of what has no counterpart.
        wanted: placeholders of the command that somebody has to fill in.
    """

    trainer: str
    overrides: dict[str, str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)

    def set(self, **values: Any) -> None:
        """Add overrides; a double underscore in a name is a dot."""
        for name, value in values.items():
            self.overrides[name.replace("__", ".")] = _text(value)


def convert(path: Path, trainer: str | None = None, processes: int = 1) -> Converted:
    """Read a config of TRL's DPOConfig or GRPOConfig, script arguments among it, as TrlParser does.

    Args:
        path: YAML or JSON.
        trainer: dpo or grpo; None: told by the names in the file.
        processes: of `accelerate launch`, each with its per_device_train_batch_size; a file that says them counts.

    Raises:
        RequestError: no such file, no object in it, or of another trainer.
    """
    try:
        content = {str(key): value for key, value in read_yaml(path).items()}
    except RunError as error:
        unread = isinstance(error.__cause__, OSError)
        no_config = f"{path} is no config of TRL: it has no names with values in YAML or JSON."
        raise RequestError(f"{path} cannot be converted: {error}" if unread else no_config) from error
    trainer = trainer or _trainer_of(content, path)
    if trainer not in DEFAULTS:
        raise RequestError(f"--trainer is {trainer!r}; allowed: {', '.join(DEFAULTS)}.")
    found, given = Converted(trainer), dict(content)
    values = {**SHARED, **DEFAULTS[trainer]} | {key: value for key, value in given.items() if value is not None}
    processes = int(_number(values, "num_processes", processes))
    found.set(algorithm=trainer)
    _model(found, values)
    _data(found, values)
    _dpo(found, values) if trainer == "dpo" else _grpo(found, values)
    _size(found, values, processes)
    _optimizer(found, values)
    _surroundings(found, values)
    _rest(found, values)
    return found


def _trainer_of(content: Mapping[str, Any], path: Path) -> str:
    for name, keys in OTHERS.items():
        if keys & content.keys():
            key = min(keys & content.keys())
            raise RequestError(f"{path} has {key}, a key of {name.upper()}; convert reads configs of DPO and GRPO.")
    told = [name for name, keys in TOLD_BY.items() if keys & content.keys()]
    losses = {str(one) for one in _listed(content.get("loss_type"))}
    told = told or ["grpo"] * bool(losses & set(GRPO_LOSSES)) or ["dpo"] * bool(losses)
    if len(told) != 1:
        raise RequestError(f"{path} does not tell whether it is of DPO or GRPO: give --trainer dpo or --trainer grpo.")
    return told[0]


def _model(found: Converted, values: dict[str, Any]) -> None:
    lora = values.pop("use_peft", False)
    found.set(policy="lora" if lora else "folder", policy__path=_wanted(found, values, "model_name_or_path", "MODEL"))
    if values.get("model_revision") not in (None, "main"):
        found.set(policy__revision=values["model_revision"])
    values.pop("model_revision", None)
    names = {
        "lora_r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "lora_target_modules": "target_modules",
    }
    usual = {"lora_dropout": 0.05} if lora else {}  # the others are the same here
    for name, here in names.items():
        value = values.pop(name, usual.get(name))
        if lora and value is not None:
            found.overrides[f"policy.lora.{here}"] = _text(value)
    for name in ("lora_task_type", "lora_modules_to_save", "lora_target_parameters", "bnb_4bit_quant_type"):
        if not lora or values.get(name) in ("CAUSAL_LM", "nf4"):
            values.pop(name, None)
    found.set(policy__gradient_checkpointing=bool(values.pop("gradient_checkpointing")))


def _data(found: Converted, values: dict[str, Any]) -> None:
    mixture = values.pop("datasets", None)
    if mixture:
        first = mixture[0] if isinstance(mixture, list) and isinstance(mixture[0], Mapping) else {}
        values.setdefault("dataset_name", first.get("path"))
        values.setdefault("dataset_config", first.get("name"))
        values.setdefault("dataset_train_split", first.get("split"))
        if isinstance(mixture, list) and len(mixture) > 1:
            found.missing.append(f"datasets: {len(mixture)} of them; the first is read, put the others into one file")
    found.set(data="jsonl", data__path=_wanted(found, values, "dataset_name", "FILE"))
    for name, here in (("dataset_train_split", "data__split"), ("dataset_test_split", "data__held_out_split")):
        value = values.pop(name, None)
        local = Path(str(found.overrides["data.path"])).suffix in (".jsonl", ".json", ".csv", ".parquet")
        if value is not None and not local:
            found.set(**{here: value})
    if "data.held_out_split" not in found.overrides:
        found.differs.append(
            "a tenth of the prompts is held out and measured at the end (data.held_out); TRL trains on all"
        )
    config = values.pop("dataset_config", None)
    if config is not None:
        found.overrides["data.options"] = f"{{name: {_text(config)}}}"
    kwargs = values.pop("chat_template_kwargs", None)
    if kwargs:
        found.overrides["data.chat_template_kwargs"] = _text(kwargs)


def _dpo(found: Converted, values: dict[str, Any]) -> None:
    losses, beta = _listed(values.pop("loss_type")), _number(values, "beta")
    found.set(beta=beta)
    if losses in (["sigmoid"], ["ipo"]):
        found.set(algorithm__loss=losses[0])
    else:
        found.missing.append(f"loss_type={losses if len(losses) > 1 else losses[0]}: algorithm.loss is sigmoid or ipo")
    kind, coefficient = str(values.pop("f_divergence_type")), _number(values, "f_alpha_divergence_coef", 0.5)
    kind = kind.rpartition(".")[2].lower()  # older files: FDivergenceType.REVERSE_KL
    if kind == "alpha_divergence":
        found.set(regularizer="power", regularizer__mean_order=1 - coefficient)
    elif kind in DIVERGENCES:
        found.set(regularizer=DIVERGENCES[kind])
    else:
        found.missing.append(f"f_divergence_type={kind}")
    if values.pop("label_smoothing", 0):
        found.missing.append("label_smoothing: TRL reads it in loss types that are not here, and sigmoid without it")
    _lengths(found, values)
    if not values.pop("disable_dropout", True):
        found.missing.append("disable_dropout=False: dropout of the model's config is as TRL leaves it only there")


def _lengths(found: Converted, values: dict[str, Any]) -> None:
    """TRL cuts prompt and response together."""
    names = ("max_length", "max_prompt_length", "max_completion_length")
    length, prompt, response = (_whole(values, name) for name in names)
    if length is None and prompt is None and response is None:
        found.differs.append(
            "max_length=null cuts nothing; here data.max_prompt_tokens and max_completion_tokens do (512)"
        )
        return
    cut = values.pop("truncation_mode", "keep_start")
    prompt = prompt or length
    response = response or (length - prompt if length and prompt and length > prompt else length)
    if prompt:
        found.set(data__max_prompt_tokens=prompt)
    if response:
        found.set(data__max_completion_tokens=response)
    found.differs.append(
        f"TRL cuts prompt and response together (max_length={length}, truncation_mode={cut}); here a longer prompt "
        "drops its row and a response is cut by itself, at its end"
    )


def _grpo(found: Converted, values: dict[str, Any]) -> None:
    beta, corrected = _number(values, "beta"), values.pop("use_bias_correction_kl")
    found.set(beta=beta)
    if beta:
        found.set(regularizer="rkl_token", regularizer__estimator="k3_ratio" if corrected else "k3")
        found.differs.append(
            "regularizer.estimator=exact, the default here, sums over the vocabulary in place of TRL's k3: less noise, "
            "and the gradient of the divergence that its name says"
        )
    else:
        found.differs.append("beta=0 (TRL's default for GRPO) loads no reference; with beta above 0 they regularize")
    loss = str(values.pop("loss_type"))
    if loss in GRPO_LOSSES:
        found.set(algorithm__loss_reduction=loss)
    else:
        found.missing.append(f"loss_type={loss}: algorithm.loss_reduction is {', '.join(GRPO_LOSSES)}")
    scale = values.pop("scale_rewards")
    found.set(algorithm__advantage_scale={"True": "group", "False": "none"}.get(str(scale), str(scale)))
    low = values.pop("epsilon")
    high = values.pop("epsilon_high", None)
    found.set(algorithm__clip_low=low, algorithm__clip_high=low if high is None else high)
    found.set(algorithm__inner_iterations=values.pop("num_iterations"))
    found.set(algorithm__importance=values.pop("importance_sampling_level"))
    found.set(rollout="vllm" if values.pop("use_vllm", False) else "transformers")
    found.set(
        rollout__group_size=values["num_generations"], rollout__max_new_tokens=values.pop("max_completion_length")
    )
    found.set(rollout__temperature=values.pop("temperature"))
    length = _whole(values, "max_prompt_length")
    if length:
        found.set(data__max_prompt_tokens=length)
    else:
        found.differs.append("prompts over data.max_prompt_tokens (512) are left out here; TRL cuts none")
    _rewards(found, values)


def _rewards(found: Converted, values: dict[str, Any]) -> None:
    """Functions by their dotted paths, those of TRL's script by theirs in TRL; a reward model by its path."""
    names, model = _listed(values.pop("reward_funcs", None)), values.pop("reward_model_name_or_path", None)
    weights = _listed(values.pop("reward_weights", None)) or [1.0] * (len(names) + bool(model))
    paths = [str(name) if "." in str(name) else f"trl.rewards.{name}" for name in names]
    if model:
        found.set(reward="reward_model", reward__terms__score__function__path=model)
        found.set(reward__terms__score__weight=weights[0])
    else:
        found.set(reward="custom", reward__terms__mine__function___target_=paths[0] if paths else "REWARD")
        found.set(reward__terms__mine__weight=weights[0] if weights else 1.0)
    for number, (path, weight) in enumerate(list(zip(paths, weights[bool(model) :]))[not model :], 2):
        found.overrides[f"+reward.terms.term{number}"] = f"{{function: {{_target_: {path}}}, weight: {_text(weight)}}}"
    if not names and not model:
        found.wanted.append("REWARD: the file names no reward; give the dotted path of a function as TRL has them")


def _size(found: Converted, values: dict[str, Any], processes: int) -> None:
    """Rows of an optimizer step: those of all devices and accumulation steps; of GRPO completions, in groups."""
    device, steps = _number(values, "per_device_train_batch_size"), _number(values, "gradient_accumulation_steps")
    rows, said = (
        int(device * steps * processes),
        f"{device:g} x {steps:g} x {processes} process{'es' * (processes > 1)}",
    )
    if found.trainer == "dpo":
        found.set(algorithm__batch_pairs=rows)
    else:
        group, kept = int(_number(values, "num_generations")), values.pop("steps_per_generation", None)
        if rows % group:
            raise RequestError(f"{said} are {rows} completions a step, no multiple of num_generations={group}.")
        found.set(algorithm__batch_prompts=rows // group)
        values.pop("generation_batch_size", None)
        if kept not in (None, int(steps)):
            found.differs.append(
                f"steps_per_generation={kept}: here every step of algorithm.inner_iterations reads all"
            )
    what = "pairs" if found.trainer == "dpo" else "completions"
    found.differs.append(f"a step has {rows} {what}: {said}; algorithm.micro_tokens bounds memory, whatever the batch")
    if processes > 1:
        found.set(hardware__processes=processes)
    most, epochs = int(_number(values, "max_steps")), _number(values, "num_train_epochs")
    if most > 0:
        found.set(steps=most)
    elif found.trainer == "dpo":
        found.set(epochs=epochs)
    else:
        prompts = int(found.overrides["algorithm.batch_prompts"])
        found.set(steps="STEPS")
        found.wanted.append(f"STEPS: {epochs:g} epochs are {epochs:g} x (rows of the data) / {prompts} steps")


def _optimizer(found: Converted, values: dict[str, Any]) -> None:
    schedule, optimizer = str(values.pop("lr_scheduler_type")), str(values.pop("optim", "adamw_torch"))
    ratio, steps = values.pop("warmup_ratio", None), values.pop("warmup_steps")
    found.set(optimizer__learning_rate=values.pop("learning_rate"))
    if schedule in SCHEDULES:
        found.set(optimizer__schedule=SCHEDULES[schedule])
    else:
        found.missing.append(f"lr_scheduler_type={schedule}: optimizer.schedule is linear, cosine, wsd or constant")
    found.set(optimizer__warmup=0 if schedule == "constant" else (steps or ratio or 0))
    if not optimizer.startswith("adamw_torch") and optimizer not in ("adamw_hf", "adamw"):
        found.missing.append(f"optim={optimizer}: optimizer is adamw or muon")
    first, second = values.pop("adam_beta1", 0.9), values.pop("adam_beta2", 0.999)
    if (first, second) != (0.9, 0.999):
        found.overrides["optimizer.betas"] = f"[{first},{second}]"
    found.set(seed=values.pop("seed"))


def _surroundings(found: Converted, values: dict[str, Any]) -> None:
    """Precision and tracking."""
    precision = {name: values.pop(name, None) for name in ("bf16", "fp16", "dtype", "torch_dtype")}
    loaded = str(precision["dtype"] or precision["torch_dtype"] or "float32")
    if precision["fp16"]:
        found.missing.append("fp16=True: hardware.precision is float32, bf16_mixed, bf16_master, bf16_kahan or bf16")
    elif loaded == "bfloat16":
        found.set(hardware__precision="bf16_master")
        found.differs.append(
            "dtype=bfloat16 trains bfloat16 parameters in TRL, whose small steps are lost to rounding; bf16_master "
            "keeps float32 copies (hardware.precision=bf16 is TRL's way)"
        )
    elif loaded not in ("float32", "auto"):
        found.missing.append(f"dtype={loaded}")
    elif precision["bf16"] is not None:
        found.set(hardware__precision="bf16_mixed" if precision["bf16"] else "float32")
    trackers = [str(one) for one in _listed(values.pop("report_to"))]
    known = {**{name: name for name in options("tracking")}, "wandb": "wandb_online", "none": "off"}
    found.set(tracking=next((known[one] for one in trackers if one in known), "off"))
    found.missing += [f"report_to={one}" for one in trackers if one not in known]


def _rest(found: Converted, values: dict[str, Any]) -> None:
    """What one name of ours means, from the table of other tools' names; what is left has no counterpart."""
    for name, value in values.items():
        here = _pattern(name)
        if value is None or value in ([], {}, "", False) or value == USUAL.get(name):
            continue
        if here is not None and not isinstance(value, (dict, list)) and not _is_share(name, value):
            words = [word.partition("=") for word in here.split()]
            found.overrides |= {key: _text(value) if not given or given.isupper() else given for key, _, given in words}
        elif not NOTHING.match(name):
            found.missing.append(f"{name}={value}")


def _is_share(name: str, value: object) -> bool:
    """Whether a count of steps is given as a share of all of them."""
    return name == "save_steps" and isinstance(value, (int, float)) and value < 1


def _pattern(name: str) -> str | None:
    """What a name is here where the table says it as keys, with a word in capitals for the value."""
    here = ELSEWHERE.get(name, "")
    return here if re.fullmatch(r"[a-z_.]+(=[\w]+)?( [a-z_.]+=[\w]+)*", here) else None


def _wanted(found: Converted, values: dict[str, Any], name: str, placeholder: str) -> Any:
    value = values.pop(name, None)
    if value is None:
        found.wanted.append(f"{placeholder}: the file has no {name}")
    return placeholder if value is None else value


def _number(values: dict[str, Any], name: str, usual: float = 0) -> float:
    value = values.pop(name, usual)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RequestError(f"{name} is {value!r}, which is no number.") from None


def _whole(values: dict[str, Any], name: str) -> int | None:
    """A number of tokens; None where there is none."""
    if values.get(name) is None:
        return values.pop(name, None)
    return int(_number(values, name))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _text(value: Any) -> str:
    """A value as an override has it."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
