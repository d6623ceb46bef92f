"""The command line: parse, call one function, print. Imports nothing heavy, so that help is instant."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer

from multiref_cli import __version__
from multiref_cli.cli import usage
from multiref_cli.cli.overrides import asked, complete_folder, complete_topic, own_conf
from multiref_cli.cli.usage import TOLD
from multiref_cli.errors import RequestError, RunError

app = typer.Typer(
    name="multiref",
    help="RLHF regularized towards several frozen reference models: train, sweep, evaluate, report.",
    context_settings=usage.CONTEXT,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)
refs_app = typer.Typer(
    help="The reference store: log-probabilities of frozen models, computed once.", no_args_is_help=True
)
app.add_typer(refs_app, name="refs")
world_app = typer.Typer(
    help="Embedded worlds: small models and data that `toy:` names are of; world 0 is shipped.", no_args_is_help=True
)
app.add_typer(world_app, name="world")

Experiment = Annotated[Optional[list[str]], usage.EXPERIMENT]
Axes = Annotated[Optional[list[str]], usage.AXES]
Measures = Annotated[Optional[list[str]], usage.MEASURES]
Mixes = Annotated[Optional[list[str]], usage.MIXES]
Studies = Annotated[Optional[list[str]], usage.STUDIES]
Conf = Annotated[
    Optional[str],
    typer.Option("--conf", metavar="FOLDER", help="Config files of your own; else conf/ here.", callback=own_conf),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live panel (the default when piped).")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"multiref {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """RLHF regularized towards several frozen reference models: train, sweep, evaluate, report."""


@app.command(context_settings=TOLD, epilog=usage.TRAIN)
def train(
    overrides: Experiment = None,
    dry_run: DryRun = False,
    resume: Annotated[
        Optional[str],
        typer.Option(metavar="RUN", help="Go on with an interrupted run folder.", autocompletion=complete_folder),
    ] = None,
    config: Annotated[
        Optional[str],
        typer.Option(metavar="FILE|RUN", help="Start from a saved config.", autocompletion=complete_folder),
    ] = None,
    plain: Plain = False,
    conf: Conf = None,
) -> None:
    """Train and evaluate one run."""
    from multiref_cli.cli.train import train

    train(overrides or [], dry_run=dry_run, resume=resume, config=config, plain=plain)


@app.command(context_settings=TOLD, epilog=usage.SWEEP)
def sweep(
    overrides: Axes = None,
    dry_run: DryRun = False,
    resume: Annotated[
        Optional[str], typer.Option(metavar="SWEEP", help="Go on with a sweep folder.", autocompletion=complete_folder)
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed points again.")] = False,
    workers: Annotated[Optional[int], typer.Option(min=1, help="Worker processes.")] = None,
    launcher: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    plain: Plain = False,
    conf: Conf = None,
) -> None:
    """Run a grid: axes (`alpha=0.1,0.5`) x baselines x seeds, then the comparison."""
    from multiref_cli.cli.sweep import sweep

    sweep(
        overrides or [],
        dry_run=dry_run,
        resume=resume,
        retry_failed=retry_failed,
        workers=workers,
        launcher=launcher,
        plain=plain,
    )


@app.command("eval", context_settings=TOLD, epilog=usage.EVAL)
def evaluate(
    folder: Annotated[
        str,
        typer.Argument(metavar="RUN|SWEEP", help="A finished run, or a sweep folder.", autocompletion=complete_folder),
    ],
    overrides: Measures = None,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Also write model_outputs.json, the form in which AlpacaEval reads them.")
    ] = False,
    plain: Plain = False,
) -> None:
    """Score finished runs again (another reward model, data set or sampling) and rewrite the report."""
    from multiref_cli.cli.evaluate import evaluate

    evaluate(folder, overrides or [], plain=plain, outputs=outputs)


@app.command(epilog=usage.REPORT)
def report(
    folders: Annotated[
        Optional[list[str]],
        typer.Argument(metavar="RUN|SWEEP...", help="Run or sweep folders.", autocompletion=complete_folder),
    ] = None,
    out: Annotated[
        Optional[str], typer.Option(help="Where to write; default: report/ in the folder, of several report-A-B.")
    ] = None,
    against: Annotated[
        Optional[str], typer.Option(metavar="CSV", help="Committed results: say whether the reproduction holds.")
    ] = None,
    check: Annotated[
        Optional[str],
        typer.Option(metavar="CSV|README.md", help="Compute published numbers again from the scores beside them."),
    ] = None,
) -> None:
    """Write tables and figures from what is on disk; no model is loaded."""
    from multiref_cli.cli.report import report

    report(folders or [], out=out, against=against, check=check)


@app.command(context_settings=TOLD, epilog=usage.THEORY)
def theory(overrides: Studies = None, dry_run: DryRun = False, conf: Conf = None) -> None:
    """The finite-space laboratory: the paper's theorems, run."""
    from multiref_cli.cli.theory import theory

    theory(overrides or [], dry_run=dry_run)


@app.command(context_settings=TOLD, epilog=usage.COMPARE)
def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="A run, a model's folder, Hub id or toy: name.", autocompletion=complete_folder
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Another.", autocompletion=complete_folder)],
    words: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[PROMPT]...",
            help="Prompts, and settings: temperature=0.7 seed=1 max_new_tokens=64.",
            callback=asked,
        ),
    ] = None,
    prompts: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="Prompts: .txt a line each, or rows as data.path takes them.")
    ] = None,
    html: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="Also write a page, without dependencies.")
    ] = None,
    plain: Plain = False,
) -> None:
    """Let two models answer the same prompts, side by side, colored where their references disagree."""
    from multiref_cli.cli.compare import compare

    compare((first, second), words or [], file=prompts, page=html, plain=plain)


@app.command(context_settings=TOLD, epilog=usage.CONVERT)
def convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="YAML or JSON of TRL's DPO or GRPO trainer.")],
    overrides: Experiment = None,
    trainer: Annotated[Optional[str], typer.Option(help="dpo or grpo, where the file does not tell.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that the file was launched with.")] = 1,
) -> None:
    """Print a config of TRL as one command, what differs here, and what has no counterpart."""
    from multiref_cli.cli.convert import show

    show(file, overrides or [], trainer=trainer, processes=processes)


@app.command(epilog=usage.PUSH)
def push(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.", autocompletion=complete_folder)],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hub.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it only say what would be.")] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Where the repository is new: for its owner alone.")
    ] = False,
    revision: Annotated[Optional[str], typer.Option(metavar="BRANCH", help="Made if it is not there.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Of a LoRA run the adapter alone.")] = False,
) -> None:
    """Upload a run's policy, tokenizer and model card to the Hub; dry until --yes."""
    from multiref_cli.cli.push import push

    push(folder, repository, yes=yes, private=private, revision=revision, adapter=adapter)


@app.command("runs", epilog=usage.RUNS)
def list_runs(
    folder: Annotated[
        str, typer.Option("--dir", metavar="FOLDER", help="Of runs and sweeps.", autocompletion=complete_folder)
    ] = "runs",
    where: Annotated[
        Optional[str],
        typer.Option(metavar="FILTER", help="Such as 'beta=1 and regularizer=rkl': runs that pass, of sweeps too."),
    ] = None,
) -> None:
    """List runs and sweeps with their state, condition, score and age."""
    from multiref_cli.cli.runs import runs

    runs(folder, where)


@app.command("list")
def list_options(
    group: Annotated[Optional[str], typer.Argument(metavar="[GROUP]", help="Such as regularizer.")] = None,
    option: Annotated[Optional[str], typer.Argument(metavar="[OPTION]", help="Such as rkl: print its file.")] = None,
    conf: Conf = None,
) -> None:
    """What can be chosen: groups, a group's options and what they are, or one file (`list regularizer rkl`)."""
    from multiref_cli.cli.list import show

    show(group, option)


@app.command("help")
def help_topic(
    topic: Annotated[
        Optional[str], typer.Argument(metavar="[TOPIC]", help="Such as data.", autocompletion=complete_topic)
    ] = None,
) -> None:
    """Read about a topic: mathematics, data, sweeps, references, statistics, scale, …; without one, list them."""
    from multiref_cli.cli.help import show

    commands = [one.name or (one.callback.__name__ if one.callback else "") for one in app.registered_commands]
    show(topic, [*commands, *(one.name or "" for one in app.registered_groups)])


@refs_app.command("build", context_settings=TOLD, epilog=usage.BUILD)
def refs_build(overrides: Experiment = None, conf: Conf = None) -> None:
    """Compute and store what runs of a config read: log-probabilities, normalizers, samples."""
    from multiref_cli.cli.refs import build

    build(overrides or [])


@refs_app.command("list")
def refs_list() -> None:
    """List what is stored."""
    from multiref_cli.cli.refs import list_entries

    list_entries()


@refs_app.command("verify")
def refs_verify() -> None:
    """Check every checksum."""
    from multiref_cli.cli.refs import verify

    verify()


@refs_app.command("prune")
def refs_prune(
    older_than: Annotated[
        Optional[float], typer.Option(metavar="DAYS", help="Delete entries unused for so many days.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete every entry.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Delete stored entries."""
    from multiref_cli.cli.refs import prune

    prune(older_than=older_than, everything=everything, dry_run=dry_run)


@refs_app.command("mix", context_settings=TOLD, epilog=usage.MIX)
def refs_mix(overrides: Mixes = None, conf: Conf = None) -> None:
    """Sample the mixed references themselves, without training, and score them: alpha=0.1,0.5,0.9."""
    from multiref_cli.cli.refs import mix

    mix(overrides or [])


@refs_app.command("export", context_settings=TOLD, epilog=usage.EXPORT)
def refs_export(
    overrides: Experiment = None,
    form: Annotated[str, typer.Option("--format", help="Whose columns: trl.")] = "trl",
    out: Annotated[Optional[str], typer.Option(metavar="FOLDER", help="Where to write; made.")] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Parquet in place of JSON lines.")] = False,
) -> None:
    """Write pairs with the mixed reference's log-probabilities, as TRL's DPOTrainer reads precomputed ones."""
    from multiref_cli.cli.refs import export

    export(overrides or [], form=form, out=out, parquet=parquet)


@refs_app.command("weights", context_settings=TOLD, epilog=usage.WEIGHTS)
def refs_weights(overrides: Experiment = None, conf: Conf = None) -> None:
    """Show what alpha=auto and alpha=balanced choose for a config, and between what."""
    from multiref_cli.cli.refs import weights

    weights(overrides or [])


@world_app.command("make")
def world_make(
    seed: Annotated[int, typer.Argument(metavar="SEED", min=0, help="Names the world, and all its randomness.")],
    out: Annotated[
        Optional[str], typer.Option(metavar="FOLDER", help="Also copy it there, as the shipped world lies.")
    ] = None,
    plain: Plain = False,
) -> None:
    """Make another embedded world in the cache, for `world=SEED`; ten minutes, the same for a seed on a machine."""
    from multiref_cli.cli.world import make

    make(seed, out=out, plain=plain)


@world_app.command("list")
def world_list() -> None:
    """List the worlds that are here."""
    from multiref_cli.cli.world import list_worlds

    list_worlds()


def run_guarded(command: Callable[[], Any]) -> int:
    """Run a command and turn what it raises into an exit code: 0, 1, 2 or 130 (see README)."""
    debug = os.environ.get("MULTIREF_DEBUG") == "1"
    try:
        command()
    except RequestError as error:
        return _fail(error, 2, debug)
    except KeyboardInterrupt as stop:
        typer.echo(str(stop) or "interrupted.", err=True)
        return 130
    except RunError as error:
        return _fail(error, 1, debug)
    except (BrokenPipeError, SystemExit) as stop:
        # Typer turns Ctrl-C into an exit of its own and would drop the sentence that says how to go on.
        interrupt = getattr(stop.__context__, "__cause__", None)
        if isinstance(interrupt, KeyboardInterrupt):
            typer.echo(str(interrupt) or "interrupted.", err=True)
        return stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 0
    except Exception as error:  # the last door: whatever went wrong becomes one line, never a bare traceback
        from multiref_cli.files import full_disk

        shown = f"{type(error).__name__}: {error} (MULTIREF_DEBUG=1 shows where)"
        return _fail(error, 1, debug, str(full_disk(error) or shown))
    return 0


def _fail(error: Exception, code: int, debug: bool, text: str | None = None) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    typer.echo(f"multiref: {text or error}", err=True)
    return code


def main() -> None:
    """Entry point of the `multiref` script; SIGTERM (`kill`) and SIGHUP (a closed terminal) end it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    sys.exit(run_guarded(lambda: app(standalone_mode=True)))
