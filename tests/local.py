"""References over models that a test has in its hands."""

from multiref_cli.config import schema
from multiref_cli.references.live import LiveReferences
from multiref_cli.references.local import LocalReference


def reference_of(model, name="reference", **spec):
    """A reference whose model is this one."""
    return LocalReference(schema.ReferenceSpec(name=name, path=name, **spec), opener=lambda: model)


def live(experiment, models, foreign=None):
    """Live references of an experiment, one model each; `foreign`: tokenizers of those that have their own."""
    names = [reference.name for reference in experiment.active_references]
    members = [reference_of(model, name) for name, model in zip(names, models, strict=True)]
    return LiveReferences(experiment, members, foreign or [None] * len(members))
