"""experiments/train_net.py in two processes: images without instances, scoring, resuming."""

import json
import shutil

import pytest
import torch

from sam_d2.evaluation.results import read_report

TORCHVISION = [
    "train.init_checkpoint=",
    "train.max_epoch=null",
    "model.min_size=[64]",
    "model.max_size=96",
    "model.norm=BN",
    "model.box_batch_size_per_image=8",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]
SHORT = ["train.eval_base=false", "train.log_period=1", "dataloader.train.total_batch_size=2"]


@pytest.fixture(scope="module")
def families(root, tiny_overrides, r_18_overrides):
    """Config and overrides of a small model, by name."""
    sam, detector = [*tiny_overrides, *SHORT], [*r_18_overrides, *SHORT]
    decoder = "model.freeze=[image_encoder,prompt_encoder]"
    return {
        "sam": (root / "configs" / "sam_tiny.py", sam),
        "sam_decoder": (root / "configs" / "sam_tiny.py", [*sam, "model.prompt=mixed", decoder]),
        "sam_lora": (root / "configs" / "sam_tiny_lora.py", sam),
        "mask_rcnn": (root / "configs" / "mask_rcnn_R_18_FPN.py", detector),
        "torchvision": (root / "configs" / "cartons.py", [*TORCHVISION, *SHORT]),
    }


@pytest.fixture(scope="module")
def run(train_net, families):
    """``run(name, folder, *arguments)``: train_net.py on that family's model; gives the run folder back."""

    def train(name, folder, *arguments):
        config, overrides = families[name]
        return train_net(folder, "--config-file", str(config), *arguments, overrides=overrides)

    return train


@pytest.fixture(scope="module")
def sparse(shapes_folder, tmp_path_factory):
    """A dataset folder: 4 training images, 3 of them empty, and a single test image."""
    folder = tmp_path_factory.mktemp("sparse")
    for part, count in (("train", 4), ("test", 1)):
        content = json.loads((shapes_folder / f"dataset_{part}.json").read_text())
        content["images"] = content["images"][:count]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == 0]
        (folder / f"dataset_{part}.json").write_text(json.dumps(content))
        for image in content["images"]:
            shutil.copy(shapes_folder / image["file_name"], folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "sam",
        "mask_rcnn",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sam_decoder", "sam_lora", "torchvision")),
    ],
)
def test_processes_without_an_instance_or_an_image_keep_up(in_two_processes, run, sparse, tmp_path, name):
    # of two images a step one at most has instances; the one test image is the first process's
    options = ["train.max_iter=4", "train.eval_period=2", "train.validation_loss=true", "train.early_stop.patience=9"]
    in_two_processes(run, name, tmp_path / "run", "--dataset", str(sparse), *options)
    rows = read_report(tmp_path / "run" / "report.json")
    assert {row.images for row in rows} == {1} and {row.method for row in rows} >= {"model"}
    lines = metrics(tmp_path / "run")
    assert [line["iteration"] for line in lines if "images" in line] == [0, 1, 2, 3]
    assert {line["images"] for line in lines if "images" in line} == {2}
    assert all(line["validation_loss"] > 0 for line in lines if "validation_loss" in line)
    assert (tmp_path / "run" / "model_final.pth").is_file()


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def predictions(folder):
    """Of a run's last evaluation: score, box and class by image, in their order."""
    found = json.loads((folder / "coco_instances_results.json").read_text())
    return [(entry["image_id"], entry["category_id"], entry["score"], *entry.get("bbox", [])) for entry in found]


NORM = [
    "model.backbone.norm=BN",
    "model.backbone.bottom_up.stem.norm=BN",
    "model.backbone.bottom_up.stages.norm=BN",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
]


@pytest.mark.parametrize(("name", "more"), [("sam", ["train.ema.decay=0.5"]), ("mask_rcnn", NORM)])
def test_one_process_and_two_score_alike(in_two_processes, run, tmp_path, name, more):
    """Running statistics, which each process has of its own images, are those that were saved."""
    folder = tmp_path / "run"
    in_two_processes(run, name, folder, "train.max_iter=3", "train.eval_period=0", "optimizer.lr=0.01", *more)
    trained = predictions(folder), read_report(folder / "report.json")
    assert len(trained[0]) >= 7
    run(name, folder, "--eval-only", *more)
    alone = predictions(folder), read_report(folder / "report.json")
    in_two_processes(run, name, folder, "--eval-only", *more)
    together = predictions(folder), read_report(folder / "report.json")
    for found, rows in (trained, together):
        assert [entry[:2] for entry in found] == [entry[:2] for entry in alone[0]]
        for one, two in zip(found, alone[0], strict=True):
            assert one[2:] == pytest.approx(two[2:], abs=1e-4)
        assert len(rows) == len(alone[1])
        for one, two in zip(rows, alone[1], strict=True):
            assert one.metrics == pytest.approx(two.metrics, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["sam", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_a_resume_in_two_processes_is_exact(in_two_processes, run, tmp_path, name):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["train.max_iter=4", "train.checkpointer.period=2", "train.eval_period=0"]
    in_two_processes(run, name, whole, *options)
    parts.mkdir()
    shutil.copy(whole / "model_0000001.pth", parts)
    (parts / "last_checkpoint").write_text("model_0000001.pth")
    in_two_processes(run, name, parts, "--resume", *options)
    one, two = (torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (whole, parts))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert [line["iteration"] for line in metrics(parts) if "images" in line] == [2, 3]
