"""model_outputs.json holds what the evaluation sampled, under AlpacaEval's names."""

from pathlib import Path

import pytest
import yaml

from multiref_cli.errors import RequestError
from multiref_cli.files import read_json, write_json, write_lines
from multiref_cli.runs.outputs import write_outputs


def _run(folder: Path, rows: list[dict], **results: object) -> Path:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "toy_prompts"}}))
    write_json(folder / "run" / "results.json", results)
    write_lines(folder / "run" / "evaluation.jsonl", rows)
    return folder / "run"


def test_the_first_response_to_every_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1 ?", "responses": ["2", "two"], "length": 1.0}, {"prompt": "é\u2028", "responses": [""]}]
    path = write_outputs(_run(tmp_path, rows))
    assert path.name == "model_outputs.json" and read_json(path) == [
        {"instruction": "1 + 1 ?", "output": "2", "generator": "run", "dataset": "toy_prompts"},
        {"instruction": "é\u2028", "output": "", "generator": "run", "dataset": "toy_prompts"},
    ]


def test_the_data_is_what_it_was_last_measured_on(tmp_path: Path) -> None:
    folder = _run(tmp_path, [{"prompt": "p", "responses": ["r"]}], measured_by={"data": {"name": "alpaca"}})
    (row,) = read_json(write_outputs(folder, generator="mine"))
    assert (row["dataset"], row["generator"]) == ("alpaca", "mine")


def test_nothing_sampled_is_one_sentence(tmp_path: Path) -> None:
    folder = _run(tmp_path, [])
    with pytest.raises(RequestError, match=r"sampled no responses; give .*--outputs evaluation.prompts=NUMBER"):
        write_outputs(folder)
    assert not (folder / "model_outputs.json").exists()
