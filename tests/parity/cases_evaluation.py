"""Cases of detectron2.evaluation: COCO metrics, results and the inference loop."""

import contextlib
import io
import itertools
import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import torch
from answers import Approx, real_data
from inputs import logged
from ranks import on_ranks
from torch import nn

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm

names = (f"parity_evaluation_{number}" for number in itertools.count())


def scene(images=12, classes=3, seed=0, encode=True):
    """Ground truth and predictions that are right, shifted, doubled, false or missing, at three sizes."""
    random = np.random.RandomState(seed)
    size = 220
    truth = {
        "info": {},
        "images": [
            {"id": 10 + image, "height": size, "width": size, "file_name": f"{image}.png"} for image in range(images)
        ],
        "categories": [{"id": 2 + 3 * k, "name": f"class{k}"} for k in range(classes)],
        "annotations": [],
    }
    predictions = []

    def ellipse(x, y, w, h):
        rows, columns = np.mgrid[:size, :size] + 0.5
        return ((columns - x - w / 2) / w) ** 2 + ((rows - y - h / 2) / h) ** 2 <= 0.25

    for image in range(images):
        boxes, masks, scores, labels = [], [], [], []

        def predict(x, y, w, h, label, to=(boxes, masks, scores, labels)):
            to[0].append([x, y, x + w, y + h])
            to[1].append(ellipse(x, y, w, h))
            to[2].append(round(float(random.rand()), 2))  # ties on purpose
            to[3].append(label)

        for number in range(random.randint(0, 9)):
            w, h = random.randint(8, 120, 2).tolist()
            x, y = random.randint(0, size - w), random.randint(0, size - h)
            label, crowd = random.randint(classes), int(number == 4)
            mask = ellipse(x, y, w, h)
            rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            polygon = [x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": 10 + image,
                    "category_id": 2 + 3 * int(label),
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(mask.sum()),
                    "iscrowd": crowd,
                    "segmentation": rle if crowd or number % 2 else [[float(v) for v in polygon]],
                }
            )
            for _ in range(random.randint(0, 3)):
                dx, dy = random.uniform(-0.12, 0.12, 2) * (w, h)
                predict(x + dx, y + dy, w * random.uniform(0.9, 1.1), h, int(label))
        for _ in range(random.randint(0, 3)):
            w, h = random.randint(8, 120, 2).tolist()
            predict(random.randint(0, size - w), random.randint(0, size - h), w, h, random.randint(classes))
        instances = Instances((size, size))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.tensor(scores, dtype=torch.float32)
        instances.pred_classes = torch.tensor(labels, dtype=torch.long)
        if encode:
            stacked = np.stack(masks) if masks else np.zeros((0, size, size), bool)
            instances.pred_masks = torch.from_numpy(stacked)
        predictions.append(({"image_id": 10 + image}, {"instances": instances}))
    return truth, predictions


def close(results):
    """The metrics to 12 digits: the order in which a mean is summed is numpy's affair."""
    return {
        task: {name: Approx(value, rtol=1e-12, atol=0) for name, value in metrics.items()}
        for task, metrics in results.items()
    }


def scored(truth, predictions, folder=None, img_ids=None, mapped=True, **kwargs):
    """Metrics, what pycocotools printed, and the files."""
    name = next(names)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()) as out:
        path = Path(scratch) / "truth.json"
        path.write_text(json.dumps(truth))
        MetadataCatalog.get(name).set(json_file=str(path))
        if mapped:
            categories = truth["categories"]
            MetadataCatalog.get(name).set(
                thing_classes=[category["name"] for category in categories],
                thing_dataset_id_to_contiguous_id={c["id"]: k for k, c in enumerate(categories)},
            )
        evaluator = COCOEvaluator(name, **{"distributed": False, **kwargs}, output_dir=folder)
        evaluator.reset()
        for item, output in predictions:
            evaluator.process([item], [output])
        results = evaluator.evaluate() if img_ids is None else evaluator.evaluate(img_ids=img_ids)
    printed = [line for line in out.getvalue().splitlines() if "Average" in line]
    return {
        "order": {task: list(metrics) for task, metrics in results.items()},
        "results": close(results),
        "out": printed,
    }


def case_coco_evaluator():
    truth, predictions = scene()
    with tempfile.TemporaryDirectory() as folder:
        found = scored(truth, predictions, folder)
        files = sorted(path.name for path in Path(folder).iterdir())
        results = json.loads((Path(folder) / "coco_instances_results.json").read_text())
    return {**found, "files": files, "first": results[:5], "count": len(results)}


def case_coco_evaluator_options():
    truth, predictions = scene(seed=1)
    boxes_only = scene(seed=1, encode=False)[1]
    images = [image["id"] for image in truth["images"]]
    return {
        "max_dets_1": scored(truth, predictions, max_dets_per_image=1),
        "max_dets_100": scored(truth, predictions, max_dets_per_image=100),
        "max_dets_200": scored(truth, predictions, max_dets_per_image=200),
        "slow": scored(truth, predictions, use_fast_impl=False),
        "boxes": scored(truth, boxes_only),
        "segm": scored(truth, predictions, tasks=("segm",)),
        "some": scored(truth, predictions, img_ids=images[:5]),
        "one_class": scored(*scene(classes=1, seed=2)),
        "few": scored(*scene(images=2, seed=4)),
    }


def case_coco_evaluator_crowd():
    """Crowd alone, crowd beside objects, crowd that is found several times or by a false class."""
    truth, predictions = scene(images=8, seed=5)
    everything = {**truth, "annotations": [{**item, "iscrowd": 1} for item in truth["annotations"]]}
    nothing = {**truth, "annotations": [{**item, "iscrowd": 0} for item in truth["annotations"]]}
    of_one_class = [{**item, "iscrowd": int(item["category_id"] == 2)} for item in truth["annotations"]]
    large = [{**item, "iscrowd": int(item["area"] > 32**2)} for item in truth["annotations"]]
    found = {
        "all": scored(everything, predictions),
        "none": scored(nothing, predictions),
        "one_class": scored({**truth, "annotations": of_one_class}, predictions),
        "large": scored({**truth, "annotations": large}, predictions),
    }
    for _, output in predictions:
        output["instances"].pred_classes[:] = 2
    return {**found, "false_class": scored(truth, predictions)}


def case_coco_evaluator_on_two_ranks():
    """Each process sees half of the images; the first has the results of all, the other none."""
    truth, predictions = scene(images=9, seed=7)

    def half():
        with tempfile.TemporaryDirectory() as folder:
            found = scored(truth, predictions[comm.get_rank() :: 2], folder, distributed=True)
            return {**found, "files": sorted(path.name for path in Path(folder).iterdir())}

    return {"ranks": on_ranks(half)}


def case_coco_evaluator_without_predictions():
    truth, predictions = scene(images=3, seed=1)
    empty = [(item, {"instances": output["instances"][torch.zeros(0, dtype=torch.long)]})
             for item, output in predictions]  # fmt: skip
    no_truth = {key: value for key, value in truth.items() if key != "annotations"}
    return {
        "empty": scored(truth, empty),
        "empty_both": scored(truth, empty, tasks=("bbox", "segm")),
        "none": scored(truth, []),
        "no_annotations": scored({**truth, "annotations": []}, predictions),
        "not_annotated": scored(no_truth, predictions),
    }


def case_coco_evaluator_converts():
    """A dataset that is no COCO file: the converted one, and the numbers with it."""
    truth, predictions = scene(images=6, seed=3)
    name = next(names)
    ids = {category["id"]: k for k, category in enumerate(truth["categories"])}

    def records():
        for image in truth["images"]:
            annotations = [
                {
                    "bbox": item["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": ids[item["category_id"]],
                    "iscrowd": item["iscrowd"],
                    "segmentation": item["segmentation"],
                }
                for item in truth["annotations"]
                if item["image_id"] == image["id"]
            ]
            yield {**image, "image_id": image["id"], "annotations": annotations}

    DatasetCatalog.register(name, lambda: list(records()))
    MetadataCatalog.get(name).thing_classes = [category["name"] for category in truth["categories"]]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOEvaluator(name, distributed=False, output_dir=folder)
        converted = json.loads((Path(folder) / f"{name}_coco_format.json").read_text())
        evaluator.reset()
        for item, output in predictions:
            evaluator.process([item], [output])
        results = evaluator.evaluate()
    fields = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    return {
        "results": close(results),
        "images": [{**image, "file_name": Path(image["file_name"]).name} for image in converted["images"]],
        "categories": converted["categories"],
        "annotations": [{field: item[field] for field in fields} for item in converted["annotations"]],
    }


def case_coco_published():
    """The COCO API's own fake results of 100 images, as masks."""
    folder = real_data() / "eval" / "cocoapi_val2014_100"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    ids = {category["id"]: k for k, category in enumerate(truth["categories"])}
    by_image = {}
    for result in json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text()):
        by_image.setdefault(result["image_id"], []).append(result)
    predictions = []
    for image_id, results in by_image.items():
        masks = torch.from_numpy(np.stack([mask_util.decode(r["segmentation"]) for r in results]) > 0)
        instances = Instances(masks.shape[1:])
        instances.pred_masks = masks
        rows, columns = masks.any(2), masks.any(1)
        edges = [[c.nonzero().min(), r.nonzero().min(), c.nonzero().max() + 1, r.nonzero().max() + 1]
                 for r, c in zip(rows, columns, strict=True)]  # fmt: skip
        instances.pred_boxes = Boxes(torch.tensor(edges, dtype=torch.float32))
        instances.scores = torch.tensor([r["score"] for r in results], dtype=torch.float64)
        instances.pred_classes = torch.tensor([ids[r["category_id"]] for r in results])
        predictions.append(({"image_id": image_id}, {"instances": instances}))
    return scored(truth, predictions)


def case_instances_to_coco_json():
    instances = scene(images=3, seed=6)[1][-1][1]["instances"]
    return {"results": instances_to_coco_json(instances, 5), "empty": instances_to_coco_json(instances[:0], 5)}


def case_results():
    results = {"bbox": {"AP": 12.345678, "AP50": float("nan"), "AP-cat": 1.0}, "segm": {"AP": 3.0}, "speed": 2}
    with logged() as lines:
        print_csv_format(results)
    verdicts = {}
    rows = {
        "right": [["bbox", "AP", 12.3, 0.1], ["segm", "AP", 3.0, 0.0]],
        "wrong": [["bbox", "AP", 12.3, 0.01]],
        "nan": [["bbox", "AP50", 1.0, 100.0]],
        "missing": [["bbox", "AR", 1.0, 100.0]],
        "nothing": [],
    }
    for name, expected in rows.items():
        try:
            verdicts[name] = verify_results(SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=expected)), results)
        except SystemExit as stop:
            verdicts[name] = f"exit {stop.code}"
    return {"flat": flatten_results_dict(results), "log": [message for _, message in lines], "verdicts": verdicts}


def case_inference_loop():
    """Order of the calls, mode and gradient, and the lines that scripts search logs for."""
    calls = []

    class Model(nn.Linear):
        def forward(self, x):
            calls.append(["model", self.training, torch.is_grad_enabled()])
            return x

    class Note:
        def reset(self):
            calls.append(["reset"])

        def process(self, inputs, outputs):
            calls.append(["process", inputs, outputs])

        def evaluate(self):
            calls.append(["evaluate"])

    model = Model(1, 1).train()
    events = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {event: lambda event=event: calls.append([event]) for event in events}
    with logged() as lines:
        result = inference_on_dataset(model, list(range(7)), Note(), callbacks)
    text = [re.sub(r"\d+:\d\d:\d\d(\.\d+)?|\d+\.\d+", "T", m) for _, m in lines if not m.startswith("Inference done")]
    return {"calls": calls, "result": result, "log": text, "training_after": model.training}
