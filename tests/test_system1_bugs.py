"""The known faults of ASUcicilab/Detectron2-SAM-Integration, each shown not to be ours.

That project fine-tunes SAM in Detectron2 too. One test per fault, named after it.
"""

import copy
import json
import math
import shutil

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from PIL import Image

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils import comm
from sam_d2.config import apply_overrides, load_config
from sam_d2.data.loader import seeded
from sam_d2.data.mapper import PromptableMapper
from sam_d2.evaluation import read_report
from sam_d2.modeling.losses import mask_dice_loss
from sam_d2.modeling.masks import low_res_targets
from sam_d2.modeling.postprocess import encode_logits

S = 64  # canvas of the tiny model


@pytest.fixture(scope="module")
def cfg(root, tiny_overrides):
    return apply_overrides(load_config(root / "configs" / "sam_tiny.py"), tiny_overrides)


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    return instantiate(cfg.model)


@pytest.fixture
def make_record(tmp_path):
    """``make_record(width, height, boxes)``: a dark image in which the boxes are white, annotated by polygons."""

    def make(width, height, boxes, name="a.png"):
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        annotations = []
        for x0, y0, x1, y1 in boxes:
            pixels[y0:y1, x0:x1] = 255
            polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
            annotations.append({"bbox": [x0, y0, x1, y1], "bbox_mode": 0, "category_id": 0, "segmentation": [polygon]})
        Image.fromarray(pixels).save(tmp_path / name)
        record = {"file_name": str(tmp_path / name), "height": height, "width": width, "image_id": name}
        return {**record, "annotations": annotations}

    return make


def mapped(record, is_train, **options):
    sample = PromptableMapper(is_train=is_train, image_size=S, **options)(record)
    return {**sample, "seed": 0}


def test_overrides_that_lose_to_custom_cfg(train_net, root, shapes_folder, monkeypatch):
    def custom_cfg(cfg, args):
        cfg.train.max_iter, cfg.train.seed, cfg.train.output_dir = 67500, 42, "/of/custom_cfg"
        cfg.optimizer.lr /= 8
        cfg.dataloader.train.total_batch_size = 16

    monkeypatch.setattr(train_net.module, "custom_cfg", custom_cfg)
    line = ["--config-file", str(root / "configs" / "sam_tiny.py"), "--dataset", str(shapes_folder)]
    parse = train_net.module.parse_args
    plain = train_net.module.build_cfg(parse(line))
    rate = load_config(root / "configs" / "sam_tiny.py").optimizer.lr
    assert (plain.train.max_iter, plain.train.seed, plain.optimizer.lr) == (67500, 42, rate / 8)
    assert (plain.train.output_dir, plain.dataloader.train.total_batch_size) == ("/of/custom_cfg", 16)
    overrides = ["train.max_iter=5", "optimizer.lr=0.5", "--output-dir", "/of/the/option"]
    cfg = train_net.module.build_cfg(parse([*line, *overrides]))
    assert (cfg.train.max_iter, cfg.optimizer.lr, cfg.train.output_dir) == (5, 0.5, "/of/the/option")
    assert (cfg.train.seed, cfg.dataloader.train.total_batch_size) == (42, 16)
    last = train_net.module.build_cfg(parse([*line, *overrides, "train.output_dir=/of/the/override"]))
    assert last.train.output_dir == "/of/the/override"


def test_eval_only_that_ignores_the_fine_tuned_checkpoint(finished_run, tmp_path, train_net, monkeypatch, capsys):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "report.json").unlink()
    # even where the config names what the training began with, and the folder holds others that sort before it
    shutil.copy(run / "model_0000003.pth", run / "a_sam_tiny.pth")
    base = str(run / "model_0000003.pth")
    monkeypatch.setattr(train_net.module, "custom_cfg", lambda cfg, args: cfg.train.update(init_checkpoint=base))
    train_net(run, "--eval-only")
    assert f"Evaluating {run / 'model_final.pth'}" in capsys.readouterr().out
    again, trained = (
        {row.method: row.metric("mIoU") for row in read_report(folder / "report.json")}
        for folder in (run, finished_run)
    )
    assert again["model"] == trained["model"] != trained["base"]


@pytest.mark.parametrize(("width", "height"), [(640, 480), (640, 426), (1920, 1080), (480, 640)])
def test_long_sides_cropped_and_stretched(model, make_record, width, height):
    # The last eighth of the width and of the height: what a crop to the canvas loses.
    box = (width * 7 // 8, height * 7 // 8, width, height)
    record = make_record(width, height, [box])
    sample = mapped(record, is_train=True)
    padded = model.preprocess([sample]).tensor[0]
    scale = S / max(width, height)
    resized = (round(height * scale), round(width * scale))
    assert tuple(sample["image"].shape[1:]) == resized and padded.shape == (3, S, S)
    # white in the image's last corner, and nothing but padding beyond it
    ys, xs = (padded[0] > padded[0].max() / 2).nonzero().unbind(1)
    edges = [xs.min() / scale, ys.min() / scale, (xs.max() + 1) / scale, (ys.max() + 1) / scale]
    assert edges == pytest.approx(box, abs=1 / scale)
    assert (padded[:, resized[0] :] == 0).all() and (padded[:, :, resized[1] :] == 0).all()
    # and a mask that is right on the canvas is right in the original image: where it was, and as large
    instances = sample["instances"]
    targets = low_res_targets([(instances.gt_masks, resized)], model.low_res, S // model.low_res)
    mask = encode_logits(targets - 0.5, S, resized, (height, width)).dense()[0]
    truth = torch.zeros(height, width, dtype=torch.bool)
    truth[box[1] :, box[0] :] = True
    found = mask.nonzero()
    cell = S / model.low_res / scale
    assert found.min(0).values.tolist() == pytest.approx([box[1], box[0]], abs=cell)
    assert found.max(0).values.tolist() == pytest.approx([height - 1, width - 1], abs=cell)
    assert (mask & truth).sum() / (mask | truth).sum() > 0.75  # of 8 x 8 cells at most


def test_cpu_training_crash(model, make_record):
    model.train()
    assert model.device.type == "cpu"
    losses = model([mapped(make_record(80, 60, [(10, 10, 40, 30)]), is_train=True)])
    sum(losses.values()).backward()
    assert all(loss.dim() == 0 and loss.item() > 0 for loss in losses.values())


def test_zero_instance_images_in_training(model, make_record):
    model.train()
    empty = mapped(make_record(80, 60, [], "empty.png"), is_train=True)
    full = mapped(make_record(80, 60, [(10, 10, 40, 30)]), is_train=True)
    alone = model([empty])
    sum(alone.values()).backward()
    assert all(loss.item() == 0 for loss in alone.values())
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)
    # an image without instances counts as 0 in the mean over the images
    both, single = model([full, empty]), model([full])
    for name in both:
        torch.testing.assert_close(both[name], single[name] / 2, rtol=1e-5, atol=1e-6)


def test_zero_instance_images_at_a_test(model, make_record):
    model.eval()
    instances = model([mapped(make_record(80, 60, []), is_train=False)])[0]["instances"]
    assert len(instances) == 0 and instances.pred_masks.shape == (0, 60, 80)
    assert instances.scores.shape == (0,) and instances.pred_boxes.tensor.shape == (0, 4)


def test_first_100_only(make_record):
    boxes = [(x, y, x + 3, y + 3) for y in range(0, 28, 4) for x in range(0, 80, 4)][:130]
    record = make_record(80, 30, boxes)
    for number, annotation in enumerate(record["annotations"]):
        annotation["category_id"] = number
    seen = set()
    for seed in range(15):
        with seeded(seed):
            drawn = mapped(record, is_train=True, max_instances=100)["instances"].gt_classes.tolist()
        assert len(set(drawn)) == 100
        seen |= set(drawn)
    # one instance is missed by all draws with probability (30 / 130) ** 15, which is 3e-10
    assert seen == set(range(130))
    assert len(mapped(record, is_train=False)["instances"]) == 130


def test_rle_and_bitmask_ground_truth(model, make_record, shapes_folder):
    model.train()
    polygons = make_record(S, 48, [(8, 12, 40, 36), (44, 4, 60, 20)])
    rle = copy.deepcopy(polygons)
    for annotation in rle["annotations"]:
        annotation["segmentation"] = mask_utils.merge(mask_utils.frPyObjects(annotation["segmentation"], 48, S))
    samples = [mapped(record, is_train=True) for record in (polygons, rle)]
    assert isinstance(samples[0]["instances"].gt_masks, PolygonMasks)
    assert isinstance(samples[1]["instances"].gt_masks, BitMasks)
    by_polygon, by_rle = (model([sample]) for sample in samples)
    torch.testing.assert_close(by_rle, by_polygon, rtol=1e-5, atol=1e-6)


def test_unreloadable_config(finished_run, shapes_folder):
    cfg = load_config(finished_run / "config.yaml")
    saved = torch.load(finished_run / "model_final.pth", weights_only=True)["model"]
    assert instantiate(cfg.model).load_state_dict(saved)
    assert f"{shapes_folder.name}_train" in DatasetCatalog.list()
    batch = next(iter(instantiate(cfg.dataloader.train)))
    assert len(batch) == cfg.dataloader.train.total_batch_size


def test_more_than_one_image_at_evaluation_dropped(model, make_record):
    model.eval()
    records = [
        make_record(80, 60, [(10, 10, 40, 30), (50, 5, 75, 50)], "a.png"),
        make_record(60, 90, [], "b.png"),
        make_record(64, 64, [(0, 0, 20, 64)], "c.png"),
    ]
    samples = [mapped(record, is_train=False) for record in records]
    together = [output["instances"] for output in model(samples)]
    assert [len(instances) for instances in together] == [2, 0, 1]
    for sample, instances in zip(samples, together, strict=True):
        alone = model([sample])[0]["instances"]
        assert instances.image_size == (sample["height"], sample["width"])
        torch.testing.assert_close(instances.scores, alone.scores, rtol=1e-4, atol=1e-5)
        assert (instances.pred_masks != alone.pred_masks).float().sum() <= 2  # pixels at logit 0


def test_image_level_dice_hides_small_objects():
    # One object of 900 cells found in full, nine of 4 cells missed. Pooled over the image the Dice loss is
    # 1 - 2 x 900 / (936 + 900) = 0.02; of an instance it is 0 for the large one and 1 for each of the others.
    targets = torch.zeros(10, 32, 32)
    targets[0, :30, :30] = 1
    for number in range(1, 10):
        targets[number, 30:32, 2 * number : 2 * number + 2] = 1
    logits = torch.full_like(targets, -30.0)
    logits[0] = torch.where(targets[0] > 0, 30.0, -30.0)
    losses = mask_dice_loss(logits, targets, smooth=1e-6)
    torch.testing.assert_close(losses, torch.tensor([0.0] + [1.0] * 9), rtol=0, atol=1e-5)
    assert losses.mean().item() == pytest.approx(0.9, abs=1e-5)


def test_iou_head_without_gradient(model, make_record):
    model.train()
    sum(model([mapped(make_record(80, 60, [(10, 10, 40, 30)]), is_train=True)]).values()).backward()
    head = dict(model.mask_decoder.iou_prediction_head.named_parameters())
    assert len(head) == 6
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.values())


def test_multimask_heads_shrunk_by_weight_decay(cfg, model, make_record):
    model.train()
    with_model = copy.deepcopy(cfg)
    with_model.optimizer.params.model = model
    with_model.optimizer.weight_decay = 0.5
    with_model.optimizer.lr = 0.1
    optimizer = instantiate(with_model.optimizer)
    decoder = model.mask_decoder
    before = copy.deepcopy(decoder.state_dict())
    sample = mapped(make_record(80, 60, [(10, 10, 40, 30)]), is_train=True)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model([sample]).values()).backward()
        optimizer.step()
    after = decoder.state_dict()
    hypernetworks = [key for key in after if key.startswith("output_hypernetworks_mlps.")]
    unused = [key for key in hypernetworks if not key.startswith("output_hypernetworks_mlps.0.")]
    assert len(unused) == 3 * len(hypernetworks) / 4
    assert all(torch.equal(before[key], after[key]) for key in unused)
    assert all(not torch.equal(before[key], after[key]) for key in set(hypernetworks) - set(unused))
    # in the IoU head's last layer the rows of the three other masks stay, the trained one moves
    last = "iou_prediction_head.layers.2.weight"
    assert torch.equal(before[last][1:], after[last][1:]) and not torch.equal(before[last][0], after[last][0])


def test_full_checkpoints_piling_up(finished_run):
    # three were written, after steps 2, 4 and 6
    assert sorted(file.name for file in finished_run.glob("model_0*.pth")) == ["model_0000003.pth", "model_0000005.pth"]
    assert load_config(finished_run / "config.yaml").train.checkpointer.max_to_keep == 2


def test_learning_rate_scaled_silently(cfg, finished_run, model, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 8)
    other = apply_overrides(copy.deepcopy(cfg), ["dataloader.train.total_batch_size=64", "optimizer.lr=0.003"])
    other.optimizer.params.model = model
    assert {group["lr"] for group in instantiate(other.optimizer).param_groups} == {0.003}
    # In a run: the cosine from 1 to 0.01 over 6 steps, at steps 1, 3 and 5 counted from 0, times the config's rate.
    rows = [json.loads(line) for line in (finished_run / "metrics.json").read_text().splitlines()]
    rates = [row["lr"] for row in rows if "lr" in row]
    expected = [cfg.optimizer.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * step / 6)) / 2) for step in (1, 3, 5)]
    assert rates == pytest.approx(expected, rel=1e-6)
