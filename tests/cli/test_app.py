"""The command line itself: help without heavy imports, version, exit codes, completion."""

import subprocess
import sys
import time

import pytest

from multiref_cli import __version__
from multiref_cli.cli.app import run_guarded
from multiref_cli.cli.overrides import complete_folder, complete_override
from multiref_cli.errors import RequestError, RunError


def test_help_is_quick_and_imports_no_torch():
    check = "assert 'torch' not in sys.modules and 'hydra' not in sys.modules"
    code = f"import sys; from multiref_cli.cli.app import main\ntry: main()\nfinally: {check}"
    started = time.process_time(), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("train", "sweep", "eval", "report", "refs", "theory"):
        assert command in done.stdout
    assert time.perf_counter() - started[1] < 5.0  # 0.2 s on an idle machine; the bound allows for a busy one


def test_version(multiref, capsys):
    assert multiref("--version") == 0
    assert __version__ in capsys.readouterr().out


def test_an_unknown_command_or_option_is_exit_2(multiref):
    assert multiref("trian") == 2
    assert multiref("train", "--nope") == 2


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [(RequestError("no."), 2), (RunError("broke."), 1), (KeyboardInterrupt("stopped."), 130), (ValueError("x"), 1)],
)
def test_exit_codes(error, code, capsys):
    assert run_guarded(raising(error)) == code
    printed = capsys.readouterr().err
    assert str(error) in printed and "Traceback" not in printed


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setenv("MULTIREF_DEBUG", "1")
    run_guarded(raising(RunError("broke.")))
    assert "Traceback" in capsys.readouterr().err


def test_completion_of_groups_and_options(monkeypatch):
    assert {"policy=", "reward="} <= set(complete_override("")) and complete_override("re") == [
        "references=",
        "regularizer=",
        "reward=",
    ]
    assert "regularizer=rkl" in complete_override("reg")  # one group: with its options
    assert complete_override("regularizer=rk") == ["regularizer=rkl", "regularizer=rkl_paper", "regularizer=rkl_token"]
    assert all(not name.startswith("regularizer=_") for name in complete_override("regularizer="))
    # As bash splits regularizer=hel.
    monkeypatch.setenv("COMP_WORDS", "multiref\ntrain\nregularizer\n=\nhel")
    monkeypatch.setenv("COMP_CWORD", "4")
    assert complete_override("hel") == ["hellinger"]
    monkeypatch.setenv("COMP_CWORD", "3")
    assert "hellinger" in complete_override("")


def test_completion_of_keys_below_a_group_and_of_folders(tmp_path, monkeypatch):
    assert complete_override("optimizer.l") == ["optimizer.learning_rate="]
    assert complete_override("policy.lora.r") == ["policy.lora.rank="]
    monkeypatch.chdir(tmp_path)
    assert complete_folder("") == []
    for name in ("runs/one", "runs/other/deep", "runs/.hidden", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    assert complete_folder("") == ["runs/one", "runs/other"]
    assert complete_folder("runs/ot") == ["runs/other"] and complete_folder("runs/other/") == ["runs/other/deep"]
    assert complete_folder("el") == ["elsewhere"] and complete_folder("./el") == ["./elsewhere"]
    assert complete_folder("nothing/here") == []


def test_sigterm_ends_a_command_as_ctrl_c_does():
    """What a scheduler sends: exit code 130 and the sentence that the command has for it."""
    code = (
        "import time, multiref_cli.cli.app as cli\n"
        "def app(**options):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(30)\n"
        "cli.app = app\n"
        "cli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert process.communicate(timeout=20)[1] == "interrupted.\n" and process.returncode == 130
