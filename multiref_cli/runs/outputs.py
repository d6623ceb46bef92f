"""What a policy wrote, in the form in which other judges read it: AlpacaEval's model_outputs.json."""

from pathlib import Path

from multiref_cli.errors import RequestError
from multiref_cli.files import read_lines, read_object, read_yaml, write_json
from multiref_cli.tracking.places import command

OUTPUTS = "model_outputs.json"


def write_outputs(folder: Path, generator: str | None = None) -> Path:
    """Write the first response to every prompt of a run's last evaluation.

    Args:
        folder: of a finished run with an evaluation.jsonl.
        generator: the name under which a judge lists the policy; None: that of the folder.

    Returns:
        The path of model_outputs.json in it: a list of {instruction, output, generator, dataset}.

    Raises:
        RequestError: the evaluation sampled nothing.
    """
    rows = [row for row in read_lines(folder / "evaluation.jsonl") if row.get("responses")]
    if not rows:
        raise RequestError(
            f"the evaluation of {folder} sampled no responses; give `{command('eval', folder)} --outputs "
            "evaluation.prompts=NUMBER`."
        )
    results, name = read_object(folder / "results.json") or {}, generator or folder.resolve().name
    measured = read_yaml(folder / "config.yaml") | (results.get("measured_by") or {})
    dataset = measured["data"]["name"]
    content = [
        {"instruction": row["prompt"], "output": row["responses"][0], "generator": name, "dataset": dataset}
        for row in rows
    ]
    write_json(folder / OUTPUTS, content)
    return folder / OUTPUTS
