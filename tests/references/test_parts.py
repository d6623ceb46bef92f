"""A pass that was killed goes on where its last whole part ended, and ends in the same entry."""

from dataclasses import replace

import numpy as np
import pytest

from multiref_cli.config.regularizer import Mix
from multiref_cli.references import rows
from multiref_cli.references.base import references_of
from multiref_cli.references.parts import Parts
from multiref_cli.references.store import ReferenceStore


class Killed(BaseException):
    """Ends a pass where no handler of the program's faults sees it."""


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of one batch; gives the function that computes one, whose `limit`th call kills, and the calls so far."""
    monkeypatch.setattr(rows, "PART_TOKENS", 1)
    passes = []
    computed = rows.ScoredRows._computed

    def counted(self, groups, compute, device):
        passes.append(sum(map(len, groups)))
        if len(passes) == counted.limit:
            raise Killed
        return computed(self, groups, compute, device)

    counted.limit = None
    monkeypatch.setattr(rows.ScoredRows, "_computed", counted)
    return counted, passes


def small(where: ReferenceStore) -> ReferenceStore:
    return ReferenceStore(where.entries.root, replace(where.scoring, micro_tokens=20))


def data(where: ReferenceStore) -> list[bytes]:
    return [(entry.folder / "data.safetensors").read_bytes() for entry in where.list()]


@pytest.mark.parametrize("killed_at", [1, 2, 5])
def test_nothing_done_is_done_again_and_the_entry_is_the_same(
    tmp_path, store, references, sequences, small_parts, killed_at
):
    counted, passes = small_parts
    whole = ReferenceStore(tmp_path / "whole", replace(store.scoring, micro_tokens=20))
    whole.logps(references_of(references)[0], sequences)
    count = len(passes)
    passes.clear()
    counted.limit = killed_at
    with pytest.raises(Killed):
        small(store).logps(references_of(references)[0], sequences)
    counted.limit = None
    kept = sum(len(list(folder.iterdir())) for folder in store.entries.root.glob(".parts-*"))
    assert kept == killed_at - 1 and small(store).list() == []
    passes.clear()
    small(store).logps(references_of(references)[0], sequences)
    assert len(passes) == count - kept
    assert data(store) == data(whole) and not list(store.entries.root.glob(".parts-*"))


def test_a_damaged_part_and_what_follows_it_is_done_again(tmp_path, store, references, sequences, small_parts):
    counted, passes = small_parts
    counted.limit = 5
    with pytest.raises(Killed):
        small(store).logps(references_of(references)[0], sequences)
    counted.limit = None
    (folder,) = store.entries.root.glob(".parts-*")
    first, *others = sorted(folder.iterdir())
    assert others
    raw = bytearray(first.read_bytes())
    raw[-1] ^= 1
    first.write_bytes(raw)
    passes.clear()
    small(store).logps(references_of(references)[0], sequences)
    whole = ReferenceStore(tmp_path / "whole", replace(store.scoring, micro_tokens=20))
    again = len(passes)
    passes.clear()
    whole.logps(references_of(references)[0], sequences)
    assert again == len(passes) and data(store) == data(whole)


def test_a_pass_for_other_entries_or_in_other_batches_takes_no_part_of_it(store, references, sequences, small_parts):
    counted, passes = small_parts
    three, mixes = references_of(references), [Mix(0.0, (0.5, 0.2, 0.3)), Mix(-1.0, (0.5, 0.2, 0.3))]
    counted.limit = 5
    with pytest.raises(Killed):
        small(store).normalizers_of(three, sequences, mixes)
    counted.limit = None
    passes.clear()
    (alone,) = small(store).normalizers_of(three, sequences, mixes[:1])
    both = small(store).normalizers_of(three, sequences, mixes)
    for one, other in zip(alone, both[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_prune_leaves_what_can_be_gone_on_with_unless_it_is_old(store, references, sequences, small_parts):
    small_parts[0].limit = 5
    with pytest.raises(Killed):
        small(store).logps(references_of(references)[0], sequences)
    store.prune()
    store.prune(older_than=1)
    assert list(store.entries.root.glob(".parts-*"))
    store.prune(older_than=0)
    assert not list(store.entries.root.glob(".parts-*"))


def test_progress_is_told_after_every_batch_and_counts_what_was_kept_as_done(store, references, sequences, small_parts):
    counted, _ = small_parts
    told = []

    class Told:
        def note(self, text):
            pass

        def advance(self, phase, done, total, **figures):
            told.append((done, total))

    counted.limit = 5
    with pytest.raises(Killed):
        small(store).logps(references_of(references)[0], sequences, Told())
    assert len(told) == 4 and [done for done, _ in told] == sorted(done for done, _ in told)
    before, counted.limit = told[-1][0], None
    told.clear()
    small(store).logps(references_of(references)[0], sequences, Told())
    assert told[0][0] > before and told[-1][0] == told[-1][1]


def test_parts_end_before_the_first_that_is_missing(tmp_path):
    parts = Parts(tmp_path / "parts")
    for number in (0, 1, 3):
        parts.write(number, np.full((2, 3), number, np.float32))
    assert [float(values[1, 2]) for values in parts.finished()] == [0, 1]
    parts.forget()
    assert list(parts.finished()) == []
