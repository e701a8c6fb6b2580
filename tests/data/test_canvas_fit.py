"""Instances on the canvas: sizes worked out by hand."""

import pytest

import sam_d2  # noqa: F401
from detectron2.structures import BoxMode
from sam_d2.data.canvas_fit import log_canvas_fit


def record(width, height, *boxes, mode=BoxMode.XYXY_ABS, **extra):
    annotations = [{"bbox": list(box), "bbox_mode": mode, **extra} for box in boxes]
    return {"width": width, "height": height, "annotations": annotations}


# 256 x 100 on a canvas of 128 is scaled by 0.5, 64 x 64 by 2
RECORDS = [
    record(256, 100, (0, 0, 40, 20), (0, 0, 6, 90)),  # short sides 20 and 6: 10 and 3 on the canvas
    record(64, 64, (1, 2, 9, 30)),  # 8: 16 on the canvas
]


def test_scales_and_the_median_short_side(caplog):
    with caplog.at_level("INFO"):
        log_canvas_fit(RECORDS, 128)
    assert "scaled by 1.25 (median; 0.5 to 2)" in caplog.text and "instance is 10 pixels across" in caplog.text
    assert "WARNING" not in caplog.text


def test_a_canvas_that_is_too_small_is_a_warning(caplog):
    """Half the canvas: 5, 1.5 and 8 pixels."""
    log_canvas_fit(RECORDS, 64)
    assert "narrower than 5 pixels on the canvas of 64" in caplog.text and "larger canvas" in caplog.text


def test_other_boxes_and_crowds(caplog):
    """XYWH 30 x 30 of an image at its own size; the crowd region of 2 pixels does not count."""
    boxes = [record(128, 128, (5, 5, 30, 30), mode=BoxMode.XYWH_ABS), record(128, 128, (0, 0, 2, 2), iscrowd=1)]
    with caplog.at_level("INFO"):
        log_canvas_fit(boxes, 128)
    assert "instance is 30 pixels" in caplog.text


@pytest.mark.parametrize("records", [[], [record(10, 10)], [{"width": 9, "height": 9}]])
def test_nothing_to_measure(records, caplog):
    with caplog.at_level("INFO"):
        log_canvas_fit(records, 128)
    assert not caplog.text
