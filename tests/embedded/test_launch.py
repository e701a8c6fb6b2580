"""Connected processes: how they start, and what the engine does in them. One launch serves all tests."""

import json
from datetime import timedelta

import pytest
import torch

import sam_d2  # noqa: F401
from detectron2.engine import DEFAULT_TIMEOUT, launch
from detectron2.engine.launch import launch as launch_of_the_module

# The processes import it by name, so it is a file of its own in a folder on sys.path.
WORKER = """
import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sam_d2
from detectron2.data import MetadataCatalog
from detectron2.engine import SimpleTrainer, create_ddp_model, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return {"loss_a": self.w * x, "loss_b": 0 * self.w}


class Fixed(DatasetEvaluator):
    def evaluate(self):
        return {"rank": comm.get_rank()}


def score(folder):
    MetadataCatalog.get("launch_test").set(json_file=str(folder / "truth.json"), thing_classes=["a"])
    evaluator = COCOEvaluator("launch_test", tasks=("bbox",))
    evaluator.reset()
    instances = Instances((50, 50))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 20.0, 20.0]]))
    instances.scores = torch.tensor([0.5])
    instances.pred_classes = torch.tensor([1])
    evaluator.process([{"image_id": comm.get_rank()}], [{"instances": instances}])
    return evaluator.evaluate()


def main(folder, extra):
    rank = comm.get_rank()
    torch.manual_seed(0)
    found = {
        "extra": extra,
        "ranks": comm.all_gather(rank),
        "local": [comm.get_local_rank(), comm.get_local_size()],
    }
    model = create_ddp_model(Scale(), device_ids=None, fp16_compression=False)
    found["ddp"] = isinstance(model, DistributedDataParallel)
    try:
        create_ddp_model(Scale())
        found["default_ddp"] = "works"
    except Exception as error:
        found["default_ddp"] = type(error).__name__
    # rank 0 sees 1, 1 and rank 1 sees 3, 3
    trainer = SimpleTrainer(model, [1.0 + 2 * rank] * 2, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([hooks.EvalHook(0, lambda: {"x": 1.0} if rank == 0 else None)])
    trainer.train(0, 2)
    found["w"] = model.module.w.item()
    found["metrics"] = {
        name: [value for value, _ in history.values()]
        for name, history in trainer.storage.histories().items()
        if "time" not in name
    }
    found["coco"] = score(Path(folder))
    found["evaluators"] = DatasetEvaluators([Fixed()]).evaluate()
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(found))
    comm.synchronize()
    if rank == 1:
        raise ValueError("made to fail")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    (folder / "launch_test_worker.py").write_text(WORKER)
    box = {"bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1}
    truth = {
        "info": {},
        "images": [{"id": image, "height": 50, "width": 50} for image in (0, 1)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1 + image, "image_id": image, **box} for image in (0, 1)],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder


@pytest.fixture(scope="module")
def outcome(folder):
    """What each of two processes wrote down, and the exception that the second one ended with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import launch_test_worker

        with pytest.raises(Exception) as error:
            launch(launch_test_worker.main, 2, dist_url="auto", args=(str(folder), "x"))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)], error.value


@pytest.fixture(scope="module")
def found(outcome):
    return outcome[0]


needs_gloo = pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA each process would need a GPU")


def test_one_process_is_called_in_place():
    seen = []
    launch(lambda *args: seen.append(args), 1, args=(1, "b"))
    assert seen == [(1, "b")]


def test_auto_url_is_for_one_machine():
    with pytest.raises(AssertionError, match="dist_url=auto"):
        launch(print, 1, num_machines=2, dist_url="auto")


def test_names():
    assert timedelta(minutes=30) == DEFAULT_TIMEOUT
    assert launch is launch_of_the_module


@needs_gloo
def test_processes_are_connected(found):
    for rank in (0, 1):
        assert found[rank]["ranks"] == [0, 1]
        assert found[rank]["local"] == [rank, 2]
        assert found[rank]["extra"] == "x"


@needs_gloo
def test_ddp(found):
    for rank in (0, 1):
        assert found[rank]["ddp"]
        # device_ids defaults to the local rank, which DistributedDataParallel refuses on a CPU.
        assert found[rank]["default_ddp"] == "ValueError"
        # The gradient is the mean of 1 and 3 in both steps: 1 - 0.1 * 2 - 0.1 * 2.
        assert found[rank]["w"] == pytest.approx(0.6)


@needs_gloo
def test_metrics_are_means_over_the_ranks_on_the_main_one(found):
    main, other = found[0]["metrics"], found[1]["metrics"]
    # step 0: w = 1, mean of 1 and 3; step 1: w = 0.8, mean of 0.8 and 2.4
    assert main["total_loss"] == pytest.approx([2.0, 1.6])
    assert main["loss_a"] == pytest.approx([2.0, 1.6])
    assert main["x"] == [1.0]
    assert other == {}


@needs_gloo
def test_predictions_of_all_ranks_are_scored_on_the_main_one(found):
    # Each rank predicts the box of its own image; one alone would have recall 1/2.
    assert found[0]["coco"]["bbox"]["AP"] == pytest.approx(100)
    assert found[1]["coco"] == {}
    assert [one["evaluators"] for one in found] == [{"rank": 0}, {}]


@needs_gloo
def test_an_exception_in_a_process_reaches_the_caller(outcome):
    assert "made to fail" in str(outcome[1])
    assert "launch_test_worker.py" in str(outcome[1])  # the traceback of the process
