"""Every config on photographs: trained, resumed, scored twice, run by tools/demo.py; prints docs/every-config.md.

Images are small, and the files of weights have the published ones' names and form, but random values.
"""

import json
import math
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from omegaconf import OmegaConf

import detectron2
from detectron2.config import instantiate
from sam_d2.config import apply_overrides, load_config, save_config
from sam_d2.evaluation.results import read_report

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
LEAVES = sorted([*CONFIGS.glob("*.py"), *CONFIGS.glob("torchvision/*.py")])
CORE = "embedded" if "sam_d2" in detectron2.__version__ else "installed"

DATASETS = {
    "nuts18": ("annotations/trainval.json", "annotations/trainval.json", "images"),
    "coco_tiny80": ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "images/{split}2017"),
}
"""JSON of the training and of the test part, and the folder of the images."""
TEST_IMAGES = 8
"""Of the test part, those that are scored."""

SHORT = [
    "train.eval_period=0",
    "train.eval_base=False",
    "train.checkpointer.period=2",
    "train.log_period=1",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]
SIDE = 128
"""Pixels: SAM's canvas, and about the short side of what detectors get."""
LARGEST = 512
"""Canvas of a SAM, or short side, that is small enough as it is."""
FEW = 10
"""Detections of an image."""
FEW_REGIONS = {
    False: ["model.proposal_generator.post_nms_topk=[100,50]", "model.roi_heads.batch_size_per_image=64"],
    True: [
        "model.rpn_post_nms_top_n_train=100",
        "model.rpn_post_nms_top_n_test=50",
        "model.box_batch_size_per_image=64",
    ],
}
"""Of Detectron2's detectors and of torchvision's: heads take nearly all of the time on images this small."""


def name_of(path):
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def leaves(node, where=""):
    """Yield the dotted keys of a config's values, a list of numbers being one value."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in items:
        key = f"{where}{name}"
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value)):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def overrides_of(cfg):
    """Return what makes steps a matter of seconds and lets detectors find what they are not sure of."""
    found, values = list(SHORT), dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    if "prompts" not in cfg.model:
        found += ["optimizer.lr=1e-4", *FEW_REGIONS["model.min_size" in values]]
    sides = [value for key, value in values.items() if re.search(r"^dataloader.test.*short_edge_length$", key)]
    divisor = max([1, *(side // SIDE for side in sides if side > LARGEST)])
    for key, value in values.items():
        if (key == "model.image_encoder.img_size" and value > LARGEST) or key == "model.min_size":
            found.append(f"{key}={SIDE if isinstance(value, int) else [SIDE]}")
        elif re.search(r"^dataloader.*\.(short_edge_length|crop_size|target_height|target_width)$", key):
            small = [part // divisor for part in value] if isinstance(value, list) else value // divisor
            found.append(f"{key}={small}".replace(" ", ""))
        elif key.endswith("score_thresh") and "rpn" not in key:
            limit = "model.box_detections_per_img" if "model.min_size" in values else f"{key[:-12]}topk_per_image"
            found += [f"{key}=0.0", f"{limit}={FEW}"]
    return found


def write_weights(cfg, folder):
    """Write the file that the config begins with: its published name and form, random weights; returns its name.

    The norms at the ends of residual blocks are small: trained ones keep the values of a deep network in bounds.
    """
    name = cfg.train.init_checkpoint.rpartition("/")[2]
    torch.manual_seed(0)
    if not name or (folder / name).exists():
        return name
    if name.startswith("sam_"):
        torch.save(instantiate(cfg.model).state_dict(), folder / name)
    elif name.startswith("maskrcnn_"):
        build = getattr(torchvision.models.detection, name.partition("_coco")[0])
        torch.save(damped(build(weights=None, weights_backbone=None).state_dict()), folder / name)
    elif name.startswith("resnet50"):
        torch.save(damped(torchvision.models.resnet50(weights=None).state_dict()), folder / name)
    else:
        backbone = damped(instantiate(cfg.model.backbone.bottom_up).state_dict())
        if name.endswith(".pyth"):
            torch.save({"model_state": backbone}, folder / name)
        else:
            blobs = {msras_name(key): value.numpy() for key, value in backbone.items() if "running" not in key}
            (folder / name).write_bytes(pickle.dumps({"blobs": blobs}))
    return name


def detector_of(cfg, classes, folder):
    """Write the detector that ``cfg`` names, small and for so many classes; returns the overrides that name it."""
    source = cfg.dataloader.detector
    detector = load_config(ROOT / source.config)
    detector = apply_overrides(detector, [*overrides_of(detector), f"model.roi_heads.num_classes={classes}"])
    save_config(detector, folder / "config.yaml")
    torch.manual_seed(0)
    state = damped(instantiate(detector.model).state_dict())
    content = {"model": {name: value.numpy() for name, value in state.items()}, "__author__": "Detectron2 Model Zoo"}
    (folder / source.weights).write_bytes(pickle.dumps(content))
    options = {"config": folder / "config.yaml", "weights": folder / source.weights, "min_score": 0.0}
    return [f"dataloader.detector.{key}={value}" for key, value in options.items()]


def damped(state):
    for name in state:
        if re.search(r"(bn3|conv3\.norm)\.weight$", name):
            state[name] = torch.full_like(state[name], 0.2)
    return state


def msras_name(name):
    """``res2.0.conv1.norm.weight``: ``res2_0_branch2a_bn_s``, as R-50.pkl has it."""
    norm = ".norm." in name
    name = name.replace("stem.conv1", "res_conv1" if norm else "conv1").replace("shortcut", "branch1")
    name = re.sub(r"^(res\d\.\d+)\.conv(\d)", lambda found: f"{found[1]}.branch2{'abc'[int(found[2]) - 1]}", name)
    name = name.replace(".norm.weight", "_bn_s").replace(".norm.bias", "_bn_b").replace(".weight", "_w")
    return name.replace(".", "_")


@pytest.fixture(scope="module", params=DATASETS)
def dataset(request, real_data, tmp_path_factory):
    """Folder of a data set whose test part is its first images."""
    train, test, images = DATASETS[request.param]
    folder = tmp_path_factory.mktemp("data") / request.param
    folder.mkdir()
    for part, split, file in (("train", "train", train), ("test", "val", test)):
        content = json.loads((real_data / request.param / file).read_text())
        if part == "test":
            content["images"] = content["images"][:TEST_IMAGES]
            shown = {image["id"] for image in content["images"]}
            content["annotations"] = [row for row in content["annotations"] if row["image_id"] in shown]
        root = real_data / request.param / images.format(split=split)
        for image in content["images"]:
            link = folder / "images" / part / image["file_name"]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(root / image["file_name"])
        (folder / f"{part}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("checkpoints")
        patch.setenv("SAM_D2_CHECKPOINTS", str(folder))
        yield folder


def losses_of(run):
    """Return the total loss by step."""
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    return [(line["iteration"], line["total_loss"]) for line in lines if "total_loss" in line]


def last_evaluation(run):
    """Return the model's metrics by prompt, task and score, and its predictions, of which there are some."""
    rows = [row for row in read_report(run / "report.json") if row.method == "model"]
    predictions = json.loads((run / "coco_instances_results.json").read_text())
    assert predictions
    return {(row.prompt, row.task, row.score): row.metrics for row in rows}, predictions


def run_demo(run, dataset, output, prompts):
    """Run tools/demo.py on two images of the test part, as a user would; returns its results and how many may be."""
    content = json.loads((dataset / "test.json").read_text())
    images = {image["id"]: dataset / "images" / "test" / image["file_name"] for image in content["images"][:2]}
    command = [sys.executable, ROOT / "tools" / "demo.py", "--config-file", run / "config.yaml", "--confidence", "0"]
    command += ["--input", *images.values(), "--output", output]
    if prompts:
        rows = [row for row in content["annotations"] if row["image_id"] in images and not row.get("iscrowd")]
        boxes = [
            {"file_name": str(images[row["image_id"]]), "bbox": row["bbox"], "category_id": row["category_id"]}
            for row in rows
        ]
        (run / "boxes.json").write_text(json.dumps(boxes))
        command += ["--prompt-boxes", run / "boxes.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((output / "results.json").read_text())
    assert {path.name for path in output.iterdir()} == {"results.json", *(f"{p.stem}.jpg" for p in images.values())}
    return found, len(boxes) if prompts else FEW * len(images)


@pytest.mark.slow
@pytest.mark.parametrize("leaf", LEAVES, ids=name_of)
def test_trains_resumes_scores_and_runs(leaf, dataset, checkpoints, train_net, tmp_path, capsys):
    cfg, started = load_config(leaf), time.perf_counter()
    if "mvit" in leaf.name and CORE == "installed":
        pytest.importorskip("timm", reason="the installed Detectron2 takes MViT's layers from timm")
    weights, run = write_weights(cfg, checkpoints), tmp_path / "run"
    line = ["--config-file", str(leaf), "--dataset", str(dataset)]
    overrides = overrides_of(cfg)
    ids = [category["id"] for category in json.loads((dataset / "test.json").read_text())["categories"]]
    paired = cfg.model.get("prompt") == "detector"
    if paired:
        overrides += detector_of(cfg, len(ids), tmp_path)

    train_net(run, *line, overrides=[*overrides, "train.max_iter=2"])
    train_net(run, *line, "--resume", overrides=[*overrides, "train.max_iter=4"])
    losses = losses_of(run)
    assert [step for step, _ in losses] == [0, 1, 2, 3] and all(math.isfinite(loss) for _, loss in losses)

    metrics, predictions = last_evaluation(run)
    prompt, score = (cfg.model.prompt, cfg.model.score) if "prompts" in cfg.model else ("none", "class_score")
    if paired:
        score = cfg.model.prompts.detector.score
    prompted = "prompts" in cfg.model and not paired  # needs to be told where the objects are
    assert {task for name, task, _ in metrics if name == prompt} == ({"segm"} if prompted else {"segm", "bbox"})
    train_net(run, *line, "--eval-only", overrides=overrides)
    again, same_predictions = last_evaluation(run)
    assert again.keys() == metrics.keys()
    assert all(again[key] == pytest.approx(metrics[key], rel=0, abs=1e-9, nan_ok=True) for key in metrics)
    assert same_predictions == predictions

    found, most = run_demo(run, dataset, tmp_path / "found", prompted)
    # With COCO's labels torchvision's models may find some of the ten that are no category, which are left out.
    assert len(found) == most or ("architecture" in cfg.model and 0 < len(found) < most)
    assert {row["category_id"] for row in found} <= set(ids)
    shutil.rmtree(run)  # up to 3 GB
    cells = [name_of(leaf), dataset.name, CORE, weights or "-", " ".join(f"{loss:.3g}" for _, loss in losses)]
    cells += [f"{metrics[prompt, 'segm', score][key]:.2f}" for key in ("AP", "AR")]
    cells += [str(len(found)), f"{time.perf_counter() - started:.0f}"]
    with capsys.disabled():
        print(f"\n| {' | '.join(cells)} |")
