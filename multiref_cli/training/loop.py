"""The one training loop: every objective is a source of batches and a loss."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from types import FrameType
from typing import Any

import torch

from multiref_cli.algorithms.base import Batch, Noted, Stateful, Trainee
from multiref_cli.config import schema
from multiref_cli.errors import RunError
from multiref_cli.models.precision import FLOAT32, Precision
from multiref_cli.parallel import ALONE, Parallel
from multiref_cli.sharding import divided, gathered
from multiref_cli.tracking.metrics import Averages
from multiref_cli.tracking.places import command
from multiref_cli.tracking.progress import Progress, duration, memory_text
from multiref_cli.tracking.run_dir import RunDir
from multiref_cli.tracking.rungs import Missed, Pruned, read_rungs
from multiref_cli.training.checkpoint import Writer, check_same, checkpoints, load_checkpoint
from multiref_cli.training.health import Health
from multiref_cli.training.optimizer import Optimizers

# A checkpoint that took less is not spoken of.
LONG_SECONDS = 1.0


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM between two steps; the checkpoint is written."""


class Loop:
    """Runs steps, logs them, checkpoints them, and goes on where a checkpoint ended."""

    def __init__(
        self,
        run: RunDir,
        trainee: Trainee,
        optimizers: Optimizers,
        hardware: schema.Hardware,
        identity: Mapping[str, Any],
        precision: Precision = FLOAT32,
        parallel: Parallel = ALONE,
    ) -> None:
        """Takes everything ready-made.

        Args:
            run: where steps are logged and checkpoints are written.
            trainee: model and objective.
            optimizers: of the model.
            hardware: how often to log and to checkpoint.
            identity: what must not change across a resume; kept in every checkpoint.
            precision: that the model computes in.
            parallel: the processes that share the micro-batches of a step; the main one alone writes.
        """
        self.run, self.trainee, self.optimizers, self.hardware = run, trainee, optimizers, hardware
        self.model, self.objective, self.identity = trainee.model, trainee.objective, dict(identity)
        self.precision, self.parallel = precision, parallel
        self.rungs = read_rungs(run.path)
        self.writer = Writer(run.path / "checkpoints", hardware.checkpoint_async, parallel)
        self.step, self.saved, self.health, self._said = 0, 0.0, Health(), False

    def fit(self, progress: Progress) -> None:
        """Train from the last checkpoint (or the start) to the last step.

        Raises:
            RunError: the loss or the gradient is not finite.
            Pruned: a trial of a search did not reach a rung.
            Stopped: Ctrl-C or SIGTERM; a checkpoint was written.
        """
        total = self.optimizers.total
        self._restore()
        for sentence in self.run.damage():
            progress.note(sentence)
        if self.step == 0 and self.trainee.check_start is not None:
            with self.precision.autocast(), gathered(self.model):
                self.trainee.check_start(progress)
        self.model.train()
        self.saved = time.monotonic()
        with _stop_requests() as stop_requested:
            while self.step < total:
                metrics = self._one_step()
                if self.parallel.main and (self.step % self.hardware.log_every == 0 or self.step == total):
                    self.run.log({"step": self.step, **metrics})
                    for sentence in self.health.step(metrics):
                        progress.note(sentence)
                progress.advance("train", self.step, total, **metrics)
                stop, due, missed = self.parallel.once(lambda: (stop_requested(), self._is_due(), self._missed()))
                if missed is not None:
                    raise Pruned(missed)
                if stop or due or self.step == total:
                    self._save()
                    self.saved = time.monotonic()
                self._say_checkpoint(progress)
                if stop or self.step == total:
                    self.writer.wait()
                if stop and self.step < total:
                    hint = f"go on with: {command('train', '--resume', self.run.path)}"
                    raise Stopped(f"stopped after step {self.step} of {total}; {hint}")
        self.model.eval()
        self.trainee.notes.extend(self.health.notes())

    def _say_checkpoint(self, progress: Progress) -> None:
        """Size and time of the first checkpoint that is on the disk, where it took time that somebody may miss."""
        if self.writer.took is None or self._said:
            return
        self._said = True
        size, seconds = self.writer.took
        if seconds >= LONG_SECONDS:
            progress.note(f"a checkpoint: {memory_text(size)}, written in {duration(seconds)}")

    def _one_step(self) -> dict[str, float]:
        started = time.perf_counter()
        with self.precision.autocast():
            batch = self.objective.batch(self.step)
        ready = time.perf_counter()
        loss, averages = self._over_processes(*self._passes(batch))
        self.parallel.sum_gradients(self.optimizers.trained)
        update = self.optimizers.step(self.step)
        self._refuse_non_finite(loss, update["gradient_norm"], batch)
        self.step += 1
        seconds = time.perf_counter() - started
        if self.parallel.main:
            self.run.log_samples([{"step": self.step, **sample} for sample in batch.samples])
        timing = {"time/train": time.perf_counter() - ready, "tokens_per_second": batch.tokens / seconds}
        return {"loss": loss, **averages.means(), **batch.metrics, **update, **timing}

    def _passes(self, batch: Batch) -> tuple[float, Averages]:
        """Forward and backward passes of this process's micro-batches: their loss and metrics."""
        averages, loss = Averages(), 0.0
        # FSDP divides the sum of the gradients by the number of processes.
        scale = self.parallel.size if self.parallel.sharded else 1
        with gathered(*self.trainee.beside):
            for micro, counts in self._own_micros(batch):
                with gathered(self.model):
                    with self.precision.autocast():
                        share, values = self.objective.loss(self.model, micro)
                    (share * (scale if counts else 0)).backward()
                if counts:
                    averages.update(values)
                    loss += float(share.detach())
        return loss, averages

    def _own_micros(self, batch: Batch) -> list[tuple[Any, bool]]:
        """This process's micro-batches, and whether each counts; sharded, all processes run the same kind at once."""
        if not self.parallel.sharded:
            return self.parallel.in_step(batch.micros)
        found = []
        for _, alike in groupby(batch.micros, type):
            own = self.parallel.in_step(list(alike))
            found += [(micro if counts else _unnoted(micro), counts) for micro, counts in own]
        return found

    def _missed(self) -> Missed | None:
        """The rung of a search that this step is, where it is not reached."""
        if self.rungs is None or self.step == self.optimizers.total:
            return None
        return self.rungs.missed(self.run.metrics(), self.step, self.optimizers.total)

    def _is_due(self) -> bool:
        """Whether a checkpoint is to be written after this step, though nobody asked to stop."""
        every, minutes = self.hardware.checkpoint_every, self.hardware.checkpoint_minutes
        late = minutes is not None and time.monotonic() - self.saved >= 60 * minutes
        return late or (every > 0 and self.step % every == 0)

    def _over_processes(self, loss: float, averages: Averages) -> tuple[float, Averages]:
        """Loss and averages of all micro-batches, out of those of each process's share."""
        parts, total = self.parallel.gather((loss, averages)), Averages()
        for _, part in parts:
            total.update(part)
        return sum(value for value, _ in parts), total

    def _refuse_non_finite(self, loss: float, norm: float, batch: Batch) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.writer.wait()
        found = checkpoints(self.run.path / "checkpoints")
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
        raise RunError(
            f"step {self.step + 1}: {what}, not finite; rows of the batch: {batch.ids[:64]}; "
            f"last good checkpoint: {found[-1] if found else 'none'}."
        )

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self._weights(),
            "optimizers": self.optimizers.state_dict(),
            "algorithm": self.objective.state_dict() if isinstance(self.objective, Stateful) else {},
            "identity": self.identity,
            "rng": self.parallel.gather(_generators()),
            # Of the steps so far: a run may go on with another log_every.
            "logged": self._last_logged(self.step),
        }
        if self.parallel.main:
            self.run.sync_logs()
        if self.parallel.main or self.parallel.sharded:
            self.writer.write(self.step, state, self.hardware.keep_checkpoints)

    def _restore(self) -> None:
        logged = self.run.last_logged()
        folder, device = self.run.path / "checkpoints", self.hardware.device_name
        state = load_checkpoint(folder, lambda found: self._problem(found, logged), self.parallel, device)
        self.step = state["step"] if state else 0
        steps = self.parallel.gather(self.step)
        if len(set(steps)) > 1:
            raise RunError(
                f"the processes of the run found checkpoints of steps {steps}, not of one; give the command again."
            )
        if self.parallel.main:
            self.run.forget_after(self.step)
            self.health.read(self.run.metrics())
        if state is None:
            return
        check_same(state["identity"], self.identity)
        own = self.model.state_dict()
        found = {name: divided(value, own[name]) if name in own else value for name, value in state["model"].items()}
        missing, unexpected = self.model.load_state_dict(found, strict=False)
        if unexpected or set(missing) != self._frozen():
            raise RunError(f"the checkpoint of step {self.step} holds other weights than the policy has.")
        self.optimizers.load_state_dict(state["optimizers"])
        if isinstance(self.objective, Stateful):
            self.objective.load_state_dict(state["algorithm"])
        states = state["rng"]
        _set_generators(states[self.parallel.rank % len(states)])

    def _weights(self) -> dict[str, Any]:
        """What a checkpoint keeps of the model: not the frozen base of an adapter, which its folder holds."""
        frozen = self._frozen()
        return {name: value for name, value in self.model.state_dict().items() if name not in frozen}

    def _frozen(self) -> set[str]:
        return {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}

    def _last_logged(self, step: int) -> int:
        """The last of so many steps that metrics.jsonl has a line of."""
        return step if step == self.optimizers.total else step - step % self.hardware.log_every

    def _problem(self, state: dict[str, Any], logged: int) -> str | None:
        """Why a checkpoint cannot be gone on from, None if it can; `logged` is the last step of metrics.jsonl."""
        missing = [key for key in ("step", "model", "optimizers", "algorithm", "identity", "rng") if key not in state]
        if missing:
            return f"it holds no {missing[0]}"
        step, total = state["step"], self.optimizers.total
        if not isinstance(step, int) or not 0 <= step <= total:
            return f"its step is {step}, not one of 0 to {total}"
        if logged < state.get("logged", self._last_logged(step)):
            return f"it is of step {step}, but metrics.jsonl ends at step {logged}"
        return None


def _unnoted(micro: Any) -> Any:
    """A micro-batch whose result nobody asks for."""
    return micro.unnoted() if isinstance(micro, Noted) else micro


def _generators() -> dict[str, Any]:
    """States of the global generators, from which libraries draw (dropout)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])  # it may see fewer than it did


def _stop_signals() -> list[int]:
    asked = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [s for s in asked if s is not signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]  # under nohup


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, SIGTERM and SIGHUP wait for the end of the step; a second Ctrl-C does not wait."""
    requested: list[int] = []

    def request(number: int, frame: FrameType | None) -> None:
        if requested:
            raise KeyboardInterrupt("interrupted twice; the last checkpoint stands.")
        requested.append(number)

    try:
        saved = {s: signal.signal(s, request) for s in _stop_signals()}
    except ValueError:  # not in the main thread: whoever runs this thread handles signals
        saved = {}
    try:
        yield lambda: bool(requested)
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)
