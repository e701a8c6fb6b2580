"""The loop of model and evaluator over a dataset."""

import logging
import re
import time

import pytest
import torch
from torch import nn

import sam_d2  # noqa: F401
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from detectron2.evaluation import evaluator as public_module


@pytest.fixture(autouse=True)
def visible_log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO)


class Keep(DatasetEvaluator):
    """Remembers its calls and returns a fixed result."""

    def __init__(self, result=None):
        self.result = result
        self.calls = []

    def reset(self):
        self.calls.append("reset")

    def process(self, inputs, outputs):
        self.calls.append((inputs, outputs))

    def evaluate(self):
        self.calls.append("evaluate")
        return self.result


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.seen = []

    def forward(self, x):
        y = self.weight * x
        self.seen.append((self.training, y.requires_grad))
        return y.item()


def test_every_batch_is_processed_once():
    evaluator = Keep({"task": {"AP": 1.0}})
    assert inference_on_dataset(Model(), [1.0, 3.0], evaluator) == {"task": {"AP": 1.0}}
    assert evaluator.calls == ["reset", (1.0, 2.0), (3.0, 6.0), "evaluate"]


@pytest.mark.parametrize("training", [True, False])
def test_eval_mode_without_gradients_then_the_previous_mode(training):
    model = Model().train(training)
    inference_on_dataset(model, [1.0], None)
    assert model.seen == [(False, False)]
    assert model.training is training


def test_inference_context():
    model = Model().train()
    with inference_context(model):
        assert not model.training
    assert model.training


def test_a_plain_function_will_do():
    evaluator = Keep({"x": 1})
    assert inference_on_dataset(lambda batch: batch + 1, [1, 2], evaluator) == {"x": 1}
    assert evaluator.calls[1:3] == [(1, 2), (2, 3)]


def test_no_result_is_an_empty_dict():
    assert inference_on_dataset(Model(), [1.0], Keep(None)) == {}
    assert inference_on_dataset(Model(), [1.0], None) == {}


def test_no_batches():
    evaluator = Keep({"x": 1})
    assert inference_on_dataset(Model(), [], evaluator) == {"x": 1}
    assert evaluator.calls == ["reset", "evaluate"]


def test_a_list_of_evaluators_gives_one_dict():
    result = inference_on_dataset(Model(), [1.0], [Keep({"a": 1}), Keep(None), Keep({"b": 2})])
    assert result == {"a": 1, "b": 2}


def test_the_same_key_twice_is_refused():
    with pytest.raises(AssertionError, match="same key a"):
        DatasetEvaluators([Keep({"a": 1}), Keep({"a": 2})]).evaluate()


def test_callbacks():
    log = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: lambda name=name: log.append(name) for name in names}

    def model(batch):
        log.append("model")

    inference_on_dataset(model, [0, 1], None, callbacks=callbacks)
    step = ["before_inference", "model", "after_inference"]
    assert log == ["on_start", *step, *step, "on_end"]


def test_log(monkeypatch, caplog):
    # The line of progress comes at most every 5 seconds; an earlier test may have written it just now.
    real_time, real_counter = time.time, time.perf_counter
    monkeypatch.setattr(time, "time", lambda: real_time() + 3600)
    monkeypatch.setattr(time, "perf_counter", lambda: real_counter() + 3600)
    inference_on_dataset(Model(), [1.0] * 12, Keep({}))
    assert "Start inference on 12 batches" in caplog.text
    line = r" \(\d+\.\d{6} s / iter per device, on 1 devices\)"
    assert re.search(r"Total inference time: 0:00:00\.\d+" + line, caplog.text)
    assert re.search(r"Total inference pure compute time: 0:00:00" + line, caplog.text)
    # From twice the warm-up of 5 batches on.
    assert re.search(r"Inference done 11/12\. Dataloading: 0\.\d{4} s/iter\. Inference: 0\.\d{4}", caplog.text)


def test_base_class_does_nothing():
    evaluator = DatasetEvaluator()
    evaluator.reset()
    evaluator.process([], [])
    assert evaluator.evaluate() is None
    assert public_module.DatasetEvaluator is DatasetEvaluator
