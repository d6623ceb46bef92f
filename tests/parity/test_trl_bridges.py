"""The code of `multiref help python`, block by block as it stands, beside TRL 1.16.0 and multiref's own trainers."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import disable_progress_bars

from multiref_cli.algorithms.base import load_policy
from multiref_cli.algorithms.dpo import Dpo, stored_pairs
from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Model
from multiref_cli.models.decoder import sharing_width
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.models.save import save_policy
from multiref_cli.runs.run import open_job
from multiref_cli.tracking.progress import Silent

trl = pytest.importorskip("trl", reason="parity needs the dev extra: pip install 'multiref[dev]'")
PAGE = Path(__file__).parents[2] / "multiref_cli" / "help" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
QUIET = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "output_dir": "trl",
    "gradient_checkpointing": False,
}
FIRST, SECOND = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"


def run_block(word):
    """Run the one block that holds a word; its names."""
    (code,) = [block for block in BLOCKS if word in block]
    found = {"__name__": "block", "QUIET": QUIET}
    exec(re.sub(r"(\w+Config\()", r"\1**QUIET, ", code), found)
    return found


@pytest.fixture
def folders(place):
    """The tiny models under the names that the page has, as run folders have them, and the pairs as conversations."""
    disable_progress_bars()
    for name, path in (("one", FIRST), ("two", SECOND), ("one", "runs/NAME/policy")):
        model = load_causal_lm(Model(path=str(place / name)))
        save_policy(model, load_tokenizer(Model(path=str(place / name))), Path(path), for_auto=True)
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    talks = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")},
        }
        for row in rows
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    return place


def test_every_block_is_run_here():
    """A block that is added needs a test of its own; of each there is one."""
    trainers = ["DPOTrainer(DPOTrainer)", "class MultiReference:"]
    words = ["implicit_reward(policy", "optimal_policy(", *trainers, "AutoTokenizer"]
    assert len(BLOCKS) == len(words) and all(sum(word in block for block in BLOCKS) == 1 for word in words)


def test_five_lines():
    found = run_block("implicit_reward(policy")
    margin = 0.1 * ((-12 + 15) - (0.3 * (-13 + 14) + 0.7 * (-11 + 19)))
    slope = 0.1 / (1 + torch.tensor(margin).exp())
    assert torch.allclose(found["policy"].grad, torch.tensor([[-slope], [slope]]))
    (code,) = [block for block in BLOCKS if "optimal_policy(" in block]
    policy = eval(code.strip().splitlines()[-1], run_block("optimal_policy("))
    weights = torch.tensor([0.7, 0.2, 0.1]) ** 0.3 * torch.tensor([0.1, 0.3, 0.6]) ** 0.7
    weights = weights * (torch.tensor([0.0, 1.0, 0.5]) / 0.5).exp()
    assert torch.allclose(policy, weights / weights.sum(), atol=1e-6)


def test_dpo_has_the_loss_of_multiref(folders, offline):
    found = run_block("DPOTrainer(DPOTrainer)")
    trainer, rows = found["trainer"], [0, 2, 5, 7]
    assert trainer.ref_model is None
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.02)
        batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
        loss = trainer.compute_loss(trainer.model.eval(), batch).item()
    given = [one for one in offline if not one.startswith(("policy", "first", "second", "data.", "beta", "evaluation"))]
    given += ["policy=folder", f"policy.path={FIRST}", f"first={FIRST}", f"second={SECOND}", "alpha=0.3", "beta=0.1"]
    given += ["data.path=pairs.jsonl", "data.held_out=0", "evaluation=none"]
    job = open_job(compose(given), Silent())
    stored, model = stored_pairs(job, job.data.train, Silent()), load_policy(job).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
        objective = Dpo(job.experiment, job.data.train, stored, sharing_width(model))
        logps = objective._logps(model, objective._pack(rows)).reshape(-1, 2).T
        expected = objective.loss_of(logps, rows, len(rows))[0].item()
    assert abs(expected - 0.6931) > 1e-3 and loss == pytest.approx(expected, rel=1e-5)


def test_dpo_computes_again_for_other_weights(folders):
    """TRL's own cache would give the numbers of the first weights."""
    found = run_block("DPOTrainer(DPOTrainer)")
    kind, first = found["MultiReferenceDPOTrainer"], found["trainer"].train_dataset["ref_chosen_logps"]
    same = {"args": found["trainer"].args, "train_dataset": found["rows"], "references": found["trainer"].references}
    made = [kind(FIRST, weights=weights, **same) for weights in ([1.0, 0.0], [0.0, 1.0])]
    alone = [trainer.train_dataset["ref_chosen_logps"] for trainer in made]
    for mixed, one, two in zip(first, *alone):
        assert mixed == pytest.approx(0.3 * one + 0.7 * two, abs=1e-4) and abs(one - two) > 1e-2


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_online_trainers_are_given_the_mix(folders, kind):
    """log M of every token is the weighted sum of both references', each scored by a trainer of TRL's alone."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    block = run_block("class MultiReference:")
    mixed = type("Mixed", (block["MultiReference"], getattr(trl, f"{kind}Trainer")), {})
    talks = [[{"role": "user", "content": f"max has {n} . how many ?"}] for n in (3, 4)]
    prompts = Dataset.from_list([{"prompt": messages} for messages in talks])
    sizes = {"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 6}

    def trainer_of(cls, **more):
        args = getattr(trl, f"{kind}Config")(**QUIET, **sizes, beta=0.5)
        return cls(
            model=FIRST,
            reward_funcs=lambda completions, **rest: [float(len(one[0]["content"])) for one in completions],
            args=args,
            train_dataset=prompts,
            processing_class=AutoTokenizer.from_pretrained(FIRST, padding_side="left"),
            **more,
        )

    references = [AutoModelForCausalLM.from_pretrained(path) for path in (FIRST, SECOND)]
    trainer = trainer_of(mixed, references=references, weights=[0.3, 0.7])
    ids = torch.randint(6, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    asked = (ids, torch.ones_like(ids), 6)
    found = trainer._get_per_token_logps_and_entropies(trainer.ref_model, *asked)[0]
    own = trainer._get_per_token_logps_and_entropies(trainer.model, *asked)[0]
    expected = 0
    for weight, path in ((0.3, FIRST), (0.7, SECOND)):
        logits = AutoModelForCausalLM.from_pretrained(path)(ids).logits[:, 5:-1].log_softmax(-1)
        logps = logits.gather(-1, ids[:, 6:, None])[..., 0]
        expected = expected + weight * logps.detach()
        assert path == SECOND or torch.allclose(own, logps, atol=1e-4)
    assert torch.allclose(found, expected, atol=1e-4) and (found - own).abs().max() > 0.1
    trainer.args.max_steps = 1
    trainer.train()
    assert trainer.state.global_step == 1


def test_notebooks(folders):
    found, text = run_block("AutoTokenizer"), "max has 12 ."
    ours = load_tokenizer(Model(path=str(folders / "one")))
    ids = found["tokenizer"](text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == ours(text)["input_ids"] and 1 not in ids
    expected = load_causal_lm(Model(path=str(folders / "one")))(ids).logits
    assert torch.equal(found["model"](ids).logits, expected)
