"""Settings of TRL 1.16.0: values where a file is silent, what tells the trainer, what says nothing of a result."""

import re
from typing import Any

# What TRL 1.16.0 takes where a file is silent, of all that changes a result; tests compare it with TRL itself.
SHARED = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": True,
    "seed": 42,
    "report_to": "none",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1, "loss_type": ["sigmoid"], "f_divergence_type": "reverse_kl", "max_length": 1024},
    "grpo": {
        "beta": 0.0,
        "num_generations": 8,
        "max_completion_length": 512,
        "temperature": 1.0,
        "num_iterations": 1,
        "epsilon": 0.2,
        "scale_rewards": "group",
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "use_bias_correction_kl": True,
    },
}
# Names that only one of the two trainers has: by them a file is recognized.
TOLD_BY = {
    "grpo": {"num_generations", "reward_funcs", "max_completion_length", "num_iterations", "scale_rewards", "use_vllm"},
    "dpo": {"f_divergence_type", "precompute_ref_log_probs", "ld_alpha", "rpo_alpha", "max_length", "truncation_mode"},
}
OTHERS = {
    "sft": {"packing", "dataset_text_field", "completion_only_loss", "assistant_only_loss"},
    "kto": {"desirable_weight"},
}
GRPO_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")
DIVERGENCES = {"reverse_kl": "rkl", "forward_kl": "fkl", "js_divergence": "js"}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
# What says nothing at these values: the defaults of both sides, or parts of what is off.
USUAL = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "logging_steps": 10,
    "save_steps": 500,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "adam_epsilon": 1e-8,
    "repetition_penalty": 1.0,
    "train_sampling_strategy": "random",
    "multi_objective_aggregation": "sum_then_normalize",
    "top_entropy_quantile": 1.0,
    "entropy_coef_max": 1.0,
    "entropy_coef_delta": 0.005,
    "entropy_target": 0.2,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
    "discopop_tau": 0.05,
    "sapo_temperature_neg": 1.05,
    "sapo_temperature_pos": 1.0,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
}
# Where a run lies, who watches it, how TRL works inside: nothing of a result.
NOTHING = re.compile(
    r"(activation_checkpointing|dataloader|dataset_num|dataset_streaming|ddp|deepspeed|fsdp|hub|push|logging|log_|save|eval|per_device_eval|"
    r"disable_tqdm|remove_unused|local_rank|overwrite|do_|prediction|metric|greater|load_best|include|past_|skip_|resume|full_det|"
    r"jit|use_cpu|tf32|torch_compile|torchdynamo|torch_empty|average_tokens|auto_find|project|trackio|ignore_bias|"
    r"precompute_ref|pad_to|vllm_|ds3|shuffle_dataset|disable_dropout|label_names|length_column|accelerator|"
    r"gradient_checkpointing_kwargs|batch_eval|half_precision|use_legacy|mp_param|data_seed|restore|attn_implementation|model_init)"
)
