import logging

import msgspec
import pytest

from detectron2.utils.events import EventStorage
from sam_d2.evaluation import Result, log_results
from sam_d2.evaluation.short_training import short_training_hint, training_losses


def rows(model=0.0, ellipse=28.5, prompt="box"):
    return [
        Result(
            split="made_test", prompt=prompt, prompt_source="ground_truth", task="segm", method=method, max_dets=100,
            score="predicted_iou", pseudo_ground_truth=False, seconds=1.0, metrics={"AP": ap},
        )
        for method, ap in (("model", model), ("ellipse", ellipse))
    ]  # fmt: skip


def losses(*values, start=0):
    return [(value, start + step) for step, value in enumerate(values)]


def test_few_steps_say_nothing():
    hint = short_training_hint(rows(), losses(12.0, 11.0, 10.0))
    assert "after 3 steps AP is about 0" in hint and "so few say nothing yet" in hint
    assert "falls" not in hint


def test_weights_are_not_advised_to_who_has_them():
    assert "init_checkpoint" in short_training_hint(rows(), losses(3.0, 2.0))
    hint = short_training_hint(rows(), losses(3.0, 2.0), pretrained=True)
    assert "train.max_iter" in hint and "init_checkpoint" not in hint


@pytest.mark.parametrize(
    ("base", "score", "told"),
    [(35.2, "predicted_iou", True), (35.0, "predicted_iou", False), (90.0, "stability", False)],
)
def test_a_model_far_below_its_base_had_too_large_steps(base, score, told):
    # 30 + 5 is the limit; ranked by another score it is no comparison
    before = msgspec.structs.replace(rows()[0], method="base", score=score, metrics={"AP": base})
    hint = short_training_hint([*rows(model=30.0), before], losses(3.0, 2.0), pretrained=True)
    assert (hint is not None) == told
    if told:
        assert "after 2 steps AP fell from 35.2 (base) to 30.0" in hint
        assert "optimizer.lr" in hint and "max_iter" not in hint
    assert short_training_hint([*rows(model=30.0), before], []) is None  # not trained now


def test_a_falling_loss_asks_for_more_steps():
    # quarters of 20 steps: 8, 6, 5 and 4
    hint = short_training_hint(rows(), losses(*[8.0] * 20, *[6.0] * 20, *[5.0] * 20, *[4.0] * 20))
    assert "after 80 steps" in hint
    assert "total_loss still falls (5 to 4 from the third to the last quarter" in hint
    assert "train.max_iter" in hint


@pytest.mark.parametrize("last", [4.96, 5.2])  # not by 1 %, which is 4.95, and risen
def test_a_level_loss_does_not(last):
    hint = short_training_hint(rows(), losses(*[8.0] * 40, *[5.0] * 20, *[last] * 20, start=1000))
    assert "after 1080 steps" in hint
    assert "does not fall" in hint and "may not help" in hint and "train.max_iter" not in hint


@pytest.mark.parametrize(
    "results",
    [
        rows(model=1.0),  # it has learnt something
        rows(model=float("nan")),
        rows(ellipse=5.0),  # no baseline leads by more than 5
        rows()[:1],  # none stands beside it
        rows()[1:],  # before training
    ],
)
def test_no_hint(results):
    assert short_training_hint(results, losses(3.0, 2.0)) is None
    assert short_training_hint(rows(), []) is None
    assert short_training_hint(rows(), losses(3.0, 2.0, start=1000)) is None  # resumed: no trend to see yet


def test_the_log_has_it_once_and_within_a_training_alone(caplog):
    caplog.set_level(logging.INFO)
    both = rows() + rows(prompt="point")
    log_results(both)
    assert training_losses() == [] and "Hint" not in caplog.text
    with EventStorage(0) as storage:
        assert training_losses() == []
        storage.put_scalar("total_loss", 2.5)
        assert training_losses() == [(2.5, 0)]
        log_results(both)
    assert caplog.text.count("Hint: after 1 step AP") == 1
