"""Lines as reports hold them: numbers by name, without texts."""

import json
from pathlib import Path

from multiref_cli.reports.numbers import Lines, read_numbers


def test_numbers_without_texts_and_without_names_that_some_lines_lack(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "answer": "1", "responses": ["long"], "gold": 1.0, "length": 3, "some": 2.0},
        {"prompt": "b", "answer": "2", "responses": ["longer"], "gold": 0.5, "length": 4, "some": None},
    ]
    path = tmp_path / "evaluation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_numbers(path, "prompt")
    assert found.units == ("a", "b")
    assert {name: list(column) for name, column in found.columns.items()} == {"gold": [1.0, 0.5], "length": [3, 4]}
    assert read_numbers(path, "prompt").units[0] is found.units[0]  # one text for all runs


def test_pairs_are_known_by_their_row(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"row": 7, "accuracy": 1}\n{"row": 9, "accuracy": 0.5}\n')
    found = read_numbers(tmp_path / "pairs.jsonl", "row")
    assert found.units == (7, 9) and list(found.columns) == ["accuracy"]
    assert read_numbers(tmp_path / "nothing.jsonl", "row") == Lines((), {})
