"""What `refs export` writes, read by TRL 1.16.0 with the code of its README: the same loss as multiref's."""

import re
from pathlib import Path

import pytest
import torch
from datasets import disable_progress_bars, load_dataset

from multiref_cli.algorithms.base import load_policy
from multiref_cli.algorithms.dpo import Dpo, stored_pairs
from multiref_cli.config.compose import compose
from multiref_cli.files import read_lines
from multiref_cli.models.decoder import sharing_width
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.models.save import save_policy
from multiref_cli.runs.run import open_job
from multiref_cli.tracking.progress import Silent

trl = pytest.importorskip("trl", reason="parity needs the dev extra: pip install 'multiref[dev]'")
QUIET = "report_to='none', use_cpu=True, bf16=False, disable_tqdm=True, output_dir='trl', "


@pytest.fixture
def pairs(place, offline):
    """Overrides of an offline experiment whose policy opens with AutoTokenizer, and is none of its references."""
    from multiref_cli.config.schema import Model

    disable_progress_bars()
    source = Model(path=str(place / "judge"))
    model = load_causal_lm(Model(path=str(place / "one")))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    save_policy(model, load_tokenizer(source), Path("policy"), for_auto=True)
    without = ("policy.path=", "evaluation.", "steps", "reward")
    return [
        *(one for one in offline if not one.startswith(without)),
        "policy.path=policy",
        "alpha=0.3",
        "evaluation=none",
    ]


def trainer_of(folder, monkeypatch):
    """The trainer that the README of an exported folder makes, before it trains."""
    (code,) = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.S)
    assert code.endswith("\ntrainer.train()")
    code = code.removesuffix("\ntrainer.train()").replace("DPOConfig(", f"DPOConfig({QUIET}")
    policy = str(Path("policy").resolve())
    monkeypatch.chdir(folder)
    names = {}
    exec(code.replace("'policy'", repr(policy)), names)
    return names["trainer"]


def our_loss(overrides, rows):
    """Loss of some training pairs, from the store, as `multiref train` computes it before its first step."""
    job = open_job(compose(overrides), Silent())
    stored, model = stored_pairs(job, job.data.train, Silent()), load_policy(job).eval()
    objective = Dpo(job.experiment, job.data.train, stored, sharing_width(model))
    logps = objective._logps(model, objective._pack(rows)).reshape(-1, 2).T
    return objective.loss_of(logps, rows, len(rows))[0].item()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["regularizer=rkl"], {"f_divergence_type": "reverse_kl", "loss_type": "sigmoid"}),
        (["regularizer=fkl"], {"f_divergence_type": "forward_kl"}),
        (["regularizer=hellinger"], {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5}),
        (["regularizer=mrpo", "algorithm.loss=ipo"], {"f_divergence_type": "reverse_kl", "loss_type": "ipo"}),
    ],
)
def test_trl_has_the_same_loss(pairs, multiref, monkeypatch, capsys, settings, told):
    overrides = [*pairs, *settings]
    arguments = ["--format", "trl", "--out", "out", *(["--parquet"] if "regularizer=fkl" in settings else [])]
    assert multiref("refs", "export", *overrides, *arguments) == 0, capsys.readouterr().err
    rows, here = [0, 3, 5, 9], Path.cwd()
    expected = our_loss(overrides, rows)
    trainer = trainer_of(here / "out", monkeypatch)
    assert {key: getattr(trainer.args, key) for key in told if key != "loss_type"} == {
        key: value for key, value in told.items() if key != "loss_type"
    }
    assert trainer.args.loss_type == [told.get("loss_type", "sigmoid")] and trainer.ref_model is None
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
    trainer.model.eval()
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, batch).item()
    assert abs(expected - 0.6931) > 1e-3  # the policy is not its reference
    assert found == pytest.approx(expected, rel=1e-5)
    monkeypatch.chdir(here)
    lines = capsys.readouterr().out
    assert "rows of train" in lines and "TRL would make other tokens" not in lines


def test_trl_makes_the_same_tokens_of_the_text(pairs, multiref, monkeypatch, capsys):
    """The unchanged trainer's own preparation, over a template that ends where the turn ends."""
    assert multiref("refs", "export", *pairs, "--out", "out") == 0, capsys.readouterr().err
    trainer = trainer_of(Path("out").resolve(), monkeypatch)
    ids = ["prompt_ids", "chosen_ids", "rejected_ids"]
    plain = trl.DPOTrainer._prepare_dataset(
        trainer, trainer.train_dataset.remove_columns(ids), trainer.processing_class, trainer.args, "train"
    )
    assert [[row[name] for name in ids] for row in plain] == [[row[n] for n in ids] for row in trainer.train_dataset]
    trainer.args.max_steps = 2
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0  # the held-out rows have their columns too


def test_the_columns_are_the_mix(pairs, multiref, capsys):
    """Theorem 5.1's reference: the weighted mean of both references' log-probabilities, no pass beyond the store's."""
    assert multiref("refs", "build", *pairs) == 0
    capsys.readouterr()
    assert multiref("refs", "export", *pairs, "--out", "mixed") == 0
    assert "reference" not in capsys.readouterr().out  # both were stored
    for weight, name in ((1, "first"), (0, "second")):
        assert multiref("refs", "export", *pairs, f"alpha={weight}", "--out", name) == 0
    assert multiref("refs", "export", *pairs, "regularizer=fkl", "--parquet", "--out", "arithmetic") == 0
    for split in ("train", "test"):
        mixed, first, second = (read_lines(Path(f"{name}/{split}.jsonl")) for name in ("mixed", "first", "second"))
        table = load_dataset("parquet", data_files=f"arithmetic/{split}.parquet", cache_dir="cached")["train"]
        assert len(mixed) == len(table) > 3
        for row, a, b, arithmetic in zip(mixed, first, second, table):
            assert row["prompt"][0]["role"] == "user" and row["chosen"][0]["role"] == "assistant"
            assert [arithmetic[key] for key in ("prompt", "chosen")] == [row[key] for key in ("prompt", "chosen")]
            for key in ("ref_chosen_logps", "ref_rejected_logps"):
                assert row[key] == pytest.approx(0.3 * a[key] + 0.7 * b[key], abs=1e-9)
                parts = torch.tensor([a[key], b[key]], dtype=torch.float64)
                power = torch.logsumexp(parts + torch.tensor([0.3, 0.7], dtype=torch.float64).log(), 0)
                assert arithmetic[key] == pytest.approx(float(power), abs=1e-9)


def test_where_trl_would_make_other_tokens_it_is_said(pairs, multiref, capsys):
    """A template that writes a newline behind the end of the turn, which TRL scores; and responses that are cut."""
    template = Path("policy/chat_template.jinja")
    template.write_text(template.read_text().replace("<|end|>", "<|end|> ####"))
    assert multiref("refs", "export", *pairs, "--out", "behind") == 0, capsys.readouterr().err
    assert "of the first 32 training rows TRL would make other tokens of 32" in capsys.readouterr().out
    assert multiref("refs", "export", *pairs, "data.max_completion_tokens=12", "--out", "cut") == 0
    assert "TRL would make other tokens of" in Path("cut/README.md").read_text()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["regularizer=rkl_token"], "rkl_token mixes at every token"),
        (["regularizer=js"], "several summands"),
        (["regularizer=multi_dpo"], "one loss a reference"),
        (["regularizer=mrpo_full"], "another reference of every pair"),
        (["algorithm=sft"], "give algorithm=dpo"),
        (["--format", "verl"], "--format is 'verl'; allowed: trl"),
    ],
)
def test_refused(pairs, multiref, capsys, more, sentence):
    given = [one for one in pairs if "algorithm=sft" not in more or not one.startswith(("algorithm", "beta", "alpha"))]
    assert multiref("refs", "export", *given, *more, "--out", "out") == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.strip().splitlines()) <= 3 and not Path("out").exists()


def test_weights_that_a_rule_chooses(pairs, multiref, capsys):
    """alpha=balanced is chosen first, as for a run; the README says between what and how."""
    more = ["alpha=balanced", "evaluation.max_new_tokens=8", "evaluation.scorer=null"]
    assert (
        multiref("refs", "export", *[one for one in pairs if one != "evaluation=none"], *more, "--out", "out") == 0
    ), capsys.readouterr().err
    said, told = capsys.readouterr().out, Path("out/README.md").read_text()
    (weight,) = re.findall(r"with the weights first ([\d.e-]+), second", told)
    assert "balanced" in said and 0 <= float(weight) <= 1


def test_nothing_is_overwritten(pairs, multiref, capsys):
    assert multiref("refs", "export", *pairs) == 2 and "--out FOLDER" in capsys.readouterr().err
    Path("taken").mkdir()
    Path("taken/mine").write_text("x")
    assert multiref("refs", "export", *pairs, "--out", "taken") == 2
    assert "taken exists already" in capsys.readouterr().err
    assert [path.name for path in Path("taken").iterdir()] == ["mine"]
