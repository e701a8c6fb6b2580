"""tools/demo.py and the Predictor of detectors, on a small Mask R-CNN with random weights and on a tiny SAM."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from PIL import Image

import sam_d2
from detectron2.config import instantiate
from sam_d2.cli import run_main
from sam_d2.config import apply_overrides, load_config, save_config
from sam_d2.data.image import read_image
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.errors import UserError
from sam_d2.evaluation import encode_masks
from sam_d2.evaluation.detections import ImageDetections

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "model.backbone.out_channels=32",
    "model.roi_heads.num_classes=3",
    "model.roi_heads.box_head.fc_dims=[32]",
    "model.roi_heads.box_predictor.input_shape.channels=32",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
    "model.roi_heads.box_predictor.test_topk_per_image=6",
    "model.roi_heads.mask_head.conv_dims=[32,32]",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a detector's run: config.yaml and model_final.pth of random weights."""
    folder = tmp_path_factory.mktemp("run")
    cfg = load_config(ROOT / "configs" / "mask_rcnn_R_18_FPN.py")
    cfg = apply_overrides(cfg, SMALL)
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=48, max_size=64)
    save_config(cfg, folder / "config.yaml")
    torch.manual_seed(0)
    Checkpointer(instantiate(cfg.model), str(folder)).save("model_final")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images; the name of the last but one is a number, the last is broken."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (60, 80)), ("000139.png", (90, 50))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def demo(monkeypatch, *words) -> int:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        run_main(module.main)
    return end.value.code


def test_a_detector_on_images(run, photos, tmp_path, monkeypatch, capsys):
    output = tmp_path / "found"
    line = ["--config-file", run / "config.yaml", "--input", photos, "--output", output, "--confidence", 0]
    assert demo(monkeypatch, *line) == 1
    printed = capsys.readouterr()
    assert "skipped: " in printed.err and "broken.jpg: not a readable image" in printed.err
    assert f"overlays and results.json in {output}: 12 instances of score >= 0 in 2 of 3 images" in printed.out
    assert "annotations" not in printed.err
    assert {file.name for file in output.iterdir()} == {"results.json", "a.jpg", "000139.jpg"}
    assert Image.open(output / "000139.jpg").size == (50, 90)

    rows = json.loads((output / "results.json").read_text())
    of_a = [row for row in rows if row["file_name"] == str(photos / "a.png")]
    assert [row.get("image_id") for row in rows if row not in of_a] == [139] * 6
    assert len(of_a) == 6 and not any("image_id" in row for row in of_a)
    instances = sam_d2.Predictor(run)(photos / "a.png")
    for index, row in enumerate(of_a):
        x0, y0, x1, y1 = instances.pred_boxes.tensor[index].tolist()
        assert row["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
        assert row["score"] == pytest.approx(float(instances.scores[index]))
        assert row["category_id"] == int(instances.pred_classes[index])  # no data set: from 0 on
        assert np.array_equal(mask_utils.decode(row["segmentation"]).astype(bool), instances.pred_masks[index].numpy())


def test_a_run_that_was_copied_without_its_dataset_knows_its_classes(run, photos, tmp_path, monkeypatch, capsys):
    cfg = load_config(run / "config.yaml")
    cfg.train.dataset = str(tmp_path / "gone")
    cfg.train.classes = {"names": ["cell", "\\${odd}", "yes"], "ids": [4, 9, 2**40]}
    folder = tmp_path / "copy"
    save_config(cfg, folder / "config.yaml")
    shutil.copy(run / "model_final.pth", folder)
    predictor = sam_d2.Predictor(folder)
    assert predictor.classes.names == ["cell", "${odd}", "yes"] and predictor.classes.ids == [4, 9, 2**40]
    line = ["--config-file", folder / "config.yaml", "--input", photos / "a.png", "--output", tmp_path / "out"]
    assert demo(monkeypatch, *line, "--confidence", 0) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = [[4, 9, 2**40][index] for index in predictor(photos / "a.png").pred_classes.tolist()]
    assert [row["category_id"] for row in found] == expected
    assert "not known" not in capsys.readouterr().err


def test_confidence_leaves_out_the_less_sure(run, photos, tmp_path, monkeypatch):
    scores = sam_d2.Predictor(run)(photos / "a.png").scores
    middle = float(scores[2:4].mean())
    line = ["--config-file", run / "config.yaml", "--input", photos / "a.png", "--output", tmp_path]
    assert demo(monkeypatch, *line, "--confidence", middle) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())) == 3


def test_predictor_gives_the_models_own_detections(run, photos):
    predictor = sam_d2.Predictor(run)
    rgb = read_image(photos / "a.png")
    found = predictor(rgb)
    assert torch.equal(found.scores, predictor(photos / "a.png").scores)
    assert torch.equal(found.scores, predictor(Image.fromarray(rgb)).scores)
    # 60 x 80 comes to 48 x 64, in BGR, as config.yaml says
    resized = np.asarray(Image.fromarray(rgb[:, :, ::-1]).resize((64, 48), Image.Resampling.BILINEAR))
    image = torch.from_numpy(resized.transpose(2, 0, 1).copy())
    with torch.no_grad():
        direct = predictor.model([{"image": image, "height": 60, "width": 80}])[0]["instances"]
    torch.testing.assert_close(found.pred_boxes.tensor, direct.pred_boxes.tensor)
    assert torch.equal(found.pred_masks, direct.pred_masks) and found.pred_masks.shape == (6, 60, 80)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_run_lengths_of_a_detector_are_those_of_its_masks(run, photos):
    predictor = sam_d2.Predictor(run)
    dense, coded = predictor(photos / "a.png"), predictor(photos / "a.png", rle=True)
    assert len(coded) == 6 and not coded.has("pred_masks")
    assert coded.pred_masks_rle == encode_masks(dense.pred_masks)
    assert torch.equal(coded.scores, dense.scores)


def test_predictor_of_a_detector_takes_no_prompts(run, photos):
    predictor = sam_d2.Predictor(run)
    with pytest.raises(UserError, match="takes no prompts"):
        predictor(photos / "a.png", boxes=[[0, 0, 10, 10]])
    with pytest.raises(UserError, match="takes no prompts"):
        predictor.encode(photos / "a.png")


def test_the_weights_say_the_number_of_classes(run, tmp_path):
    cfg = load_config(run / "config.yaml")
    cfg.model.roi_heads.num_classes = None
    assert sam_d2.Predictor(cfg, run / "model_final.pth").detector.num_classes == 3
    cfg.model.roi_heads.num_classes = 4
    with pytest.raises(UserError, match=r"knows 3 classes, the config says model.roi_heads.num_classes=4"):
        sam_d2.Predictor(cfg, run / "model_final.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="holds no whole detector"):
        sam_d2.Predictor(cfg, tmp_path / "backbone.pth")


@pytest.fixture(scope="module")
def sam(tmp_path_factory, tiny_overrides):
    folder = tmp_path_factory.mktemp("sam")
    cfg = apply_overrides(load_config(ROOT / "configs" / "sam_tiny.py"), tiny_overrides)
    save_config(cfg, folder / "config.yaml")
    torch.manual_seed(0)
    Checkpointer(instantiate(cfg.model), str(folder)).save("model_final")
    return folder


def test_sam_in_the_boxes_of_a_file(sam, photos, tmp_path, monkeypatch):
    rows = [
        {"file_name": "photos/a.png", "bbox": [1, 2, 1, 1], "category_id": 9},  # of another folder's a.png
        {"file_name": f"{photos.name}/a.png", "bbox": [10, 5, 30, 20], "category_id": 4, "score": 0.9},
        {"image_id": 139, "bbox": [5, 6, 20, 30], "category_id": 7, "score": 0.8},
        {"image_id": 139, "bbox": [1, 1, 40, 60], "category_id": 2, "score": 0.7},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    images = [photos / "a.png", photos / "000139.png"]
    line = ["--config-file", sam / "config.yaml", "--input", *images, "--output", tmp_path / "masks"]
    assert demo(monkeypatch, *line, "--prompt-boxes", tmp_path / "boxes.json", "--confidence", 0) == 0
    found = json.loads((tmp_path / "masks" / "results.json").read_text())
    assert [(row.get("image_id"), row["category_id"]) for row in found[:1]] == [(None, 4)]
    expected = sam_d2.Predictor(sam)(photos / "000139.png", boxes=[[5, 6, 25, 36], [1, 1, 41, 61]])
    own = {row["category_id"]: row for row in found[1:]}
    assert [row["image_id"] for row in found[1:]] == [139, 139] and found[1]["score"] >= found[2]["score"]
    for category, mask in zip((7, 2), expected.pred_masks, strict=True):
        assert np.array_equal(mask_utils.decode(own[category]["segmentation"]).astype(bool), mask.numpy())


class TestFileAsAnEvaluationAsks:
    """Scores by the recipe of detector prompts, and the limits of dataloader.detector."""

    ROWS = ({"bbox": [10, 5, 30, 20], "score": 0.9}, {"bbox": [5, 6, 20, 30], "score": 0.04}, {"bbox": [0, 0, 9, 9]})

    @pytest.fixture
    def masks(self, sam, photos, tmp_path, monkeypatch):
        """``masks(rows, *changes)``: results by category_id, which is the number of the row."""

        def run(rows, *changes):
            content = [{"file_name": "a.png", "category_id": number, **row} for number, row in enumerate(rows)]
            (tmp_path / "boxes.json").write_text(json.dumps(content))
            save_config(apply_overrides(load_config(sam / "config.yaml"), list(changes)), tmp_path / "sam.yaml")
            line = ["--config-file", tmp_path / "sam.yaml", "--weights", sam / "model_final.pth", "--confidence", 0]
            line += ["--input", photos / "a.png", "--output", tmp_path, "--prompt-boxes", tmp_path / "boxes.json"]
            assert demo(monkeypatch, *line) == 0
            rows = json.loads((tmp_path / "results.json").read_text())
            return {row["category_id"]: row for row in rows}

        return run

    def test_scores_and_least_score(self, masks, sam, photos, capsys):
        """0.04 is under the least score, 0.05; a box without a score counts as certain."""
        found = masks(self.ROWS)
        assert found.keys() == {0, 2}
        assert "--prompt-boxes: 1 box below min_score: left out" in capsys.readouterr().err
        alone = sam_d2.Predictor(sam)(photos / "a.png", boxes=[[10, 5, 40, 25], [0, 0, 9, 9]])
        iou = alone.predicted_iou.tolist()
        assert [found[0]["score"], found[2]["score"]] == pytest.approx([0.9 * iou[0], iou[1]], rel=1e-4)

    def test_exponents(self, masks):
        (one,) = masks(self.ROWS[:1], "model.prompts.detector.score='class_score^2*mean_probability'").values()
        (other,) = masks(self.ROWS[:1], "model.prompts.detector.score=mean_probability").values()
        assert one["score"] == pytest.approx(0.81 * other["score"]) and one["score"] > 0

    def test_the_surest(self, masks, capsys):
        assert masks(self.ROWS, "dataloader.detector.max_boxes=1").keys() == {2}
        assert "1 box beyond max_boxes: left out" in capsys.readouterr().err

    def test_a_box_outside_takes_no_other_along(self, masks, capsys):
        found = masks([{"bbox": [300, 5, 30, 20]}, {"bbox": [70, 50, 30, 20]}, *self.ROWS[:1]])
        assert found.keys() == {1, 2}
        error = capsys.readouterr().err
        assert "--prompt-boxes: 1 box without area in their image: left out" in error
        assert "--prompt-boxes: 1 box clipped at the border of their image" in error

    def test_boxes_outside_alone(self, masks):
        assert masks([{"bbox": [300, 5, 30, 20]}]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config-file {sam}/config.yaml --input {photos}/a.png", "Add --detector RUN, or --prompt-boxes FILE with"),
        ("--config-file {run}/config.yaml --input {photos}/a.png --detector {run}", "--detector: the model of"),
        ("--config-file {sam} --input {photos}/a.png --detector nope", "--detector nope: no such run folder or config"),
        ("--config-file nope --input {photos}/a.png", "--config-file nope: no such run folder or config file."),
        ("--config-file {run}/config.yaml --input {photos}/a.png --prompt-boxes x.json", "takes no prompts"),
        ("--config-file {sam}/config.yaml --input {photos}/a.png --prompt-boxes {tmp}/none.json", "cannot be read"),
        (
            "--config-file {sam}/config.yaml --input {photos}/a.png --prompt-boxes {tmp}/dict.json",
            "expected a COCO results list",
        ),
        (
            "--config-file {sam}/config.yaml --input {photos}/a.png --prompt-boxes {tmp}/turned.json",
            "row 0 (file_name 'a.png'), bbox: [9, 9, -4, 2]",
        ),
        (
            "--config-file {sam}/config.yaml --input {photos}/a.png --prompt-boxes {tmp}/bare.json",
            "row 0, image_id: missing",
        ),
        (
            "--config-file {sam}/config.yaml --input {photos}/a.png --prompt-boxes {tmp}/other.json",
            "none of its 1 rows",
        ),
        ("--config-file {run}/config.yaml --input {tmp}", "the folder holds no .bmp"),
        ("--config-file {run}/config.yaml --input {photos}/a.png --weights none.pth", "none.pth is not found"),
        ("--config-file {run}/none.yaml --input {photos}/a.png", "does not exist"),
    ],
)
def test_wrong_input(words, message, sam, run, photos, tmp_path, monkeypatch, capsys):
    for name, content in (
        ("dict", {"annotations": []}),
        ("turned", [{"file_name": "a.png", "bbox": [9, 9, -4, 2]}]),
        ("bare", [{"bbox": [0, 0, 1, 1]}]),
        ("other", [{"file_name": "b.png", "bbox": [0, 0, 1, 1]}]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    words = words.format(sam=sam, run=run, photos=photos, tmp=tmp_path).split()
    assert demo(monkeypatch, *words, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert error.count("\n") == (2 if "1 error:" in error else 1)
    assert not (tmp_path / "out").exists()


def test_confidence_is_a_share(monkeypatch, tmp_path, capsys):
    line = ["--config-file", "x.py", "--input", "a.png", "--output", tmp_path, "--confidence", 50]
    assert demo(monkeypatch, *line) == 2
    assert "--confidence must be 0 to 1" in capsys.readouterr().err


def test_images_of_one_name_have_overlays_of_their_own(run, photos, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (30, 20)).save(other / "a.png")
    line = ["--config-file", run / "config.yaml", "--input", photos / "a.png", other, "--output", tmp_path / "out"]
    assert demo(monkeypatch, *line) == 0
    assert Image.open(tmp_path / "out" / "a.jpg").size == (80, 60)
    assert Image.open(tmp_path / "out" / "a_2.jpg").size == (30, 20)


@pytest.fixture(scope="module")
def pair(sam, run):
    return sam_d2.Predictor(sam, detector=run, device="cpu")


class TestPair:
    def test_masks_in_the_boxes_that_the_detector_finds(self, pair, sam, run, photos):
        """With its classes, by falling product of both scores; the masks those of the same boxes given by hand."""
        image = photos / "a.png"
        found = sam_d2.Predictor(run)(image)
        instances = pair(image)
        sure = found[found.scores >= 0.05]
        assert len(sure) > 1 and len(instances) == len(sure)
        rows = instances.prompt_index
        assert torch.equal(instances.pred_classes, sure.pred_classes[rows])
        by_hand = sam_d2.Predictor(sam)(image, boxes=sure.pred_boxes.tensor)[rows]
        assert torch.equal(instances.pred_masks, by_hand.pred_masks)
        torch.testing.assert_close(instances.scores, by_hand.scores * sure.scores[rows])
        assert (instances.scores.diff() <= 0).all()

    def test_run_lengths_stand_in_the_order_of_the_scores(self, pair, photos):
        dense, coded = pair(photos / "a.png"), pair(photos / "a.png", rle=True)
        assert dense.prompt_index.tolist() != sorted(dense.prompt_index.tolist()), "or the order would say nothing"
        assert coded.pred_masks_rle == encode_masks(dense.pred_masks) and not coded.has("pred_masks")
        assert torch.equal(coded.prompt_index, dense.prompt_index) and torch.equal(coded.scores, dense.scores)

    def test_run_lengths_in_the_boxes_of_another_system(self, sam, photos):
        corners = np.array([[10.0, 5, 40, 25], [5, 6, 25, 36], [0, 0, 9, 9]])
        found = ImageDetections(0, np.array([0.6, 0.9, 0.3]), np.array([4, 7, 2]), corners, None)
        predictor = sam_d2.Predictor(sam)
        dense, counts = predictor.in_boxes_of(photos / "a.png", found)
        coded, same_counts = predictor.in_boxes_of(photos / "a.png", found, rle=True)
        assert coded.pred_masks_rle == encode_masks(dense.pred_masks) and same_counts == counts
        assert coded.pred_classes.tolist() == dense.pred_classes.tolist()

    def test_its_classes_are_the_detectors(self, pair, sam, run):
        assert pair.classes == sam_d2.Predictor(run).classes and pair.classes.ids == [0, 1, 2]
        assert sam_d2.Predictor(sam).classes is None

    def test_the_config_may_name_the_detector(self, sam, run, photos, pair):
        cfg = load_config(sam / "config.yaml")
        cfg.dataloader.detector.update(config=str(run), max_boxes=1)
        (one,) = sam_d2.Predictor(cfg, sam / "model_final.pth")(photos / "a.png").scores.tolist()
        all_of_them = pair(photos / "a.png")
        assert one == pytest.approx(all_of_them.scores[all_of_them.prompt_index == 0].item(), rel=1e-4)

    def test_boxes_given_by_hand_need_no_detector(self, sam, run, photos, pair, tmp_path):
        boxes = [[5, 6, 25, 36]]
        torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "none.pth")
        late = sam_d2.Predictor(sam, detector=run, detector_weights=tmp_path / "none.pth")
        assert torch.equal(late(photos / "a.png", boxes=boxes).scores, pair(photos / "a.png", boxes=boxes).scores)
        with pytest.raises(UserError, match="holds no whole detector"):
            late(photos / "a.png")

    def test_wrong_use(self, sam, run, photos, pair):
        with pytest.raises(UserError, match="or name a detector"):
            sam_d2.Predictor(sam)(photos / "a.png")
        with pytest.raises(UserError, match="a detector takes the image itself"):
            pair(pair.encode(photos / "a.png"))
        with pytest.raises(UserError, match="is for SAM; this model is a detector itself"):
            sam_d2.Predictor(run, detector=run)
        with pytest.raises(UserError, match="takes prompts itself; name one that does not"):
            sam_d2.Predictor(sam, detector=sam)

    def test_the_demo_gives_the_same(self, pair, sam, run, photos, tmp_path, monkeypatch):
        line = ["--config-file", sam / "config.yaml", "--input", photos / "a.png", "--output", tmp_path]
        assert demo(monkeypatch, *line, "--detector", run, "--confidence", 0) == 0
        found = json.loads((tmp_path / "results.json").read_text())
        expected = pair(photos / "a.png")
        assert [row["score"] for row in found] == expected.scores.tolist()
        assert [row["category_id"] for row in found] == expected.pred_classes.tolist()

    def test_the_demo_gives_the_same_with_the_detectors_boxes_in_a_file(
        self, pair, sam, run, photos, tmp_path, monkeypatch
    ):
        line = ["--input", photos / "a.png", "--confidence", 0]
        assert demo(monkeypatch, "--config-file", run / "config.yaml", *line, "--output", tmp_path / "found") == 0
        boxes = ["--prompt-boxes", tmp_path / "found" / "results.json", "--output", tmp_path / "masks"]
        assert demo(monkeypatch, "--config-file", sam / "config.yaml", *line, *boxes) == 0
        found = json.loads((tmp_path / "masks" / "results.json").read_text())
        expected = pair(photos / "a.png")
        assert len(found) == len(expected) > 1
        assert [row["score"] for row in found] == pytest.approx(expected.scores.tolist(), rel=1e-4)
        assert [row["category_id"] for row in found] == expected.pred_classes.tolist()
