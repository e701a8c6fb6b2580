"""The Predictor: the numbers of SamPredictor and of an evaluation, and clear words about bad input."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

import sam_d2
from detectron2.config import instantiate
from detectron2.structures import BoxMode
from sam_d2.config import apply_overrides, load_config, save_config
from sam_d2.data.mapper import PromptableMapper
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.errors import UserError
from sam_d2.evaluation import encode_masks
from sam_d2.modeling.postprocess import MaskCodes
from sam_d2.modeling.scoring import SCORES
from sam_d2.predictor import EncodedImage, Predictor

TOLERANCE = 1e-4
SIZE = (75, 100)  # height, width
CANVAS = 64
SMALL = [
    f"model.image_encoder.img_size={CANVAS}",
    "model.image_encoder.embed_dim=32",
    "model.image_encoder.depth=1",
    "model.image_encoder.num_heads=2",
    "model.image_encoder.out_chans=32",
    "model.mask_decoder.transformer.mlp_dim=32",
    "model.mask_decoder.transformer.num_heads=2",
    "model.mask_decoder.iou_head_hidden_dim=32",
    "model.score=predicted_iou",
    "model.instances_per_chunk=2",
]
BOXES = [[10, 12, 60, 50], [30.5, 5, 95, 70.25], [0, 0, 100, 75]]


@pytest.fixture(scope="module")
def cfg(root):
    return apply_overrides(load_config(root / "configs" / "sam_tiny.py"), SMALL)


@pytest.fixture(scope="module")
def weights(cfg, tmp_path_factory, with_random_weights):
    model = with_random_weights(lambda: instantiate(cfg.model), 100)
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def predictor(cfg, weights):
    return Predictor(cfg, weights, device="cpu")


@pytest.fixture(scope="module")
def image():
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(int)
    return (smooth + random.integers(-25, 26, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def encoded(predictor, image):
    return predictor.encode(image)


@pytest.fixture(scope="module")
def reference(predictor, image):
    """SamPredictor with the same modules: ``reference(**prompts)`` gives logits (M, H0, W0) and predicted IoU."""
    parts = predictor.model
    sam = SamPredictor(Sam(parts.image_encoder, parts.prompt_encoder, parts.mask_decoder))
    sam.set_image(image)

    def predict(multimask=False, **prompts):
        given = {name: np.asarray(value) for name, value in prompts.items()}
        logits, scores, _ = sam.predict(**given, multimask_output=multimask, return_logits=True)
        return logits, scores

    return predict


def expect_same(instances, rows):
    """Compare with (logits, score) of each row; pixels whose logit is 0 but for rounding may differ."""
    assert len(instances) == len(rows) and instances.image_size == SIZE
    for row, (logits, score) in enumerate(rows):
        mask = instances.pred_masks[row].numpy()
        assert 0.01 < (logits > 0).mean() < 0.99, "a trivial mask would prove nothing"
        assert (np.abs(logits[mask != (logits > 0)]) <= TOLERANCE).all()
        assert abs(instances.scores[row].item() - score) <= TOLERANCE
        ys, xs = np.nonzero(mask)
        expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert instances.pred_boxes.tensor[row].tolist() == expected


def test_weights_of_another_canvas(cfg, weights, image):
    other = apply_overrides(cfg.copy(), [f"model.image_encoder.img_size={CANVAS + 32}"])
    encoded = Predictor(other, weights, device="cpu").encode(image)
    # 75 x 100 pixels with the long side at 96: 72 x 96, and 96 / 8 = 12 tokens a side
    assert encoded.resized == (72, 96) and encoded.embedding.shape == (32, 12, 12)


def test_three_masks_that_were_never_trained(cfg, weights, image, tmp_path):
    model = instantiate(cfg.model)
    Checkpointer(model, str(tmp_path), save_to_disk=True).save("mine")
    predictor = Predictor(cfg, tmp_path / "mine.pth", device="cpu")
    assert len(predictor(image, boxes=BOXES)) == 3
    with pytest.raises(UserError, match=r"mine\.pth: the three masks of model\.multimask=true were never trained"):
        predictor(image, boxes=BOXES, multimask=True)


class TestSameNumbers:
    def test_boxes(self, predictor, image, reference):
        expected = [reference(box=box) for box in BOXES]
        instances = predictor(image, boxes=BOXES)
        expect_same(instances, [(logits[0], scores[0]) for logits, scores in expected])
        assert instances.prompt_index.tolist() == [0, 1, 2]
        assert set(instances.get_fields()) == {"pred_masks", "pred_boxes", "scores", "prompt_index", *SCORES}
        assert instances.pred_masks.dtype == torch.bool and instances.pred_masks.device.type == "cpu"

    def test_a_point_each(self, predictor, image, reference):
        points = [[20, 30], [99, 74], [0, 0]]
        expected = [reference(point_coords=[point], point_labels=[1]) for point in points]
        rows = [(logits[0], scores[0]) for logits, scores in expected]
        expect_same(predictor(image, points=points), rows)
        expect_same(predictor(image, points=[[point] for point in points], labels=[[1], [1], [1]]), rows)

    def test_points_with_labels(self, predictor, image, reference):
        points = [[[20, 30], [70, 60], [50, 20]], [[80, 10], [10, 60], [40, 40]]]
        labels = [[1, 0, 1], [1, 1, 0]]
        expected = [reference(point_coords=p, point_labels=signs) for p, signs in zip(points, labels, strict=True)]
        rows = [(logits[0], scores[0]) for logits, scores in expected]
        expect_same(predictor(image, points=points, labels=labels), rows)
        ones = [reference(point_coords=p, point_labels=[1, 1, 1]) for p in points]
        expect_same(predictor(image, points=points), [(logits[0], scores[0]) for logits, scores in ones])
        assert abs(ones[0][0] - expected[0][0]).max() > 0.01, "labels that change nothing would prove nothing"

    def test_boxes_and_points_are_one_prompt(self, predictor, image, reference):
        points = [[[20, 30]], [[40, 40]], [[50, 50]]]
        expected = [reference(box=box, point_coords=p, point_labels=[1]) for box, p in zip(BOXES, points, strict=True)]
        expect_same(predictor(image, boxes=BOXES, points=points), [(logits[0], s[0]) for logits, s in expected])

    def test_multimask(self, predictor, image, reference):
        expected = [reference(multimask=True, box=box) for box in BOXES]
        rows = [(logits[i], scores[i]) for logits, scores in expected for i in range(3)]
        instances = predictor(image, boxes=BOXES, multimask=True)
        expect_same(instances, rows)
        assert instances.prompt_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        single = predictor(image, boxes=BOXES)
        assert set(instances.get_fields()) == set(single.get_fields())

    @pytest.mark.parametrize(
        "given", [{"boxes": BOXES}, {"points": [[20, 30]]}, {"boxes": BOXES, "multimask": True}, {"boxes": []}]
    )
    def test_run_lengths_are_those_of_the_dense_masks(self, predictor, image, given, monkeypatch):
        dense = predictor(image, **given).get_fields()
        monkeypatch.setattr(MaskCodes, "dense", None)  # no mask of them is ever dense
        coded = predictor(image, **given, rle=True).get_fields()
        assert coded.pop("pred_masks_rle") == encode_masks(dense.pop("pred_masks"))
        assert torch.equal(coded.pop("pred_boxes").tensor, dense.pop("pred_boxes").tensor)
        assert coded.keys() == dense.keys() and all(torch.equal(coded[name], dense[name]) for name in dense)

    def test_the_evaluation(self, predictor, image, tmp_path):
        Image.fromarray(image).save(tmp_path / "a.png")
        annotations = [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "segmentation": [[box[0], box[1], box[2], box[1], box[2], box[3]]],
                "iscrowd": 0,
            }
            for box in BOXES
        ]
        record = {"file_name": str(tmp_path / "a.png"), "height": SIZE[0], "width": SIZE[1], "annotations": annotations}
        sample = PromptableMapper(is_train=False, image_size=CANVAS)(record)
        with torch.no_grad():
            expected = predictor.model([sample])[0]["instances"]
        found = predictor(tmp_path / "a.png", boxes=BOXES)
        for name, value in found.get_fields().items():
            other = expected.get(name)
            assert (value.tensor == other.tensor).all() if name == "pred_boxes" else torch.equal(value, other)

    def test_scores_are_those_of_the_config(self, cfg, weights, image, predictor):
        other = Predictor(apply_overrides(cfg.copy(), ["model.score=predicted_iou*stability"]), weights, device="cpu")
        for multimask in (False, True):
            plain = predictor(image, boxes=BOXES, multimask=multimask).scores
            weighted = other(image, boxes=BOXES, multimask=multimask).scores
            assert ((weighted / plain > 0.05) & (weighted / plain < 1)).all()


class TestImages:
    def test_every_form_is_the_same(self, predictor, image, tmp_path):
        Image.fromarray(image).save(tmp_path / "a.png")
        expected = predictor(image, boxes=BOXES)
        pillow = Image.fromarray(image)
        turned = pillow.transpose(Image.Transpose.ROTATE_90)
        turned.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
        for form in (str(tmp_path / "a.png"), tmp_path / "a.png", pillow, turned, predictor.encode(image)):
            found = predictor(form, boxes=BOXES)
            assert torch.equal(found.pred_masks, expected.pred_masks)
            assert torch.equal(found.scores, expected.scores)

    def test_an_encoded_image_is_not_encoded_again(self, predictor, image, monkeypatch):
        encoded = predictor.encode(image)
        assert (encoded.original, encoded.resized) == (SIZE, (48, 64))  # 64 / 100 * 75 = 48
        monkeypatch.setattr(predictor.model, "encode", None)
        first = predictor(encoded, boxes=BOXES)
        predictor(encoded, points=[[1, 1]])
        assert torch.equal(first.scores, predictor(encoded, boxes=BOXES).scores)

    def test_nothing_keeps_a_graph(self, predictor, image):
        assert not predictor.encode(image).embedding.requires_grad
        assert not predictor(image, boxes=BOXES, multimask=True).scores.requires_grad

    def test_a_model_of_the_other_channel_order(self, cfg, weights, predictor, image, tmp_path):
        other = Predictor(apply_overrides(cfg.copy(), ["model.input_format=BGR"]), weights, device="cpu")
        Image.fromarray(image).save(tmp_path / "a.png")
        expected = predictor(np.ascontiguousarray(image[:, :, ::-1]), boxes=BOXES)
        for form in (image, tmp_path / "a.png", Image.fromarray(image)):
            assert torch.equal(other(form, boxes=BOXES).scores, expected.scores)

    @pytest.mark.parametrize(
        "wrong, found",
        [
            (np.zeros((5, 5, 3)), r"float64 \(5, 5, 3\)"),
            (np.zeros((3, 5, 5), np.uint8), r"uint8 \(3, 5, 5\)"),
            (np.zeros((5, 5), np.uint8), r"uint8 \(5, 5\)"),
            (np.zeros((5, 5, 4), np.uint8), r"uint8 \(5, 5, 4\)"),
            (torch.zeros(3, 5, 5), "Tensor"),
            (None, "NoneType"),
        ],
    )
    def test_other_arrays(self, predictor, wrong, found):
        with pytest.raises(UserError, match=rf"^image: expected a file.*, found {found}\.$"):
            predictor(wrong, boxes=BOXES)

    def test_no_pixels(self, predictor):
        with pytest.raises(UserError, match="no pixels"):
            predictor(np.zeros((0, 5, 3), np.uint8), boxes=BOXES)

    def test_no_file(self, predictor, tmp_path):
        with pytest.raises(UserError, match=r"gone\.png: no such image file"):
            predictor(tmp_path / "gone.png", boxes=BOXES)

    @pytest.mark.parametrize("size", [(1, 300), (300, 1)])
    def test_too_thin_to_be_resized(self, predictor, size, tmp_path):
        with pytest.raises(UserError, match=r"image: .* too thin for a canvas of 64"):
            predictor(np.zeros((*size, 3), np.uint8), boxes=[[0, 0, 1, 1]])
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "thin.png")
        with pytest.raises(UserError, match=r"thin\.png: .* too thin for a canvas of 64"):
            predictor.encode(tmp_path / "thin.png")

    @pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (64, 64)])
    def test_extreme_sizes(self, predictor, size):
        height, width = size
        instances = predictor(np.zeros((*size, 3), np.uint8), boxes=[[0, 0, width, height]])
        assert instances.pred_masks.shape == (1, height, width)


class TestPrompts:
    @pytest.mark.parametrize("multimask", [False, True])
    @pytest.mark.parametrize(
        "none",
        [
            {"boxes": []},
            {"boxes": np.zeros((0, 4))},
            {"points": []},
            {"points": np.zeros((0, 2))},
            {"points": torch.zeros(0, 3, 2), "labels": torch.zeros(0, 3)},
            {"points": [], "labels": []},
            {"boxes": [], "points": []},
        ],
    )
    def test_none(self, predictor, encoded, none, multimask):
        instances = predictor(encoded, multimask=multimask, **none)
        assert len(instances) == 0 and instances.image_size == SIZE
        assert instances.pred_masks.shape == (0, *SIZE) and instances.pred_masks.dtype == torch.bool
        assert instances.pred_boxes.tensor.shape == (0, 4)
        assert len(instances.scores) == len(instances.prompt_index) == 0
        assert not instances.has("pred_classes")

    @pytest.mark.parametrize("make", [np.array, torch.tensor, tuple, lambda v: np.array(v, np.float32)])
    def test_kinds_of_arrays(self, predictor, encoded, make):
        assert torch.equal(predictor(encoded, boxes=make(BOXES)).scores, predictor(encoded, boxes=BOXES).scores)

    def test_no_area_and_beyond_the_border(self, predictor, encoded):
        instances = predictor(encoded, boxes=[[10, 10, 10, 10], [-20, -20, 50, 50], [90, 70, 300, 300]])
        assert len(instances) == 3 and instances.scores.isfinite().all()

    @pytest.mark.parametrize(
        "given, message",
        [
            ({}, r"give boxes=\.\.\. or points="),
            ({"labels": [1], "boxes": BOXES}, "labels are of points"),
            ({"boxes": [1, 2, 3, 4]}, r"boxes: expected \(N, 4\), found \(4,\); one box is \[\["),
            ({"boxes": [[1, 2, 3]]}, r"boxes: expected \(N, 4\), found \(1, 3\)"),
            ({"boxes": [[1, 2, 3, 4], [1, 2]]}, "boxes: not an array of numbers"),
            ({"boxes": "all"}, "boxes: not an array of numbers"),
            ({"boxes": [[1, 2, 3, 4], [1, 2, float("nan"), 4]]}, r"boxes\[1\] holds a value that is no finite number"),
            ({"boxes": [[1, 2, 3, float("inf")]]}, r"boxes\[0\] holds a value that is no finite number"),
            ({"boxes": [[1, 2, 3, 4], [50, 40, 20, 60]]}, r"boxes\[1\] = \[50\.0, 40\.0, 20\.0, 60\.0\] ends before"),
            ({"boxes": [[1, 2, 3, 1]]}, "ends before it begins: expected x0, y0, x1, y1"),
            ({"boxes": [[101, 2, 300, 9]]}, r"boxes\[0\] .* outside of the image of 100 x 75"),
            ({"boxes": [[2, 76, 30, 99]]}, "outside of the image"),
            ({"boxes": [[-9, 2, -1, 30]]}, "outside of the image"),
            ({"points": [1, 2]}, r"points: expected \(N, P, 2\) or \(N, 2\), found \(2,\)"),
            ({"points": [[1, 2, 3]]}, r"found \(1, 3\)"),
            ({"points": [[[[1, 2]]]]}, r"found \(1, 1, 1, 2\)"),
            ({"points": [[], []]}, r"found \(2, 0\)"),
            ({"points": np.zeros((2, 0, 2))}, r"found \(2, 0, 2\)"),
            ({"points": [[1, 2], [float("nan"), 2]]}, r"points\[1\] holds"),
            ({"points": [[[1, 2], [3, 4]], [[1, 2], [30, 90]]]}, r"points\[1\] = \[30\.0, 90\.0\] lies outside"),
            ({"points": [[101, 3]]}, r"points\[0\] .* outside of the image of 100 x 75"),
            ({"points": [[1, 2]], "labels": [[1]]}, r"labels: expected \(1,\).*found \(1, 1\)"),
            ({"points": [[1, 2]], "labels": [1, 1]}, r"labels: expected \(1,\).*found \(2,\)"),
            ({"points": [[1, 2]], "labels": []}, r"labels: expected \(1,\).*found \(0,\)"),
            ({"points": [[1, 2]], "labels": [2]}, r"labels: expected 1 "),
            ({"points": [[1, 2]], "labels": [0.5]}, r"labels: expected 1 "),
            ({"points": [[1, 2]], "boxes": BOXES}, "3 boxes, 1 rows"),
        ],
    )
    def test_bad_ones(self, predictor, encoded, given, message):
        with pytest.raises(UserError, match=message) as caught:
            predictor(encoded, **given)
        assert "\n" not in str(caught.value)

    def test_a_point_that_is_none_may_lie_anywhere(self, predictor, encoded):
        assert len(predictor(encoded, points=[[[5, 5], [-500, 900]]], labels=[[1, -1]])) == 1


class TestConstruction:
    def test_files_and_names(self, cfg, weights, tmp_path, image, predictor, monkeypatch):
        save_config(cfg, tmp_path / "config.yaml")
        monkeypatch.setenv("SAM_D2_CHECKPOINTS", str(weights.parent))
        expected = predictor(image, boxes=BOXES).scores
        for config, file in ((tmp_path / "config.yaml", weights), (str(tmp_path / "config.yaml"), "tiny.pth")):
            assert torch.equal(Predictor(config, file, device="cpu")(image, boxes=BOXES).scores, expected)
        named = apply_overrides(cfg.copy(), ["train.init_checkpoint=tiny.pth"])
        assert torch.equal(Predictor(named, device="cpu")(image, boxes=BOXES).scores, expected)

    def test_the_folder_of_a_run(self, cfg, weights, tmp_path, image, predictor):
        with pytest.raises(UserError, match=r"config\.yaml is missing, so this is not the folder of a run"):
            Predictor(tmp_path)
        save_config(cfg, tmp_path / "config.yaml")
        with pytest.raises(UserError, match=r"model_final\.pth is not found"):
            Predictor(tmp_path)
        (tmp_path / "model_final.pth").write_bytes(weights.read_bytes())
        found = sam_d2.Predictor(str(tmp_path), device="cpu")(image, boxes=BOXES)
        assert torch.equal(found.scores, predictor(image, boxes=BOXES).scores)

    def test_the_model_does_not_train(self, predictor):
        assert not any(module.training for module in predictor.model.modules())

    def test_no_weights(self, cfg):
        with pytest.raises(UserError, match="names no weights"):
            Predictor(cfg)

    def test_weights_that_do_not_fit(self, cfg, weights):
        with pytest.raises(UserError, match="does not fit the model"):
            Predictor(apply_overrides(cfg.copy(), ["model.image_encoder.depth=2"]), weights)

    def test_a_model_without_prompts_needs_weights(self, cfg):
        other = cfg.copy()
        del other.model["prompts"]
        with pytest.raises(UserError, match="names no weights"):
            Predictor(other)

    def test_an_unknown_device(self, cfg, weights):
        with pytest.raises(UserError, match="'abacus' cannot be used"):
            Predictor(cfg, weights, device="abacus")


def test_the_lines_of_the_readme_run(root, cfg, weights, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.+?)```", (root / "README.md").read_text(), re.DOTALL)
    run, picture = (Path(path) for path in re.findall(r'"([a-z]\S+?/\S+?)"', code))
    monkeypatch.chdir(tmp_path)
    run.mkdir(parents=True)
    save_config(cfg, run / "config.yaml")
    (run / "model_final.pth").write_bytes(weights.read_bytes())
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (137, 135)).save(picture)
    exec(code, {})
    assert "torch.Size([2, 135, 137])" in capsys.readouterr().out


def test_import_is_free_of_torch():
    code = "import sys, sam_d2; print('torch' in sys.modules, hasattr(sam_d2, 'nothing'))"
    environment = os.environ | {"SAM_D2_DETECTRON2": "embedded"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "False False\n", done.stderr
    assert sam_d2.Predictor is Predictor and EncodedImage.__module__ == "sam_d2.predictor"


def test_the_import_warns_of_nothing():
    code = "import sam_d2; sam_d2.Predictor"
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert "torch.jit.script" not in done.stderr
