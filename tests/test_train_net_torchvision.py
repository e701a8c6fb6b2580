"""torchvision's Mask R-CNN through experiments/train_net.py: trained, resumed, evaluated, run on an image."""

import json
import shutil

import pytest
import torch

import sam_d2
from detectron2.config import instantiate
from sam_d2.config import apply_overrides, load_config

OVERRIDES = [
    "train.init_checkpoint=",
    "train.max_epoch=null",
    "train.eval_period=0",
    "train.checkpointer.period=2",
    "train.log_period=1",
    "train.validation_loss=True",
    "model.norm=BN",
    "model.min_size=[48,64]",
    "model.max_size=96",
    "model.box_score_thresh=0.0",
    "model.box_detections_per_img=4",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "optimizer.lr=1e-4",
]


def test_a_configs_list_is_a_list_of_sizes(root):
    cfg = apply_overrides(load_config(root / "configs" / "cartons.py"), [*OVERRIDES, "model.num_classes=1"])
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.transform.min_size == [48, 64]


@pytest.mark.slow
def test_a_resumed_run_is_an_uninterrupted_one(train_net, root, shapes_folder, tmp_path):
    config = ["--config-file", str(root / "configs" / "cartons.py")]
    overrides = [*OVERRIDES, "train.max_iter=3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_net(whole, *config, overrides=overrides)
    parts.mkdir()
    shutil.copy(whole / "model_0000001.pth", parts)  # after two of the three steps
    (parts / "last_checkpoint").write_text("model_0000001.pth")
    train_net(parts, *config, "--resume", overrides=overrides)
    first, second = (torch.load(run / "model_final.pth")["model"] for run in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [json.loads(line) for line in (whole / "metrics.json").read_text().splitlines()]
    assert {"loss_mask", "loss_rpn_box_reg", "validation_loss", "segm/AP", "bbox/AP"} <= set().union(*losses)

    found = sam_d2.Predictor(whole)(next(shapes_folder.glob("test_*.png")))
    assert len(found) == 4 and found.pred_classes.tolist() == [0] * 4
