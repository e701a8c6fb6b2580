"""How far hand-made detections lie from hand-made instances."""

import msgspec
import numpy as np
import pytest

from sam_d2.config import apply_overrides, load_config
from sam_d2.config_prompts import check_edge_errors
from sam_d2.data.edge_errors import EdgeErrors
from sam_d2.errors import UserError
from sam_d2.evaluation import GroundTruth, ImageDetections
from sam_d2.evaluation.detector_prompts import DetectorPrompts
from sam_d2.evaluation.edge_errors import edge_errors

SIZES = {1: (200, 200), 2: (200, 200)}


def annotated(number, image, category, x, y, width, height, crowd=0):
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    segmentation = [polygon] if not crowd else {"size": [200, 200], "counts": [0, 40000]}
    box = [x, y, width, height]
    row = {"id": number, "image_id": image, "category_id": category, "bbox": box}
    return {**row, "segmentation": segmentation, "iscrowd": crowd}


def truth_of(*annotations):
    return GroundTruth.from_coco(
        {
            "images": [{"id": one, "file_name": f"{one}.png", "height": 200, "width": 200} for one in SIZES],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
            "annotations": list(annotations),
        }
    )


def found(image_id, *rows):
    boxes, scores, classes = zip(*rows, strict=True)
    return ImageDetections(image_id, np.array(scores), np.array(classes), np.array(boxes, dtype=float), None)


def measured(truth, *images):
    return edge_errors(truth, DetectorPrompts(images, SIZES, source="detector").__getitem__, detector="d.pth")


TRUTH = (annotated(1, 1, 1, 20, 40, 100, 50), annotated(2, 2, 2, 100, 100, 20, 40), annotated(3, 2, 1, 0, 0, 20, 20))


def test_the_mean_of_two_detections():
    errors = measured(
        truth_of(*TRUTH),
        found(1, ([30, 35, 120, 95], 0.9, 0)),  # +10, -5, 0, +5 of 100 x 50
        found(2, ([98, 104, 120, 144], 0.8, 1)),  # -2, +4, 0, +4 of 20 x 40
    )
    assert errors.errors == [[0.1, -0.1, 0.0, 0.1], [-0.1, 0.1, 0.0, 0.1]]
    assert errors.mean == [0, 0, 0, 0.1] and errors.std == [0.1, 0.1, 0, 0]
    assert (errors.instances, errors.detector) == (3, "d.pth")


def test_class_overlap_and_the_surest_decide():
    errors = measured(
        truth_of(*TRUTH),
        found(
            1,
            ([20, 40, 120, 80], 0.5, 0),  # of the instance, but less sure than the next
            ([20, 40, 120, 85], 0.6, 0),  # bottom: -5 of 50
            ([20, 40, 120, 90], 0.9, 1),  # another class
            ([20, 40, 69, 90], 0.95, 0),  # IoU 0.49
        ),
    )
    assert errors.errors == [[0, 0, 0, -0.1]]


def test_a_detection_of_iou_one_half_counts():
    errors = measured(truth_of(*TRUTH), found(1, ([20, 40, 70, 90], 0.9, 0)))
    assert errors.errors == [[0, 0, -0.5, 0]]


@pytest.mark.parametrize(
    "annotations", [(), (annotated(1, 1, 1, 0, 0, 200, 200, crowd=1),), (annotated(1, 1, 2, 20, 40, 100, 50),)]
)
def test_no_detection_is_of_an_instance(annotations):
    with pytest.raises(UserError, match=r"none has a detection of its class with an IoU of at least 0\.5"):
        measured(truth_of(*annotations), found(1, ([20, 40, 120, 90], 0.9, 0)))


def test_against_the_boxes_of_the_masks():
    """The file's box is 10 wider than the mask on the right: a detection that fits the mask is off by -10 of 110."""
    loose = {**annotated(1, 1, 1, 20, 40, 100, 50), "bbox": [20, 40, 110, 50]}
    detections = found(1, ([20, 40, 120, 90], 0.9, 0))
    prompts = DetectorPrompts([detections], SIZES, source="detector").__getitem__
    against_file = edge_errors(truth_of(loose), prompts)
    against_mask = edge_errors(truth_of(loose), prompts, recompute_boxes=True)
    assert against_file.errors == [[0, 0, pytest.approx(-10 / 110, abs=1e-5), 0]] and against_file.boxes == "file"
    assert against_mask.errors == [[0, 0, 0, 0]] and against_mask.boxes == "mask"


@pytest.mark.parametrize("name", ["sam_tiny", "sam_tiny_256"])
def test_a_training_takes_errors_of_its_own_boxes_alone(root, tmp_path, name):
    cfg = apply_overrides(load_config(root / "configs" / f"{name}.py"), ["model.prompt=detector"])
    own = "mask" if name == "sam_tiny_256" else "file"  # recompute_boxes
    for boxes in ("file", "mask"):
        file = tmp_path / f"{boxes}.json"
        file.write_bytes(msgspec.json.encode(EdgeErrors(errors=[(0, 0, 0, 0)], boxes=boxes)))
        cfg.model.prompts.detector.train.errors = str(file)
        if boxes == own:
            check_edge_errors(cfg)
        else:
            with pytest.raises(UserError, match=rf"against the boxes of the {boxes}.* --boxes {own}"):
                check_edge_errors(cfg)
