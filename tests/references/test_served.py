"""References behind a server: the numbers of a local model, whatever the server does, and never another model's."""

import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest

from multiref_cli.config.schema import ReferenceSpec
from multiref_cli.errors import RequestError, RunError
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.models.packing import pack, sequences_of
from multiref_cli.references import client, rows
from multiref_cli.references.base import references_of
from multiref_cli.references.served import Serving
from multiref_cli.references.store import ReferenceStore, Scoring
from multiref_cli.rollouts.engine import Sampling
from multiref_cli.tracking.progress import Silent
from tests.references.fake_server import serving


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Short pauses, and a part a batch."""
    monkeypatch.setattr(client, "_PAUSES", (0.01,) * 4)
    monkeypatch.setattr(rows, "PART_TOKENS", 1)


@pytest.fixture
def server(references, tokenizer):
    with serving(load_causal_lm(references[0]), tokenizer) as found:
        yield found


def reference_at(server, own, folder, **keys):
    """A served reference; `keys` of its spec."""
    spec = ReferenceSpec(name="teacher", path="served:teacher", server=server.url, model="teacher", **keys)
    return references_of([spec], serving=Serving(own, folder / "served"))[0]


@pytest.fixture
def teacher(server, tokenizer, tmp_path):
    return reference_at(server, tokenizer, tmp_path, concurrency=4, timeout_seconds=5)


@pytest.fixture(scope="module")
def local(references, sequences, tokenizer, tmp_path_factory):
    """What the same model says in this process, in float64."""
    folder = tmp_path_factory.mktemp("local")
    reference = references_of([references[0]], dtype="float64")[0]
    return ReferenceStore(folder, Scoring(tokenizer, len(tokenizer))).logps(reference, sequences)


def small(store):
    """Batches of few rows."""
    return ReferenceStore(store.entries.root, Scoring(store.scoring.tokenizer, store.scoring.vocabulary, None, 60))


def assert_same(found, expected):
    for given, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-6)


def scored(server):
    """Questions about rows, without those about the probe."""
    lengths = [tuple(one["prompt"]) for one in server.asked]
    probe = max(lengths, key=lengths.count)
    return [one for one in lengths if one != probe]


def test_rows_come_out_of_a_pass_as_they_went_in(sequences):
    own = [(list(one.prompt), list(one.completion)) for one in sequences]
    alone = pack([p for p, _ in own], [[c] for _, c in own], 0, False)
    assert sequences_of(alone) == own
    shared = pack([own[0][0], own[2][0]], [[own[0][1], own[1][1]], [own[2][1], []]], 0, True)
    assert sequences_of(shared) == [own[0], (own[0][0], own[1][1]), own[2], ([], [])]


def test_values_are_those_of_the_model_and_ids_are_sent(server, teacher, store, sequences, local):
    assert_same(store.logps(teacher, sequences), local)
    asked = set(scored(server))
    assert asked == {(*one.prompt, *one.completion) for one in sequences}
    assert len(asked) == len(scored(server))


def test_a_second_look_asks_for_the_identity_alone(server, teacher, store, sequences, tokenizer, tmp_path):
    first = store.logps(teacher, sequences)
    count = len(scored(server))
    again = store.logps(reference_at(server, tokenizer, tmp_path), sequences)
    assert len(scored(server)) == count and all(map(np.array_equal, first, again))


def test_questions_are_asked_side_by_side_and_no_more_than_allowed(server, teacher, store, sequences, local):
    """Answers come in another order than they were asked for: the longer a row, the sooner."""
    server.faults = lambda number, body: 0.3 / len(body["prompt"])
    assert_same(store.logps(teacher, sequences), local)
    assert 1 < server.most <= 4


def flaky(server, faults):
    """Every first try of a question fails in the next of some ways."""
    seen = set()

    def fault(number, body):
        ids = tuple(body["prompt"])
        if ids in seen:
            return None
        seen.add(ids)
        return faults[len(seen) % len(faults)]

    server.faults = fault


@pytest.mark.parametrize(
    "fault", [429, (429, 0), (503, 0.01), 500, 502, 408, "half", "hang up", "short", "null", "other"], ids=str
)
def test_what_can_be_asked_again_is_asked_again(server, teacher, store, sequences, local, fault):
    flaky(server, [fault])
    assert_same(store.logps(teacher, sequences), local)


def test_a_server_that_hangs_is_given_up_after_the_time_allowed(server, tokenizer, store, sequences, local, tmp_path):
    teacher = reference_at(server, tokenizer, tmp_path, concurrency=30, timeout_seconds=0.5)
    teacher.fingerprint()
    flaky(server, ["hang", None, None])
    assert_same(store.logps(teacher, sequences), local)


def test_retry_after_is_honored(server, teacher):
    times = []

    def fault(number, body):
        times.append(time.monotonic())
        return (429, 0.4) if len(times) == 1 else None

    server.faults = fault
    teacher.fingerprint()
    assert 0.35 < times[1] - times[0] < 2


@pytest.mark.parametrize("fault", [500, "half", "short", "null", "hang up"])
def test_what_never_gets_better_ends_in_a_sentence_and_keeps_no_entry(server, teacher, store, sequences, fault):
    teacher.fingerprint()
    server.faults = lambda number, body: fault
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1:\d+/v1/completions gives no usable answer: .+\.$"):
        store.logps(teacher, sequences)
    assert store.list() == []


def test_nothing_that_was_done_is_asked_again(server, teacher, tokenizer, store, sequences, local, tmp_path):
    """The pass dies in its middle; another process goes on."""
    teacher.fingerprint()
    start = len(server.asked)
    server.faults = lambda number, body: 500 if number - start > 9 and len(body["prompt"]) < 60 else None
    with pytest.raises(RunError):
        small(store).logps(teacher, sequences)
    kept = sum(len(list(folder.iterdir())) for folder in store.entries.root.glob(".parts-*"))
    assert kept > 0
    server.faults, server.asked[:] = (lambda number, body: None), []
    assert_same(small(store).logps(reference_at(server, tokenizer, tmp_path), sequences), local)
    assert 0 < len(set(scored(server))) < len(sequences)
    assert not list(store.entries.root.glob(".parts-*"))


def test_another_model_during_a_pass_is_caught(
    server, teacher, references, tokenizer, store, sequences, local, tmp_path
):
    teacher.fingerprint()
    start, first = len(server.asked), server.model
    other = load_causal_lm(references[2]).double()  # here: transformers loads in one thread at a time

    def restarted(number, body):
        if number - start > 9:
            server.model = other

    server.faults = restarted
    with pytest.raises(RunError, match=r"serves another model than before under the name teacher .*nats a token off"):
        small(store).logps(teacher, sequences)
    assert store.list() == []
    server.faults, server.model = (lambda number, body: None), first
    assert_same(small(store).logps(reference_at(server, tokenizer, tmp_path), sequences), local)


def test_another_name_during_a_pass_is_caught(server, teacher, store, sequences):
    teacher.fingerprint()
    rename = lambda: setattr(server, "name", "other")  # noqa: E731
    server.faults = lambda number, body: rename() if number > 20 else None
    with pytest.raises(RunError, match=r"does not exist|serves other"):
        store.logps(teacher, sequences)
    assert store.list() == []


def test_models_are_told_apart_and_the_rounding_of_one_is_not(server, teacher, references, tokenizer, tmp_path):
    before = teacher.fingerprint()
    again = reference_at(server, tokenizer, tmp_path)
    noisy, exact = (lambda ids: [one + 0.004 for one in exact(ids)]), server.logps
    server.logps = noisy
    assert again.fingerprint() == before
    again.confirm()
    server.logps, server.model = exact, load_causal_lm(references[2]).double()
    assert reference_at(server, tokenizer, tmp_path).fingerprint() != before


@pytest.mark.parametrize("tokenizes", [True, False])
def test_wrong_tokens_are_refused(server, tokenizer, foreign, store, sequences, tmp_path, tokenizes):
    server.tokenizer, server.tokenizes = load_tokenizer(foreign), tokenizes
    match = "tokens of teacher .* are not those of the policy" if tokenizes else "does not say how it tokenizes"
    with pytest.raises(RequestError, match=f"{match}.*give (its )?tokenizer=PATH"):
        store.logps(reference_at(server, tokenizer, tmp_path), sequences)


def test_a_server_that_does_not_tokenize_is_believed_where_its_tokenizer_is_given(
    server, references, tokenizer, store, sequences, local, tmp_path
):
    server.tokenizes = False
    teacher = reference_at(server, tokenizer, tmp_path, tokenizer=references[0].path)
    assert_same(store.logps(teacher, sequences), local)


def test_another_tokenizer_reads_the_text(foreign, store, sequences, tmp_path, tokenizer):
    model, own = load_causal_lm(foreign), load_tokenizer(foreign)
    expected = store.logps(references_of([foreign], dtype="float64")[0], sequences)
    with serving(model, own) as server:
        teacher = reference_at(server, tokenizer, tmp_path, tokenizer=foreign.path)
        assert_same(store.logps(teacher, sequences), expected)


def test_a_completion_without_a_token_is_not_asked_for_where_it_is_refused(server, teacher, store, sequences, local):
    server.least_new_tokens = 1
    assert_same(store.logps(teacher, sequences), local)


def test_a_wrong_name_is_refused(server, tokenizer, store, sequences, tmp_path):
    server.name = "student"
    with pytest.raises(RequestError, match="serves student, not teacher"):
        store.logps(reference_at(server, tokenizer, tmp_path), sequences)


def test_a_key_comes_from_the_environment(server, tokenizer, tmp_path, monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(RequestError, match=r"TEACHER_KEY.*is empty"):
        reference_at(server, tokenizer, tmp_path, api_key_env="TEACHER_KEY").fingerprint()
    monkeypatch.setenv("TEACHER_KEY", "secret")
    reference_at(server, tokenizer, tmp_path, api_key_env="TEACHER_KEY").fingerprint()
    assert server.keys == {"Bearer secret"}


def test_what_was_not_asked_for_is_not_an_answer(server, teacher, sequences):
    """A row that is asked for again is asked again: no answer is kept beyond its pass."""
    one = pack([sequences[0].prompt], [[sequences[0].completion]], 0, False)
    teacher.fingerprint()
    count = len(server.asked)
    first = teacher.token_logps(one)
    teacher.expect(one)
    assert (teacher.token_logps(one) == first).all() and len(server.asked) == count + 2


@pytest.mark.parametrize("fails", [False, True])
def test_no_thread_is_left_of_a_pass(server, teacher, store, sequences, fails):
    teacher.fingerprint()

    def working():
        return {one for one in threading.enumerate() if one.name.endswith("(_work)")}

    before, seen = working(), []
    server.faults = lambda number, body: seen.append(len(working() - before)) or (500 if fails else None)
    with pytest.raises(RunError) if fails else nullcontext():
        store.logps(teacher, sequences)
    until = time.monotonic() + 5
    while working() - before and time.monotonic() < until:
        time.sleep(0.01)
    assert max(seen) > 0 and not working() - before


@pytest.mark.parametrize("shown", [True, False])
def test_samples_are_drawn_with_a_seed_and_kept(server, teacher, store, sequences, tokenizer, shown):
    """Where a server does not say which ids it drew, they are those of its text."""
    server.ids_shown = shown
    prompts = [list(one.prompt) for one in sequences[:6:2]]
    sampling = Sampling(1.0, max_new_tokens=5, end_ids=(tokenizer.eos_token_id,))
    found = store.samples(teacher, prompts, 2, sampling, [1, 2, 3], 8)
    assert [len(group) for group in found] == [2, 2, 2] and len(server.drawn) == 6
    assert all(body["stop_token_ids"] == [tokenizer.eos_token_id] for body in server.drawn)
    off = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert all(off.items() <= body.items() for body in server.drawn)  # nothing is left to the server's taste
    for group, prompt in zip(found, prompts):
        for one in group:
            assert one.finished == (one.ids[-1] == tokenizer.eos_token_id)
            if shown:
                np.testing.assert_allclose(one.logps, server.logps([*prompt, *one.ids])[len(prompt) - 1 :], atol=1e-6)
            else:
                assert np.isnan(one.logps).all()
    assert len({tuple(one.ids) for group in found for one in group}) > 3
    again = store.samples(teacher, prompts, 2, sampling, [1, 2, 3], 8)
    assert [[one.ids for one in group] for group in again] == [[one.ids for one in group] for group in found]
    assert len(server.drawn) == 6


def test_a_served_entry_is_verified_by_its_checksum_and_names_no_key(teacher, store, sequences):
    store.logps(teacher, sequences)
    (finding,) = store.verify(progress=Silent())
    assert finding.good and "came from the server" in finding.text
    (entry,) = store.list()
    (member,) = entry.origin["references"]
    assert entry.made_with == "served" and member["model"] == "teacher" and "api_key_env" not in member
