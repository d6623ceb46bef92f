"""More cases of trial_inputs.py: references, adapters, folders, data files, rewards, what is saved."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from multiref_cli.config.compose import compose
from multiref_cli.config.schema import Data, Model, Policy
from multiref_cli.data.demonstrations import load_demonstrations
from multiref_cli.data.preferences import load_preferences
from multiref_cli.errors import RequestError
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from multiref_cli.rewards.sample import Sample
from multiref_cli.rewards.verifiers import math_equal
from tests.bench.inputs_cases import CASES, case, done, pairs_of, refused
from tests.bench.inputs_world import PAIRS, World

__all__ = ["CASES"]


@case("1", "without references the policy's own start is the reference")
def _start(world: World) -> None:
    experiment = compose(world.offline())
    assert [r.path for r in experiment.references] == [world.model("one")] and experiment.weights == [1.0]
    done(world.train())
    shutil.rmtree("run")
    refused(world.train("alpha=0.3"), "none is named")
    alone = f"references=[{{name: a, path: {world.model('two')}}}]"
    refused(world.train(alone, "alpha=0.3"), "a is the only one here")
    refused(world.run("sweep", *world.offline(), alone, "alpha=1,0.3"), "a is the only one here")


@case("1", "first= without references=pair is refused; a list of references works")
def _lists(world: World) -> None:
    refused(world.train(f"first={world.model('two')}"), "add references=pair")
    one, adapter = world.model("one"), world.model("adapter")
    listed = f"references=[{{path: {one}}}, {{path: {one}, adapter: {adapter}, name: b, dtype: float32}}]"
    done(world.train(listed, "alpha=0.3"))
    shutil.rmtree("run")
    refused(world.train("references=[{name: a}]"), "needs a path")


@case("1", "a reward model, a run folder, an adapter offered as a reference are named")
def _strangers(world: World) -> None:
    pair = ["references=pair", f"first={world.model('one')}"]
    refused(world.train(*pair, f"second={world.model('judge')}"), "reward model")
    refused(world.train(*pair, f"second={world.model('adapter')}"), "is an adapter of")
    done(world.run("train", *world.offline()[:-1], "run.dir=first"))
    refused(world.train(*pair, "second=first"), "is a run folder")


@case("2", "adapters that do not fit are refused")
def _misfit(world: World) -> None:
    shutil.copytree(world.model("adapter"), "bent")
    weights = load_file("bent/adapter_model.safetensors")
    weights.pop(min(weights))
    save_file(weights, "bent/adapter_model.safetensors")
    one = world.model("one")
    listed = f"references=[{{name: a, path: {one}}}, {{name: b, path: {one}, adapter: ./bent}}]"
    refused(world.train(listed), "does not fit its model")
    refused(
        world.train(
            listed.replace(world.model("one"), world.model("short_gpt2"), 1)
            .replace("./bent", world.model("adapter"))
            .replace(f"b, path: {world.model('one')}", f"b, path: {world.model('short_gpt2')}")
        ),
        "does not fit",
    )


@case("2", "weights that are no floating-point numbers are refused")
def _integers(world: World) -> None:
    for kind in (torch.int8, torch.bool, torch.complex64, torch.int32):
        shutil.rmtree("bent", ignore_errors=True)
        shutil.copytree(world.model("one"), "bent")
        weights = {name: value.to(kind) for name, value in load_file("bent/model.safetensors").items()}
        save_file(weights, "bent/model.safetensors", {"format": "pt"})
        arguments = [
            f"policy.path={Path('bent').resolve()}" if o.startswith("policy.path=") else o for o in world.offline()
        ]
        refused(world.run("train", *arguments), "not floating point", "bent")


@case("3", "damaged model folders are refused by name, and nothing is left")
def _damaged(world: World) -> None:
    def cut(path: Path, share: float) -> None:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    def config(path: Path, before: str, after: str) -> None:
        path.write_text(path.read_text().replace(before, after))

    def weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        found = load_file(folder / "model.safetensors")
        save_file({k: change(k, v) for k, v in found.items()}, folder / "model.safetensors", {"format": "pt"})

    damages: list[Callable[[Path], Any]] = [
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "config.json").write_text("[]"),
        lambda f: (f / "config.json").write_text('{"model_type": "nothing"}'),
        lambda f: config(f / "config.json", '"hidden_size": 16', '"hidden_size": 32'),
        lambda f: config(f / "config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 1'),
        lambda f: config(f / "config.json", '"num_hidden_layers": 2', '"num_hidden_layers": "x"'),
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: cut(f / "model.safetensors", 0.0),
        lambda f: cut(f / "model.safetensors", 0.01),
        lambda f: cut(f / "model.safetensors", 0.5),
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 400),
        lambda f: (f / "tokenizer.json").unlink(),
        lambda f: (f / "tokenizer.json").write_text("{"),
        lambda f: cut(f / "tokenizer.json", 0.5),
        lambda f: (f / "tokenizer_config.json").write_text("["),
        lambda f: (f / "generation_config.json").write_text("{"),
        lambda f: (f / "chat_template.jinja").write_text("{% for %}"),
        lambda f: (f / "chat_template.jinja").write_text("nothing"),
        lambda f: (f / "chat_template.jinja").write_text(""),
        lambda f: (f / "chat_template.jinja").write_text("{{ 1 / 0 }}"),
        lambda f: (f / "config.json").write_text("[" * 60_000),
        lambda f: config(f / "config.json", '"hidden_size": 16', '"text_config": 7, "hidden_size": 16'),
        lambda f: (f / "tokenizer.json").write_bytes(bytes(4096)),
        lambda f: config(f / "tokenizer.json", '"type": "BPE"', '"type": "Other"'),
        lambda f: config(f / "tokenizer_config.json", '"model_max_length": 1', '"model_max_length": "long", "x": 1'),
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": 99999}'),
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "<end>"}'),
        lambda f: weights(f, lambda name, value: value * 0),
        lambda f: weights(f, lambda name, value: value * float("nan")),
        lambda f: weights(f, lambda name, value: value.to(torch.int32) if name.endswith("bias") else value),
        lambda f: weights(f, lambda name, value: value.flatten()),
    ]
    for number, damage in enumerate(damages):
        shutil.rmtree("bent", ignore_errors=True)
        shutil.copytree(world.model("one"), "bent")
        damage(Path("bent"))
        arguments = [
            f"policy.path={Path('bent').resolve()}" if o.startswith("policy.path=") else o for o in world.offline()
        ]
        try:
            refused(world.run("train", *arguments), "bent")
        except AssertionError as error:
            raise AssertionError(f"damage {number}: {error}") from error


@case("3", "devices, types, held-out prompts, training on nothing: known before a folder is made")
def _knowable(world: World) -> None:
    refused(world.train("hardware.device=gpu"), "hardware.device is 'gpu'")
    refused(world.train("hardware.device=cuda:7"), "hardware.device is 'cuda:7'")
    refused(world.train("policy.dtype=int8"), "policy.dtype is 'int8'")
    refused(world.train("evaluation=standard", "data.held_out=0"), "evaluation.split=held_out has no rows")
    refused(world.train(data=world.data([{"prompt": "a", "chosen": "b", "rejected": "b"}])), "chosen equals rejected")
    refused(world.run("train", *world.online("short"), "rollout.max_new_tokens=64"), "over the 64 positions")


@case("3", "a template that the scorer or a foreign reference has refuses rows before the run")
def _readers(world: World) -> None:
    rows = [
        {**row, "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": row["prompt"]}]}
        for row in PAIRS
    ]
    foreign = Path(world.model("foreign"))
    if not foreign.exists():
        from tests.bench.inputs_world import STRICT, _save, tokenizer_of

        _save(world, "foreign", tokenizer_of(STRICT, hole=True), seed=5)
    pair = ["references=pair", f"first={world.model('one')}", f"second={foreign}"]
    refused(world.train(*pair, data=world.data(rows)), "refused by the chat template of second")


@case("3", "a scorer below its bar is refused before the first step, by its record or on the held-out pairs")
def _judged(world: World) -> None:
    shutil.copytree(world.model("judge"), "judge")
    scored = ["evaluation=standard", "evaluation.max_new_tokens=8", "data.held_out=0.2"]
    scored += [f"evaluation.scorer.path={Path('judge').resolve()}"]
    bar = "evaluation.scorer.minimum_accuracy"
    refused(world.train(*scored, f"{bar}=1"), "on the held-out pairs, below")
    Path("judge/made_by.json").write_text(json.dumps({"metrics": {"held_out_accuracy": {"mean": 0.7}}}))
    refused(world.train(*scored, f"{bar}=0.71", "--dry-run"), "0.700 on the held-out pairs of its own training")
    done(world.train(*scored, f"{bar}=0.7", "--dry-run"))


@case("4", "columns with other names: said, mapped without a plus, never made up")
def _columns(world: World) -> None:
    other = [{"q": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in PAIRS]
    refused(world.train(data=world.data(other)), "The columns of the first row are q, good, bad", "data.columns.")
    names = ["data.columns.prompt=q", "data.columns.chosen=good", "data.columns.rejected=bad"]
    done(world.train(*names, data=world.data(other)))
    shutil.rmtree("run")
    refused(world.train("data.columns.promt=q", data=world.data(other)), "allowed: prompt")
    bare = [{"chosen": "The sky is blue", "rejected": "The sky is red"}]
    refused(world.train(data=world.data(bare)), "missing prompt")


@case("4", "other files: .json, .csv, .jsonl.gz, a list of dictionaries, conversations kept as text")
def _files(world: World) -> None:
    import csv
    import gzip

    folder = world.root / "data"
    (folder / "a.json").write_text(json.dumps(PAIRS))
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PAIRS[0]))
        writer.writeheader()
        writer.writerows(PAIRS)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, PAIRS)).encode()))
    kept = [{side: repr([{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r[side]}])
             for side in ("chosen", "rejected")} for r in PAIRS]  # fmt: skip
    tokenizer = load_tokenizer(Model(path=world.model("one")))
    paths = [str(folder / name) for name in ("a.json", "a.csv", "a.jsonl.gz")] + [world.data(kept)]
    for path in paths:
        split = load_preferences(Data(name="t", path=path, held_out=0.0), tokenizer)
        assert [pair.chosen_text for pair in split.train] == [row["chosen"] for row in PAIRS], path


@case("4", "files that cannot be read are named")
def _unreadable(world: World) -> None:
    import gzip

    for name, content in (
        ("cut.jsonl.gz", gzip.compress("\n".join(map(json.dumps, PAIRS)).encode())[:60]),
        ("plain.jsonl.gz", b"{}"), ("junk.parquet", b"PAR1"), ("empty.parquet", b""),
        ("latin1.csv", b"prompt,chosen,rejected\n\xe9,a,b\n"),
        ("twice.csv", b"prompt,chosen,chosen,rejected\na,b,c,d\n"),
    ):  # fmt: skip
        Path(name).write_bytes(content)
        refused(world.train(data=str(Path(name).resolve())), name)


@case("4", "rows that break a reader cost themselves")
def _breaking(world: World) -> None:
    strange = ['{"prompt": "a", "chosen": ' + "9" * 5000 + ', "rejected": "b"}', "[" * 100000, "{", "", '"text"', "[1]"]
    split = pairs_of(world, [*PAIRS, *strange])
    assert len(split.train) == len(PAIRS) and len(split.report.problems) == 5, split.report.summary()


@case("4", "pairs with equal scores are counted, and dropped on request")
def _ties(world: World) -> None:
    rows = [*PAIRS, {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 5.0, "score_rejected": 5.0}]
    kept = pairs_of(world, rows)
    assert len(kept.train) == 13 and "1 pairs with equal scores" in kept.report.summary(), kept.report.summary()
    dropped = pairs_of(world, rows, options={"ties": "drop"})
    assert len(dropped.train) == 12 and "equal scores (row 13)" in dropped.report.summary()


@case("5", "a reward as TRL users have it trains; None is not applicable")
def _trl(world: World) -> None:
    Path("trl_rewards.py").write_text(
        "def right(prompts, completions, answer, **columns):\n"
        "    return [float(a in c) for a, c in zip(answer, completions)]\n"
        "def some(completions, **kwargs):\n    return [None if i % 2 else 1.0 for i, _ in enumerate(completions)]\n"
        "def wrong(completions, **kwargs):\n    return {'reward': 1.0}\n"
    )
    function = "reward.terms.mine.function._target_"
    for name in ("right", "some"):
        done(world.run("train", *world.online(reward="custom"), f"{function}=trl_rewards.{name}"))
        shutil.rmtree("run")
    refused(world.run("train", *world.online(reward="custom"), f"{function}=trl_rewards.wrong"), "gave a dict")


@case("6", "the verdict of every template is in the dry run and in the manifest")
def _verdict(world: World) -> None:
    for name in ("one", "dated", "thinking", "strict", "empty_thought"):
        done(world.train("--dry-run", policy=name), "prompt and response are the ids of the rendered conversation")
    done(world.train())
    assert "ends with <|im_end|>" in json.loads(Path("run/manifest.json").read_text())["chat_template"]["verdict"]


@case("7", "mathematics: equal and unequal (see tests/data/test_answer_table.py)")
def _mathematics(world: World) -> None:
    from tests.data.answer_cases import MATHEMATICS

    bad = [(g, s) for g, s, right in MATHEMATICS if math_equal([Sample([], rf"\boxed{{{s}}}", g)]) != [right]]
    assert not bad, bad[:5]


@case("8", "generation settings with all end ids, a tied head, a folder that transformers opens")
def _saved(world: World) -> None:
    done(world.train(policy="stops"))
    saved = json.loads(Path("run/policy/generation_config.json").read_text())
    assert (
        saved["eos_token_id"]
        == json.loads((Path(world.model("stops")) / "generation_config.json").read_text())["eos_token_id"]
    )
    shutil.rmtree("run")
    done(world.train(policy="tied"))
    model = AutoModelForCausalLM.from_pretrained("run/policy")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file("run/policy/model.safetensors")


@case("8", "a model card with the facts of the run, which another evaluation renews")
def _card(world: World) -> None:
    from huggingface_hub import ModelCard

    pair = ["references=pair", f"first={world.model('one')}", f"second={world.model('two')}", "alpha=0.3"]
    done(world.train(*pair, "data.held_out=0.2"))
    before = Path("run/policy/model.safetensors").read_bytes()
    for _ in range(2):
        found = ModelCard.load("run/policy/README.md")
        assert found.data.library_name == "transformers" and "multiref" in found.data.tags
        results = json.loads(Path("run/results.json").read_text())["metrics"]["preference_accuracy"]
        for fact in ("| `first` | 0.3 |", "Theorem 5.1", "2502.01203", "alpha=0.3", f"| {results['mean']:.4g} |"):
            assert fact in found.text, fact
        done(world.run("eval", "run"))
    assert Path("run/policy/model.safetensors").read_bytes() == before


@case("8", "SFT on demonstrations of several forms")
def _demonstrations(world: World) -> None:
    rows = [
        {"prompt": "a", "completion": "b"}, {"question": "a", "answer": "b"}, {"instruction": "a", "output": "b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]  # fmt: skip
    data = Data(name="t", path=world.data(rows), held_out=0.0)
    split = load_demonstrations(data, load_tokenizer(Model(path=world.model("one"))))
    assert len({row.prompt + row.completion for row in split.train}) == 1 and len(split.train) == len(rows)


@case("8", "a request that is wrong says so in one sentence")
def _sentences(world: World) -> None:
    try:
        load_causal_lm(Policy(path="/nowhere"))
    except RequestError as error:
        assert "/nowhere is not a folder" in str(error)
    else:
        raise AssertionError("no refusal")
