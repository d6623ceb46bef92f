"""Hidden states that the store keeps on request: any later mix is the same number as of a pass, and needs none."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from multiref_cli.cli import refs
from multiref_cli.config.regularizer import Mix
from multiref_cli.config.schema import ReferenceSpec
from multiref_cli.errors import RunError
from multiref_cli.models.decoder import hidden_states
from multiref_cli.models.load import load_causal_lm
from multiref_cli.models.packing import pack
from multiref_cli.references import hidden, rows
from multiref_cli.references.base import references_of
from multiref_cli.references.served import Serving
from multiref_cli.references.store import ReferenceStore

MIXES = [Mix(0.0, (0.3, 0.7)), Mix(-1.0, (0.6, 0.4))]


class Killed(BaseException):
    """Ends a pass where no handler of the program's faults sees it."""


class Told:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    def advance(self, *_, **__):
        pass


def keeping(store, folder=None, micro_tokens=60):
    """A store that keeps hidden states, in batches of a few rows."""
    scoring = replace(store.scoring, keep_hidden=True, micro_tokens=micro_tokens)
    return ReferenceStore(folder or store.entries.root, scoring)


def forbid_passes(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a reference was run")

    for kind in (Qwen2Model, LlamaModel):
        monkeypatch.setattr(kind, "forward", refuse)


def kinds(store):
    return sorted(entry.kind for entry in store.list())


def entry_of(store, kind="hidden"):
    (found,) = [entry for entry in store.list() if entry.kind == kind]
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bf16_mixed"])
def test_what_is_kept_is_what_the_model_gives_and_log_probabilities_are_the_same(
    tmp_path, store, references, sequences, dtype
):
    (reference,) = references_of(references[:1], dtype=dtype)
    given = keeping(store).logps(reference, sequences)
    plain = ReferenceStore(tmp_path / "plain", replace(store.scoring, micro_tokens=60)).logps(reference, sequences)
    assert all(np.array_equal(a, b) for a, b in zip(given, plain, strict=True))
    entry = entry_of(store)
    assert kinds(store) == ["hidden", "logps"] and entry.tokens == sum(map(len, given))
    states = torch.from_numpy(np.array(store.entries.read(entry)["states"])).view(reference.product_type)
    kind = "float32" if dtype == "bf16_mixed" else dtype
    model, tolerance = load_causal_lm(references[0], dtype=kind), 1e-5 if dtype == "float32" else 0.1
    start = 0
    for one in sequences:
        packed = pack([one.prompt], [[one.completion]], 0, False)
        count = len(one.completion)
        with torch.no_grad(), reference.precision.autocast():
            expected = hidden_states(model, packed)
        assert (states[start : start + count].float() - expected.float()).abs().max() < tolerance
        start += count


def test_later_mixes_run_no_reference_and_are_bitwise_those_of_a_pass(
    tmp_path, store, references, sequences, monkeypatch
):
    live = ReferenceStore(tmp_path / "live", replace(store.scoring, micro_tokens=60))
    expected = live.normalizers_of(references_of(references[:2]), sequences, MIXES)
    kept = keeping(store)
    for reference in references_of(references[:2]):
        kept.logps(reference, sequences)
    forbid_passes(monkeypatch)
    given = [kept.normalizers_of(references_of(references[:2]), sequences, [mix])[0] for mix in MIXES]
    for one, other in zip(given, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)) and any(a.any() for a in one)
    # What is there is used without being asked for again.
    later = ReferenceStore(store.entries.root, replace(store.scoring, micro_tokens=60))
    later.normalizers_of(references_of(references[:2], together=True), sequences, [Mix(-0.5, (0.5, 0.5))])
    assert kinds(store) == ["hidden"] * 2 + ["logps"] * 2 + ["normalizers"] * 3


def test_another_width_and_batches_of_another_size_agree_up_to_rounding(tmp_path, store, references, sequences):
    three, mix = references_of(references), Mix(-1.0, (0.2, 0.5, 0.3))
    (expected,) = ReferenceStore(tmp_path / "live", store.scoring).normalizers_of(three, sequences, [mix])
    kept = keeping(store)
    for reference in three:
        kept.logps(reference, sequences)
    (given,) = keeping(store, micro_tokens=200).normalizers_of(three, sequences, [mix])
    for one, other in zip(given, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-5)


def test_normalizers_asked_for_first_keep_what_they_compute(store, references, sequences, monkeypatch):
    kept = keeping(store)
    kept.normalizers_of(references_of(references[:2], together=True), sequences, MIXES[:1])
    assert kinds(store) == ["hidden"] * 2 + ["normalizers"]
    forbid_passes(monkeypatch)
    kept.normalizers_of(references_of(references[:2], together=True), sequences, MIXES[1:])


def test_states_are_added_to_log_probabilities_that_are_there(store, references, sequences):
    (reference,) = references_of(references[:1])
    store.logps(reference, sequences)
    before = entry_of(store, "logps").created
    keeping(store).logps(reference, sequences)
    assert kinds(store) == ["hidden", "logps"] and entry_of(store, "logps").created == before


def test_the_size_said_before_is_the_size_on_disk(store, references, sequences):
    told, (reference,) = Told(), references_of(references[:1])
    keeping(store).logps(reference, sequences, told)
    entry = entry_of(store)
    states = store.entries.read(entry)["states"]
    assert told.notes == [f"hidden states of first: {hidden.size_said(reference, entry.tokens)}"]
    assert f"{entry.tokens:,} tokens x 16 numbers x 4 bytes = " in told.notes[0]
    assert states.nbytes == entry.tokens * 16 * 4
    rest = sum(one.nbytes for name, one in store.entries.read(entry).items() if name != "states")
    assert states.nbytes < entry.bytes < states.nbytes + rest + 4096


@pytest.mark.parametrize("damaged", [False, True])
def test_a_killed_pass_goes_on_and_notices_what_the_disk_lost(
    tmp_path, store, references, sequences, monkeypatch, damaged
):
    monkeypatch.setattr(rows, "PART_TOKENS", 1)
    computed, calls, limit = rows.ScoredRows._computed, [], [4]

    def counted(self, *arguments):
        calls.append(1)
        if len(calls) == limit[0]:
            raise Killed
        return computed(self, *arguments)

    monkeypatch.setattr(rows.ScoredRows, "_computed", counted)
    (reference,) = references_of(references[:1])
    with pytest.raises(Killed):
        keeping(store).logps(reference, sequences)
    assert store.list() == []
    limit[0] = None
    calls.clear()
    (scratch,) = store.entries.root.glob(".parts-*-room/states")
    if damaged:
        content = np.memmap(scratch, np.uint8, "r+")
        done = np.flatnonzero(content)[0]
        content[done] ^= 1
        content.flush()
        with pytest.raises(RunError, match="damaged on disk while they were computed: run it again"):
            keeping(store).logps(reference, sequences)
        assert store.list() == []
        calls.clear()
    keeping(store).logps(reference, sequences)
    resumed = len(calls)
    calls.clear()
    whole = keeping(store, tmp_path / "whole")
    whole.logps(reference, sequences)
    assert len(calls) > 4 and resumed == len(calls) - (0 if damaged else 3)
    for kind in ("hidden", "logps"):
        one, other = (entry_of(where, kind).folder / "data.safetensors" for where in (store, whole))
        assert one.read_bytes() == other.read_bytes()
    assert not list(store.entries.root.glob(".parts-*"))


def test_a_full_disk_is_said_before_anything_is_computed(store, references, sequences, monkeypatch):
    monkeypatch.setattr(hidden.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(rows.ScoredRows, "_computed", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(
        RunError, match=r"hidden states of first take .* MiB .*: make room, or set hardware.keep_hidden"
    ):
        keeping(store).logps(references_of(references[:1])[0], sequences)


def test_another_tokenizer_is_scored_and_its_states_are_not_kept(store, foreign, sequences):
    told = Told()
    keeping(store).logps(references_of([foreign])[0], sequences, told)
    assert kinds(store) == ["logps"] and told.notes == [
        "hidden states of foreign are not kept: it has another tokenizer, so no token-level mix has a part of it"
    ]


def test_a_server_tells_no_states(store, tokenizer, tmp_path):
    spec = ReferenceSpec(name="far", path="served:far", server="http://127.0.0.1:9", model="far")
    (far,) = references_of([spec], serving=Serving(tokenizer, tmp_path))
    assert hidden.not_kept(far, foreign=False) == "a server does not tell them"
    assert keeping(store)._kept([far], rows.scored_rows([((1,), (2,))]), Told()) is None


@pytest.mark.parametrize("wrong", [False, True])
def test_verify_computes_states_again(store, references, sequences, wrong):
    keeping(store).logps(references_of(references[:1])[0], sequences)
    entry = entry_of(store)
    if wrong:
        arrays = {name: np.array(one) for name, one in store.entries.read(entry).items()}
        arrays["states"] = arrays["states"][::-1].copy()
        store.entries.write(entry.address, arrays, entry.origin, 0.0)
    (check,) = [one for one in store.verify(rows=4) if one.entry.kind == "hidden"]
    assert check.good is not wrong and "4 responses recomputed" in check.text


def test_the_commands(tmp_path, monkeypatch, references, capsys):
    """refs build keeps them once and says the size; a second alpha runs nothing; the dry run says the size."""
    from multiref_cli.config.compose import compose
    from multiref_cli.runs.forecast import forecast

    monkeypatch.setenv("MULTIREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    pairs = [{"prompt": f"Anna has {i} .", "chosen": f"#### {i}", "rejected": f"{i} + {i}"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    plain = ["algorithm=dpo", "references=pair", f"first={references[0].path}", f"second={references[1].path}"]
    plain += ["policy=folder", f"policy.path={references[0].path}", "data=jsonl", "data.path=pairs.jsonl"]
    plain += ["data.held_out=0", "regularizer.level=token", "alpha=0.3", "evaluation=none"]
    asked = [*plain, "hardware.keep_hidden=true"]
    assert compose(asked).hash == compose(plain).hash
    said = {name: text for name, text in forecast(compose(asked)).rows if name.startswith("hidden states")}
    assert set(said) == {"hidden states of first", "hidden states of second"}
    refs.build(asked)
    out = " ".join(capsys.readouterr().out.split())
    assert "5 new entries" in out and all(f"{name}: {text}" in out for name, text in said.items())
    forbid_passes(monkeypatch)
    refs.build([*asked, "alpha=0.6"])
    assert "1 new entries" in capsys.readouterr().out
    refs.list_entries()
    assert capsys.readouterr().out.count("hidden") == 2


def test_adapters_of_one_base_are_kept_merged(tmp_path, store, references, sequences, monkeypatch):
    """In live use they share a base, and each is switched on; what is kept, and its head, are of the merged model."""
    peft = pytest.importorskip("peft")
    wanted = [replace(references[0], name="bare")]
    for seed in (1, 2):
        torch.manual_seed(seed)
        targets = ["q_proj", "down_proj", "lm_head"]
        model = peft.get_peft_model(
            load_causal_lm(references[0], trainable=True), peft.LoraConfig(r=2, target_modules=targets)
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(tmp_path / f"adapter{seed}")
        wanted.append(replace(references[0], name=f"adapter{seed}", adapter=str(tmp_path / f"adapter{seed}")))
    kept, mix = keeping(store), Mix(0.0, (0.2, 0.5, 0.3))
    for reference in references_of(wanted):
        kept.logps(reference, sequences)
    plain = torch.stack([torch.cat([_logits(spec, one) for one in sequences]).log_softmax(-1) for spec in wanted])
    expected = torch.logsumexp(torch.einsum("k,knv->nv", torch.tensor(mix.weights), plain), -1)
    forbid_passes(monkeypatch)
    (given,) = kept.normalizers_of(references_of(wanted, together=True), sequences, [mix])
    np.testing.assert_allclose(np.concatenate(given), expected.numpy(), atol=1e-5, rtol=1e-4)


def _logits(spec, one):
    with torch.no_grad():
        ids = torch.tensor([[*one.prompt, *one.completion]])
        return load_causal_lm(spec)(ids).logits[0, len(one.prompt) - 1 : -1]
