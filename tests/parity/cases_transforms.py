"""Cases of detectron2.data.transforms: deterministic transforms on every kind of data."""

import numpy as np
from answers import Approx, depends_on
from inputs import BOXES, HEIGHT, POLYGON, WIDTH, blocks, noise

from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode


def everything(transform):
    """A transform applied to each kind of data."""
    points = np.array(POLYGON).reshape(-1, 2)
    return {
        "image": transform.apply_image(noise(HEIGHT, WIDTH, 3)),
        "grey": transform.apply_image(noise(HEIGHT, WIDTH, 1)),
        "float": transform.apply_image(noise(HEIGHT, WIDTH, 3).astype(np.float32) / 255),
        "mask": transform.apply_segmentation(blocks()),
        "boxes": transform.apply_box(BOXES.copy()),
        "integer_boxes": transform.apply_box(np.array([[3, 4, 20, 31]])),
        "coords": transform.apply_coords(points.copy()),
        "coords32": transform.apply_coords(points.astype(np.float32)),
        "polygons": transform.apply_polygons([points.copy(), points[:3] / 3])[1],
    }


def uint8_only(transform):
    points = np.array(POLYGON).reshape(-1, 2)
    return {
        "image": transform.apply_image(noise(HEIGHT, WIDTH, 3)),
        "grey": transform.apply_image(noise(HEIGHT, WIDTH, 1)),
        "flat": transform.apply_image(noise(HEIGHT, WIDTH)),
        "mask": transform.apply_segmentation(blocks()),
        "boxes": transform.apply_box(BOXES.copy()),
        "coords": transform.apply_coords(points),
    }


def case_resize():
    sizes = [(20, 31), (74, 106), (37, 53), (1, 1), (111, 20)]
    return {str(size): everything(T.ResizeTransform(HEIGHT, WIDTH, *size)) for size in sizes}


@depends_on("PIL")
def case_resize_filters():
    filters = {"nearest": 0, "bilinear": 2, "bicubic": 3}
    image, batch = noise(HEIGHT, WIDTH, 3), noise(HEIGHT, WIDTH, 2, 3).astype(np.float64)
    flipped = image.astype(np.float32)[:, ::-1]
    found = {}
    for name, interp in filters.items():
        resize = T.ResizeTransform(HEIGHT, WIDTH, 22, 71, interp)
        found[name] = [resize.apply_image(image), resize.apply_image(batch), resize.apply_image(flipped)]
    found["lanczos"] = T.ResizeTransform(HEIGHT, WIDTH, 22, 71, 1).apply_image(image)
    found["inverse"] = T.ResizeTransform(HEIGHT, WIDTH, 22, 71).inverse().apply_image(noise(22, 71, 3))
    return found


@depends_on("PIL")
def case_extent():
    rects = {
        (0.0, 0.0, 53.0, 37.0): (37, 53),
        (-10.5, 5.25, 40.0, 50.0): (30, 61),
        (20.0, 10.0, 30.0, 12.0): (8, 40),
    }
    return {str(rect): uint8_only(T.ExtentTransform(rect, size)) for rect, size in rects.items()}


@depends_on("cv2")
def case_rotation():
    found = {}
    for angle, expand, center in [
        (30, True, None),
        (-47.5, False, None),
        (90, True, None),
        (12, False, (3.0, 8.0)),
    ]:
        rotation = T.RotationTransform(HEIGHT, WIDTH, angle, expand, center)
        found[str((angle, expand, center))] = {
            "size": [int(rotation.bound_h), int(rotation.bound_w)],
            "image": Approx(rotation.apply_image(noise(HEIGHT, WIDTH, 3)), atol=2),
            "mask": Approx(rotation.apply_segmentation(blocks())),
            "boxes": Approx(rotation.apply_box(BOXES.copy())),
            "coords": Approx(rotation.apply_coords(np.array(POLYGON).reshape(-1, 2))),
            "coordinates": Approx(rotation.rm_coords),
            "pixels": Approx(rotation.rm_image),
        }
        if expand:
            there_and_back = T.TransformList([rotation, rotation.inverse()])
            found[f"{angle} inverse"] = Approx(there_and_back.apply_coords(BOXES[:, :2].copy()))
    found["full turn"] = T.RotationTransform(HEIGHT, WIDTH, 360).apply_image(noise(HEIGHT, WIDTH))
    return found


def case_colour():
    image = noise(HEIGHT, WIDTH, 3)
    invert = T.ColorTransform(lambda x: 255 - x)
    poster = T.PILColorTransform(lambda x: x.point(lambda v: v // 64 * 64))
    return {
        "array": everything(invert)["image"],
        "pil": poster.apply_image(image),
        "coords": invert.apply_coords(BOXES[:, :2].copy()),
        "mask": poster.apply_segmentation(blocks()),
        "inverse": type(invert.inverse()).__name__,
    }


def case_list_of_transforms():
    steps = T.TransformList(
        [
            T.HFlipTransform(WIDTH),
            T.ResizeTransform(HEIGHT, WIDTH, 74, 80),
            T.VFlipTransform(74),
            T.PadTransform(1, 2, 3, 4, 80, 74, pad_value=7, seg_pad_value=9),
        ]
    )
    return {**everything(steps), "back": steps.inverse().apply_coords(BOXES[:, :2].copy())}


def case_crop_polygons():
    crop = T.CropTransform(8, 5, 15, 12)
    annotation = {
        "bbox": [3, 4, 27.5, 29],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": [POLYGON, [40, 30, 50, 30, 45, 36]],
    }
    moved = utils.transform_instance_annotations(annotation, [crop], (12, 15))
    instances = utils.annotations_to_instances([{**moved, "category_id": 1}], (12, 15))
    return {
        "box": moved["bbox"],
        "polygons": moved["segmentation"],
        "tight": instances.gt_masks.get_bounding_boxes().tensor,
        "area": instances.gt_masks.area(),
    }
