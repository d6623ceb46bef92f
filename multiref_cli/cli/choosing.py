"""Alpha chosen by a rule, for the commands that start runs: what is chosen is said, what a dry run cannot know too."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from multiref_cli.cli import display
from multiref_cli.config.schema import Experiment


class Chooser:
    """Gives weights where alpha is a rule, and keeps the choices."""

    def __init__(self, dry_run: bool, plain: bool, kept: Sequence[dict[str, Any]] = ()) -> None:
        """Takes note.

        Args:
            dry_run: make nothing; a choice that is not made yet has equal weights in its place.
            plain: plain lines instead of a live panel.
            kept: choices that the folder of a sweep holds.
        """
        self.dry_run, self.plain, self.kept = dry_run, plain, kept
        self.choices: list[dict[str, Any]] = []

    def __call__(self, experiment: Experiment) -> float | list[float]:
        """Alpha for an experiment whose alpha is a rule."""
        from multiref_cli.reports.choices import chosen
        from multiref_cli.runs.choose import PROMPTS, RESPONSES, choose, known

        if self.dry_run:
            choice = known(experiment, self.kept)
        else:
            with display.progress(self.plain) as progress:
                choice = choose(experiment, progress, self.kept)
        if choice is None:
            display.line(
                f"alpha={experiment.rule} for {experiment.penalty.title} is chosen before anything is trained, from up "
                f"to {PROMPTS} training prompts and {RESPONSES} responses of each reference to each; until then equal "
                "weights stand in its place"
            )
            return experiment.evenly.alpha
        content = asdict(choice)
        if content not in self.choices:
            self.choices.append(content)
            display.line(chosen(content))
        return choice.alpha
