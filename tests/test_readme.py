"""README and topics of `multiref help` say what the committed results say; every command there does what it says."""

import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from multiref_cli.config.check import check
from multiref_cli.config.compose import compose
from multiref_cli.files import read_json
from multiref_cli.reports import captions
from multiref_cli.reports.captions import CAPTIONS, caption
from multiref_cli.reports.contest import answers_table, read_answers
from multiref_cli.reports.published import BEGIN, END, metrics_of, read_rows, readme_table
from multiref_cli.reports.regime_words import markdown, read_regimes
from multiref_cli.reports.tuned import read_found, search_table
from multiref_cli.reports.worlds import read_claims, worlds_table
from multiref_cli.sweeps import launch
from multiref_cli.sweeps.worker import work_off
from multiref_cli.world.worlds import world_of

ROOT = Path(__file__).parents[1]
TOPICS = sorted((ROOT / "multiref_cli" / "help").glob("*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *TOPICS)}
README = PAGES["README.md"]
PUBLISHED = (
    "runs/published/embedded.csv",
    "runs/published/estimators.csv",
    "runs/published/rivals.csv",
    "runs/published/tuned.csv",
    "runs/published/smollm.csv",
    "runs/published/smollm_sums.csv",
)


def between(begin: str, end: str) -> str:
    """What stands between two marks, which stand once in all pages."""
    (shown,) = [part.split(end, 1)[0].strip() for text in PAGES.values() for part in text.split(begin)[1:]]
    return shown


def test_the_readme_is_read_in_minutes():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("path", PUBLISHED)
def test_the_results_are_those_of_the_committed_csv(path):
    shown = between(BEGIN.format(path=path), END)
    assert shown == readme_table(read_rows(ROOT / path), metrics_of(ROOT / path)).strip()


def test_what_holds_over_worlds_is_that_of_the_committed_csv():
    """Nothing is said before it is measured."""
    path = "runs/published/worlds.csv"
    shown = between(BEGIN.format(path=path), END)
    published = ROOT / path
    assert shown == (worlds_table(read_claims(published)).strip() if published.is_file() else "")


def test_the_cells_of_regimes_are_those_of_the_committed_csv():
    shown, published = between(BEGIN.format(path=captions.REGIMES), END), ROOT / captions.REGIMES
    assert shown == (markdown(read_regimes(published)) if published.is_file() else "")


def test_the_settings_of_the_search_are_those_of_the_committed_csv():
    path = captions.TUNED.replace(".csv", ".search.csv")
    assert between(BEGIN.format(path=path), END) == search_table(read_found(ROOT / path))


@pytest.mark.parametrize(
    "path",
    [captions.SEVERAL, *(one.replace(".csv", ".contest.json") for one in (captions.SMOLLM, captions.SMOLLM_SUMS))],
)
def test_the_answers_about_several_references_are_those_of_the_committed_file(path):
    shown, published = between(BEGIN.format(path=path), END), ROOT / path
    assert shown == (answers_table(read_answers(published)) if published.is_file() else "")


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_captions_are_those_of_the_published_files(name):
    shown = between(captions.BEGIN.format(name=name, path=CAPTIONS[name][0]), captions.END)
    assert shown == caption(ROOT, name)


def test_the_pages_that_make_publish_writes_hold_all_marks():
    """The Makefile's own lines, on copies: nothing changes, for what is published is what stands there."""
    pages = [ROOT / "README.md", ROOT / "multiref_cli/help/results.md"]
    before = [page.read_text() for page in pages]
    assert not captions.update_captions(*pages) and [page.read_text() for page in pages] == before
    assert f"RESULTS := {pages[1].relative_to(ROOT)}" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_and_file_that_it_names_is_there(page):
    names = re.findall(r"\]\(((?!http|#)[^)]+)\)", PAGES[page])
    assert names or page != "README.md"
    for name in names:
        assert ((ROOT / page).parent / name).is_file(), name


def test_the_readme_leads_to_every_topic():
    linked = re.findall(r"\]\(multiref_cli/help/(\w+)\.md\)", README)
    assert {path.stem for path in TOPICS} == set(linked)


def commands(text: str) -> list[str]:
    """Every command of the code blocks, lines joined and comments dropped, and those that stand within a sentence.

    Results that multiref writes name the commands that made them: those are records, not advice.
    """
    text = re.sub(r"<!-- results: .*?<!-- results end -->", "", text, flags=re.S)
    blocks = "\n".join(re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", text, re.S)).replace("\\\n", " ")
    lines = [shlex.join(shlex.split(line, comments=True)) for line in blocks.splitlines()]
    within = [shlex.join(shlex.split(line)) for line in re.findall(r"`((?:multiref|make|python|pip) [^`]+)`", text)]
    return list(dict.fromkeys(line for line in [*lines, *within] if line))


ADVICE = list(dict.fromkeys(command for text in PAGES.values() for command in commands(text)))

# Small enough for a test, whatever a command asks for.
SIZES = ["steps=4", "rollout.max_new_tokens=6", "evaluation.max_new_tokens=6", "evaluation.bootstrap=50"]
# of the studies that the README names; a setting that a study does not read is refused
STUDIES = {"sample_complexity": ["n=64", "draws=20", "class_size=8", "responses=6"], "divergences": []}


def key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


class Workshop:
    """A working directory with what the README's commands presuppose; the tiny world stands for models and data."""

    def __init__(self, world: Path, multiref, offline: list[str], online: list[str]) -> None:
        # The tiny world's reward model is not trained: it would not pass the bar of experiment=offline_toy.
        self.multiref, self.offline = multiref, [*offline, "evaluation.scorer.minimum_accuracy=null"]
        self.online = online
        for number, name in enumerate(
            dict.fromkeys(re.findall(r"(?:policy\.path|first|second)=(\S+)", "\n".join(ADVICE)))
        ):
            shutil.copytree(world / ("one", "two")[number % 2], name)
        shutil.copy(world / "pairs.jsonl", "pairs.jsonl")

    def run(self, *words: str) -> None:
        assert self.multiref(*words) == 0, shlex.join(words)

    def small(self, words: list[str]) -> list[str]:
        """A command's overrides made small: its choices stay, what it leaves open comes from the tiny world."""
        online = {"experiment=online_toy", "experiment=distill_toy", "algorithm=grpo"} & set(words)
        chosen = {"experiment", *map(key, words), *map(key, SIZES)}
        chosen |= {name.removeprefix("search.space.") for name in chosen}  # what is tuned is not set
        ours = [word for word in (self.online if online else self.offline) if not {key(word), group(word)} & chosen]
        problems = ["data.source.size=24"] if "data=reasoning_gym" in words else []
        return [*ours, *words, *SIZES, *problems]


def group(override: str) -> str:
    return key(override).partition(".")[0]


@pytest.fixture
def workshop(place, multiref, offline, online, monkeypatch) -> Workshop:
    monkeypatch.setattr(launch, "launch", lambda work, *_: work_off(work))  # a sweep's points in this process
    return Workshop(place, multiref, offline, online)


def interrupt(folder: Path) -> None:
    """Ctrl-C, as soon as the run in this folder has logged a step."""
    deadline = time.time() + 60
    while not (folder / "metrics.jsonl").is_file() and time.time() < deadline:
        time.sleep(0.001)
    signal.raise_signal(signal.SIGINT)


def train(shop: Workshop, words: list[str]) -> None:
    if words[0] == "--resume":
        folder = Path(words[1])
        threading.Thread(target=interrupt, args=[folder], daemon=True).start()
        assert shop.multiref("train", *shop.small([]), "steps=80", f"run.dir={folder}") == 130
        assert read_json(folder / "status.json")["state"] == "stopped"
        shop.run("train", *words)
        assert read_json(folder / "status.json")["state"] == "done"
    elif words[0] == "--config":
        shop.run("train", *shop.small([]), f"run.dir={words[1]}")
        shop.run("train", *words, "steps=3", "run.dir=out")
        assert read_json(Path("out/status.json"))["state"] == "done"
    elif "--dry-run" in words:
        before = sorted(Path().rglob("*"))
        shop.run("train", *shop.small(words))
        assert sorted(Path().rglob("*")) == before
    else:
        shop.run("train", *shop.small(words), "run.dir=out")
        assert read_json(Path("out/status.json"))["state"] == "done"


def sweep(shop: Workshop, words: list[str]) -> None:
    """The whole grid is planned; then the first value of every axis is run, with one seed and without baselines."""
    options = words[words.index("--workers") :] if "--workers" in words else []
    overrides = [word for word in words if word not in [*options, "--dry-run"]]
    # A file has grids of its own, offline and online; a search is many sweeps, on rows of its own.
    if any(word.startswith(("sweep=", "search.")) for word in overrides):
        return shop.run("sweep", *overrides, "--dry-run")
    shop.run("sweep", *shop.small(overrides), "--dry-run")
    first = [re.sub(r"^([\w.]+=[^\[\],]+),.*", r"\1", word) for word in overrides if key(word) != "seeds"]
    shop.run("sweep", *shop.small(first), "seeds=1", "baselines=false", "run.dir=out", *options)
    assert len(Path("out/results.csv").read_text().splitlines()) == 2 and Path("out/report/index.html").is_file()


def evaluate(shop: Workshop, words: list[str]) -> None:
    shop.run("train", *shop.small([]), f"run.dir={words[0]}")
    before = read_json(Path(words[0]) / "results.json")
    shop.run("eval", *words)
    same = read_json(Path(words[0]) / "results.json")["metrics"] == before["metrics"]
    assert same == (len(words) == 1)


def report(shop: Workshop, words: list[str]) -> None:
    """The first folder is a sweep, the others are runs: drawing a report of every folder takes most of the time."""
    if words[0] == "--check":
        return shop.run("report", "--check", ROOT / words[1])
    against = [words.pop(), words.pop()][::-1] if "--against" in words else []
    for number, folder in enumerate(words):
        command = ["train"] if number else ["sweep", "seeds=1", "baselines=false"]
        shop.run(*command, *shop.small(["evaluation=none"]), f"alpha=0.{number + 3}", f"run.dir={folder}")
    shop.run("report", *words, *(ROOT / word if word.endswith(".csv") else word for word in against))
    names = "-".join(Path(word).name for word in words)
    written = f"runs/report-{names}" if len(words) > 1 else f"{words[0]}/report"
    text = (Path(written) / "report.md").read_text()
    assert all(f"α=0.{number + 3}" in text for number in range(len(words)))


def refs_build(shop: Workshop, words: list[str]) -> None:
    shop.run("refs", "build", *shop.small(words))
    assert list(Path("cache/store").iterdir())


def refs_list(shop: Workshop, words: list[str]) -> None:
    shop.run("refs", "build", *shop.small([]))
    shop.run("refs", "list", *words)


def refs_verify(shop: Workshop, words: list[str]) -> None:
    shop.run("refs", "build", *shop.small([]))
    shop.run("refs", "verify", *words)


def refs_prune(shop: Workshop, words: list[str]) -> None:
    shop.run("refs", "prune", *words)


def refs_mix(shop: Workshop, words: list[str]) -> None:
    shop.run("refs", "mix", *shop.small(words or ["experiment=online_toy"]), "run.dir=out")
    assert Path("out/report/report.md").is_file()


def refs_weights(shop: Workshop, words: list[str]) -> None:
    shop.run("refs", "weights", *shop.small(words))


def refs_export(shop: Workshop, words: list[str]) -> None:
    words = words or ["--format", "trl", "--out", "out"]
    place, out = words.index("--format"), words[words.index("--out") + 1]
    shop.run("refs", "export", *shop.small(words[:place]), *words[place:])
    assert (Path(out) / "train.jsonl").is_file() and (Path(out) / "README.md").is_file()


def runs(shop: Workshop, words: list[str]) -> None:
    shop.run("train", *shop.small(["evaluation=none"]), "run.name=one")
    shop.run("runs", *words)


def compare(shop: Workshop, words: list[str]) -> None:
    for number, folder in enumerate(words[:2]):
        shop.run("train", *shop.small(["evaluation=none"]), f"seed={number}", f"run.dir={folder}")
    shop.run("compare", *words, "max_new_tokens=6")
    assert Path(words[words.index("--html") + 1]).is_file()


def push(shop: Workshop, words: list[str]) -> None:
    """Without --yes nothing is sent."""
    shop.run("train", *shop.small(["evaluation=none"]), f"run.dir={words[0]}")
    shop.run("push", *words)


def convert(shop: Workshop, words: list[str]) -> None:
    Path(words[0]).write_text("model_name_or_path: a/b\ndataset_name: c/d\nmax_length: 512\n")
    shop.run("convert", *words)


def theory(shop: Workshop, words: list[str]) -> None:
    if "--dry-run" in words:
        return shop.run("theory", *words)
    chosen = [study for word in words if word.startswith("study=") for study in word[6:].split(",")]
    small = [size for study in chosen for size in STUDIES[study]] if chosen else ["study.parts=[clipped]"]
    shop.run("theory", *words, *small, "run.dir=out")
    assert read_json(Path("out/status.json"))["state"] == "done" and Path("out/report/index.html").is_file()


def world_make(shop: Workshop, words: list[str]) -> None:
    """Trains for minutes: tests/world makes worlds of a few rows; here it is the request alone that is checked."""
    (seed,) = words
    assert world_of(compose(["experiment=online_toy", f"world={seed}"])).seed == int(seed) > 0


def listing(shop: Workshop, words: list[str]) -> None:
    shop.run("list", *words)


def topic(shop: Workshop, words: list[str]) -> None:
    shop.run("help", *words)


def completion(shop: Workshop, words: list[str]) -> None:
    """Nothing is installed in the shell of whoever runs the tests: the option is there."""
    shop.run("--help")


def make(shop: Workshop, words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


def pip_install(shop: Workshop, words: list[str]) -> None:
    """Nothing is installed: the folder is a project, and the extras are its own."""
    (target,) = words
    folder, extras = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", target).groups()
    project = (ROOT / folder / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in (extras or "").split(",") if extra)


def script(shop: Workshop, words: list[str]) -> None:
    """Nothing is run: it is there, and it is Python."""
    compile((ROOT / words[0]).read_text(), words[0], "exec")


RULES = {
    "multiref train": train,
    "multiref sweep": sweep,
    "multiref eval": evaluate,
    "multiref report": report,
    "multiref refs build": refs_build,
    "multiref refs list": refs_list,
    "multiref refs verify": refs_verify,
    "multiref refs prune": refs_prune,
    "multiref refs mix": refs_mix,
    "multiref refs weights": refs_weights,
    "multiref refs export": refs_export,
    "multiref runs": runs,
    "multiref compare": compare,
    "multiref push": push,
    "multiref convert": convert,
    "multiref theory": theory,
    "multiref world make": world_make,
    "multiref list": listing,
    "multiref help": topic,
    "multiref --install-completion": completion,
    "make": make,
    "pip install": pip_install,
    "python": script,
}


@pytest.mark.parametrize("command", ADVICE)
def test_its_commands_run(command, workshop):
    """Small and in this process; a command that no rule covers fails."""
    rules = [start for start in RULES if f"{command} ".startswith(f"{start} ")]
    assert rules, f"nothing runs {command!r}: add a rule"
    RULES[rules[0]](workshop, shlex.split(command.removeprefix(rules[0])))


def test_commands_are_found_in_blocks_and_in_sentences():
    text = """
```bash
multiref train a=1   # one run
multiref sweep a=1,2 \\
  b=[1,2]

# only a comment
TORCH=cpu make setup
```
Text with `multiref theory study=x`, `multiref_cli/` and `make`.
<!-- results: made -->
by `multiref sweep sweep=x`
<!-- results end -->
"""
    found = ["multiref train a=1", "multiref sweep a=1,2 'b=[1,2]'", "TORCH=cpu make setup", "multiref theory study=x"]
    assert commands(text) == found


TRAIN_COMMANDS = [c for c in ADVICE if c.startswith("multiref train experiment=")]


@pytest.mark.parametrize("command", TRAIN_COMMANDS)
def test_its_train_commands_are_valid(command):
    """As they stand, with the models and the sizes that they name."""
    overrides = [word for word in shlex.split(command)[2:] if not word.startswith("--")]
    check(compose(overrides))
