import json
import logging
import math

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from sam_d2.errors import UserError
from sam_d2.evaluation import GroundTruth, InstanceEvaluator, encode_masks, evaluate_baselines

NAME = "made_for_evaluator"
SIZE = (40, 60)
BOXES = {"a": [(2, 2, 12, 12), (20, 20, 30, 30)], 2**40: [(5, 5, 25, 35)], 3: []}


def dataset():
    records = []
    for image_id, boxes in BOXES.items():
        annotations = [
            {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 1,
                "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
            }
            for x0, y0, x1, y1 in boxes
        ]
        records.append(
            {
                "image_id": image_id,
                "file_name": f"{image_id}.png",
                "height": SIZE[0],
                "width": SIZE[1],
                "annotations": annotations,
            }
        )
    return records


@pytest.fixture(autouse=True)
def registered():
    DatasetCatalog.register(NAME, dataset)
    MetadataCatalog.get(NAME).set(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={7: 0, 18: 1})
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def predict(inputs, narrower=0, prompted=True):
    """Each instance's own mask, ``narrower`` columns less, in reverse order."""
    outputs = []
    for record in inputs:
        boxes = BOXES[record["image_id"]][::-1]
        instances = Instances(SIZE)
        masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[y0:y1, x0 : x1 - narrower] = True
        instances.pred_masks = masks
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.linspace(0.9, 0.5, len(boxes))
        instances.pred_classes = torch.ones(len(boxes), dtype=torch.int64)
        if prompted:
            instances.prompt_index = torch.arange(len(boxes)).flip(0)
        outputs.append({"instances": instances})
    return outputs


def test_through_detectron2(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    evaluator = InstanceEvaluator(NAME, tmp_path / "inference")
    results = inference_on_dataset(predict, [[record] for record in dataset()], evaluator)
    print_csv_format(results)
    assert list(results) == ["segm", "prompt"]
    assert (results["segm"]["AP"], results["segm"]["AP-dog"], results["prompt"]["mIoU"]) == (100, 100, 1)
    assert math.isnan(results["segm"]["AP-cat"])
    assert "at most 100 detections" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    [row] = evaluator.results
    assert row.key == (NAME, "box", "ground_truth", "file", "model", "segm", "predicted_iou")
    assert (row.metrics["AP"], row.metrics["mIoU"], row.max_dets) == (100, 1, 100)
    assert row.seconds > 0
    assert (row.images, row.instances) == (3, 3)
    [baseline, _] = evaluate_baselines(evaluator.ground_truth)
    assert row.ground_truth == baseline.ground_truth == evaluator.ground_truth.digest
    assert (baseline.images, baseline.instances) == (3, 3)

    written = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert [(one["image_id"], one["category_id"]) for one in written] == [("a", 18), ("a", 18), (2**40, 18)]
    assert written[0]["bbox"] == [20, 20, 10, 10]
    assert written[0]["score"] == pytest.approx(0.9)
    mask = mask_utils.decode(written[0]["segmentation"])
    assert mask.shape == SIZE
    assert (mask.sum(), mask[20:30, 20:30].sum()) == (100, 100)


def test_second_round_starts_afresh():
    evaluator = InstanceEvaluator(NAME)
    batches = [[record] for record in dataset()]
    assert inference_on_dataset(predict, batches, evaluator)["prompt"]["mIoU"] == 1
    again = inference_on_dataset(lambda inputs: predict(inputs, narrower=5), batches, evaluator)
    # 5 of 10, 5 of 10 and 15 of 20 columns are left
    assert again["prompt"]["mIoU"] == pytest.approx((0.5 + 0.5 + 0.75) / 3)


def test_detector_prompts_have_box_ap_and_no_mean_iou():
    evaluator = InstanceEvaluator(NAME, prompt_source="detector", method="detector", engine="pycocotools")
    results = inference_on_dataset(
        lambda inputs: predict(inputs, prompted=False), [[record] for record in dataset()], evaluator
    )
    assert list(results) == ["segm", "bbox"]
    assert results["bbox"]["AP"] == 100
    assert [(row.task, "mIoU" in row.metrics) for row in evaluator.results] == [
        ("segm", False),
        ("bbox", False),
    ]


def test_boxes_have_a_limit_of_their_own():
    box = {"bbox": [1, 1, 4, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {**dataset()[0], "annotations": [box] * 101}  # none has a mask
    truth = GroundTruth.from_dataset_dicts([record], ["thing"])
    evaluator = InstanceEvaluator(NAME, prompt_source="detector", ground_truth=truth)
    evaluator.reset()
    evaluator.evaluate()
    rows = [(row.task, row.max_dets, row.instances) for row in evaluator.results]
    assert rows == [("segm", 100, 0), ("bbox", 101, 101)]


def test_images_left_out_count_as_missed_and_repeated_ones_once(caplog):
    evaluator = InstanceEvaluator(NAME)
    first = dataset()[0]
    results = inference_on_dataset(predict, [[first], [first]], evaluator)
    assert "only 1 of 3 images" in caplog.text
    assert results["segm"]["AR"] == pytest.approx(100 * 2 / 3)
    assert results["prompt"]["mIoU"] == pytest.approx(2 / 3)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="measure the prompts"):
        InstanceEvaluator(NAME, tasks=("segm", "bbox"))
    evaluator = InstanceEvaluator(NAME)
    evaluator.reset()
    record = dataset()[0]
    with pytest.raises(ValueError, match=r"'a'.*prompt_index"):
        evaluator.process([record], predict([record], prompted=False))
    with pytest.raises(ValueError, match=r"'a' are \(40, 60\).*\(80, 60\)"):
        evaluator.process([{**record, "height": 80}], predict([record]))


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_ranks_nothing(score):
    evaluator = InstanceEvaluator(NAME)
    evaluator.reset()
    record = dataset()[0]
    [output] = predict([record])
    output["instances"].scores[1] = score
    with pytest.raises(UserError, match=rf"{NAME}: .*'a'.*not finite"):
        evaluator.process([record], [output])


def test_run_lengths_are_taken_as_they_are():
    results = {}
    for coded in (False, True):
        evaluator = InstanceEvaluator(NAME)
        evaluator.reset()
        outputs = predict(dataset(), narrower=3)
        for output in outputs if coded else ():
            instances = output["instances"]
            instances.pred_masks_rle = encode_masks(instances.pred_masks)
            instances.remove("pred_masks")
        evaluator.process(dataset(), outputs)
        results[coded] = evaluator.evaluate()
    assert repr(results[True]) == repr(results[False]) and 0 < results[True]["prompt"]["mIoU"] < 1


@pytest.mark.parametrize("count", [0, 1, 70])
def test_encode_masks(count):
    masks = torch.rand(count, 7, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    rles = encode_masks(masks)
    assert len(rles) == count
    for rle, mask in zip(rles, masks, strict=True):
        np.testing.assert_array_equal(mask_utils.decode(rle), mask.numpy())


def evaluate_share(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    evaluator = InstanceEvaluator(NAME, folder)
    evaluator.reset()
    for record in dataset()[rank::2]:
        evaluator.process([record], predict([record], narrower=3))
    results = evaluator.evaluate()
    assert bool(results) == bool(evaluator.results) == comm.is_main_process()
    if results:
        (folder / "metrics.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path):
    # forked, because importing torch again would take longer than the whole test
    mp.start_processes(evaluate_share, args=(tmp_path,), nprocs=2, start_method="fork")
    alone = InstanceEvaluator(NAME, tmp_path / "alone")
    expected = inference_on_dataset(
        lambda inputs: predict(inputs, narrower=3), [[record] for record in dataset()], alone
    )
    np.testing.assert_equal(json.loads((tmp_path / "metrics.json").read_text()), json.loads(json.dumps(expected)))
    results = "coco_instances_results.json"
    assert json.loads((tmp_path / results).read_text()) == json.loads((tmp_path / "alone" / results).read_text())


def test_boxes_are_measured_in_double_precision(tmp_path):
    evaluator = InstanceEvaluator(NAME, tmp_path, prompt="none", prompt_source="detector", tasks=["bbox"])
    evaluator.reset()
    found = Instances(SIZE)
    left, right = np.float32(0.1), np.float32(59.3)
    found.pred_boxes = Boxes(torch.tensor([[left, 1.0, right, 30.0]]))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([1])
    evaluator.process([{"image_id": "a", "height": SIZE[0], "width": SIZE[1]}], [{"instances": found}])
    evaluator.evaluate()
    (row,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert row["bbox"][2] == float(right) - float(left) != float(right - left), "as numbers of 32 bits it is another"


SCORE_VALUES = {
    "class_score": (0.9, 0.8, 0.7),
    "predicted_iou": (0.2, 0.9, 0.6),
    "stability": (1.0, 0.5, 0.25),
    "mean_probability": (0.6, 0.6, 0.6),
}


def scored(inputs, wrong="a", **changes):
    """As ``predict``, with all scores; the mask of the first row of image ``wrong`` misses its instance."""
    outputs = predict(inputs)
    for record, output in zip(inputs, outputs, strict=True):
        found = output["instances"]
        if record["image_id"] == wrong:
            found.pred_masks[0] = found.pred_masks[0].roll(15, dims=1)
        place = 2 if record["image_id"] == 2**40 else 0
        for name, values in {**SCORE_VALUES, **changes}.items():
            if values is not None:
                found.set(name, torch.tensor(values[place : place + len(found)], dtype=torch.float64))
        found.scores = found.stability
    return outputs


def rows_of(evaluator, **changes):
    evaluator.score = "stability"
    results = inference_on_dataset(lambda inputs: scored(inputs, **changes), [[one] for one in dataset()], evaluator)
    assert results["segm"]["AP"] == evaluator.results[0].metrics["AP"]
    return {row.score: row for row in evaluator.results if row.task == "segm"}


@pytest.mark.parametrize("engine", ["faster_coco_eval", "pycocotools"])
def test_one_evaluation_ranks_the_same_masks_by_each_score(engine, tmp_path):
    evaluator = InstanceEvaluator(NAME, tmp_path, engine=engine)
    rows = rows_of(evaluator)
    assert list(rows) == ["stability", "class_score", "predicted_iou", "mean_probability"]
    assert [row.ranks for row in rows.values()] == [True, False, False, False]
    # Three masks, of which the first (of image "a") is wrong; two of three instances are found. Ranked F T T: precision
    # 1/2 and 2/3, so 2/3 up to recall 2/3 (67 of 101 recalls); T T F: 1; T F T: 1 up to recall 1/3 (34), then 2/3 (33).
    first, last, middle = 67 * 2 / 3, 67, 34 + 33 * 2 / 3
    aps = [100 * count / 101 for count in (first, first, last, first)]
    assert [row.metrics["AP"] for row in rows.values()] == pytest.approx(aps)
    assert [row.metrics["mIoU"] for row in rows.values()] == pytest.approx([2 / 3] * 4)
    assert [row.metrics["AR"] for row in rows.values()] == pytest.approx([200 / 3] * 4)
    # stability 1.0 of IoU 0, 0.5 and 0.25 of IoU 1, each in a bin of its own
    assert rows["stability"].metrics["ECE"] == pytest.approx((1.0 + 0.5 + 0.75) / 3)
    assert rows["mean_probability"].metrics["ECE"] == pytest.approx(abs(0.6 - 2 / 3))
    assert [(name, one.ece) for name, one in evaluator.reliability.items()] == [
        (name, row.metrics["ECE"]) for name, row in rows.items()
    ]
    # and each is what an evaluation that is ranked by that score alone would give
    asked = InstanceEvaluator(NAME, engine=engine, scores=["class_score^2*stability^0.5", "predicted_iou", "stability"])
    again = rows_of(asked)
    assert list(again) == ["stability", "class_score^2*stability^0.5", "predicted_iou"]
    # 0.81 * 1, 0.64 * 0.707 = 0.453, 0.49 * 0.5 = 0.245: F T T
    assert again["class_score^2*stability^0.5"].metrics["AP"] == pytest.approx(100 * first / 101)
    # 0.2 * 1, 0.9 * 0.5 = 0.45, 0.6 * 0.25 = 0.15: T F T
    product = rows_of(InstanceEvaluator(NAME, engine=engine, scores="predicted_iou*stability"))
    assert product["predicted_iou*stability"].metrics["AP"] == pytest.approx(100 * middle / 101)


def test_of_a_detectors_prompts_the_product_is_shown_too_and_boxes_have_one_row():
    evaluator = InstanceEvaluator(NAME, prompt_source="detector", prompt="detector")
    rows = rows_of(evaluator)
    assert list(rows) == ["stability", *list(SCORE_VALUES)[:2], "mean_probability", "class_score*predicted_iou"]
    assert [row.score for row in evaluator.results if row.task == "bbox"] == ["stability"]
    assert "ECE" not in next(row for row in evaluator.results if row.task == "bbox").metrics


def test_scores_that_the_model_does_not_give():
    only = dict.fromkeys(("class_score", "mean_probability"))
    assert list(rows_of(InstanceEvaluator(NAME), **only)) == ["stability", "predicted_iou"]
    with pytest.raises(UserError, match=r"scores: 'class_score\*stability' cannot rank .* gives them no class_score"):
        rows_of(InstanceEvaluator(NAME, scores=["class_score*stability"]), **only)
    with pytest.raises(UserError, match=r"dataloader\.evaluator\.scores='stability\^0': 'stability\^0' cannot be used"):
        InstanceEvaluator(NAME, scores=["stability^0"])
    plain = InstanceEvaluator(NAME, score="class_score")
    inference_on_dataset(predict, [[record] for record in dataset()], plain)
    assert [row.score for row in plain.results] == ["class_score"]
    # linspace gives image "a" 0.9 and 0.5, the other 0.9; every mask is right: (2 * 0.1 + 0.5) / 3
    assert plain.results[0].metrics["ECE"] == pytest.approx(0.7 / 3)


def test_a_factor_that_is_not_finite_is_refused_though_another_score_ranks():
    with pytest.raises(UserError, match="not finite"):
        rows_of(InstanceEvaluator(NAME), mean_probability=(0.5, math.nan, 0.5))
