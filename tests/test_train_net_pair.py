"""A detector and SAM through experiments/train_net.py: --prompt detector and --prompt-boxes, on generated shapes."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from sam_d2.config import apply_overrides, load_config, save_config
from sam_d2.data import resolve_dataset
from sam_d2.engine.checkpoint import Checkpointer, load_checkpoint_file
from sam_d2.errors import UserError
from sam_d2.evaluation import GroundTruth, read_report
from sam_d2.evaluation.gap import CAUSES
from sam_d2.modeling.prompt_samplers import DetectorErrorSampler

SMALL = [
    "model.backbone.out_channels=32",
    "model.roi_heads.box_head.fc_dims=[16]",
    "model.roi_heads.box_predictor.input_shape.channels=16",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
    "model.roi_heads.box_predictor.test_topk_per_image=4",
    "model.roi_heads.mask_head.conv_dims=[32,32]",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
]


@pytest.fixture(scope="module")
def make_detector(tmp_path_factory, root):
    """``make_detector(classes)``: folder of a run, config.yaml and model_final.pth of random weights."""

    def make(classes):
        folder = tmp_path_factory.mktemp("detector")
        cfg = apply_overrides(load_config(root / "configs" / "mask_rcnn_R_18_FPN.py"), SMALL)
        cfg.model.roi_heads.num_classes = classes
        save_config(cfg, folder / "config.yaml")
        torch.manual_seed(0)
        Checkpointer(instantiate(cfg.model), str(folder)).save("model_final")
        return folder

    return make


@pytest.fixture(scope="module")
def sam(train_net, tiny_overrides, tmp_path_factory):
    """Overrides for the evaluation of a SAM of 50 steps, which is given the boxes drawn and so soon knows some."""
    overrides = [*tiny_overrides, "model.draw_boxes=true"]
    short = ["train.max_iter=50", "train.eval_period=0", "train.eval_base=false", "train.log_period=50"]
    folder = train_net(tmp_path_factory.mktemp("sam") / "run", overrides=[*overrides, *short])
    return [*overrides, f"train.init_checkpoint={folder / 'model_final.pth'}", "dataloader.detector.min_score=0"]


@pytest.fixture(scope="module")
def pair_of(train_net, sam):
    """``pair_of(output, words)``: evaluate the pair."""

    def run(output, *words, overrides=()):
        return train_net(output, "--eval-only", *words, overrides=[*sam, *overrides])

    return run


@pytest.fixture(scope="module")
def evaluated(pair_of, make_detector, tmp_path_factory):
    """Run folder of the pair, and the detector's."""
    detector = make_detector(1)
    folder = tmp_path_factory.mktemp("pair") / "run"
    pair_of(folder, "--prompt", "detector", overrides=[f"dataloader.detector.config={detector}"])
    return folder, detector


def rows_of(folder):
    rows = [row for row in read_report(folder / "report.json") if row.ranks]
    return {(row.prompt, row.method, row.task): row for row in rows if row.method in ("model", "detector")}


def test_one_evaluation_gives_oracle_pair_and_detector(evaluated):
    rows = rows_of(evaluated[0])
    sources = {key: (row.prompt_source, row.score) for key, row in rows.items()}
    assert sources == {
        ("box", "model", "segm"): ("ground_truth", "predicted_iou"),
        ("detector", "model", "segm"): ("detector", "class_score*predicted_iou"),
        ("detector", "model", "bbox"): ("detector", "class_score*predicted_iou"),
        ("none", "detector", "segm"): ("detector", "class_score"),
        ("none", "detector", "bbox"): ("detector", "class_score"),
    }
    baselines = [row for row in read_report(evaluated[0] / "report.json") if row.method == "ellipse"]
    assert [row.prompt for row in baselines] == ["box"], "boxes that a detector found have no baseline"


def test_the_gap_is_of_these_rows(evaluated):
    rows = rows_of(evaluated[0])
    pair = rows["detector", "model", "segm"]
    assert pair.metric("gap_oracle") == rows["box", "model", "segm"].metric("AP")
    assert pair.metric("gap") == pytest.approx(100 - pair.metric("AP"), abs=1e-9)
    assert pair.metric("gap") == pytest.approx(sum(pair.metric(f"gap_{cause}") for cause in CAUSES), abs=1e-9)
    assert pair.metric("gap_masks") == pytest.approx(100 - pair.metric("gap_oracle"), abs=1e-9)


def test_page_and_log_show_them_side_by_side(evaluated):
    page = (evaluated[0] / "report.html").read_text()
    assert "<h2>Oracle and detector</h2>" in page and "oracle: SAM with box prompts of the truth" in page
    assert "SAM in the detector&#x27;s boxes, prompt detector" in page and "the detector alone" in page
    assert "From AP to 100, prompt detector" in page and 'aria-label="mask AP, by cause from AP to 100"' in page
    assert "no ground truth was in the prompts" in page
    log = (evaluated[0] / "log.txt").read_text()
    assert "prompt detector: AP " in log and "to 100 are missing" in log
    assert "prompt detector | a detector's boxes as prompts | score class_score*predicted_iou" in log


def test_on_the_page_the_pairs_figures_come_before_the_oracles(evaluated):
    page = (evaluated[0] / "report.html").read_text()
    assert re.search(r"<h1>.*: detector prompts, beside the oracle \(box\)</h1>", page)
    tags = re.findall(r'<span class="tag strong">([^<]*)</span>', page)
    assert tags == ["prompts from a detector", "oracle: from the ground truth"]
    assert re.findall(r'<p class="soft">(With [^<]*) on ', page) == [
        "With detector prompts (from a detector)", "With box prompts (oracle: from the ground truth)",
    ]  # fmt: skip
    rows = rows_of(evaluated[0])
    cards = re.findall(r"<b>([^<]*)</b><span>([^<]*)</span>", page)
    pair, oracle = rows["detector", "model", "segm"].metric("AP"), rows["box", "model", "segm"].metric("AP")
    assert [value for value, words in cards if words == "AP (0-100)"] == [f"{pair:.2f}", f"{oracle:.2f}"]
    assert (f"&minus;{oracle - pair:.2f}", "AP against the oracle") in cards
    tables = re.findall(r'<p class="caption">\S+ · (segm|bbox) · (detector|box|no) prompts, ', page)
    assert tables[:5] == [("segm", "detector"), ("segm", "box"), ("segm", "no"), ("bbox", "detector"), ("bbox", "no")]


def test_classes_have_one_heading_and_their_number_in_each_table(evaluated):
    page = (evaluated[0] / "report.html").read_text()
    assert page.count("AP per class") == 1
    tables = re.findall(
        r'<p class="caption">[^<]*(segm|bbox) · (\w+) prompts · [^<]*falling AP</p>(.*?)</table>', page, re.S
    )
    shown = {(task, prompt): ("mean IoU" in table, re.findall(r'shape</th><td class="number">(\S+?)<', table))
             for task, prompt, table in tables}  # fmt: skip
    # 7 shapes; of a detector alone no single instance is kept, and boxes have no mean IoU of masks
    assert shown == {
        ("segm", "detector"): (True, ["7"]), ("segm", "box"): (True, ["7"]), ("segm", "no"): (False, ["7"]),
        ("bbox", "detector"): (False, ["7"]), ("bbox", "no"): (False, ["7"]),
    }  # fmt: skip


def test_the_oracle_of_the_gap_is_the_first_prompt_of_the_truth(pair_of, evaluated, tmp_path):
    order = "model.prompts.detector.tested_as=[detector,point,box]"
    words = [f"dataloader.detector.config={evaluated[1]}", order]
    folder = pair_of(tmp_path / "run", "--prompt", "detector", overrides=words)
    rows = rows_of(folder)
    point, box = (rows[name, "model", "segm"].metric("AP") for name in ("point", "box"))
    assert rows["detector", "model", "segm"].metric("gap_oracle") == point != box
    assert "oracle: SAM with point prompts of the truth" in (folder / "report.html").read_text()


def test_the_detectors_rows_are_those_of_its_own_evaluation(evaluated, train_net, tmp_path):
    folder, detector = evaluated
    config = ["--config-file", str(detector / "config.yaml"), "--eval-only"]
    weights = f"train.init_checkpoint={detector / 'model_final.pth'}"
    alone = train_net(tmp_path / "alone", *config, overrides=[weights, "dataloader.test.num_workers=0"])
    for row in read_report(alone / "report.json"):
        assert rows_of(folder)["none", "detector", row.task].metrics == pytest.approx(row.metrics, nan_ok=True)
    own = json.loads((folder / "detector" / "coco_instances_results.json").read_text())
    assert own == json.loads((alone / "coco_instances_results.json").read_text())


def test_the_same_boxes_from_a_file_give_the_same_figures(evaluated, pair_of, tmp_path):
    file = evaluated[0] / "detector" / "coco_instances_results.json"
    folder = pair_of(tmp_path / "file", "--prompt-boxes", str(file))
    first, second = rows_of(evaluated[0]), rows_of(folder)
    assert first.keys() == second.keys()
    for key, row in second.items():
        assert row.metrics == pytest.approx(first[key].metrics, nan_ok=True, abs=1e-6), key
        assert row.prompt_source == ("ground_truth" if key[0] == "box" else "file")
    assert "SAM in the file&#x27;s boxes" in (folder / "report.html").read_text()
    masks = [json.loads((run / "coco_instances_results.json").read_text()) for run in (evaluated[0], folder)]
    assert masks[0] == masks[1]


def test_true_boxes_from_a_file_are_the_oracle(pair_of, shapes_folder, tmp_path):
    """With the truth's boxes and classes and the score of the oracle nothing is missing but masks."""
    truth = GroundTruth.from_catalog(resolve_dataset(str(shapes_folder)).test)
    rows = [
        {"image_id": image.image_id, "category_id": 3, "bbox": list(one.bbox), "score": 1.0}
        for image in truth.images
        for one in image.instances
    ]
    (tmp_path / "true.json").write_text(json.dumps(rows))
    folder = pair_of(tmp_path / "run", "--prompt-boxes", str(tmp_path / "true.json"))
    found = rows_of(folder)
    pair, oracle = found["detector", "model", "segm"], found["box", "model", "segm"]
    assert pair.metric("AP") == pytest.approx(oracle.metric("AP"), abs=1e-9) and oracle.metric("AP") > 10
    assert pair.metric("gap_boxes") == pair.metric("gap_classes") == 0
    assert found["none", "detector", "bbox"].metric("AP") == 100
    assert ("none", "detector", "segm") not in found, "the file has no masks of its own"


def test_boxes_of_no_image_are_legal(pair_of, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    row = rows_of(pair_of(tmp_path / "run", "--prompt-boxes", str(tmp_path / "none.json")))
    assert row["detector", "model", "segm"].metric("AP") == 0
    gap = row["detector", "model", "segm"].metrics
    assert gap["gap_missed"] == pytest.approx(gap["gap_oracle"])


def test_what_is_no_detector_of_this_dataset(pair_of, make_detector, tmp_path):
    other = make_detector(2)
    with pytest.raises(UserError, match=r"knows 2 classes, .*_test has 1"):
        pair_of(tmp_path / "a", "--prompt", "detector", overrides=[f"dataloader.detector.config={other}"])
    with pytest.raises(UserError, match="its model takes prompts; name a detector"):
        words = [
            f"dataloader.detector.{word}" for word in ("config=configs/sam_tiny.py", f"weights={other}/config.yaml")
        ]
        pair_of(tmp_path / "b", "--prompt", "detector", overrides=words)
    with pytest.raises(UserError, match=r"none\.pth is not found"):
        words = [f"dataloader.detector.config={other}", "dataloader.detector.weights=none.pth"]
        pair_of(tmp_path / "c", "--prompt", "detector", overrides=words)
    with pytest.raises(UserError, match=r"dataloader\.detector\.config=nowhere: no such run folder or config file"):
        pair_of(tmp_path / "d", "--prompt", "detector", overrides=["dataloader.detector.config=nowhere"])
    assert list(tmp_path.iterdir()) == [], "nothing is written before it is refused"


@pytest.mark.parametrize("words", [["--eval-only"], ["train.max_iter=1"]])
def test_what_would_be_found_too_late_leaves_no_folder(train_net, sam, evaluated, tmp_path, words):
    """Of an evaluation and of a training: boxes of nobody's images, three masks that nothing teaches."""
    (tmp_path / "other.json").write_text('[{"image_id": 99, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 0.5}]')
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"row 0, image_id: 99; .* has no such image, it has 0, 1, 2, 3;"):
        train_net(folder, *words, "--prompt-boxes", str(tmp_path / "other.json"), overrides=sam)
    detector = f"dataloader.detector.config={evaluated[1]}"
    with pytest.raises(UserError, match=r"model_final\.pth: the three masks|model_final\.pth never learned"):
        train_net(folder, *words, "--prompt", "detector_best_of_3", overrides=[*sam, detector])
    assert not folder.exists()


def test_no_calibration_is_said_before_anything_is_written(pair_of, evaluated, tmp_path):
    with pytest.raises(
        UserError, match=r"model\.calibrate=true: .*model_final\.pth has no calibration for box prompts"
    ):
        pair_of(tmp_path / "run", "--prompt", "box", "model.calibrate=true")
    assert not (tmp_path / "run").exists()


def test_random_weights_are_not_trained_for_three_masks(train_net, tiny_overrides, evaluated, tmp_path):
    words = ["--prompt", "detector_best_of_3", f"dataloader.detector.config={evaluated[1]}", "train.max_iter=1"]
    for more in ([], ["model.multimask=true"]):  # boxes are never ambiguous
        with pytest.raises(UserError, match=r"--prompt detector_best_of_3: .* random weights never learned"):
            train_net(tmp_path / "run", *words, *more, overrides=tiny_overrides)
    assert not (tmp_path / "run").exists()


def test_where_nobody_finds_boxes(pair_of, train_net, make_detector, tmp_path):
    with pytest.raises(UserError, match=r"--prompt detector: .*dataloader.detector.config=.*--prompt-boxes FILE"):
        pair_of(tmp_path / "a", "--prompt", "detector")
    with pytest.raises(UserError, match=r"--prompt-boxes x.json: --prompt box uses none. Take --prompt detector"):
        pair_of(tmp_path / "b", "--prompt", "box", "--prompt-boxes", "x.json")
    with pytest.raises(UserError, match=r"--prompt-boxes x.json: the model of .* takes no prompts"):
        config = str(make_detector(1) / "config.yaml")
        train_net(tmp_path / "c", "--config-file", config, "--prompt-boxes", "x.json", overrides=[])
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_training_is_scored_with_both(train_net, tiny_overrides, evaluated, tmp_path):
    words = ["train.max_iter=1", "train.eval_period=0", f"dataloader.detector.config={evaluated[1]}"]
    folder = train_net(tmp_path / "run", "--prompt", "detector", overrides=[*tiny_overrides, *words])
    rows = read_report(folder / "report.json")
    found = {(row.prompt, row.method) for row in rows if row.task == "segm"}
    assert found >= {("box", "model"), ("box", "base"), ("detector", "model"), ("detector", "base")}
    with_gap = [row.method for row in rows if "gap" in row.metrics]
    assert with_gap == ["model"]
    assert (folder / "log.txt").read_text().count("Detecting the boxes of") == 1


MOVES = [0.1, -0.05, 0.0, 0.15]
"""Of each edge, as a share of the box's width or height."""


@pytest.fixture
def near_misses(monkeypatch, shapes_folder):
    """Let any detector find each shape with its edges moved by ``MOVES``, the surer the higher its annotation's id."""
    content = [json.loads((shapes_folder / f"dataset_{part}.json").read_text()) for part in ("train", "test")]
    found = {}
    for one in content:
        names = {image["id"]: image["file_name"] for image in one["images"]}
        for row in one["annotations"]:
            x, y, w, h = row["bbox"]
            sides, box = np.array([w, h, w, h]), np.array([x, y, x + w, y + h])
            if not row["iscrowd"]:
                found.setdefault(names[row["image_id"]], []).append((box + MOVES * sides, 0.3 + row["id"] / 50))

    def forward(self, samples):
        outputs = []
        for sample in samples:
            rows = found.get(Path(sample["file_name"]).name, [])
            result = Instances((sample["height"], sample["width"]))
            result.pred_boxes = Boxes(torch.tensor(np.array([box for box, _ in rows]).reshape(-1, 4)))
            result.scores = torch.tensor([score for _, score in rows])
            result.pred_classes = torch.zeros(len(rows), dtype=torch.int64)
            result.pred_masks = torch.zeros((len(rows), *result.image_size), dtype=torch.bool)
            outputs.append({"instances": result})
        return outputs

    monkeypatch.setattr(GeneralizedRCNN, "forward", forward)


@pytest.fixture
def tool(root, monkeypatch, restore_loggers):
    """``tool(name, *arguments)``: run a program of tools/ in this process."""

    def call(name, *arguments):
        spec = importlib.util.spec_from_file_location(f"{name}_tool", root / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        return module.main()

    return call


def test_the_errors_of_a_detector_train_sam(
    near_misses, tool, make_detector, shapes_folder, train_net, tiny_overrides, tmp_path, monkeypatch, capsys
):
    detector = make_detector(1)
    assert tool("detector_errors", detector, "--dataset", shapes_folder, "--output", tmp_path / "e.json",
                "--device", "cpu", "--num-workers", 0) == 0  # fmt: skip
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["instances"] == 12 and len(content["errors"]) == 12
    np.testing.assert_allclose(content["errors"], [MOVES] * 12, atol=1e-5)
    assert "errors of 12 of 12 instances" in capsys.readouterr().out

    drawn, draw = [], DetectorErrorSampler.__call__

    def spy(self, instances, generator):
        prompts = draw(self, instances, generator)
        drawn.append((instances.gt_boxes.tensor, prompts.boxes, instances.image_size))
        return prompts

    monkeypatch.setattr(DetectorErrorSampler, "__call__", spy)
    words = [f"model.prompts.detector.train.errors={tmp_path / 'e.json'}", f"dataloader.detector.config={detector}"]
    short = ["train.max_iter=2", "train.eval_period=0", "train.eval_base=false", "train.log_period=1"]
    folder = train_net(tmp_path / "run", "--prompt", "detector", *words, *short, overrides=tiny_overrides)
    assert drawn and (folder / "model_final.pth").is_file()
    for true, asked, (height, width) in drawn:
        sides = (true[:, 2:] - true[:, :2]).repeat(1, 2)
        limits = torch.tensor([width, height, width, height])
        expected = (true + torch.tensor(MOVES) * sides).clamp(min=torch.zeros(4), max=limits)
        torch.testing.assert_close(asked, expected.to(asked), atol=1e-3, rtol=0)
    losses = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert all(np.isfinite(line["total_loss"]) for line in losses if "total_loss" in line)


def test_the_scores_in_a_detectors_boxes_are_calibrated(near_misses, tool, make_detector, sam, tmp_path, capsys):
    weights = Path(next(word for word in sam if word.startswith("train.init_checkpoint")).partition("=")[2])
    run = shutil.copytree(weights.parent, tmp_path / "run")
    before = sorted(path.name for path in run.iterdir())
    assert tool("calibrate_scores", run, "model.prompt=detector", "model.prompts.detector.tested_as=[detector]",
                f"dataloader.detector.config={make_detector(1)}", "--test") == 0  # fmt: skip
    entry = load_checkpoint_file(run / "model_final.pth")["score_calibrations"]
    assert list(entry) == ["detector"] and entry["detector"]["predictions"] == 12
    assert entry["detector"]["score"] == "class_score*predicted_iou"
    said = capsys.readouterr().out
    assert "_train, detector prompts, class_score*predicted_iou, 12 masks: ECE" in said
    assert "_test, detector prompts, class_score*predicted_iou, 7 masks: ECE" in said
    assert sorted(path.name for path in run.iterdir()) == before, "the detections are not the run's"


def test_errors_of_what_is_no_detector(tool, make_detector, shapes_folder, tmp_path):
    def refused(message, run, dataset=shapes_folder):
        with pytest.raises(UserError, match=message):
            tool("detector_errors", run, "--dataset", dataset, "--output", tmp_path / "e.json", "--device", "cpu",
                 "--num-workers", 0)  # fmt: skip
        assert not (tmp_path / "e.json").exists()

    refused("nothing: no such run folder or config file", tmp_path / "nothing")
    refused("gone: no such folder or file", make_detector(1), tmp_path / "gone")
    refused("knows 2 classes, .*_train has 1", make_detector(2))
    broken = make_detector(1)
    (broken / "model_final.pth").write_bytes(b"noise")
    refused(r"model_final\.pth: not a checkpoint", broken)


@pytest.mark.slow
def test_two_processes_find_and_score_as_one(evaluated, sam, shapes_folder, root, tmp_path):
    folder, detector = evaluated
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(root / "experiments" / "train_net.py"), "--config-file", str(root / "configs" / "sam_tiny.py")]
    command += ["--dataset", str(shapes_folder), "--output-dir", str(tmp_path / "two"), "--prompt", "detector"]
    command += ["--eval-only", *sam, f"dataloader.detector.config={detector}", "train.device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = rows_of(folder), rows_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, row in two.items():
        assert row.metrics == pytest.approx(one[key].metrics, nan_ok=True, abs=1e-9), key
    for name in ("coco_instances_results.json", "detector/coco_instances_results.json"):
        assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "two" / name).read_text())
