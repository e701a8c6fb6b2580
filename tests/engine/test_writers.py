"""The writers of a run's curves."""

import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from detectron2.utils.events import JSONWriter, TensorboardXWriter
from sam_d2.engine.writers import curve_writers
from sam_d2.errors import UserError


@pytest.fixture
def run(tmp_path):
    """``run(enabled)``: the config of a run and its folder, which has the saved config."""

    def make(enabled):
        wandb = {"enabled": enabled, "project": "tiles", "name": None, "mode": "offline"}
        cfg = OmegaConf.create({"train": {"wandb": wandb, "max_iter": 7}})
        OmegaConf.save(cfg, tmp_path / "config.yaml")
        return cfg, tmp_path

    return make


def test_files_only_by_default(run):
    assert [type(writer) for writer in curve_writers(*run(False))] == [JSONWriter, TensorboardXWriter]


def test_a_config_of_before_has_no_wandb(run):
    cfg, folder = run(False)
    del cfg.train.wandb
    assert [type(writer) for writer in curve_writers(cfg, folder)] == [JSONWriter, TensorboardXWriter]


@pytest.mark.parametrize("key", ["entity", "config"])
def test_what_it_does_not_take_is_refused(run, key):
    cfg, folder = run(True)
    cfg.train.wandb[key] = "team"
    with pytest.raises(UserError, match=rf"train\.wandb\.{key}: there is no such key"):
        curve_writers(cfg, folder)
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]


def test_wandb_gets_its_options_and_the_saved_config(run, monkeypatch):
    calls = []
    stand_in = SimpleNamespace(init=lambda **options: calls.append(options) or SimpleNamespace(define_metric=print))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert len(curve_writers(*run(True))) == 3
    assert calls[0]["project"] == "tiles" and calls[0]["config"]["train"]["max_iter"] == 7


def test_without_wandb_it_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'sam_d2\[wandb\]'"):
        curve_writers(*run(True))
