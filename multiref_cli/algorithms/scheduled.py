"""beta and alpha as they stand at a step, where a schedule or a controller moves them."""

from collections.abc import Mapping
from typing import Any

from multiref_cli.config.schedules import TARGET_KL, controlled
from multiref_cli.config.schema import Experiment, Term
from multiref_cli.parallel import ALONE, Parallel


class Scheduled:
    """The weights of a run now. Without schedules they are those of the experiment at every step."""

    def __init__(self, experiment: Experiment, total: int | None, parallel: Parallel = ALONE) -> None:
        """Starts at the first step.

        Args:
            experiment: with or without schedules.
            total: steps of the run; None: nothing moves.
            parallel: the processes that measure the KL of a step together.
        """
        self.experiment, self.total, self.parallel = experiment, total or 1, parallel
        self.beta, self.share = experiment.beta, 0.0
        self._seen = [0.0, 0.0]  # sum of the measured KL and number of responses, of this process

    def at(self, step: int) -> None:
        """Move to a step; a controller moves by what was seen since, once a call.

        Args:
            step: from 0.
        """
        self.share = self.experiment.alpha_moved(step, self.total)
        schedule = self.experiment.moving_beta
        if schedule is None or schedule.kind != TARGET_KL:
            self.beta = self.experiment.beta_at(step, self.total)
            return
        seen = self._gathered()
        if seen[1]:
            self.beta = controlled(self.beta, seen[0] / seen[1], schedule)
        self._seen = [0.0, 0.0]

    def see(self, distance: float, count: int) -> None:
        """Takes the sum of sum_i alpha_i (log pi - log pi_i) over some of the policy's responses, in nats."""
        self._seen = [self._seen[0] + distance, self._seen[1] + count]

    @property
    def terms(self) -> dict[str | None, tuple[Term, ...]]:
        """The summands for every value of `Experiment.routes`, as they stand now."""
        return self.experiment.terms_by_route if self.share == 0 else {None: self.experiment.terms_moved(self.share)}

    def weights(self, columns: Mapping[str, Any]) -> list[float]:
        """Weights of the active references for a row with these columns, as they stand now."""
        experiment = self.experiment
        return experiment.active_weights_of_row(columns) if self.share == 0 else experiment.weights_moved(self.share)

    def metrics(self) -> dict[str, float]:
        """What moves, for the log of a step."""
        found = {} if self.experiment.moving_beta is None else {"beta": self.beta}
        if self.experiment.alpha_end is not None:
            names = [one.name for one in self.experiment.active_references]
            found |= {f"alpha/{name}": w for name, w in zip(names, self.experiment.weights_moved(self.share))}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain values; every process asks for it."""
        return {"beta": self.beta, "share": self.share, "seen": self._gathered()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; what all processes saw belongs to the first."""
        self.beta, self.share = state["beta"], state["share"]
        self._seen = list(state["seen"]) if self.parallel.main else [0.0, 0.0]

    def _gathered(self) -> list[float]:
        parts = self.parallel.gather(self._seen)
        return [sum(column) for column in zip(*parts)]
