"""The store on disk: right values, built once, whole or absent, found by content alone."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from multiref_cli.config.regularizer import Mix
from multiref_cli.errors import RequestError, RunError
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.objectives.mixing import power_mean
from multiref_cli.references import local
from multiref_cli.references.base import references_of
from multiref_cli.references.store import ReferenceStore, Scoring
from multiref_cli.references.tokens import rescored_ids
from multiref_cli.rollouts.engine import Completion, Sampling


def distributions(reference, prompt, completion, size):
    """(T, V) of the model's own logits, cut to the shared ids."""
    logits = load_causal_lm(reference)(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1, :size]
    return logits.log_softmax(-1)


def of_spec(spec, dtype="float32"):
    """The reference that a spec stands for."""
    return references_of([spec], dtype=dtype)[0]


def expected(reference, sequences, size):
    return [
        distributions(reference, one.prompt, one.completion, size).gather(1, torch.tensor(one.completion)[:, None])[
            :, 0
        ]
        for one in sequences
    ]


def forbid_models(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(local, "load_causal_lm", refuse)


def test_values_equal_the_plain_way(store, references, sequences, tokenizer):
    """Also with a head padded beyond the tokenizer (second) and another family (third)."""
    for reference in references:
        values = store.logps(of_spec(reference), sequences)
        for given, plain in zip(values, expected(reference, sequences, len(tokenizer)), strict=True):
            assert given.dtype == np.float32
            np.testing.assert_allclose(given, plain.numpy(), rtol=1e-5, atol=1e-5)


def test_a_second_look_loads_no_model_and_maps_the_file(store, references, sequences, monkeypatch):
    first = store.logps(of_spec(references[0]), sequences)
    forbid_models(monkeypatch)
    again = store.logps(of_spec(references[0]), sequences)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not again[0].flags.writeable
    base = again[0]
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)


def test_the_address_is_content_alone(tmp_path, references, sequences, tokenizer, monkeypatch):
    """Name, folder, device and batch size do not matter; rows, truncation, type and weights do."""
    scoring = Scoring(tokenizer, len(tokenizer), truncation=(64, 32))
    root = tmp_path / "store"
    ReferenceStore(root, scoring).logps(of_spec(references[0]), sequences)
    shutil.copytree(references[0].path, tmp_path / "copy")
    moved = replace(references[0], name="renamed", path=str(tmp_path / "copy"))
    with monkeypatch.context() as patch:
        forbid_models(patch)
        ReferenceStore(root, replace(scoring, micro_tokens=100)).logps(of_spec(moved), sequences)
    others = [
        (scoring, of_spec(references[0]), sequences[:-1]),
        (replace(scoring, truncation=(64, 33)), of_spec(references[0]), sequences),
        (scoring, of_spec(references[0], "bfloat16"), sequences),
        (scoring, of_spec(references[2]), sequences),
    ]
    for count, (how, reference, rows) in enumerate(others, 2):
        ReferenceStore(root, how).logps(reference, rows)
        assert len(ReferenceStore(root).list()) == count


def test_batches_change_nothing_beyond_rounding(tmp_path, references, sequences, tokenizer):
    values = [
        ReferenceStore(tmp_path / str(size), Scoring(tokenizer, len(tokenizer), micro_tokens=size)).logps(
            of_spec(references[0]), sequences
        )
        for size in (20, 4096)
    ]
    for small, large in zip(*values, strict=True):
        np.testing.assert_allclose(small, large, rtol=1e-5, atol=1e-5)


def test_another_tokenizer_scores_the_text_under_its_own(store, foreign, sequences, tokenizer):
    own = load_tokenizer(foreign)
    sums, counts = store.sums(of_spec(foreign), sequences)
    for number, one in enumerate(sequences):
        prompt, completion = rescored_ids(one, tokenizer, own)
        plain = distributions(foreign, prompt, completion, len(own)).gather(1, torch.tensor(completion)[:, None])
        assert counts[number] == len(completion) != len(one.completion)
        np.testing.assert_allclose(sums[number], float(plain.sum()), rtol=1e-5, atol=1e-4)


def test_normalizers_equal_the_plain_way_and_new_weights_touch_nothing(store, references, sequences, tokenizer):
    weights = (0.5, 0.2, 0.3)
    values = store.normalizers_of(references_of(references), sequences, [Mix(0.0, weights)])[0]
    for given, one in zip(values, sequences, strict=True):
        frozen = [distributions(r, one.prompt, one.completion, len(tokenizer)).detach() for r in references]
        plain = power_mean(torch.stack(frozen), torch.tensor(weights), 0.0).logsumexp(-1)
        np.testing.assert_allclose(given, plain.numpy(), rtol=1e-5, atol=1e-5)
    (before,) = store.list()
    content = (before.folder / "data.safetensors").stat().st_mtime_ns
    store.normalizers_of(
        references_of(references), sequences, [Mix(0.0, weights), Mix(0.0, (0.1, 0.1, 0.8)), Mix(-1.0, weights)]
    )
    assert len(store.list()) == 3
    assert (before.folder / "data.safetensors").stat().st_mtime_ns == content


def test_normalizers_do_not_depend_on_the_order_of_the_references(store, references, sequences, monkeypatch):
    given = store.normalizers_of(references_of(references[:2]), sequences, [Mix(0.0, (0.3, 0.7))])[0]
    forbid_models(monkeypatch)
    turned = store.normalizers_of(references_of(references[1::-1]), sequences, [Mix(0.0, (0.7, 0.3))])[0]
    with_idle = store.normalizers_of(references_of(references), sequences, [Mix(0.0, (0.3, 0.7, 0.0))])[0]
    for a, b, c in zip(given, turned, with_idle, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)


def test_mixes_without_a_normalizer_load_nothing(store, references, sequences, monkeypatch):
    forbid_models(monkeypatch)
    arithmetic, corner = store.normalizers_of(
        references_of(references[:2]), sequences, [Mix(1.0, (0.5, 0.5)), Mix(0.0, (0.0, 1.0))]
    )
    assert all((values == 0).all() for values in (*arithmetic, *corner))
    assert [len(values) for values in arithmetic] == [len(one.completion) for one in sequences]
    assert store.list() == []


def test_samples_are_drawn_once(store, references):
    prompts, drawn = [[5, 6], [7]], []

    def generate(given, group_size, sampling, seeds, batch_size, vocabulary):
        drawn.append((given, group_size, sampling, seeds, vocabulary))
        return [[Completion([10 * p + g], [-0.5 * g], g == 0) for g in range(group_size)] for p in range(len(given))]

    reference = of_spec(references[0])
    reference.generate = generate
    sampling = Sampling(max_new_tokens=4, end_ids=(2,))
    first = store.samples(reference, prompts, 3, sampling, [1, 2], batch_size=8)
    assert store.samples(reference, prompts, 3, sampling, [1, 2], batch_size=2) == first
    assert first == generate(prompts, 3, None, None, 8, None)
    assert drawn[:1] == [(prompts, 3, sampling, [1, 2], store.scoring.vocabulary)] and len(drawn) == 2
    store.samples(reference, prompts, 3, replace(sampling, temperature=0.5), [1, 2], batch_size=8)
    assert len(drawn) == 3


def test_a_reference_without_logits_for_every_id_is_refused(tmp_path, references, sequences, tokenizer):
    store = ReferenceStore(tmp_path / "store", Scoring(tokenizer, len(tokenizer) + 1))
    with pytest.raises(RequestError, match="reference first has 89 output ids, the policy's tokenizer 90"):
        store.logps(of_spec(references[0]), sequences)


def test_numbers_that_are_not_finite_are_refused(tmp_path, store, references, sequences):
    from safetensors.torch import load_file, save_file

    shutil.copytree(references[0].path, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((RunError, RequestError)):
        store.logps(of_spec(replace(references[0], path=str(tmp_path / "broken"))), sequences)
    assert store.list() == []


def test_verify_finds_damage(store, references, sequences):
    store.logps(of_spec(references[0]), sequences)
    path = store.list()[0].folder / "data.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    (check,) = store.verify()
    assert not check.good and "checksum differs" in check.text


def test_verify_recomputes(store, references, sequences):
    store.logps(of_spec(references[0]), sequences)
    store.normalizers_of(references_of(references), sequences, [Mix(-1.0, (0.5, 0.2, 0.3))])[0]
    checks = store.verify(rows=4)
    assert all(check.good and "4 responses recomputed" in check.text for check in checks), checks


def test_verify_finds_values_that_the_model_does_not_give(store, references, sequences):
    values = store.logps(of_spec(references[0]), sequences)
    entry = store.list()[0]
    arrays = {name: np.array(one) for name, one in store.entries.read(entry).items()}
    arrays["values"] += 0.01
    shutil.rmtree(entry.folder)
    store.entries.write(entry.address, arrays, entry.origin, 0.0)
    (check,) = store.verify(rows=2)
    assert not check.good and "wrong" in check.text
    assert len(values) == len(sequences)


def test_verify_goes_on_past_an_entry_of_weights_in_fewer_bits(store, references, sequences):
    reference = of_spec(references[0])
    store.logps(reference, sequences)
    reference.dtype = "float32+int8"  # what it would be called; the bits are made by an optional package
    store.logps(reference, sequences)
    found = {check.text for check in store.verify()}
    assert any("of weights in fewer bits (float32+int8), not recomputed" in text for text in found)
    assert len(found) == 2 and all(check.good for check in store.verify())


def test_verify_says_when_the_model_is_gone(tmp_path, store, references, sequences):
    shutil.copytree(references[0].path, tmp_path / "short_lived")
    store.logps(of_spec(replace(references[0], path=str(tmp_path / "short_lived"))), sequences)
    shutil.rmtree(tmp_path / "short_lived")
    (check,) = store.verify()
    assert check.good and "not here" in check.text


def test_prune(store, references, sequences):
    for reference in references:
        store.logps(of_spec(reference), sequences)
    newest, middle, oldest = store.list()
    for days, entry in ((5, middle), (30, oldest)):
        os.utime(entry.folder / "entry.json", (time.time() - days * 86400,) * 2)
    assert store.prune() == []
    assert [e.key for e in store.prune(older_than=10, dry_run=True)] == [oldest.key]
    assert len(store.list()) == 3
    assert [e.key for e in store.prune(older_than=10)] == [oldest.key]
    assert [e.key for e in store.prune(everything=True, keep=[newest.key])] == [middle.key]
    assert [e.key for e in store.list()] == [newest.key] and newest.bytes > 0


def test_reading_counts_as_use(store, references, sequences):
    store.logps(of_spec(references[0]), sequences)
    (entry,) = store.list()
    os.utime(entry.folder / "entry.json", (0, 0))
    store.logps(of_spec(references[0]), sequences)
    assert time.time() - entry.used < 60


def test_concurrent_writers_build_once(store, references, sequences, tokenizer, monkeypatch):
    built, load = [], local.load_causal_lm
    monkeypatch.setattr(local, "load_causal_lm", lambda *a, **k: built.append(1) or load(*a, **k))
    found = []

    def work():
        own = ReferenceStore(store.entries.root, Scoring(tokenizer, len(tokenizer)))
        found.append(own.logps(of_spec(references[0]), sequences))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and len(found) == 4
    assert all(np.array_equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


def test_a_killed_build_leaves_nothing_visible(tmp_path):
    """A process dies between writing the data and the rename; the next one starts over and cleans up."""
    script = """
import os, sys, signal
import numpy as np
from pathlib import Path
from multiref_cli.references import entries
entries.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
folder = entries.EntryFolder(Path(sys.argv[1]))
address = {"kind": "logps"}
with folder.building([entries.address_key(address)]):
    folder.write(address, {"offsets": np.array([0, 1]), "values": np.zeros(1, np.float32)}, {"references": []}, 0.0)
"""
    root = tmp_path / "store"
    done = subprocess.run([sys.executable, "-c", script, str(root)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(root.glob(".writing-*"))) == 1
    store = ReferenceStore(root)
    assert store.list() == []
    store.prune()
    assert list(root.glob(".writing-*")) == []


def test_progress_counts_tokens(store, references, sequences):
    told = []

    class Listener:
        def note(self, text):
            pass

        def advance(self, phase, done, total, **figures):
            told.append((phase, done, total, figures["tokens_per_second"]))

    store.logps(of_spec(references[0]), sequences, Listener())
    assert told[-1][0] == "reference first" and told[-1][1] == told[-1][2] > 0 and told[-1][3] > 0


@pytest.mark.parametrize("damage", ["values", "cut", "description", "exchanged", "gone"])
def test_a_damaged_entry_is_built_again(store, references, sequences, damage):
    right = [np.array(one) for one in store.logps(of_spec(references[0]), sequences)]
    (entry,) = store.list()
    data, description = entry.folder / "data.safetensors", entry.folder / "entry.json"
    content = bytearray(data.read_bytes())
    if damage == "values":
        content[-3] ^= 1
        data.write_bytes(content)
    elif damage == "cut":
        data.write_bytes(content[:10])
    elif damage == "description":
        description.write_bytes(b"\0" * 50)
    elif damage == "exchanged":
        store.logps(of_spec(references[1]), sequences)
        (other,) = [one for one in store.list() if one.key != entry.key]
        shutil.copytree(other.folder, entry.folder, dirs_exist_ok=True)
    else:
        data.unlink()
    again = store.logps(of_spec(references[0]), sequences)
    assert all(np.array_equal(a, b) for a, b in zip(right, again, strict=True))
    assert all(store.entries.is_whole(one) for one in store.list()) and store.entries.unreadable() == 0


def test_what_is_open_is_not_pruned_and_what_vanished_is_built_again(store, references, sequences):
    values = store.logps(of_spec(references[0]), sequences)
    assert store.prune(everything=True) == [] and len(store.list()) == 1
    kept = [np.array(one) for one in values]
    del values
    assert len(store.prune(everything=True)) == 1
    again = store.logps(of_spec(references[0]), sequences)
    assert all(np.array_equal(a, b) for a, b in zip(kept, again, strict=True))


def test_a_stray_file_harms_nobody_and_an_entry_says_its_version(store, references, sequences):
    import transformers

    store.logps(of_spec(references[0]), sequences)
    (store.entries.root / "stray").write_text("")
    (store.entries.root / "folder").mkdir()
    (entry,) = store.list()
    assert store.entries.unreadable() == 2 and entry.made_with == transformers.__version__
    assert store.prune(everything=True) == [entry]


def test_a_store_that_cannot_be_written_says_so(store, references, sequences, monkeypatch):
    from multiref_cli.references import entries

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(entries, "save_file", full)
    with pytest.raises(RunError, match=r"cannot be written .*No space left on device.*: make room there"):
        store.logps(of_spec(references[0]), sequences)
    assert list(store.entries.root.glob(".writing-*")) == []


def test_code_that_is_run_is_part_of_the_fingerprint(references, tmp_path):
    from multiref_cli.models.files import fingerprint

    shutil.copytree(references[0].path, tmp_path / "own")
    plain = replace(references[0], path=str(tmp_path / "own"))
    trusted, before = replace(plain, trust_remote_code=True), fingerprint(plain)
    (tmp_path / "own" / "modeling.py").write_text("a = 1\n")
    first = fingerprint(trusted)
    (tmp_path / "own" / "modeling.py").write_text("a = 2\n")
    assert fingerprint(plain) == before and len({before, first, fingerprint(trusted)}) == 3
