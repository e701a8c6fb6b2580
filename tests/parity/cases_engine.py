"""Cases of detectron2.engine and detectron2.evaluation: training with hooks, schedules, COCO metrics, results."""

import contextlib
import io
import itertools
import json
import os
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import torch
from answers import Approx, real_data
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from inputs import logged
from omegaconf import OmegaConf
from torch import nn

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import (
    HookBase,
    SimpleTrainer,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import WarmupParamScheduler
from detectron2.structures import Boxes, BoxMode, Instances

TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
names = (f"parity_engine_{number}" for number in itertools.count())


class Fit(nn.Module):
    """Least squares with two losses and a batch-norm layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, batch):
        x, y = batch
        out = self.layers(x)
        return {"loss_fit": (out - y).square().mean(), "loss_size": 0.1 * out.abs().mean()}


def batches(count):
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator)) for _ in range(count)]


class Calls(HookBase):
    def __init__(self, log):
        self.log = log

    def note(self, event):
        self.log.append(f"{event} {self.trainer.iter} {self.trainer.storage.iter}")

    def before_train(self):
        self.note("before_train")

    def after_train(self):
        self.note("after_train")

    def before_step(self):
        self.note("before_step")

    def after_backward(self):
        self.note("after_backward")

    def after_step(self):
        self.note("after_step")


def untimed(history):
    return {name: [list(entry) for entry in values] for name, values in history.items() if name not in TIMES}


def trained(folder, iterations=5, start=0, **kwargs):
    model, calls = Fit(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = SimpleTrainer(model, batches(iterations), optimizer, **kwargs)
    scores = iter([{"segm": {"AP": score, "AP-a": 1.0}} for score in (10.0, 30.0, 20.0, 40.0)])
    checkpointer = Checkpointer(model, str(folder), trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=MultiStepParamScheduler([1.0, 0.1, 0.01], 5, [2, 4])),
            hooks.PeriodicCheckpointer(checkpointer, 2),
            hooks.EvalHook(2, lambda: next(scores)),
            hooks.BestCheckpointer(2, checkpointer, "segm/AP"),
            hooks.PeriodicWriter(default_writers(str(folder), iterations), 2),
            None,
            Calls(calls),
        ]
    )
    trainer.train(start, iterations)
    return trainer, calls


def case_training_with_hooks():
    """Losses, rates and scores of every iteration; files; the order of the calls."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, calls = trained(folder)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]
        files = sorted(re.sub(r"tfevents.*", "tfevents", path.name) for path in Path(folder).iterdir())
        best = torch.load(Path(folder) / "model_best.pth", weights_only=False)
        histories = {name: history.values() for name, history in trainer.storage.histories().items()}
        written = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        return {
            "histories": {
                name: {"values": Approx([value for value, _ in entries]), "iterations": [i for _, i in entries]}
                for name, entries in untimed(histories).items()
            },
            "names": sorted(histories),
            "timed": [iteration for _, iteration in histories["time"]],
            "hints": dict(sorted(trainer.storage.smoothing_hints().items())),
            "keys_written": [sorted(line) for line in lines],
            "written": {str(i): {key: Approx(value) for key, value in line.items()} for i, line in enumerate(written)},
            "files": files,
            "last_checkpoint": (Path(folder) / "last_checkpoint").read_text(),
            "best": {"keys": sorted(best), "iteration": best["iteration"]},
            "trainer_state": sorted(best["trainer"]),
            "hook_states": {name: sorted(state) for name, state in best["trainer"]["hooks"].items()},
            "calls": calls,
            "weights": Approx(torch.cat([p.flatten() for p in trainer.model.parameters()]), rtol=1e-4, atol=1e-5),
        }


def case_training_options():
    """Each option gives the losses that it gives in Detectron2."""
    found = {}
    options = {
        "plain": {},
        "gather_every_2": {"gather_metric_period": 2},
        "zero_grad_first": {"zero_grad_before_forward": True},
    }
    for name, kwargs in options.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer, _ = trained(folder, **kwargs)
        entries = trainer.storage.history("total_loss").values()
        found[name] = {"values": Approx([v for v, _ in entries]), "iterations": [i for _, i in entries]}
    return found


def case_log_of_training():
    """The lines that scripts search logs for."""
    with tempfile.TemporaryDirectory() as folder, logged() as lines:
        trained(folder)
    found = [message for _, message in lines if re.match("Starting training|Overall|Total training", message)]
    return {"lines": [re.sub(r"\d+:\d\d:\d\d(\.\d+)?|\d+\.\d+", "T", message) for message in found]}


def case_failed_training():
    """A loss that is not finite: what has run by then."""
    calls, model = [], Fit()
    data = batches(3)
    data[1] = (data[1][0] * float("nan"), data[1][1])
    trainer = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1))
    evaluated = []
    trainer.register_hooks([Calls(calls), hooks.EvalHook(0, lambda: evaluated.append(1))])
    with contextlib.suppress(FloatingPointError):
        trainer.train(0, 3)
        calls.append("no error")
    return {"calls": calls, "evaluated": len(evaluated), "iter": trainer.iter}


class Idle(SimpleTrainer):
    def run_step(self):
        self.optimizer.step()


def case_lr_hook():
    """Rates that the hook stores, from the start and from the middle, and its state."""
    found = {}
    schedules = {
        "cosine": lambda: CosineParamScheduler(1.0, 0.01),
        "steps": lambda: MultiStepParamScheduler([1.0, 0.1, 0.01], milestones=[6, 8], num_updates=10),
        "warmup": lambda: WarmupParamScheduler(CosineParamScheduler(1.0, 0.0), 0.001, 0.3, "linear"),
    }
    for (name, make), start in itertools.product(schedules.items(), (0, 4)):
        many, one = [nn.Parameter(torch.ones(1)) for _ in range(2)], nn.Parameter(torch.ones(1))
        groups = [
            {"params": [one], "lr": 0.3, "initial_lr": 0.3},
            {"params": many, "lr": 0.2, "initial_lr": 0.2},
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        trainer = Idle(nn.Linear(1, 1), [], optimizer)
        hook = hooks.LRScheduler(optimizer, make())
        trainer.register_hooks([hook])
        trainer.train(start, 10)
        state = {key: hook.state_dict()[key] for key in ("last_epoch", "base_lrs")}
        rates = [rate for rate, _ in trainer.storage.history("lr").values()]
        found[f"{name} from {start}"] = {
            "lr": Approx(rates, rtol=1e-12, atol=0),
            "end": Approx([group["lr"] for group in optimizer.param_groups], rtol=1e-12, atol=1e-18),
            "state": state,
            "which": hooks.LRScheduler.get_best_param_group_id(optimizer),
        }
    return found


def case_precise_bn():
    model = Fit()
    hooks.PreciseBN(0, model, batches(4), 3).update_stats()
    norm = model.layers[1]
    return {"mean": Approx(norm.running_mean), "var": Approx(norm.running_var)}


def case_argument_parser():
    parser = default_argument_parser()
    line = ["--config-file", "c.py", "--num-gpus", "2", "--eval-only", "train.x=1", "a=b"]
    defaults, given = vars(parser.parse_args([])), vars(parser.parse_args(line))
    # The port follows from the user's number.
    port = 2**15 + 2**14 + os.getuid() % 2**14
    urls = {defaults.pop("dist_url"), given.pop("dist_url")}
    return {"defaults": defaults, "given": given, "url": urls == {f"tcp://127.0.0.1:{port}"}}


def case_setup():
    """Seed, saved config and log; cuDNN's switch."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = OmegaConf.create(
            {"train": {"output_dir": folder, "seed": 11, "cudnn_benchmark": True}, "model": {"a": 1}}
        )
        default_setup(cfg, default_argument_parser().parse_args([]))
        drawn = [float(np.random.rand()), torch.rand(1).item()]
        files = sorted(path.name for path in Path(folder).iterdir())
        config = OmegaConf.to_container(OmegaConf.load(Path(folder) / "config.yaml"))
    config["train"].pop("output_dir")
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    return {"drawn": drawn, "files": files, "config": config, "benchmark": benchmark}


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
        evaluator = COCOEvaluator(name, distributed=False, output_dir=folder, **kwargs)
        evaluator.reset()
        for item, output in predictions:
            evaluator.process([item], [output])
        results = evaluator.evaluate() if img_ids is None else evaluator.evaluate(img_ids=img_ids)
    printed = [line for line in out.getvalue().splitlines() if "Average" in line]
    return {"order": {task: list(metrics) for task, metrics in results.items()}, "results": results, "out": printed}


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
        "results": results,
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
