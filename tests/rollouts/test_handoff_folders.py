"""Folders of what an engine is given: deleted with the process that made them, by its own machine alone."""

import os

from multiref_cli.rollouts import handoff


def test_only_folders_of_this_machine_s_gone_processes_are_deleted(tmp_path, monkeypatch):
    gone = 2**22 + 1  # no process has this number
    names = {"gone": f"node-{gone}-a", "other": f"node-1-{gone}-b", "own": f"node-{os.getpid()}-c"}
    for name in names.values():
        (tmp_path / name).mkdir()
    monkeypatch.setattr(handoff.socket, "gethostname", lambda: "node")
    made = handoff.new_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {names["other"], names["own"], made.name}
