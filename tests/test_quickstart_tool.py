"""tools/quickstart.py: what it says before a run, which is not started here."""

import importlib.util
import subprocess

import pytest


@pytest.fixture
def tool(root, monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("quickstart", root / "tools" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUTPUT", tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, **keys: subprocess.CompletedProcess(command, 0))
    return module


def said(tool, capsys, **files):
    folder = tool.run_folder("box")
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_pth", ".pth")).write_text(text)
    tool.train_and_score("box", [])
    return capsys.readouterr().out


def test_a_finished_run_is_said_to_be_scored_only(tool, capsys):
    text = said(tool, capsys, model_final_pth="", last_checkpoint="model_0000199.pth")
    # steps count from 0
    assert f"already trained (200 steps); scored again. Delete {tool.run_folder('box')} to train anew" in text
    assert "--eval-only" in text


def test_without_the_number_of_steps(tool, capsys):
    assert "already trained; scored again" in said(tool, capsys, model_final_pth="")


def test_an_interrupted_run_goes_on(tool, capsys):
    text = said(tool, capsys, last_checkpoint="model_0000199.pth")
    assert "already trained" not in text and "--resume" in text
