"""What the help of each command says of its settings and examples, and how they are completed."""

from collections.abc import Callable
from typing import Any

import typer

from multiref_cli.cli.overrides import asked, complete_override, complete_study

# Lines are as wide as the terminal, up to what is still read with ease. An option that a command does not have comes
# among its overrides, where `asked` says what is meant.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
TOLD = {"ignore_unknown_options": True}


def settings(said: str, complete: Callable[[str], list[str]] = complete_override) -> Any:
    """The argument of a command that takes settings.

    Args:
        said: which ones, for its help.
        complete: what the Tab key offers.
    """
    return typer.Argument(metavar="KEY=VALUE", help=said, autocompletion=complete, callback=asked)


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n".join(["\b", "Examples:", *(f"  multiref {line}" for line in lines)])


EXPERIMENT = settings(
    "Settings of an experiment, Hydra overrides: algorithm, regularizer, references, alpha, beta, seed, policy, data, "
    "reward, rollout, optimizer, steps, evaluation, tracking, hardware, experiment, run.dir. What they are: multiref "
    "list, multiref help settings."
)
AXES = settings(
    "Settings of experiments; one with several values (alpha=0.3,0.5 or range(...), quoted) is an axis. Of the sweep "
    "itself: sweep, seeds, seeds_max, baselines, rivals, search.KEY, run.dir, launcher.KEY. See multiref help sweeps."
)
MEASURES = settings("What a finished run is measured by: evaluation.KEY, evaluation=NAME, reward, hardware, data.")
MIXES = settings("Settings of an experiment with two references and a score; alpha takes several values.")
STUDIES = settings(
    "study (several: study=a,b; see multiref list theory/study), seed, problems, n, draws, responses, alpha, beta, "
    "reward_max, dimension, class_size, delta, distance, vocabulary, length, trees, divergence, order, terms, "
    "regularizer, run.dir; one with several values is an axis.",
    complete_study,
)

TRAIN = examples(
    "train experiment=offline_toy regularizer=fkl alpha=0.3 seed=1",
    "train experiment=online_toy --dry-run",
    "train policy=folder policy.path=MODEL references=pair first=MODEL second=OTHER data=jsonl data.path=pairs.jsonl",
    "train --config runs/NAME beta=0.3 seed=1",
    "train --resume runs/NAME",
)
SWEEP = examples(
    "sweep experiment=offline_toy regularizer=rkl,fkl,mrpo alpha=0.3,0.5,0.7 seeds=3",
    "sweep sweep=paper_grid experiment=online_toy --dry-run",
    "sweep experiment=online_toy 'alpha=range(0.1,0.9,0.2)' baselines=false",
    "sweep --resume runs/NAME --retry-failed",
)
EVAL = examples(
    "eval runs/NAME evaluation.samples_per_prompt=8",
    "eval runs/SWEEP evaluation.prompts=500 evaluation.temperature=0",
    "eval runs/NAME evaluation.scorer.path=MODEL",
    "eval runs/NAME --outputs data=jsonl data.path=alpaca_eval.jsonl data.held_out=0 evaluation.split=train",
)
REPORT = examples(
    "report runs/SWEEP_A runs/SWEEP_B",
    "report runs/SWEEP --against runs/published/embedded.csv",
    "report --check README.md",
)
THEORY = examples(
    "theory study=sample_complexity n=65536 draws=1000",
    "theory study=divergences regularizer=js order=0.25",
    "theory study=divergences divergence=my_module.f",
    "theory study=exact_solutions,alpha beta=0.2,0.5 --dry-run",
)
BUILD = examples("refs build experiment=offline_toy", "refs build data=jsonl data.path=pairs.jsonl references=pair …")
MIX = examples("refs mix experiment=online_toy", "refs mix alpha=0.1,0.5,0.9 evaluation.prompts=200")
WEIGHTS = examples("refs weights experiment=online_toy")
EXPORT = examples("refs export experiment=offline_toy alpha=0.3 --out pairs-trl")
COMPARE = examples(
    'compare runs/A runs/B "How many apples?"', "compare runs/A toy:math --prompts questions.txt --html page.html"
)
CONVERT = examples("convert trl.yaml", "convert trl.yaml references=pair first=A second=B alpha=0.3")
PUSH = examples("push runs/NAME owner/name", "push runs/NAME owner/name --private --yes")
RUNS = examples("runs", "runs --where 'beta=1 and regularizer=rkl'")
