"""The wording of refusals: one sentence out of Hydra's or OmegaConf's message, with the nearest valid name."""

import difflib
import re
from collections.abc import Callable, Sequence


def sentence(error: Exception, keys: set[str], options: Callable[[str], list[str]]) -> str:
    """One sentence for an error of Hydra or OmegaConf.

    Args:
        error: as it was raised.
        keys: all dotted keys of the config.
        options: group -> the names that `group=` accepts.
    """
    text = str(error).strip()
    absent = re.search(r"Missing mandatory value: (\S+)", text)
    if absent:
        return no_value(absent.group(1).rstrip("."))
    found = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    if found:
        group, option = found.group(1), found.group(2)
        if group in _PATHS and re.search(r"[/.\\]", option):
            path = _PATHS[group].format(option if "'" in _PATHS[group] or _BARE.fullmatch(option) else f'"{option}"')
            return f"{group} has no option {option!r}; a path is given as {path}."
        return f"{group} has no option {option!r}{nearest(option, options(group))}."
    key = _unknown_key(error, text)
    if key in PAIR_KEYS:
        return f"{key}= is the path of a reference of references=pair; add references=pair."
    if key:
        here = ELSEWHERE.get(key)
        return f"there is no key {key!r}{f'; here it is {here}' if here else nearest(key, sorted(keys))}."
    first = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    full_key = getattr(error, "full_key", None)
    if full_key and "is not a ListConfig" in first:
        return f"{full_key} is a list; give it as {full_key}=[VALUE]."
    return f"{full_key}: {first}." if full_key and full_key not in first else f"{first}."


# What references=pair is filled from; these keys are gone once a config is composed.
PAIR_KEYS = ("first", "second")
GONE_KEYS = (*PAIR_KEYS, "own")


_BARE = re.compile(r"[\w./:@+\\~-]+")
# How a path is given where people put it in place of an option.
_PATHS = {
    "policy": "policy=folder policy.path={}",
    "data": "data=jsonl data.path={}",
    "references": "references='[{{name: a, path: {}}}]'",
}
_BATCH = "algorithm.batch_pairs (DPO), algorithm.batch_prompts (online) or algorithm.batch_rows (SFT)"
_MICRO = "algorithm.micro_tokens, which bounds memory: a step is always the whole batch"
# What other tools call it -> what it is called here.
ELSEWHERE = {
    **dict.fromkeys(("model", "model_name", "model_name_or_path", "actor"), "policy=folder policy.path=PATH"),
    **dict.fromkeys(("ref_model", "reference_model", "ref"), "references=pair first=PATH second=PATH"),
    **dict.fromkeys(("dataset", "dataset_name", "train_dataset", "train_files"), "data=jsonl data.path=FILE"),
    "dataset_train_split": "data.split",
    "dataset_test_split": "data.held_out_split",
    "model_revision": "policy.revision",
    "trust_remote_code": "policy.trust_remote_code",
    "gradient_checkpointing": "policy.gradient_checkpointing",
    **dict.fromkeys(("reward_funcs", "reward_function"), "reward=NAME, see `multiref list reward`"),
    **dict.fromkeys(("reward_model", "scorer"), "evaluation.scorer.path=PATH, online also reward=reward_model"),
    **dict.fromkeys(("output_dir", "save_path"), "run.dir=FOLDER"),
    **dict.fromkeys(("run_name", "experiment_name"), "run.name=NAME"),
    **dict.fromkeys(("report_to", "logger"), "tracking=NAME, see `multiref list tracking`"),
    **dict.fromkeys(("num_generations", "n_samples_per_prompt", "group_size"), "rollout.group_size"),
    **dict.fromkeys(("max_completion_length", "max_new_tokens", "max_response_length"), "rollout.max_new_tokens"),
    "max_prompt_length": "data.max_prompt_tokens",
    "max_length": "data.max_prompt_tokens and data.max_completion_tokens",
    **dict.fromkeys(("per_device_train_batch_size", "train_batch_size", "batch_size"), _BATCH),
    **dict.fromkeys(("gradient_accumulation_steps", "micro_batch_size", "micro_train_batch_size"), _MICRO),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("max_steps", "total_steps"), "steps"),
    **dict.fromkeys(("learning_rate", "lr"), "optimizer.learning_rate"),
    "lr_scheduler_type": "optimizer.schedule",
    "optim": "optimizer=NAME, see `multiref list optimizer`",
    "weight_decay": "optimizer.weight_decay",
    "adam_epsilon": "optimizer.epsilon",
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "optimizer.betas"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "optimizer.warmup"),
    **dict.fromkeys(("max_grad_norm", "grad_clip"), "optimizer.max_gradient_norm"),
    **dict.fromkeys(("kl_coef", "init_kl_coef", "kl_loss_coef", "kl_penalty"), "beta"),
    **dict.fromkeys(("epsilon", "cliprange", "clip_ratio"), "algorithm.clip_low and algorithm.clip_high"),
    **dict.fromkeys(("num_iterations", "ppo_epochs"), "algorithm.inner_iterations"),
    "epsilon_high": "algorithm.clip_high",
    "importance_sampling_level": "algorithm.importance",
    "scale_rewards": "algorithm.advantage_scale",
    "label_smoothing": "algorithm.label_smoothing",
    "f_divergence_type": "regularizer=NAME, see `multiref list regularizer`",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "top_k": "rollout.top_k",
    "min_p": "rollout.min_p",
    "loss_type": "algorithm.loss (DPO) or algorithm.loss_reduction (online)",
    "use_vllm": "rollout=vllm",
    **dict.fromkeys(("bf16", "fp16", "dtype", "torch_dtype"), "hardware.precision"),
    **dict.fromkeys(("use_peft", "lora", "lora_r", "lora_rank"), "policy=lora policy.lora.rank=NUMBER"),
    **dict.fromkeys(("num_processes", "nproc_per_node", "gpus", "n_gpus_per_node"), "hardware.processes"),
    "logging_steps": "hardware.log_every",
    "save_steps": "hardware.checkpoint_every",
    "save_total_limit": "hardware.keep_checkpoints",
    "device": "hardware.device",
    "workers": "--workers NUMBER, of `multiref sweep`",
    "seeds": "seed=NUMBER; `multiref sweep` takes seeds=COUNT",
}


def no_value(key: str) -> str:
    """What is said of a key that has to be given."""
    return f"{key} has no value; give it as {key}=VALUE."


def nearest(name: str, allowed: Sequence[str]) -> str:
    """`; did you mean …`, else the names of the same group, else nothing."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    group = name.rpartition(".")[0]
    siblings = [key for key in allowed if group and key.rpartition(".")[0] == group]
    if close and (not group or close[0] in siblings):
        return f"; did you mean {close[0]!r}"
    tails = {key.rpartition(".")[2]: key for key in allowed}
    near = difflib.get_close_matches(name.rpartition(".")[2], tails, n=1, cutoff=0.75)
    if near:
        return f"; did you mean {tails[near[0]]!r}"
    shown = siblings or (allowed if len(allowed) <= 30 else [])
    return f"; allowed: {', '.join(shown)}" if shown else ""


def _unknown_key(error: Exception, text: str) -> str | None:
    for pattern in (r"Could not override '([^'@]+)'", r"Could not append to config\. .*'([^']+)'"):
        found = re.search(pattern, text)
        if found:
            return found.group(1)
    if type(error).__name__ == "ConfigKeyError" or "not in struct" in text:
        found = re.search(r"Key '([^']+)'", text)
        return getattr(error, "full_key", None) or (found.group(1) if found else None)
    return None
