"""One run on several processes: the numbers of one, written once, and an end with a sentence when one is gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multiref_cli.config.schema import Experiment, Hardware
from multiref_cli.errors import RequestError, RunError
from multiref_cli.files import read_json, read_lines
from multiref_cli.parallel import ALONE
from multiref_cli.runs import processes
from multiref_cli.tracking.run_dir import RunDir
from multiref_cli.training.loop import Loop


def test_two_processes_train_what_one_does_and_resume_bit_for_bit(place, multiref, offline, same, monkeypatch):
    """With a store each, so that its passes and samples are shared too; stopped in the third step."""
    for count in (1, 2):
        offline = [*offline, f"hardware.cache_dir={Path.cwd()}/cache{count}"]
        assert multiref("train", *offline, f"hardware.processes={count}", f"run.dir=out{count}") == 0
    same(Path("out1"), Path("out2"), 1e-5)
    first = [read_lines(Path(f"out{count}/metrics.jsonl"))[0]["gradient_norm"] for count in (1, 2)]
    assert first[0] == pytest.approx(first[1], rel=1e-6)
    assert read_json(Path("out1/results.json"))["config_hash"] == read_json(Path("out2/results.json"))["config_hash"]

    def stop(loop: Loop) -> None:
        if loop.step == 3:
            raise KeyboardInterrupt

    again = [*offline[:-1], f"hardware.cache_dir={Path.cwd()}/cache3", "hardware.processes=2", "run.dir=out3"]
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_missed", stop)
        assert multiref("train", *again, "hardware.checkpoint_every=1") == 130
    assert multiref("train", "--resume", "out3") == 0
    same(Path("out2"), Path("out3"), 0.0)
    second, third = (load_file(f"out{number}/policy/model.safetensors") for number in (2, 3))
    assert second.keys() == third.keys() and all(torch.equal(second[name], third[name]) for name in second)


def test_a_process_that_is_killed_ends_the_run_which_goes_on_with_another_number(place, multiref, online, capsys, same):
    """Killed in windows of two inner iterations of a sampled penalty, of whose old log-probs each has a part."""
    several = ["algorithm.inner_iterations=2", "regularizer=rkl_token", "regularizer.estimator=k2", "steps=40"]
    arguments = [*online, *several, "evaluation.prompts=3", "hardware.checkpoint_every=1"]
    assert multiref("train", *arguments, "run.dir=whole") == 0

    def kill_the_other_one() -> None:
        metrics = Path("out/metrics.jsonl").absolute()
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            time.sleep(0.01)
        (child,) = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()[-1:]
        os.kill(int(child), signal.SIGKILL)

    killer = threading.Thread(target=kill_the_other_one, daemon=True)
    killer.start()
    assert multiref("train", *arguments, "hardware.processes=2", "run.dir=out") == 1
    killer.join()
    said = capsys.readouterr().err
    assert "process 1 of 2 was ended by signal SIGKILL" in said and "--resume out" in said
    assert 3 <= len(read_lines(Path("out/metrics.jsonl"))) < 40
    assert multiref("train", "--resume", "out", "hardware.processes=1") == 0
    same(Path("whole"), Path("out"), 1e-4)


def test_a_process_that_cannot_begin_ends_the_run_at_once(place, multiref, offline, capsys, tmp_path, monkeypatch):
    (tmp_path / "filelock").mkdir()
    (tmp_path / "filelock" / "__init__.py").write_text("raise ImportError('no filelock here')")
    monkeypatch.syspath_prepend(tmp_path)  # this process has imported its own long ago
    assert multiref("train", *offline, "hardware.processes=2", "run.dir=out") == 1
    assert "process 1 of 2 ended without a word; see out/logs/process-1.log" in capsys.readouterr().err
    assert "no filelock here" in Path("out/logs/process-1.log").read_text()


@pytest.mark.slow
def test_a_point_on_a_cluster_has_processes_of_its_own(place, multiref, offline, same, monkeypatch):
    """Of Slurm, with submitit's executor on this machine."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    points = ["sweep", *offline, "regularizer=rkl", "alpha=0.5", "baselines=false", "seeds=1"]
    assert multiref(*points, "run.dir=alone", "--workers", 1) == 0
    both = [*points, "run.dir=both", "hardware.processes=2", "--workers", 1]
    assert multiref(*both, "--launcher", "slurm", "launcher.cluster=local") == 0
    (first,), (second,) = (list(Path(name).glob("*/results.json")) for name in ("alone", "both"))
    same(first.parent, second.parent, within=1e-5)
    assert (second.parent / "logs" / "process-1.log").is_file()


@pytest.mark.parametrize("algorithm", ["sft", "reward_model"])
def test_what_trains_without_references_shares_its_steps_too(place, multiref, offline, algorithm, same):
    kept = [text for text in offline if not text.startswith(("references", "first", "second", "beta", "evaluation"))]
    several = [text.replace("batch_pairs", "batch_rows" if algorithm == "sft" else "batch_pairs") for text in kept]
    for count in (1, 2):
        arguments = [f"algorithm={algorithm}", *several, "evaluation=none", f"hardware.processes={count}"]
        assert multiref("train", *arguments, f"run.dir=out{count}") == 0
    same(Path("out1"), Path("out2"), 1e-5)


def test_what_fails_in_another_process_is_what_the_main_one_says(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *ignored: None)
    (tmp_path / "logs").mkdir()
    with pytest.raises(SystemExit), processes.speaking_for(tmp_path, 1):
        raise RunError("the disk is full.")
    assert (tmp_path / "logs" / "process-1.txt").read_text() == "the disk is full."
    with pytest.raises(SystemExit), processes.speaking_for(tmp_path, 2):
        raise ZeroDivisionError("by 0")
    assert (tmp_path / "logs" / "process-2.txt").read_text() == "ZeroDivisionError: by 0"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["hardware.device=cuda:1"], "gives every process its own device, not device=cuda:1"),
        (["hardware.reference_device=cuda:1"], "not reference_device=cuda:1"),
        (["hardware.device=mps"], "not device=mps"),
        (["hardware.processes=0"], "hardware.processes is 0"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(place, multiref, offline, capsys, overrides, sentence):
    assert multiref("train", *offline, "hardware.processes=2", *overrides, "run.dir=out") == 2
    assert sentence in capsys.readouterr().err and not Path("out").exists()


def test_a_resume_changes_the_hardware_alone(place, multiref, offline, capsys):
    assert multiref("train", *offline, "steps=1", "evaluation=none", "run.dir=out") == 0
    for override in ("beta=3", "hardware.precision=bf16"):
        assert multiref("train", "--resume", "out", override) == 2
        assert f"on other hardware at most: drop {override}." in capsys.readouterr().err


def test_every_process_has_a_gpu_of_its_own_for_the_policy_and_the_references(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for beside, expected in (("cuda", "cuda:1"), (None, None), ("cpu", "cpu")):
        hardware = Hardware(device="cuda", reference_device=beside, processes=2)
        found = processes.of_rank(Experiment(hardware=hardware), 1).hardware
        assert (found.device, found.reference_device) == ("cuda:1", expected)


def test_processes_share_the_cores_however_often_they_are_asked(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8))
    for _ in range(2):
        assert processes.threads_of(Hardware(processes=2)) == 4
    assert processes.threads_of(Hardware(processes=16)) == 1 and processes.threads_of(Hardware()) is None
    assert processes.threads_of(Hardware(processes=2, threads=3)) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert processes.threads_of(Hardware(processes=2)) is None


@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        (
            "import sys; open(sys.argv[1], 'w').write('the disk is full.'); sys.exit(1)",
            "process 2 of 4: the disk is full.",
        ),
        ("import os; os.kill(os.getpid(), 9)", "process 2 of 4 was ended by signal SIGKILL"),
        ("import sys; sys.exit(3)", "process 1 of 4 ended without a word; see {folder}/logs/process-1.log"),
    ],
)
def test_of_several_processes_the_one_that_is_the_cause_is_named(tmp_path, cause, sentence):
    """Process 1 loses its peer and ends without a word, before process 2 has ended; process 3 after both."""
    (tmp_path / "logs").mkdir()
    word = str(tmp_path / "logs" / "process-2.txt")
    lost = [f"import sys, time; time.sleep({seconds}); sys.exit(1)" for seconds in (0.0, 1.0)]
    scripts = [lost[0], f"import time; time.sleep(0.5); {cause}", lost[1]]
    others = [subprocess.Popen([sys.executable, "-c", script, word]) for script in scripts]
    assert processes._what_happened(others, tmp_path, 4) == sentence.format(folder=tmp_path)
    for process in others:
        process.wait()


# A run of two processes whose main one waits where no exception reaches it, as in a sum of NCCL.
_STUCK = """
import subprocess, sys, time
from pathlib import Path
from multiref_cli.runs import processes

processes.NOTICE_SECONDS = 0.5
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
lasting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(lasting.pid, flush=True)
others = [other, lasting]
with processes._watched(lambda: any(one.poll() for one in others), lambda: processes._give_up(others, Path("out"))):
    other.kill()
    time.sleep(60)
"""


def test_a_run_that_waits_for_a_process_that_is_gone_ends_with_a_sentence(tmp_path):
    directory = RunDir.create(tmp_path / "out", "fake: true\n", [], {})
    directory.write_status("running", 7, 10)
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", _STUCK], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1 and time.monotonic() - begun < 50
    said = "process 1 of 3 was ended by signal SIGKILL"
    assert ended.stderr == f"multiref: {said} (go on with: multiref train --resume out)\n"
    status = directory.status()
    assert (status["state"], status["step"], status["message"]) == ("failed", 7, said)
    left = Path(f"/proc/{int(ended.stdout)}/cmdline")
    while left.exists() and left.read_bytes():  # what is killed is not gone at once
        time.sleep(0.05)


def test_a_block_that_notices_by_itself_is_left_alone(monkeypatch):
    monkeypatch.setattr(processes, "NOTICE_SECONDS", 0.2)
    ended = []
    with pytest.raises(RunError), processes._watched(lambda: True, lambda: ended.append("hard")):
        raise RunError("noticed")
    with processes._watched(lambda: False, lambda: ended.append("hard")):
        time.sleep(1.0)
    assert not ended
    with processes._watched(lambda: True, lambda: ended.append("hard")):
        time.sleep(1.0)
    assert ended


def test_alone_nothing_is_sent():
    assert ALONE.main and ALONE.share([1, 2, 3]) == ALONE.woven([1, 2, 3]) == [1, 2, 3]
    assert ALONE.gather("a") == ["a"]
    assert ALONE.once(lambda: 5) == 5
    with pytest.raises(RequestError):
        ALONE.once(_refused)


def _refused() -> None:
    raise RequestError("no.")
