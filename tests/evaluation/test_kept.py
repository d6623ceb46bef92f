"""The first responses of an evaluation are kept one by one; an eval goes on from what an earlier one measured by."""

import numpy as np

from multiref_cli.config.compose import compose, compose_saved
from multiref_cli.data.prompts import Prompt
from multiref_cli.evaluation.kept import SHOWN, add_reference, answers_of
from multiref_cli.rewards.sample import Sample
from multiref_cli.runs.run import config_text


def _samples(prompts: list[Prompt], texts: list[str]) -> list[Sample]:
    return [Sample(messages=p.messages, completion=f"{p.row} {text}", answer=None) for p in prompts for text in texts]


def test_every_response_has_its_own_score_and_distance() -> None:
    prompts = [
        Prompt(ids=(1,), messages=[{"role": "user", "content": f"q{i}"}], answer=f"a{i}", row=i, extra={})
        for i in range(SHOWN + 3)
    ]
    scores = {"gold": np.arange(2.0 * len(prompts)).reshape(-1, 2)}
    rows = answers_of(prompts, _samples(prompts, ["x", "y"]), scores, {"kl/one": -scores["gold"]})
    add_reference(rows, "one", _samples(prompts, ["z"]), {"gold": scores["gold"][:, :1]})
    assert len(rows) == SHOWN
    assert rows[3] == {
        "prompt": "q3",
        "answer": "a3",
        "responses": ["3 x", "3 y"],
        "scores": {"gold": [6.0, 7.0]},
        "kl": {"one": [-6.0, -7.0]},
        "references": {"one": {"responses": ["3 z"], "scores": {"gold": [6.0]}}},
    }


def test_an_eval_goes_on_from_an_earlier_one(tmp_path) -> None:
    """Another scorer of an earlier eval stays where a later one changes something else, or nothing at all."""
    trained = compose(["experiment=offline_toy"])
    assert trained.evaluation.scorer is not None
    (tmp_path / "config.yaml").write_text(config_text(trained))
    earlier = compose_saved(tmp_path / "config.yaml", ["evaluation.scorer=null"]).plain["evaluation"]
    later = compose_saved(tmp_path / "config.yaml", [], {"evaluation": earlier})
    assert later.evaluation.scorer is None and later.evaluation.prompts == trained.evaluation.prompts
    changed = compose_saved(tmp_path / "config.yaml", ["evaluation.prompts=8"], {"evaluation": earlier})
    assert changed.evaluation.scorer is None and changed.evaluation.prompts == 8
    assert compose_saved(tmp_path / "config.yaml").evaluation.scorer == trained.evaluation.scorer
