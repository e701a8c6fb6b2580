"""COCO's AP, worked out by hand, and what the evaluator writes and refuses."""

import itertools
import json
import logging
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

import sam_d2  # noqa: F401
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, BoxMode, Instances

NAN = float("nan")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
names = (f"coco_evaluator_test_{number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def visible_log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO)


@pytest.fixture
def name():
    """A dataset name of this test alone, forgotten afterwards."""
    name = next(names)
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def annotation(box, image_id=1, category_id=3, **extra):
    """An annotation with a box (XYWH) and, unless told otherwise, the same as its polygon."""
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    fields = {"bbox": list(box), "area": w * h, "iscrowd": 0, "segmentation": [polygon], **extra}
    return {"image_id": image_id, "category_id": category_id, **fields}


def write(folder, annotations, images=(1,), classes=("a",)):
    """Write ground truth; the category ids 3, 5, 7, ... have gaps."""
    content = {
        "info": {},
        "images": [{"id": image, "height": 200, "width": 200, "file_name": f"{image}.png"} for image in images],
        "categories": [{"id": 3 + 2 * k, "name": class_name} for k, class_name in enumerate(classes)],
    }
    if annotations is not None:
        content["annotations"] = [{**item, "id": k} for k, item in enumerate(annotations, start=1)]
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def evaluator_of(name, path, classes=("a",), **kwargs):
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id={3 + 2 * k: k for k in range(len(classes))},
    )
    evaluator = COCOEvaluator(name, distributed=False, **kwargs)
    evaluator.reset()
    return evaluator


def box_mask(box):
    x, y, w, h = box
    mask = torch.zeros(200, 200, dtype=torch.bool)
    mask[y : y + h, x : x + w] = True
    return mask


def predict(evaluator, boxes, scores=None, classes=None, masks=None, image_id=1):
    """Hand in predictions of one image; boxes XYWH."""
    instances = Instances((200, 200))
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    instances.scores = torch.tensor([0.5] * len(boxes) if scores is None else scores)
    instances.pred_classes = torch.tensor([0] * len(boxes) if classes is None else classes, dtype=torch.long)
    if masks is not None:
        instances.pred_masks = masks
    evaluator.process([{"image_id": image_id}], [{"instances": instances}])


def check(results, **expected):
    for metric, value in expected.items():
        assert results[metric] == pytest.approx(value, abs=1e-9, nan_ok=True), metric


class TestAveragePrecision:
    def test_perfect(self, name, tmp_path):
        box = (10, 10, 20, 20)  # 400 pixels: small
        evaluator = evaluator_of(name, write(tmp_path, [annotation(box)]))
        predict(evaluator, [box], masks=box_mask(box)[None])
        results = evaluator.evaluate()
        assert list(results) == ["bbox", "segm"]
        for metrics in results.values():
            assert tuple(metrics) == METRICS  # one class: no AP per class
            check(metrics, AP=100, AP50=100, AP75=100, APs=100, APm=NAN, APl=NAN)

    def test_thresholds_of_overlap(self, name, tmp_path):
        evaluator = evaluator_of(name, write(tmp_path, [annotation((0, 0, 100, 100))]))
        predict(evaluator, [(0, 0, 100, 62)])
        # IoU 0.62 reaches 0.50, 0.55 and 0.60: 3 of 10 thresholds; 10,000 pixels are large
        check(evaluator.evaluate()["bbox"], AP=30, AP50=100, AP75=0, APs=NAN, APm=NAN, APl=30)

    def test_a_false_positive_between_two_hits(self, name, tmp_path):
        truth = [(0, 0, 20, 20), (50, 50, 20, 20)]
        evaluator = evaluator_of(name, write(tmp_path, [annotation(box) for box in truth]))
        predict(evaluator, [truth[0], (150, 150, 20, 20), truth[1]], scores=[0.9, 0.8, 0.7])
        # Precision 1 up to recall 1/2 (the 51 recall points 0.00 to 0.50), then 2/3 (the other 50).
        expected = 100 * (51 + 50 * 2 / 3) / 101
        check(evaluator.evaluate()["bbox"], AP=expected, AP50=expected, AP75=expected)

    def test_the_order_of_scores_and_not_of_predictions_counts(self, name, tmp_path):
        box = (0, 0, 20, 20)
        evaluator = evaluator_of(name, write(tmp_path, [annotation(box)]))
        predict(evaluator, [(100, 100, 20, 20), box], scores=[0.1, 0.9])
        check(evaluator.evaluate()["bbox"], AP=100)

    def test_a_second_hit_of_the_same_object_is_false(self, name, tmp_path):
        boxes = [(0, 0, 20, 20), (100, 100, 20, 20)]
        evaluator = evaluator_of(name, write(tmp_path, [annotation(box) for box in boxes]))
        predict(evaluator, [boxes[0], boxes[0], boxes[1]], scores=[0.9, 0.8, 0.7])
        check(evaluator.evaluate()["bbox"], AP=100 * (51 + 50 * 2 / 3) / 101)

    def test_two_classes(self, name, tmp_path):
        box = (0, 0, 20, 20)
        path = write(tmp_path, [annotation(box), annotation(box, category_id=5)], classes=("a", "b", "c"))
        evaluator = evaluator_of(name, path, classes=("a", "b", "c"))
        predict(evaluator, [box, (0, 0, 20, 12)], classes=[0, 1])
        # IoU of b: 12/20 = 0.6; whether 0.60 is reached is a matter of rounding, so only AP50 and AP75
        metrics = evaluator.evaluate()["bbox"]
        assert tuple(metrics) == (*METRICS, "AP-a", "AP-b", "AP-c")
        check(metrics, AP50=100, AP75=50, **{"AP-a": 100, "AP-c": NAN})
        assert metrics["AP"] == pytest.approx((metrics["AP-a"] + metrics["AP-b"]) / 2)

    def test_the_ap_of_a_class_is_over_all_sizes_and_detections(self, name, tmp_path):
        large, small = [(0, 0, 99, 99), (100, 100, 100, 100)], (0, 150, 10, 10)
        path = write(tmp_path, [annotation(box) for box in (*large, small)], classes="ab")
        evaluator = evaluator_of(name, path, classes="ab")
        predict(evaluator, large)
        # Two of three: recall ends at the 67 recall points 0.00 to 0.66. The small alone would have 0, the best
        # prediction alone 34 points.
        check(evaluator.evaluate()["bbox"], APs=0, **{"AP-a": 100 * 67 / 101})

    def test_wrong_class(self, name, tmp_path):
        box = (0, 0, 20, 20)
        evaluator = evaluator_of(name, write(tmp_path, [annotation(box)], classes="ab"), classes="ab")
        predict(evaluator, [box], classes=[1])
        check(evaluator.evaluate()["bbox"], AP=0, **{"AP-a": 0, "AP-b": NAN})

    def test_an_image_without_predictions_counts_its_misses(self, name, tmp_path):
        box = (0, 0, 20, 20)
        path = write(tmp_path, [annotation(box, image_id=image) for image in (1, 2)], images=(1, 2))
        evaluator = evaluator_of(name, path)
        predict(evaluator, [box], image_id=1)
        predict(evaluator, [], image_id=2)
        # Recall ends at 1/2: 51 of the 101 recall points.
        check(evaluator.evaluate()["bbox"], AP=100 * 51 / 101)

    def test_chosen_images(self, name, tmp_path):
        box = (0, 0, 20, 20)
        path = write(tmp_path, [annotation(box, image_id=image) for image in (1, 2)], images=(1, 2))
        for image, ap in ((1, 100), (2, 0)):
            evaluator = evaluator_of(name, path)
            predict(evaluator, [box], image_id=1)
            check(evaluator.evaluate(img_ids=[image])["bbox"], AP=ap)

    def test_a_crowd_takes_predictions_out(self, name, tmp_path):
        box, crowd = (0, 0, 20, 20), (50, 50, 100, 100)
        rle = mask_util.encode(np.asfortranarray(box_mask(crowd).numpy().astype(np.uint8)))
        rle["counts"] = rle["counts"].decode()
        expected = {1: 100.0, 0: 100 * (51 * 1 / 2) / 101}
        for iscrowd, ap in expected.items():
            region = annotation(crowd, iscrowd=iscrowd, segmentation=rle)
            evaluator = evaluator_of(name, write(tmp_path, [annotation(box), region]))
            inside = (60, 60, 20, 20)
            masks = torch.stack([box_mask(inside), box_mask(box)])
            # The one inside scores higher. As crowd it is ignored; otherwise it is false (precision 1/2) and
            # the region is missed (recall ends at 1/2).
            predict(evaluator, [inside, box], scores=[0.9, 0.8], masks=masks)
            for metrics in evaluator.evaluate().values():
                check(metrics, AP=ap)


class TestMasks:
    def test_rle_and_polygon_truth(self, name, tmp_path):
        box = (10, 10, 10, 10)
        rle = mask_util.encode(np.asfortranarray(box_mask(box).numpy().astype(np.uint8)))
        compressed = {**rle, "counts": rle["counts"].decode()}
        # Column by column: 10 empty columns of 200 and 10 empty rows, then nine times 10 rows full and 190
        # empty; 10 full once more, and empty are the 180 below them and 180 columns to the right.
        counts = [2010, *[10, 190] * 9, 10, 180 + 180 * 200]
        prediction = box_mask((10, 10, 8, 10)) | box_mask((18, 10, 1, 3))
        for truth in (compressed, {"size": [200, 200], "counts": counts}, annotation(box)["segmentation"]):
            evaluator = evaluator_of(name, write(tmp_path, [annotation(box, segmentation=truth)]))
            predict(evaluator, [box], masks=prediction[None])
            results = evaluator.evaluate()
            # 83 of 100 pixels: 0.50, 0.55, ..., 0.80 are 7 of 10 thresholds; the box is exact
            check(results["segm"], AP=70, AP50=100, AP75=100)
            check(results["bbox"], AP=100)

    def test_sizes_are_those_of_the_masks(self, name, tmp_path):
        box, frame = (0, 0, 10, 10), (100, 100, 50, 50)
        evaluator = evaluator_of(name, write(tmp_path, [annotation(box)]))
        corner = box_mask((100, 100, 50, 1)) | box_mask((100, 100, 1, 50))  # 99 pixels, its box 2,500
        predict(evaluator, [frame, box], scores=[0.9, 0.8], masks=torch.stack([corner, box_mask(box)]))
        results = evaluator.evaluate()
        # The false one is medium as a box, so that it does not count among the small; as a mask it does.
        check(results["bbox"], AP=50, APs=100)
        check(results["segm"], AP=50, APs=50)

    def test_only_the_tasks_asked_for(self, name, tmp_path):
        box = (0, 0, 20, 20)
        evaluator = evaluator_of(name, write(tmp_path, [annotation(box)]), tasks=("segm",))
        predict(evaluator, [(50, 50, 5, 5)], masks=box_mask(box)[None])
        results = evaluator.evaluate()
        assert list(results) == ["segm"]
        check(results["segm"], AP=100)

    def test_an_unknown_task(self, name, tmp_path):
        evaluator = evaluator_of(name, write(tmp_path, [annotation((0, 0, 9, 9))]), tasks=("depth",))
        predict(evaluator, [(0, 0, 9, 9)])
        with pytest.raises(AssertionError, match="unknown task: depth"):
            evaluator.evaluate()


class TestManyDetections:
    BOXES = tuple((12 * column, 12 * row, 10, 10) for row in range(10) for column in range(15))

    @pytest.mark.parametrize(
        ("limit", "points"),
        [(None, 67), (100, 67), (150, 101), (300, 101), (75, 51)],
    )
    def test_limit(self, name, tmp_path, limit, points):
        evaluator = evaluator_of(
            name, write(tmp_path, [annotation(box) for box in self.BOXES]), max_dets_per_image=limit
        )
        predict(evaluator, self.BOXES, scores=torch.linspace(1.0, 0.5, 150).tolist())
        # All are right, but of 150 only the limit counts: recall ends at 100/150, at the 67 recall points
        # 0.00 to 0.66; at 75/150 it is the 51 points up to 0.50.
        check(evaluator.evaluate()["bbox"], AP=100 * points / 101)

    def test_limit_of_less_than_ten(self, name, tmp_path):
        boxes = self.BOXES[:20]
        evaluator = evaluator_of(name, write(tmp_path, [annotation(box) for box in boxes]), max_dets_per_image=5)
        predict(evaluator, boxes)
        # The three limits (1, 10, 5) are sorted, and AP takes the largest: 10 of 20, recall 1/2.
        check(evaluator.evaluate()["bbox"], AP=100 * 51 / 101)

    def test_printed_summary(self, name, tmp_path, capsys):
        evaluator = evaluator_of(name, write(tmp_path, [annotation(box) for box in self.BOXES]), max_dets_per_image=150)
        predict(evaluator, self.BOXES)
        capsys.readouterr()
        evaluator.evaluate()
        lines = [line for line in capsys.readouterr().out.splitlines() if "Average" in line]
        ap, ar = " Average Precision  (AP) @[ IoU=", " Average Recall     (AR) @[ IoU="
        assert lines == [
            ap + "0.50:0.95 | area=   all | maxDets=150 ] = 1.000",
            ap + "0.50      | area=   all | maxDets=150 ] = 1.000",
            ap + "0.75      | area=   all | maxDets=150 ] = 1.000",
            ap + "0.50:0.95 | area= small | maxDets=150 ] = 1.000",
            ap + "0.50:0.95 | area=medium | maxDets=150 ] = -1.000",
            ap + "0.50:0.95 | area= large | maxDets=150 ] = -1.000",
            ar + "0.50:0.95 | area=   all | maxDets=  1 ] = 0.007",  # 1/150
            ar + "0.50:0.95 | area=   all | maxDets= 10 ] = 0.067",  # 10/150
            ar + "0.50:0.95 | area=   all | maxDets=150 ] = 1.000",
            ar + "0.50:0.95 | area= small | maxDets=150 ] = 1.000",
            ar + "0.50:0.95 | area=medium | maxDets=150 ] = -1.000",
            ar + "0.50:0.95 | area= large | maxDets=150 ] = -1.000",
        ]


class TestNothing:
    def test_no_instance_anywhere(self, name, tmp_path):
        evaluator = evaluator_of(name, write(tmp_path, [annotation((0, 0, 9, 9))], classes="ab"), classes="ab")
        predict(evaluator, [])
        results = evaluator.evaluate()
        assert list(results) == ["bbox"]
        assert list(results["bbox"]) == list(METRICS)
        assert all(math.isnan(value) for value in results["bbox"].values())

    def test_no_instance_and_both_tasks(self, name, tmp_path):
        evaluator = evaluator_of(name, write(tmp_path, [annotation((0, 0, 9, 9))]), tasks=("segm", "bbox"))
        predict(evaluator, [])
        assert list(evaluator.evaluate()) == ["bbox", "segm"]

    def test_no_image_processed(self, name, tmp_path, caplog):
        evaluator = evaluator_of(name, write(tmp_path, [annotation((0, 0, 9, 9))]))
        assert evaluator.evaluate() == {}
        assert "Did not receive valid predictions" in caplog.text

    def test_no_images_in_the_dataset(self, name, tmp_path):
        evaluator = evaluator_of(name, write(tmp_path, [], images=()))
        assert evaluator.evaluate() == {}

    def test_no_annotation_in_the_dataset(self, name, tmp_path):
        evaluator = evaluator_of(name, write(tmp_path, []))
        predict(evaluator, [(0, 0, 9, 9)])
        assert all(math.isnan(value) for value in evaluator.evaluate()["bbox"].values())

    def test_a_test_server_dataset_is_written_and_not_scored(self, name, tmp_path):
        evaluator = evaluator_of(name, write(tmp_path, None), output_dir=str(tmp_path / "out"))
        predict(evaluator, [(0, 0, 9, 9)])
        assert evaluator.evaluate() == {}
        assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 1

    def test_reset(self, name, tmp_path):
        evaluator = evaluator_of(name, write(tmp_path, [annotation((0, 0, 9, 9))]))
        predict(evaluator, [(0, 0, 9, 9)])
        evaluator.reset()
        assert evaluator.evaluate() == {}


def test_files(name, tmp_path):
    box = (10, 20, 30, 40)
    out = tmp_path / "new" / "inference"
    path = write(tmp_path, [annotation(box, category_id=5)], classes="ab")
    evaluator = evaluator_of(name, path, classes="ab", output_dir=str(out))
    predict(evaluator, [box], scores=[0.25], classes=[1], masks=box_mask(box)[None])
    evaluator.evaluate()
    (result,) = json.loads((out / "coco_instances_results.json").read_text())
    assert result.pop("segmentation")["size"] == [200, 200]
    # the class id of the file
    assert result == {"image_id": 1, "category_id": 5, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.25}
    (saved,) = torch.load(out / "instances_predictions.pth")
    assert saved["image_id"] == 1
    assert saved["instances"][0]["category_id"] == 1  # contiguous, as the model gave it


def test_a_class_that_the_dataset_lacks(name, tmp_path):
    evaluator = evaluator_of(name, write(tmp_path, [annotation((0, 0, 9, 9))]))
    predict(evaluator, [(0, 0, 9, 9)], classes=[4])
    with pytest.raises(AssertionError, match="class=4"):
        evaluator.evaluate()


def test_a_prediction_of_an_unknown_image(name, tmp_path):
    evaluator = evaluator_of(name, write(tmp_path, [annotation((0, 0, 9, 9))]))
    predict(evaluator, [(0, 0, 9, 9)], image_id=77)
    with pytest.raises(AssertionError):
        evaluator.evaluate()


def test_without_a_class_mapping_ids_stay(name, tmp_path):
    MetadataCatalog.get(name).json_file = str(write(tmp_path, [annotation((0, 0, 9, 9))]))
    evaluator = COCOEvaluator(name, distributed=False, use_fast_impl=False)
    evaluator.reset()
    predict(evaluator, [(0, 0, 9, 9)], classes=[3])
    check(evaluator.evaluate()["bbox"], AP=100)


class TestConversion:
    """Datasets that are no COCO file are converted once."""

    @pytest.fixture
    def registered(self, name):
        box = {"bbox": [0, 0, 20, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        polygon = {"segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]}
        record = {"file_name": "1.png", "height": 200, "width": 200, "image_id": 1}
        DatasetCatalog.register(name, lambda: [{**record, "annotations": [{**box, **polygon}]}])
        MetadataCatalog.get(name).thing_classes = ["a"]
        return name

    def test_needs_a_place(self, registered):
        with pytest.raises(ValueError, match="output_dir must be provided"):
            COCOEvaluator(registered)

    def test_converts_once(self, registered, tmp_path):
        evaluator = COCOEvaluator(registered, distributed=False, output_dir=str(tmp_path))
        cache = tmp_path / f"{registered}_coco_format.json"
        assert MetadataCatalog.get(registered).json_file == str(cache)
        evaluator.reset()
        predict(evaluator, [(0, 0, 20, 20)], masks=box_mask((0, 0, 20, 20))[None])
        for metrics in evaluator.evaluate().values():
            check(metrics, AP=100)
        COCOEvaluator(registered, distributed=False)  # now there is a json_file

    @pytest.mark.parametrize(("cached", "ap"), [(True, 0.0), (False, 100.0)])
    def test_an_older_file(self, registered, tmp_path, cached, ap):
        older = write(tmp_path, [annotation((100, 100, 20, 20), category_id=3)])
        text = older.read_text().replace('"category_id": 3', '"category_id": 0').replace('"id": 3', '"id": 0')
        (tmp_path / f"{registered}_coco_format.json").write_text(text)
        evaluator = COCOEvaluator(registered, distributed=False, output_dir=str(tmp_path), allow_cached_coco=cached)
        evaluator.reset()
        predict(evaluator, [(0, 0, 20, 20)])
        check(evaluator.evaluate()["bbox"], AP=ap)


class TestInstancesToJson:
    def test_fields(self):
        instances = Instances((4, 5))
        instances.pred_boxes = Boxes(torch.tensor([[1.0, 1.0, 3.0, 4.0], [0.0, 0.0, 5.0, 4.0]]))
        instances.scores = torch.tensor([0.5, 0.25])
        instances.pred_classes = torch.tensor([2, 0])
        assert instances_to_coco_json(instances, 9) == [
            {"image_id": 9, "category_id": 2, "bbox": [1.0, 1.0, 2.0, 3.0], "score": 0.5},
            {"image_id": 9, "category_id": 0, "bbox": [0.0, 0.0, 5.0, 4.0], "score": 0.25},
        ]
        instances.pred_masks = torch.zeros(2, 4, 5, dtype=torch.bool)
        instances.pred_masks[0, 1:4, 1:3] = True
        results = instances_to_coco_json(instances, 9)
        json.dumps(results)
        decoded = np.stack([mask_util.decode(result["segmentation"]) for result in results])
        assert np.array_equal(decoded, instances.pred_masks.numpy())

    def test_empty(self):
        instances = Instances((4, 5))
        instances.pred_boxes = Boxes(torch.zeros(0, 4))
        assert instances_to_coco_json(instances, 9) == []


class ExactBoxes:
    """Boxes in float64: rounded to float32, as Boxes are, some overlaps miss a threshold (AP 50.41)."""

    def __init__(self, xywh):
        self.tensor = torch.tensor(xywh, dtype=torch.float64)
        self.tensor[:, 2:] += self.tensor[:, :2]

    def __len__(self):
        return len(self.tensor)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_published_numbers_of_the_coco_api(real_data, name, task, capsys):
    folder = real_data / "eval" / "cocoapi_val2014_100"
    truth = folder / "instances_val2014_100.json"
    expected = json.loads((folder / "expected.json").read_text())
    categories = json.loads(truth.read_text())["categories"]
    to_contiguous = {category["id"]: k for k, category in enumerate(categories)}
    MetadataCatalog.get(name).set(json_file=str(truth), thing_dataset_id_to_contiguous_id=to_contiguous)
    evaluator = COCOEvaluator(name, tasks=(task,), distributed=False)
    evaluator.reset()

    by_image = {}
    for result in json.loads((folder / f"instances_val2014_fake{task}100_results.json").read_text()):
        by_image.setdefault(result["image_id"], []).append(result)
    for image_id, results in by_image.items():
        instances = Instances((1, 1))
        instances.pred_boxes = ExactBoxes([result.get("bbox", [0, 0, 1, 1]) for result in results])
        instances.scores = torch.tensor([result["score"] for result in results], dtype=torch.float64)
        instances.pred_classes = torch.tensor([to_contiguous[result["category_id"]] for result in results])
        if task == "segm":
            masks = [mask_util.decode(result["segmentation"]).astype(bool) for result in results]
            instances.pred_masks = torch.from_numpy(np.stack(masks))
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])

    capsys.readouterr()
    metrics = evaluator.evaluate()[task]
    full = expected["published_full_by_faster_coco_eval"][task]
    assert [metrics[metric] for metric in METRICS] == pytest.approx([100 * value for value in full[:6]], abs=1e-9)
    # AR is only printed.
    printed = [float(line.split("=")[-1]) for line in capsys.readouterr().out.splitlines() if "Average" in line]
    assert printed == expected["published_3_decimals_by_cocoapi"][task]
