"""Cases of detectron2.data.detection_utils: annotations moved with their image, collected and filtered."""

import copy
import itertools

import numpy as np
import pycocotools.mask as mask_util
import torch
from answers import Approx, depends_on
from inputs import BOXES, HEIGHT, POLYGON, WIDTH, blocks, noise, raised, text

from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

TRANSFORMS = {
    "smaller": T.ResizeTransform(HEIGHT, WIDTH, 20, 31),
    "larger": T.ResizeTransform(HEIGHT, WIDTH, 111, 80),
    "one_pixel": T.ResizeTransform(HEIGHT, WIDTH, 1, 1),
    "mirrored": T.HFlipTransform(WIDTH),
    "upside_down": T.VFlipTransform(HEIGHT),
    "cut": T.CropTransform(8, 5, 15, 12),
    "cut_at_edge": T.CropTransform(30, 20, 23, 17),
    "padded": T.PadTransform(3, 1, 4, 2, WIDTH, HEIGHT, seg_pad_value=1),
    "several": T.TransformList(
        [T.HFlipTransform(WIDTH), T.ResizeTransform(HEIGHT, WIDTH, 50, 70), T.CropTransform(10, 10, 40, 30)]
    ),
}
ROTATIONS = {
    "30": T.RotationTransform(HEIGHT, WIDTH, 30),
    "-47.5 cut": T.RotationTransform(HEIGHT, WIDTH, -47.5, expand=False),
    "90": T.RotationTransform(HEIGHT, WIDTH, 90),
    "12 about a point": T.RotationTransform(HEIGHT, WIDTH, 12, expand=False, center=(3.0, 8.0)),
}


def polygons_of_all_kinds():
    """Instances: stars, whose arms a crop severs, hulls, crossing lines, parts outside, and what has no area."""
    random = np.random.RandomState(21)
    found = [
        [POLYGON],
        [POLYGON, [40.0, 30, 50, 30, 45, 36]],
        [[0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]],
        [[8, 5, 23, 5, 23, 17, 8, 17]],  # the crop of TRANSFORMS itself
        [[10.0, 10, 30, 30, 30, 10, 10, 30]],  # a bow tie
        [[5.0, 5, 5, 5, 5, 5]],
        [[5.0, 5, 20, 20, 5, 5]],
        [[-30.0, -20, -10, -20, -12, -5]],
        [[-30.0, -30, 90, -30, 90, 90, -30, 90]],
    ]
    for corners in (5, 9, 16, 33) * 5:
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        radii = random.uniform(3, 30, corners)
        center = random.uniform(0, (WIDTH, HEIGHT))
        star = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        found.append([star.round(2).reshape(-1).tolist()])
    return found


def annotation(segmentation, box=(3, 4, 27.5, 29), mode=BoxMode.XYWH_ABS):
    return {"bbox": list(box), "bbox_mode": mode, "category_id": 1, "segmentation": segmentation}


def size_after(transform):
    return transform.apply_image(noise(HEIGHT, WIDTH, 3)).shape[:2]


def moved(segmentation, transform, **options):
    return utils.transform_instance_annotations(
        copy.deepcopy(annotation(segmentation, **options)), transform, size_after(transform)
    )


def collected(annotations, size):
    """Facts of the instances as polygons and as masks, before and after empty ones are left out."""
    found = {}
    for form in ("polygon", "bitmask"):
        # no empty lists of polygons here: a polygon mask of them has an infinite box
        instances = utils.annotations_to_instances(annotations, size, form)
        kept, which = utils.filter_empty_instances(instances, return_mask=True)
        masks = instances.gt_masks
        found[form] = {
            "boxes": instances.gt_boxes.tensor,
            "tight": masks.get_bounding_boxes().tensor,
            "area": masks.area() if form == "polygon" else masks.tensor.sum((1, 2)),
            "kept": which,
            "count": len(kept),
            "fields": list(instances.get_fields()),
        }
    return found


@depends_on("shapely")
def case_polygons_cut_by_crops():
    """Every kind of polygon under crops inside, at the edges, of one pixel and of the whole image."""
    crops = [
        (8, 5, 15, 12), (0, 0, WIDTH, HEIGHT), (0, 0, 1, 1), (WIDTH - 9, HEIGHT - 4, 9, 4), (0, 10, WIDTH, 3),
        (25, 0, 2, HEIGHT), (17, 11, 20, 20),
    ]  # fmt: skip
    found = {}
    for crop in crops:
        transform = T.CropTransform(*crop, orig_w=WIDTH, orig_h=HEIGHT)
        annotations = [moved(polygons, transform) for polygons in polygons_of_all_kinds()]
        found[str(crop)] = {
            "boxes": np.stack([item["bbox"] for item in annotations]),
            "parts": [len(item["segmentation"]) for item in annotations],
            "polygons": text([item["segmentation"] for item in annotations]),
            "instances": collected([item for item in annotations if item["segmentation"]], (crop[3], crop[2])),
        }
    return found


@depends_on("shapely")
def case_polygons_under_transforms():
    found = {}
    for name, transform in TRANSFORMS.items():
        annotations = [moved(polygons, transform) for polygons in polygons_of_all_kinds()]
        found[name] = {
            "polygons": text([item["segmentation"] for item in annotations]),
            "boxes": np.stack([item["bbox"] for item in annotations]),
            "keys": [sorted(item) for item in annotations[:1]],
            "instances": collected([item for item in annotations if item["segmentation"]], size_after(transform)),
        }
    return found


def case_polygons_under_rotation():
    found = {}
    for name, transform in ROTATIONS.items():
        annotations = [moved(polygons, transform) for polygons in polygons_of_all_kinds()]
        rings = np.concatenate([ring for item in annotations for ring in item["segmentation"]])
        found[name] = {"rings": Approx(rings), "boxes": Approx(np.stack([item["bbox"] for item in annotations]))}
    return found


def case_boxes_under_transforms():
    """Boxes written both ways, as floats and as whole numbers, inside and outside of the image."""
    boxes = [*BOXES.tolist(), [1, 2, 20, 30], [0, 0, WIDTH, HEIGHT], [-5.5, -3, 4, 70], [60, 50, 9, 9], [7, 7, 0, 0]]
    found = {}
    for name, transform in {**TRANSFORMS, "nothing": T.NoOpTransform(), "list": T.TransformList([])}.items():
        for mode in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            after = []
            for box in boxes:
                item = {"bbox": box, "bbox_mode": mode, "category_id": 0}
                given = [transform] if name == "list" else transform
                after.append(utils.transform_instance_annotations(item, given, size_after(transform)))
            found[f"{name} {mode.name}"] = {
                "boxes": np.stack([item["bbox"] for item in after]),
                "dtype": sorted({str(item["bbox"].dtype) for item in after}),
                "modes": [int(item["bbox_mode"]) for item in after],
            }
    return found


def masks():
    """By name: rectangles, a ring, scattered pixels, nothing, everything."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(rows - 18, columns - 25)
    return {
        "rectangle": blocks() == 1,
        "ring": (distance < 16) & (distance > 6),
        "scattered": noise(HEIGHT, WIDTH) > 200,
        "nothing": np.zeros((HEIGHT, WIDTH), bool),
        "everything": np.ones((HEIGHT, WIDTH), bool),
    }


def rles():
    """Each mask compressed with counts as bytes and as text, the two forms that datasets have."""
    found = {}
    for name, mask in masks().items():
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        found[f"{name} bytes"] = rle
        found[f"{name} text"] = {**rle, "counts": rle["counts"].decode()}
    return found


def moved_rles(transforms):
    found = {}
    for name, transform in transforms.items():
        annotations = {key: moved(rle, transform) for key, rle in rles().items()}
        size = size_after(transform)
        instances = utils.annotations_to_instances(list(annotations.values()), size, "bitmask")
        kept, which = utils.filter_empty_instances(instances, return_mask=True)
        found[name] = {
            "masks": {key: item["segmentation"] for key, item in annotations.items()},
            "collected": instances.gt_masks.tensor,
            "tight": instances.gt_masks.get_bounding_boxes().tensor,
            "kept": [which, kept.gt_classes],
        }
    return found


@depends_on("PIL")
def case_rle_under_transforms():
    extent = T.ExtentTransform((-10.5, 5.25, 40.0, 50.0), (30, 61))
    return moved_rles({**TRANSFORMS, "extent": extent})


@depends_on("cv2")
def case_rle_under_rotation():
    there_and_back = T.TransformList([ROTATIONS["30"], ROTATIONS["30"].inverse()])
    return moved_rles({**ROTATIONS, "there and back": there_and_back})


def case_empty_instances():
    """No annotations, annotations without masks, and what is left out by box, by mask and by both."""
    size = (HEIGHT, WIDTH)
    box = {"bbox": [1.0, 2, 9, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 3}
    thin = {**box, "bbox": [4.0, 4, 4 + 1e-6, 9]}
    found = {}
    for form in ("polygon", "bitmask"):
        for name, annotations in {"none": [], "boxes_alone": [box, thin]}.items():
            instances = utils.annotations_to_instances(annotations, size, form)
            found[f"{name} {form}"] = {
                "fields": list(instances.get_fields()),
                "boxes": instances.gt_boxes.tensor,
                "classes": instances.gt_classes,
                "left": len(utils.filter_empty_instances(instances)),
                "by_mask": len(utils.filter_empty_instances(instances, by_box=False)),
            }
    empty = np.zeros(size, np.uint8)
    items = [annotation(mask.astype(np.uint8)) for mask in masks().values()]
    items += [annotation(empty), {**annotation(empty + 1), **{key: thin[key] for key in ("bbox", "bbox_mode")}}]
    instances = utils.annotations_to_instances(items, size, "bitmask")
    for (by_box, by_mask), threshold in itertools.product([(True, True), (True, False), (False, True)], (1e-5, 28.0)):
        kept, which = utils.filter_empty_instances(instances, by_box, by_mask, threshold, return_mask=True)
        found[str((by_box, by_mask, threshold))] = [which, kept.gt_boxes.tensor, kept.gt_masks.tensor]
    outlines = utils.annotations_to_instances([annotation([POLYGON]), annotation([])], size, "polygon")
    found["no_polygons"] = utils.filter_empty_instances(outlines, return_mask=True)[1]
    return found


def case_annotation_errors():
    size = (HEIGHT, WIDTH)
    rle = rles()["ring bytes"]
    uncompressed = {"size": list(size), "counts": [100, 50, HEIGHT * WIDTH - 150]}
    resize = TRANSFORMS["smaller"]

    def collect(segmentation, form):
        return raised(lambda: utils.annotations_to_instances([annotation(segmentation)], size, form))

    def move(segmentation, to=size):
        item = annotation(segmentation)
        return raised(lambda: utils.transform_instance_annotations(item, resize, to))

    wrong = {"text": "polygon", "number": 3, "none": None, "uncompressed": uncompressed, "rle": rle}
    wrong |= {"two_points": [[1.0, 2, 3, 4]], "odd": [[1.0, 2, 3, 4, 5, 6, 7]], "cube": np.zeros((2, 3, 4), np.uint8)}
    instances = utils.annotations_to_instances([annotation([POLYGON])], size)
    return {
        "collected": {name: [collect(value, form) for form in ("polygon", "bitmask")] for name, value in wrong.items()},
        "moved": {name: move(value) for name, value in wrong.items()},
        "form": collect([POLYGON], "outline"),
        "by_nothing": raised(lambda: utils.filter_empty_instances(instances, by_box=False, by_mask=False)),
        "without_box": raised(lambda: utils.annotations_to_instances([{"category_id": 1}], size)),
        "sizes": raised(
            lambda: utils.annotations_to_instances(
                [annotation(np.zeros(size, np.uint8)), annotation(torch.zeros(3, 3).numpy())], size, "bitmask"
            )
        ),
    }
