from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sam_d2.config import apply_overrides, load_config
from sam_d2.config_prompts import check_prompt
from sam_d2.errors import UserError


@pytest.fixture
def cfg():
    return load_config(Path(__file__).resolve().parents[1] / "configs" / "sam_tiny.py")


@pytest.mark.parametrize("prompt", ["box", "point", "points", "mixed", "clicks"])
def test_every_recipe_that_trains_is_taken(cfg, prompt):
    cfg.model.prompt = prompt
    check_prompt(cfg, "sam_tiny.py")


def test_so_is_a_recipe_of_the_users_own(cfg):
    with pytest.raises(UserError):
        check_prompt(apply_overrides(cfg, ["model.prompt=loose"]), "sam_tiny.py")
    cfg.model.prompts.loose = cfg.model.prompts.box
    cfg.model.prompts.loose.train.jitter = 0.5
    check_prompt(cfg, "sam_tiny.py")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("bx", r"--prompt bx: it is not among .*Did you mean 'box'\? a\.py has box, point, points, mixed, clicks, det"),
        ("scribble", r"prompts\. a\.py has box, "),
        ("clicks_3", "--prompt clicks_3: it is for a test only"),
        ("_target_", "is not among the config's prompts"),
    ],
)
def test_another_is_refused_with_the_nearest(cfg, prompt, message):
    cfg.model.prompt = prompt
    with pytest.raises(UserError, match=message) as error:
        check_prompt(cfg, "a.py")
    assert "clicks_1" not in str(error.value)


def test_the_ways_out_are_named_where_nobody_finds_the_boxes(cfg):
    cfg.model.prompt = "detector"
    with pytest.raises(UserError, match=r"--prompt detector: .*dataloader.detector.config=.*--prompt-boxes FILE"):
        check_prompt(cfg, "a.py")
    cfg.dataloader.detector.config = "run"
    check_prompt(cfg, "a.py")
    cfg.model.prompt = "box"  # a detector in the config does no harm
    check_prompt(cfg, "a.py")
    cfg.dataloader.detector.file = "boxes.json"
    with pytest.raises(UserError, match=r"--prompt-boxes boxes.json: --prompt box uses none"):
        check_prompt(cfg, "a.py")


def test_a_model_without_prompts_passes():
    check_prompt(OmegaConf.create({"model": {}}), "a.py")
