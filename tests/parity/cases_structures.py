"""Cases of detectron2.structures: boxes, modes of boxes, masks, instances, batches of images."""

import pickle

import numpy as np
import torch
from answers import Live, depends_on
from inputs import HEIGHT, POLYGON, WIDTH, blocks, raised

from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    PolygonMasks,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
    polygons_to_bitmask,
)
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection
from detectron2.structures.masks import polygon_area, rasterize_polygons_within_box

TRIANGLE = [40.0, 30.0, 50.25, 30.5, 45.0, 36.0]
INDICES = {
    "int": 1,
    "negative": -1,
    "slice": slice(1, None),
    "step": slice(None, None, 2),
    "numbers": torch.tensor([2, 0, 2]),
    "bools": torch.tensor([True, False, True]),
    "none": torch.zeros(3, dtype=torch.bool),
}


def random_boxes(count, seed):
    """Boxes as they come, some of them empty, turned round or outside of the image."""
    numbers = np.random.RandomState(seed).uniform(-20, 70, (count, 4)).round(2)
    numbers[::3, 2:] = numbers[::3, :2] + np.abs(numbers[::3, 2:])
    numbers[1, 2] = numbers[1, 0]
    return torch.tensor(numbers, dtype=torch.float32)


def polygons():
    """Three instances: two polygons, none, and one that crosses itself outside of the image."""
    return PolygonMasks([[POLYGON, np.array(TRIANGLE)], [], [torch.tensor([-9, -4, 70.5, 50, 60, -3, -5, 40.0])]])


def bitmasks():
    labels = torch.from_numpy(blocks())
    return BitMasks(torch.stack([labels == 1, labels > 7, labels >= 2]))


def case_boxes():
    numbers = random_boxes(40, seed=1)
    boxes = Boxes(numbers.clone())
    clipped, scaled = boxes.clone(), boxes.clone()
    clipped.clip((HEIGHT, WIDTH))
    scaled.scale(0.37, 2.9)
    three = Boxes(numbers[:3].double())
    return {
        "area": boxes.area(),
        "clip": clipped.tensor,
        "scale": scaled.tensor,
        "centers": boxes.get_centers(),
        "nonempty": [boxes.nonempty(), boxes.nonempty(threshold=12.5)],
        "inside": [boxes.inside_box((HEIGHT, WIDTH)), boxes.inside_box((HEIGHT, WIDTH), boundary_threshold=9)],
        "index": {name: three[item].tensor for name, item in INDICES.items()},
        "cat": Boxes.cat([three, boxes[:2], Boxes([])]).tensor,
        "cat_of_none": Boxes.cat([]).tensor,
        "made_of": [Boxes(x).tensor for x in ([], [[1, 2, 3, 4]], numbers.numpy()[:2], torch.zeros(0, 5))],
        "each": list(three),
        "text": repr(three),
        "length": len(three),
        "untouched": bool((boxes.tensor == numbers).all()),
        "errors": [
            raised(lambda: Boxes([1.0, 2, 3, 4])),
            raised(lambda: Boxes([[1.0, 2, 3]])),
            raised(lambda: Boxes([[1.0, 2, 3, float("nan")]]).clip((5, 5))),
            raised(lambda: Boxes([[1.0, 2, 3, float("inf")]]).clip((5, 5))),
            raised(lambda: Boxes.cat([numbers])),
            raised(lambda: three[torch.tensor(1)]),
            raised(lambda: three[9]),
        ],
    }


def case_pairs_of_boxes():
    first, second = Boxes(random_boxes(30, seed=2)), Boxes(random_boxes(25, seed=3))
    none = Boxes([])
    points = random_boxes(10, seed=4)[:, :2]
    return {
        "intersection": pairwise_intersection(first, second),
        "iou": pairwise_iou(first, second),
        "ioa": pairwise_ioa(first, second),
        "matched": matched_pairwise_iou(first[:25], second),
        "matched_empty": matched_pairwise_iou(Boxes([[1, 1, 1, 1]]), Boxes([[1, 1, 1, 1]])),
        "distance": pairwise_point_box_distance(points, second),
        "with_none": [pairwise_iou(first, none), pairwise_iou(none, second), pairwise_ioa(none, none)],
        "error": raised(lambda: matched_pairwise_iou(first, second)),
    }


ROTATED = [(BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS), (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS)]
"""Conversions that the embedded core leaves out."""


def converted(box, one, other):
    """The box as list, tuple, array and tensor, or the error in place of each."""
    found = []
    for form in (list, tuple, lambda box: np.array([box]), lambda box: torch.tensor([box])):
        try:
            found.append(BoxMode.convert(form(box), one, other))
        except Exception as error:
            found.append(type(error).__name__)
    return found


def case_box_modes():
    xyxy, xywh = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    numbers = random_boxes(20, seed=5)
    # 0.1 + 0.2 in float32 differs from the same in float64
    ones = {
        "list": [0.1, 3.7, 0.2, 1e-3],
        "tuple": (16777216.0, 2.5, 1.0, 3.0),
        "whole": [1, 2, 3, 4],
        "mixed": [1, 2.5, 3, 4],
    }
    found = {}
    for name, box in ones.items():
        there, back = BoxMode.convert(box, xywh, xyxy), BoxMode.convert(box, xyxy, xywh)
        found[name] = {"type": type(there).__name__, "there": list(there), "back": list(back)}
    arrays = {
        "float32": numbers,
        "float64": numbers.double(),
        "array": numbers.numpy(),
        "whole": numbers.to(torch.int64),
    }
    for name, boxes in arrays.items():
        found[f"many_{name}"] = [
            BoxMode.convert(boxes, xywh, xyxy),
            BoxMode.convert(boxes, xyxy, xywh),
            type(BoxMode.convert(boxes, xywh, xyxy)).__name__,
        ]
    found["same"] = BoxMode.convert(numbers, xyxy, xyxy) is numbers
    found["names"] = {mode.name: int(mode) for mode in BoxMode}
    found["pairs"] = {
        f"{one.name} to {other.name}": converted([3.5, 4.25, 20.0, 30.0], one, other)
        for one in BoxMode
        for other in BoxMode
        if (one, other) not in ROTATED
    }
    found["errors"] = [
        raised(lambda: BoxMode.convert([1.0, 2, 3, 4], BoxMode.XYXY_REL, xyxy)),
        raised(lambda: BoxMode.convert([1.0, 2, 3, 4], xyxy, BoxMode.XYWH_REL)),
        raised(lambda: BoxMode.convert([1.0, 2, 3], xyxy, xywh)),
        raised(lambda: BoxMode.convert([1.0, 2, 3, 4], xyxy, BoxMode.XYWHA_ABS)),
    ]
    return found


def case_bit_masks():
    masks = bitmasks()
    boxes = torch.tensor([[0.0, 0, 53, 37], [3, 4, 20, 20], [10.25, -3.5, 47.75, 36.5]])
    of_polygons = BitMasks.from_polygon_masks(polygons(), HEIGHT, WIDTH)
    return {
        "boxes": masks.get_bounding_boxes().tensor,
        "nonempty": masks.nonempty(),
        "image_size": list(masks.image_size),
        "crop": {str(size): masks.crop_and_resize(boxes, size) for size in (5, 14, 28)},
        # half a pixel off: the mask's edge is resampled to exactly one half
        "crop_at_half": masks[:1].crop_and_resize(torch.tensor([[29.5, 5, 33.5, 9]]), 4),
        "crop_of_float64": masks.crop_and_resize(boxes.double(), 14),
        "crop_of_none": masks[:0].crop_and_resize(boxes[:0], 7),
        "polygons": of_polygons.tensor,
        "plain_polygons": BitMasks.from_polygon_masks([[np.array(POLYGON)], []], HEIGHT, WIDTH).tensor,
        "no_polygons": BitMasks.from_polygon_masks([], HEIGHT, WIDTH).tensor,
        "index": {name: masks[item].tensor for name, item in INDICES.items()},
        "cat": BitMasks.cat([masks, of_polygons]).tensor,
        "made_of": [BitMasks(x).tensor for x in (blocks()[None], torch.tensor([[[0.0, 0.3], [-1, 2]]]))],
        "none": BitMasks(np.zeros((0, 4, 5))).get_bounding_boxes().tensor,
        "each": [mask.sum() for mask in masks],
        "text": repr(masks),
        "errors": [
            raised(lambda: BitMasks(blocks())),
            raised(lambda: masks[0, 0]),
            raised(lambda: masks.crop_and_resize(boxes[:2], 14)),
            raised(lambda: BitMasks.cat([])),
            raised(lambda: BitMasks.cat([masks.tensor])),
        ],
    }


def case_polygon_masks():
    masks = polygons()
    boxes = torch.tensor([[3.0, 4, 30.5, 33], [0, 0, 5, 5], [10.1, 7.3, 10.15, 30]])
    corners = np.array(TRIANGLE)
    indices = {**INDICES, "list": [2, 0], "int32": torch.tensor([1, 1], dtype=torch.int32)}
    return {
        "boxes": masks.get_bounding_boxes().tensor,
        "area": masks.area(),
        "area_of_nothing": PolygonMasks([[], []]).area(),
        "nonempty": masks.nonempty(),
        "crop": {str(size): masks.crop_and_resize(boxes, size) for size in (5, 14, 28)},
        # a side shorter than 0.1 counts as 0.1: an outline that runs through such a box shows it
        "crop_thin": masks[:1].crop_and_resize(torch.tensor([[4.0, 10, 4.05, 10.6]]), 28),
        "crop_square": masks.crop_and_resize(torch.tensor([[2.0, 3, 32, 33]] * 3), 28),
        "crop_of_none": PolygonMasks([]).crop_and_resize(torch.zeros(0, 4), 7),
        "index": {name: masks[item].polygons for name, item in indices.items()},
        "cat": PolygonMasks.cat([masks, masks[:1]]).polygons,
        "made_of": [
            PolygonMasks([[x]]).polygons for x in (TRIANGLE, corners.astype(np.float32), torch.tensor(TRIANGLE))
        ],
        "moved": masks.to("meta") is masks,
        "device": str(masks.device),
        "none": PolygonMasks([]).get_bounding_boxes().tensor,
        "text": repr(masks),
        "length": [len(masks), *(len(one) for one in masks)],
        "untouched": masks.polygons,
        "errors": [
            raised(lambda: PolygonMasks([[[1.0, 2, 3, 4]]])),
            raised(lambda: PolygonMasks([[[1.0, 2, 3, 4, 5, 6, 7]]])),
            raised(lambda: PolygonMasks(np.zeros((1, 6)))),
            raised(lambda: PolygonMasks([np.zeros(6)])),
            raised(lambda: masks[torch.tensor([0.0])]),
            raised(lambda: masks[torch.ones(3, 1, dtype=torch.bool)]),
            raised(lambda: masks.crop_and_resize(boxes[:2], 14)),
            raised(lambda: PolygonMasks.cat([])),
        ],
    }


@depends_on("torchvision")
def case_many_crops():
    """Masks cut to random boxes: inside, across the border, outside, thin, of no area and turned round."""
    random = np.random.RandomState(8)
    corners = random.uniform(-20, 70, (60, 2, 2))
    upright = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    upright[::7, 2:] = upright[::7, :2] + random.uniform(0, 0.3, (9, 2))
    upright[5::11, 2] = upright[5::11, 0]
    boxes = torch.tensor(upright.round(2), dtype=torch.float32)
    stars = [[random.uniform(-10, 60, 2 * random.randint(3, 20)) for _ in range(random.randint(0, 4))] for _ in boxes]
    outlines = PolygonMasks(stars)
    bitmaps = BitMasks.from_polygon_masks(outlines, HEIGHT, WIDTH)
    speckled = BitMasks(torch.from_numpy(random.rand(60, HEIGHT, WIDTH) > 0.5))
    turned = boxes[:, [2, 3, 0, 1]]
    found = {"tight": [outlines.get_bounding_boxes().tensor, bitmaps.get_bounding_boxes().tensor]}
    for size in (1, 7, 28, 112):
        found[str(size)] = [kind.crop_and_resize(boxes, size) for kind in (outlines, bitmaps)]
        found[f"{size} turned"] = bitmaps.crop_and_resize(turned, size)
        # so many means lie beside one half that the processor's rounding decides some
        found[f"{size} speckled"] = Live([speckled.crop_and_resize(given, size) for given in (boxes, turned)])
    found["outline turned"] = raised(lambda: outlines.crop_and_resize(turned, 7))
    return found


def case_polygon_functions():
    corners = np.array(POLYGON)
    random = np.random.RandomState(7)
    many = [random.uniform(-10, 60, 2 * count) for count in (3, 4, 9, 17)]
    return {
        "area": polygon_area(corners[0::2], corners[1::2]),
        "areas": [polygon_area(p[0::2], p[1::2]) for p in many],
        "mask": polygons_to_bitmask(many, HEIGHT, WIDTH),
        "each": np.stack([polygons_to_bitmask([p], HEIGHT, WIDTH) for p in many]),
        "nothing": polygons_to_bitmask([], 3, 4),
        "box": [rasterize_polygons_within_box(many, np.array([5.0, 1, x, 30]), 19) for x in (34.0, 40.5, 5.01)],
        "box_of_float32": rasterize_polygons_within_box(many, np.array([5.1, 1.3, 41.7, 30.9], np.float32), 19),
    }


def fields(instances):
    found = {name: getattr(value, "tensor", value) for name, value in instances.get_fields().items()}
    return {name: getattr(value, "polygons", value) for name, value in found.items()}


def made_instances():
    instances = Instances((HEIGHT, WIDTH), gt_classes=torch.tensor([5, 0, 3]))
    instances.gt_boxes = Boxes(random_boxes(3, seed=8))
    instances.gt_masks = bitmasks()
    instances.outlines = polygons()
    instances.set("names", ["a", "b", "c"])
    return instances


def case_instances():
    instances = made_instances()
    numbers = Instances((HEIGHT, WIDTH), scores=torch.tensor([0.25, 0.5, 1.0]), boxes=Boxes(random_boxes(3, seed=9)))
    other = made_instances()
    other.remove("names")
    tensors = {name: item for name, item in INDICES.items() if isinstance(item, (int, slice))}
    joined = Instances.cat([instances, instances[1:]])
    changed = made_instances()
    changed.gt_classes = torch.tensor([1, 1, 1])
    kept = pickle.loads(pickle.dumps(instances))
    return {
        "index": {name: fields(instances[item]) for name, item in tensors.items()},
        "index_by_tensor": {name: fields(numbers[item]) for name, item in INDICES.items()},
        "cat": fields(joined),
        "cat_of_one": Instances.cat([instances]) is instances,
        "order": list(instances.get_fields()),
        "has": [instances.has("names"), other.has("names"), hasattr(other, "names")],
        "changed": fields(changed)["gt_classes"],
        "pickled": fields(kept),
        "image_size": list(instances.image_size),
        "moved": fields(numbers.to(torch.device("cpu"))),
        "dtype": str(Instances((1, 1), scores=torch.ones(2)).to(torch.float64).scores.dtype),
        "text": [repr(numbers), str(instances[0:1])],
        "length": [len(instances), len(joined), len(Instances((2, 2), scores=torch.zeros(0)))],
        "errors": [
            raised(lambda: instances.nothing),
            raised(lambda: instances.get("nothing")),
            raised(lambda: instances.remove("nothing")),
            raised(lambda: instances.set("scores", torch.zeros(2))),
            raised(lambda: instances[3]),
            raised(lambda: instances[-4]),
            raised(lambda: len(Instances((2, 2)))),
            raised(lambda: list(instances)),
            raised(lambda: Instances.cat([])),
            raised(lambda: Instances.cat([numbers, Instances((1, 1), **numbers.get_fields())])),
            raised(lambda: Instances.cat([instances, other])),
            raised(lambda: Instances.cat([Instances((1, 1), spans=range(2))] * 2)),
        ],
    }


def case_image_list():
    random = np.random.RandomState(11)
    images = [torch.from_numpy(random.rand(3, *size).astype(np.float32)) for size in ((20, 31), (33, 17), (5, 5))]
    options = {
        "plain": {},
        "divisible": {"size_divisibility": 32},
        "divisible_by_1": {"size_divisibility": 1, "pad_value": -1.5},
        "square": {"padding_constraints": {"square_size": 40}},
        "square_divisible": {"padding_constraints": {"square_size": 40, "size_divisibility": 16}, "pad_value": 2.0},
        "constraint": {"size_divisibility": 8, "padding_constraints": {"size_divisibility": 0}},
        "square_off": {"size_divisibility": 8, "padding_constraints": {"square_size": 0}},
    }
    found = {}
    for name, option in options.items():
        for count in (1, 3):
            batch = ImageList.from_tensors(images[:count], **option)
            found[f"{name} {count}"] = [
                batch.tensor,
                [list(size) for size in batch.image_sizes],
                list(batch.tensor.stride()),
            ]
    batch = ImageList.from_tensors([image[0] > 0.5 for image in images], 4)
    return {
        **found,
        "flat": [batch.tensor, batch[1], batch[-1], len(batch), str(batch.device)],
        "moved": batch.to(torch.float64).tensor,
        "cut": ImageList.from_tensors(images[:1], padding_constraints={"square_size": 25}).tensor,
        "tuple": ImageList.from_tensors(tuple(images)).tensor,
        "errors": [
            raised(lambda: ImageList.from_tensors([])),
            raised(lambda: ImageList.from_tensors([images[0], images[1][:2]])),
            raised(lambda: ImageList.from_tensors([images[0].numpy()])),
            raised(lambda: ImageList.from_tensors(images[0])),
            raised(lambda: ImageList.from_tensors(images, padding_constraints={"square_size": 25})),
        ],
    }
