"""Adapters on one base: opened together, whichever of them are asked for, and as often."""

from multiref_cli.config.schema import ReferenceSpec
from multiref_cli.references import adapters


def test_views_that_were_given_away_are_opened_again_though_another_is_left(monkeypatch):
    """Of three adapters two are in a mix: a pass over the training pairs, then one over those held out."""
    opened = []
    monkeypatch.setattr(adapters.SharedBase, "_open", lambda self: opened.append(1) or [object() for _ in self.specs])
    specs = [ReferenceSpec(name=name, path="base", adapter=name) for name in "abc"]
    first, second, third = adapters.shared_openers(specs, "cpu", "float32")
    views = [first(), second()]
    assert len(opened) == 1
    views += [first(), second(), third()]
    assert len(opened) == 2 and len(set(map(id, views))) == 5
