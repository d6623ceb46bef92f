"""A DPO step by TRL's own trainer: its collator, its loss, stored reference log-probabilities."""

import pytest
import torch


class TrlStep:
    """Of the rows that `Scale.rows` gives, each response with its prompt in a row of its own."""

    def __init__(self, scale, pairs, prompt, response, folder):
        pytest.importorskip("trl", reason="pip install 'multiref[dev]'")
        from datasets import Dataset, disable_progress_bars
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
        from trl import DPOConfig, DPOTrainer

        disable_progress_bars()
        words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "a": 2, "b": 3, "c": 4}, unk_token="a"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, scale.config["vocab_size"], (pairs, prompt + 2 * response), generator=generator)
        rows = [
            {
                "prompt_ids": row[:prompt].tolist(),
                "chosen_ids": row[prompt : prompt + response].tolist(),
                "rejected_ids": row[prompt + response :].tolist(),
                "ref_chosen_logps": -float(response),
                "ref_rejected_logps": -float(response),
            }
            for row in ids
        ]
        config = DPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=pairs,
            beta=0.1,
            learning_rate=1e-6,
            max_length=None,
            report_to=[],
            use_cpu=not scale.real,
            bf16=scale.real,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            disable_tqdm=True,
        )
        texts = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * pairs)
        self.trainer = DPOTrainer(scale.model(), args=config, train_dataset=texts, processing_class=tokenizer)
        self.trainer.current_gradient_accumulation_steps = 1
        self.batch, self.model = self.trainer.data_collator(rows), self.trainer.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=0.0)

    def __call__(self):
        """One step; returns its loss."""
        loss = self.trainer.training_step(self.model, dict(self.batch))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)
