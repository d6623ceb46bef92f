"""The combined reward: weights, users' own functions, hanging and failing ones."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multiref_cli.config.schema import Reward, RewardTerm
from multiref_cli.errors import RequestError, RunError
from multiref_cli.rewards import worker as worker_module
from multiref_cli.rewards.combine import HANGING_ROWS, build_reward
from multiref_cli.rewards.sample import Sample

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def samples(*completions, **keys):
    return [
        Sample([{"role": "user", "content": f"Q{i}"}], text, answer="5", row=10 + i, **keys)
        for i, text in enumerate(completions)
    ]


def reward(seconds=30.0, **functions):
    terms = {name: RewardTerm(function={"_target_": path}, weight=1.0) for name, path in functions.items()}
    return Reward(name="test", terms=terms, timeout_seconds=seconds)


def mine(function, seconds=30.0):
    return reward(seconds, mine=f"user_rewards.{function}")


def test_weighted_sum_and_terms():
    config = Reward(
        name="test",
        terms={
            "right": RewardTerm(function={"_target_": "multiref_cli.rewards.verifiers.final_number"}, weight=2.0),
            "length": RewardTerm(function={"_target_": "user_rewards.length", "scale": 0.5}, weight=-0.1),
        },
    )
    batch = build_reward(config)(samples("#### 5", "#### 12"))
    assert batch.terms == {"right": [1.0, 0.0], "length": [3.0, 3.5]}
    assert batch.total == pytest.approx([2.0 - 0.3, -0.35]) and batch.timeouts == {}
    assert build_reward(config)([]).total == []


def test_one_worker_serves_all_calls_and_marked_functions_stay_here():
    score = build_reward(mine("process"))
    first, second = score(samples("a")).total[0], score(samples("b")).total[0]
    assert first == second != os.getpid()
    assert build_reward(mine("process", seconds=0))(samples("a")).total == [os.getpid()]


def test_a_reward_that_nobody_asks_any_more_leaves_no_process():
    """A sweep's worker builds two for every point; Python keeps a child that still runs, and its pipes, to itself."""
    before = set(_children())
    score = build_reward(mine("length"))
    assert score(samples("abc")).total == [3.0] and len(set(_children()) - before) == 1
    del score
    assert set(_children()) <= before


def _children():
    return [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def test_extra_columns_reach_the_function():
    assert build_reward(mine("extra"))(samples("a", extra={"bonus": 4})).total == [4.0]


def test_function_that_needs_the_whole_batch_gets_it():
    assert build_reward(mine("rank"))(samples("aaa", "a", "aa")).total == [2.0, 0.0, 1.0]


def test_function_may_print(capfd):
    assert build_reward(mine("prints"))(samples("a", "b")).total == [1.0, 1.0]
    assert "may print" in capfd.readouterr().err


def test_hanging_row_counts_zero_and_is_reported():
    score = build_reward(mine("hangs_on_x", seconds=0.5))
    start = time.monotonic()
    batch = score(samples("a", "x", "b"))
    assert (batch.total, batch.timeouts) == ([1.0, 0.0, 1.0], {"mine": [1]})
    assert time.monotonic() - start < 20
    assert score(samples("a")).total == [1.0]


def test_regular_expression_that_never_ends_is_killed():
    batch = build_reward(mine("holds_the_interpreter", seconds=1.0))(samples("aaa", "a" * 60 + "!"))
    assert (batch.total, batch.timeouts) == ([1.0, 0.0], {"mine": [1]})


def test_function_that_hangs_on_everything_stops_the_run():
    score = build_reward(mine("hangs_on_x", seconds=0.1))
    with pytest.raises(
        RunError, match=rf"hangs_on_x took over 0.1 s for each of {HANGING_ROWS} responses.*data row 17"
    ):
        score(samples(*["x"] * 20))


def test_rows_that_hang_beside_rows_that_do_not_cost_themselves_alone():
    batch = build_reward(mine("hangs_on_x", seconds=0.3))(samples("a", *["x"] * (HANGING_ROWS + 1), "b"))
    assert batch.total == [1.0, *[0.0] * (HANGING_ROWS + 1), 1.0]
    assert batch.timeouts == {"mine": list(range(1, HANGING_ROWS + 2))}


@pytest.mark.parametrize("seconds", [30.0, 0.0], ids=["worker", "in process"])
def test_function_that_raises_names_the_row_and_the_function(seconds):
    with pytest.raises(RunError) as failure:
        build_reward(mine("raises_on_x", seconds))(samples("a", "b", "x"))
    text = str(failure.value)
    assert "user_rewards.raises_on_x raised ZeroDivisionError" in text
    assert "data row 12 (prompt 'Q2', response 'x')" in text


def test_traceback_of_the_worker_is_in_the_message():
    with pytest.raises(RunError, match=r"user_rewards\.py"):
        build_reward(mine("raises_on_x"))(samples("x"))


def test_function_that_raises_for_a_batch_only():
    with pytest.raises(RunError, match="one at a time for a batch of 2 responses"):
        build_reward(mine("raises_in_company"))(samples("a", "b"))


def test_missing_gold_answer_names_the_row():
    config = reward(right="multiref_cli.rewards.verifiers.final_number")
    rows = [*samples("#### 5"), Sample([{"role": "user", "content": "no answer"}], "#### 5", row=99)]
    with pytest.raises(RunError, match="no gold answer for data row 99"):
        build_reward(config)(rows)


def test_wrong_number_of_values():
    with pytest.raises(RunError, match="too_few gave 1 values for 2 responses"):
        build_reward(mine("too_few"))(samples("a", "b"))


def test_value_that_is_not_finite():
    with pytest.raises(RunError, match=r"gave nan for data row 11"):
        build_reward(mine("not_a_number"))(samples("a", "x"))


def test_process_that_dies():
    with pytest.raises(RunError, match="died with code 3"):
        build_reward(mine("dies"))(samples("a"))


def test_process_that_closes_its_pipe_and_lives_on_is_killed(monkeypatch):
    monkeypatch.setattr(worker_module, "_PATIENCE", 0.2)
    with pytest.raises(RunError, match="closed its pipe and lived on; it was killed"):
        build_reward(mine("closes_and_lives"))(samples("a"))


def test_a_stopped_process_does_not_block_a_large_request():
    worker, start = worker_module.Worker(), time.monotonic()
    (process,) = worker.call("user_rewards.process", samples("a"), {}, 30)
    os.kill(int(process), signal.SIGSTOP)
    with pytest.raises(worker_module.RewardTimeout):
        worker.call("user_rewards.process", samples("a" * 2**22), {}, 0.5)
    assert time.monotonic() - start < 30 and not _runs(int(process))


def test_a_function_that_eats_memory_is_named():
    with pytest.raises(RunError, match="eats_memory raised MemoryError"):
        build_reward(mine("eats_memory"))(samples("a"))


def test_the_working_directory_comes_last(tmp_path, monkeypatch):
    (tmp_path / "pickle.py").write_text("open('was_here', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert build_reward(mine("length"))(samples("abc")).total == [3.0]
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("answer", [b"no json", b"3", b"[]", b'["done", [1, "x"]]', b'["raised", 3]', b"\x80\x04N."])
def test_an_answer_is_read_as_numbers_and_texts_alone(answer):
    with pytest.raises(RunError, match="no list of numbers"):
        worker_module._understood(answer)


def test_worker_ends_with_the_process_that_started_it():
    program = f"""
import os, sys, threading
sys.path.insert(0, {str(HERE)!r})
from multiref_cli.rewards.sample import Sample
from multiref_cli.rewards.worker import Worker
worker = Worker()
print(int(worker.call("user_rewards.process", [Sample([], "a")], {{}}, 30)[0]), flush=True)
threading.Timer(0.5, lambda: os._exit(0)).start()
worker.call("user_rewards.hangs_on_x", [Sample([], "x")], {{}}, 30)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, cwd=HERE.parents[1])
    worker, end = int(done.stdout), time.monotonic() + 10
    while _runs(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _runs(worker)


def _runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A process that nobody waits for stays as a zombie, which runs no longer.
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_interrupted_call_does_not_answer_the_next_one(monkeypatch):
    worker = worker_module.Worker()
    assert worker.call("user_rewards.length", samples("abc"), {}, 30) == [3.0]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.call("user_rewards.length", samples("abcd"), {}, 30)
    assert worker.call("user_rewards.length", samples("ab"), {}, 30) == [2.0]
    worker.close()


def test_math_verify_in_the_worker():
    config = reward(right="multiref_cli.rewards.verifiers.math_equal")
    assert build_reward(config)(samples(r"\boxed{\frac{10}{2}}", r"\boxed{6}")).total == [1.0, 0.0]


@pytest.mark.parametrize(
    "function, words",
    [
        ({"_target_": "user_rewards.lenght"}, "did you mean length?"),
        ({"_target_": "no_such_module.f"}, "importing no_such_module failed"),
        ({"_target_": "length"}, "give a dotted path"),
        ({"_target_": "user_rewards.NUMBER"}, "is a int, not a function"),
        ({"_target_": "user_rewards.length", "scal": 2}, "has no option scal; it takes scale"),
        ({"_target_": "multiref_cli.rewards.model.reward_model"}, "needs the option path"),
        ({"scale": 2}, "has no _target_"),
    ],
)
def test_wrong_requests(function, words):
    with pytest.raises(RequestError, match=words.replace("?", r"\?")):
        build_reward(Reward(name="test", terms={"t": RewardTerm(function=function)}))


def test_no_terms():
    with pytest.raises(RequestError, match="has no terms"):
        build_reward(Reward(name="test"))


def test_module_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text("def one(samples):\n    return [1.0 for _ in samples]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert build_reward(reward(mine="my_own_rewards.one"))(samples("a")).total == [1.0]
