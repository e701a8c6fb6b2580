"""tools/masks_from_boxes.py on a tiny SAM with random weights, in this process."""

import json
import re
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_fill_holes

import sam_d2
from sam_d2.data import inspect_dataset_file, load_dataset_file
from sam_d2.engine.weights import sha256_of
from sam_d2.labelling.labeller import BoxLabeller
from sam_d2.modeling.sam import PromptableSAM


def read(path):
    return json.loads(Path(path).read_text())


def test_masks_are_the_predictors_and_the_rest_stays(whole, boxes, tiny_sam, tmp_path):
    before, after = read(boxes), read(whole)
    assert list(after) == ["info", "licenses", "categories", "images", "annotations", "revision"]
    for key in ("licenses", "categories", "images", "revision"):
        assert after[key] == before[key]
    made = after["info"].pop("masks_from_boxes")
    assert after["info"] == before["info"]
    # two of the ten annotations have no box that SAM could be asked with
    kept = [annotation for annotation in before["annotations"] if annotation["id"] not in (5, 6)]
    assert [annotation["id"] for annotation in after["annotations"]] == [annotation["id"] for annotation in kept]
    assert made["annotations"] == {"all": 10, "made": 7, "kept": 0, "crowd": 1, "dropped": {"no_area": 1, "outside": 1}}
    assert made["images"] == {"all": 5, "not_read": 0, "not_read_first": []}
    predictor = sam_d2.Predictor(tiny_sam, device="cpu")
    sha256 = sha256_of(tiny_sam / "model_final.pth")
    for old, new in zip(kept, after["annotations"], strict=True):
        new = dict(new)
        if old.get("iscrowd"):
            assert new == old
            continue
        segmentation, area, provenance = (new.pop(key) for key in ("segmentation", "area", "provenance"))
        assert new == {"iscrowd": 0} | {key: value for key, value in old.items() if key not in ("segmentation", "area")}
        x, y, width, height = old["bbox"]
        image = next(image for image in before["images"] if image["id"] == old["image_id"])
        box = [x, y, min(x + width, image["width"]), min(y + height, image["height"])]
        expected = predictor(tmp_path / image["file_name"], boxes=[box])
        mask = expected.pred_masks[0].numpy()
        assert np.array_equal(mask_utils.decode(segmentation).astype(bool), mask)
        assert area == mask.sum() > 0
        assert list(provenance) == ["model", "checkpoint_sha256", "prompt", "score", "stability"]
        assert (provenance["model"], provenance["checkpoint_sha256"]) == ("tiny", sha256)
        assert provenance["prompt"] == "box"
        assert provenance["score"] == pytest.approx(float(expected.scores[0]), abs=6e-5)
        assert provenance["stability"] == pytest.approx(float(expected.stability[0]), abs=6e-5)
    made = [item["provenance"] for item in after["annotations"] if "provenance" in item]
    assert len({item["score"] for item in made}) == len({item["stability"] for item in made}) == len(made)
    assert not whole.with_name("whole.json.journal").exists()
    assert len(load_dataset_file(whole).dataset_dicts) == 5  # sound, and every mask is read


def test_the_order_of_keys_and_bytes_of_a_record(whole):
    line = next(line for line in whole.read_text().splitlines() if '"id":9,' in line or '"id": 9,' in line)
    record = json.loads(line.rstrip(","))
    assert list(record) == [
        "id",
        "image_id",
        "category_id",
        "bbox",
        "iscrowd",
        "note",
        "segmentation",
        "area",
        "provenance",
    ]
    assert '"bbox":[4.0, 5, 20, 30]' in line  # as it was written, not as it would be written


def test_pycocotools_evaluates_what_is_made(whole):
    """Of a file whose boxes said neither iscrowd nor area."""
    content = read(whole)
    for one in content["annotations"]:
        one["id"] += 1  # pycocotools takes an annotation 0 for none
    whole.write_text(json.dumps(content))
    truth = COCO(str(whole))
    found = [
        {key: one[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1.0}
        for one in content["annotations"]
        if not one.get("iscrowd")
    ]
    evaluation = COCOeval(truth, truth.loadRes(found), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_filters_drop_and_count(tool, boxes, whole, tmp_path):
    made = {item["id"]: item for item in read(whole)["annotations"] if "provenance" in item}
    areas = sorted(item["area"] for item in made.values())
    scores = sorted(item["provenance"]["score"] for item in made.values())
    output = tmp_path / "filtered.json"
    # Limits that masks have: those at a limit stay.
    limits = {"--min-area": areas[1], "--max-area": areas[-2], "--min-score": scores[1]}
    assert tool(boxes, output, *(str(word) for pair in limits.items() for word in pair)) == 0
    content = read(output)
    left = {
        id_ for id_, item in made.items()
        if areas[1] <= item["area"] <= areas[-2] and item["provenance"]["score"] >= scores[1]
    }  # fmt: skip
    assert {item["id"] for item in content["annotations"]} == left | {4}
    dropped = content["info"]["masks_from_boxes"]["annotations"]["dropped"]
    low = [item for item in made.values() if item["provenance"]["score"] < scores[1]]
    assert dropped["min_area"] == sum(area < areas[1] for area in areas)
    assert dropped["max_area"] == sum(area > areas[-2] for area in areas)
    assert dropped.get("min_score", 0) == sum(areas[1] <= item["area"] <= areas[-2] for item in low)
    assert sum(dropped.values()) == 10 - len(left) - 1
    assert content["info"]["masks_from_boxes"]["filters"] == {
        "min_score": scores[1], "min_area": areas[1], "max_area": areas[-2],
    }  # fmt: skip


def test_existing_masks_are_kept_where_asked(tool, boxes, tmp_path):
    output = tmp_path / "kept.json"
    assert tool(boxes, output, "--keep-existing") == 0
    before = next(item for item in read(boxes)["annotations"] if item["id"] == 7)
    after = read(output)
    assert next(item for item in after["annotations"] if item["id"] == 7) == before
    counts = after["info"]["masks_from_boxes"]["annotations"]
    assert (counts["made"], counts["kept"], counts["crowd"]) == (6, 1, 1)


def test_polygons(tool, boxes, whole, tmp_path):
    output = tmp_path / "polygons.json"
    assert tool(boxes, output, "--format", "polygons") == 0
    sizes = {image["id"]: (image["height"], image["width"]) for image in read(boxes)["images"]}
    rles = {item["id"]: item for item in read(whole)["annotations"]}
    for item in read(output)["annotations"]:
        if item.get("iscrowd"):
            continue
        drawn = mask_utils.decode(
            mask_utils.merge(mask_utils.frPyObjects(item["segmentation"], *sizes[item["image_id"]]))
        )
        assert np.array_equal(drawn, binary_fill_holes(mask_utils.decode(rles[item["id"]]["segmentation"])))
        assert item["area"] == drawn.sum()


def test_a_broken_image_is_left_out_and_done_when_it_is_mended(tool, boxes, whole, tmp_path, monkeypatch, capsys):
    good = (tmp_path / "40.png").read_bytes()
    (tmp_path / "40.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "50.png")
    output = tmp_path / "masks.json"
    assert tool(boxes, output) == 1
    printed = capsys.readouterr()
    assert "40.png: not a readable image" in printed.err
    assert "50.png (image id 50): the file has 8 x 8 pixels" in printed.err
    assert re.search(r"dropped: the image cannot be read +│ +4 │", printed.out)
    content = read(output)
    assert [image["id"] for image in content["images"]] == [30, 10, 20]
    assert {item["image_id"] for item in content["annotations"]} == {30, 10}
    made = content["info"]["masks_from_boxes"]
    assert made["images"] == {"all": 5, "not_read": 2, "not_read_first": ["40.png", "50.png"]}
    assert made["annotations"]["dropped"]["image_not_read"] == 4 and made["annotations"]["made"] == 3

    (tmp_path / "40.png").write_bytes(good)
    assert tool(boxes, output) == 1
    labelled, label = [], BoxLabeller.__call__
    monkeypatch.setattr(BoxLabeller, "__call__", lambda self, image: labelled.append(image.row) or label(self, image))
    rng = np.random.default_rng(5)
    pixels = [np.kron(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
              for width, height in ((64, 48), (40, 60), (64, 48), (40, 60), (64, 48))]  # fmt: skip
    Image.fromarray(pixels[4]).save(tmp_path / "50.png")
    assert tool(boxes, output) == 0
    assert labelled == [4]
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset none", "Dataset 'none' is not known. Known: "),
        ("--dataset {tmp}/none.json", "is not known"),
        ("--dataset {tmp}", "the layout of this folder is not known"),
        ("--split test", "--split test: the dataset .* has train"),
        ("--images {tmp}/none", "--images .*: no such folder"),
        ("--config-file {root}/configs/mask_rcnn_R_18_FPN.py --weights {tmp}/boxes.json", "its model takes no boxes"),
        (
            "--config-file {root}/configs/sam_tiny.py",
            "names no weights to begin with. Name a checkpoint: --weights=FILE",
        ),
        (
            "--config-file {root}/configs/sam_vit_h.py",
            "sam_vit_h_4b8939.pth is not found .*download_checkpoint.py sam_vit_h",
        ),
        ("--weights {tmp}/boxes.json", "boxes.json: not a checkpoint"),
        ("--score sureness", "sureness"),
        ("--output {tmp}", "is a folder; name the file"),
        ("--output {tmp}/boxes.json", "boxes.json: exists, and is of another command"),
        ("--min-score nan", "nan is not a finite number"),
        ("--min-stability 2", "--min-stability must be 0 to 1"),
        ("--min-area 3 --max-area 2", "--min-area is above --max-area"),
        ("--batch-size 0", "--batch-size must be at least 1"),
        ("--device tpu", "tpu"),
        ("model.imge_encoder.depth=3", "imge_encoder"),
    ],
)
def test_wrong_input(tool, boxes, tmp_path, root, monkeypatch, capsys, words, message):
    monkeypatch.setenv("SAM_D2_DATASETS", str(tmp_path / "manifest" / "datasets.json"))
    before = sorted(tmp_path.iterdir())
    assert tool(boxes, tmp_path / "out.json", *words.format(tmp=tmp_path, root=root).split()) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


def test_errors_of_the_dataset_leave_no_journal(tool, boxes, tmp_path, capsys):
    content = read(boxes)
    content["annotations"][0]["bbox"][0] = float("nan")
    boxes.write_text(json.dumps(content))
    assert tool(boxes, tmp_path / "masks.json") == 2
    assert "annotation 9, bbox: [nan, 5.0, 20.0, 30.0] has NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "masks.json.journal").exists()


def test_a_file_of_boxes_is_refused_elsewhere_with_the_way_out(boxes):
    content = read(boxes)
    for item in content["annotations"]:
        if not item.get("iscrowd"):
            item.pop("segmentation", None)
    boxes.write_text(json.dumps(content))
    (error,) = [finding for finding in inspect_dataset_file(boxes).findings if finding.severity == "error"]
    assert error.found == "none of the 9 annotations has one: the file holds boxes alone"
    assert f"python tools/masks_from_boxes.py --dataset {boxes} --config-file configs/sam_vit_h.py" in error.fix
    loose = inspect_dataset_file(boxes, require_masks=False)
    assert not [finding for finding in loose.findings if finding.severity == "error"]
    assert sum(len(record["annotations"]) for record in loose.dataset_dicts) == 10
    assert sum("segmentation" in item for record in loose.dataset_dicts for item in record["annotations"]) == 1


def test_a_file_in_detectron2s_form_becomes_cocos(tool, whole, boxes, tmp_path, capsys):
    content = read(boxes)
    records = []
    for image in content["images"]:
        record = {"file_name": image["file_name"], "height": image["height"], "width": image["width"]}
        mine = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        annotations = [
            {
                "bbox": item["bbox"],
                "bbox_mode": 1,
                "category_id": 0,
                "id": item["id"],
                "iscrowd": item.get("iscrowd", 0),
            }
            for item in mine
        ]
        records.append({**record, "image_id": image["id"], "annotations": annotations})
    file = tmp_path / "dicts.json"
    file.write_text(json.dumps(records))
    output = tmp_path / "masks.json"
    assert tool(file, output) == 0
    masks = {item["id"]: item.get("segmentation") for item in read(whole)["annotations"]}
    found = read(output)
    assert {item["id"]: item.get("segmentation") for item in found["annotations"]} == {**masks, 4: None}
    assert found["categories"] == [{"id": 0, "name": "class_0"}]
    records[0]["annotations"][0]["bbox"] = [1, 2]
    file.write_text(json.dumps(records))
    assert tool(file, tmp_path / "other.json") == 2
    assert "image 30, annotation 0, bbox" in capsys.readouterr().err


def test_scores_that_are_no_numbers_end_the_run(tool, boxes, tiny_sam, tmp_path, capsys):
    """Of damaged weights every image has them; a comparison with NaN is false, so that no filter would drop one."""
    damaged = tmp_path / "damaged.pth"
    content = torch.load(tiny_sam / "model_final.pth", weights_only=True)
    name = next(name for name in content["model"] if name.startswith("mask_decoder.iou_prediction_head"))
    content["model"][name].fill_(float("nan"))
    torch.save(content, damaged)
    output = tmp_path / "masks.json"
    assert tool(boxes, output, "--weights", damaged, "--min-score", 0.1) == 2
    error = capsys.readouterr().err
    assert f"error: {damaged}: the score of a mask is nan" in error and "Name others with --weights" in error
    assert not output.exists()


class TestOutOfMemory:
    """Errors as of a GPU, from the model's own call, in image 40 of three boxes; all images are of one batch."""

    @pytest.fixture
    def room(self, monkeypatch):
        """``room["masks"]``: for how many masks at once there is memory."""
        room, predict = {"masks": 0}, PromptableSAM.predict

        def limited(model, embedding, prompts, resized, sample, *rest, **options):
            if sample["image_id"] == 40 and len(prompts) > room["masks"]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return predict(model, embedding, prompts, resized, sample, *rest, **options)

        monkeypatch.setattr(PromptableSAM, "predict", limited)
        return room

    def test_an_image_is_done_again_mask_by_mask(self, tool, boxes, whole, tmp_path, room):
        room["masks"] = 1
        output = tmp_path / "masks.json"
        assert tool(boxes, output) == 0
        before, after = (read(file)["annotations"] for file in (whole, output))
        assert [one["id"] for one in after] == [one["id"] for one in before]
        for one, other in zip(before, after, strict=True):
            assert one["segmentation"] == other["segmentation"], one["id"]

    def test_one_that_is_too_large_even_so_is_left_out_alone(self, tool, boxes, whole, tmp_path, room, capsys):
        output = tmp_path / "masks.json"
        assert tool(boxes, output) == 1
        assert "40.png: the GPU's memory does not suffice for it, even mask by mask" in capsys.readouterr().err
        assert [image["id"] for image in read(output)["images"]] == [30, 10, 20, 50]
        room["masks"] = 3
        assert tool(boxes, output) == 0
        assert output.read_bytes() == whole.read_bytes()

    def test_other_errors_are_ours(self, tool, boxes, tmp_path, monkeypatch, capsys):
        def broken(*_, **__):
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(PromptableSAM, "predict", broken)
        assert tool(boxes, tmp_path / "masks.json") == 70
        assert capsys.readouterr().err.endswith("RuntimeError: shapes do not match\n")
