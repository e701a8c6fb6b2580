"""The writers of a run's curves."""

import json
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from detectron2.utils.events import EventStorage, TensorboardXWriter
from sam_d2.engine.writers import FiniteJSONWriter, curve_writers
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
    assert [type(writer) for writer in curve_writers(*run(False))] == [FiniteJSONWriter, TensorboardXWriter]


def test_a_config_of_before_has_no_wandb(run):
    cfg, folder = run(False)
    del cfg.train.wandb
    assert [type(writer) for writer in curve_writers(cfg, folder)] == [FiniteJSONWriter, TensorboardXWriter]


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


def test_what_is_not_finite_is_left_out_of_the_json(tmp_path):
    """NaN and Infinity are not JSON; the median of 2, 4 and 6 is 4."""
    writer = FiniteJSONWriter(str(tmp_path / "metrics.json"))
    with EventStorage(0) as storage:
        for step, loss in enumerate((2.0, 4.0, 6.0)):
            storage.iter = step
            storage.put_scalars(loss=loss)
        storage.put_scalars(**{"segm/AP": float("nan"), "ratio": float("inf"), "AR": 5.0}, smoothing_hint=False)
        writer.write()
        writer.write()
        storage.iter = 3
        storage.put_scalars(late=1.0, smoothing_hint=False)
        writer.write()
    writer.close()
    rows = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "metrics.json").read_text().split("\n")[:-1]
    ]
    assert rows == [{"iteration": 2, "loss": 4.0, "AR": 5.0}, {"iteration": 3, "late": 1.0}]
