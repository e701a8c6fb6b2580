"""What is said where a run is named that is not there."""

import pytest

from sam_d2.config import load_config, save_config
from sam_d2.errors import UserError
from sam_d2.model_source import find_model
from sam_d2.run_folders import require_config, require_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs in experiments/output of the working directory, and a folder that is none."""
    for name in ("cells_box", "iwp_box"):
        (tmp_path / "experiments/output" / name).mkdir(parents=True)
        (tmp_path / "experiments/output" / name / "config.yaml").touch()
    (tmp_path / "experiments/output/notes").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("runs")
def test_the_runs_that_there_are():
    require_run("experiments/output/notes")
    for wrong, listed in (
        ("experiments/output/ipw_box", "iwp_box, cells_box"),  # the likeliest first
        ("experiments/output/x", "cells_box, iwp_box"),
        ("elsewhere/x", "cells_box, iwp_box"),
    ):
        with pytest.raises(UserError) as caught:
            require_run(wrong, "--detector ", others="config file")
        expected = f"--detector {wrong}: no such run folder or config file. Runs in experiments/output: {listed}."
        assert str(caught.value) == expected
    with pytest.raises(UserError, match=r"^RUN=.*notes: config.yaml is missing, .*a run\. Runs in .*: cells_box, iwp"):
        require_config("experiments/output/notes", "RUN=")


def test_without_runs_nothing_is_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^x: no such run folder\.$"):
        require_run("x")


def test_who_names_it_stands_before_all_that_is_wrong_with_it(tmp_path, root):
    with pytest.raises(UserError, match=r"^--detector gone\.py: no such run folder or config file"):
        find_model("gone.py", named="--detector ")
    with pytest.raises(UserError, match=r"^--detector .*sam_tiny\.py: Checkpoint none\.pth is not found"):
        find_model("configs/sam_tiny.py", "none.pth", named="--detector ")


def test_a_run_folder_is_a_config(tmp_path, root):
    cfg = load_config(root / "configs" / "sam_tiny.py")
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path) == load_config(tmp_path / "config.yaml")
