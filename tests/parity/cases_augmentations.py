"""Cases of detectron2.data.transforms: random choices for given seeds."""

import numpy as np
from answers import Approx, depends_on
from inputs import BOXES, HEIGHT, WIDTH, blocks, noise

from detectron2.data import transforms as T

AUGMENTATIONS = {
    "flip": lambda: T.RandomFlip(),
    "flip_vertical": lambda: T.RandomFlip(prob=0.3, horizontal=False, vertical=True),
    "apply": lambda: T.RandomApply(T.RandomCrop("absolute", (20, 20)), prob=0.4),
    "apply_transform": lambda: T.RandomApply(T.HFlipTransform(WIDTH)),
    "resize": lambda: T.Resize((31, 22)),
    "resize_square": lambda: T.Resize(40),
    "random_resize": lambda: T.RandomResize([(20, 30), (40, 50), (61, 12)]),
    "shortest_edge_range": lambda: T.ResizeShortestEdge((20, 50), 60),
    "shortest_edge_choice": lambda: T.ResizeShortestEdge([0, 24, 32, 48], 70, "choice"),
    "shortest_edge_number": lambda: T.ResizeShortestEdge(64, 64),
    "scale": lambda: T.ResizeScale(0.1, 2.0, 64, 48),
    "large_scale_jitter": lambda: T.AugmentationList(
        [T.ResizeScale(0.5, 2.0, 48, 48), T.FixedSizeCrop((48, 48)), T.RandomFlip()]
    ),
    "fixed_crop_no_pad": lambda: T.FixedSizeCrop((30, 70), pad=False),
    "fixed_crop_values": lambda: T.FixedSizeCrop((45, 45), pad_value=3, seg_pad_value=4),
    "crop_relative": lambda: T.RandomCrop("relative", (0.5, 0.8)),
    "crop_relative_range": lambda: T.RandomCrop("relative_range", (0.3, 0.6)),
    "crop_absolute": lambda: T.RandomCrop("absolute", (30, 80)),
    "crop_absolute_range": lambda: T.RandomCrop("absolute_range", (10, 45)),
    "crop_category": lambda: T.RandomCrop_CategoryAreaConstraint("relative", (0.4, 0.4), 0.6),
    "crop_category_ignored": lambda: T.RandomCrop_CategoryAreaConstraint("absolute", (12, 12), 0.8, 2),
    "crop_category_off": lambda: T.RandomCrop_CategoryAreaConstraint("absolute", (12, 12)),
    "extent": lambda: T.RandomExtent((0.6, 1.5), (0.3, 0.2)),
    "contrast": lambda: T.RandomContrast(0.5, 1.5),
    "brightness": lambda: T.RandomBrightness(0.5, 1.5),
    "saturation": lambda: T.RandomSaturation(0.5, 1.5),
    "lighting": lambda: T.RandomLighting(30.0),
    "min_iou_crop": lambda: T.MinIoURandomCrop(),
    "min_iou_crop_small": lambda: T.MinIoURandomCrop(min_ious=(0.02, 0.1), min_crop_size=0.7),
}


@depends_on("numpy", "PIL")
def case_augmentations():
    """Each with 20 seeds; the number drawn afterwards shows that as many were drawn before."""
    found = {}
    for name, make in AUGMENTATIONS.items():
        images, boxes, labels, after = [], [], [], []
        for seed in range(20):
            np.random.seed(seed)
            data = T.AugInput(noise(HEIGHT, WIDTH, 3), boxes=BOXES.copy(), sem_seg=blocks())
            make()(data)
            images.append(data.image)
            boxes.append(np.asarray(data.boxes, np.float64))
            labels.append(data.sem_seg)
            after.append(np.random.rand())
        found[name] = {
            "sizes": [list(image.shape[:2]) for image in images],
            "pixels": np.concatenate([image.reshape(-1) for image in images]),
            "boxes": np.stack(boxes),
            "labels": np.concatenate([label.reshape(-1) for label in labels]),
            "next": np.array(after),
            "repr": repr(make()) if "apply" not in name else "",
        }
    return found


def case_random_rotation():
    found = {}
    for name, make in {
        "range": lambda: T.RandomRotation([-30, 30]),
        "no_expand": lambda: T.RandomRotation(45.0, expand=False, center=[[0.3, 0.3], [0.7, 0.7]]),
        "one_center": lambda: T.RandomRotation([0, 90], expand=False, center=[0.1, 0.2]),
        "choice": lambda: T.RandomRotation([0, 90, 180], sample_style="choice"),
    }.items():
        sizes, boxes, after = [], [], []
        for seed in range(10):
            np.random.seed(seed)
            data = T.AugInput(noise(HEIGHT, WIDTH, 3), boxes=BOXES.copy())
            make()(data)
            sizes.append(list(data.image.shape[:2]))
            boxes.append(np.asarray(data.boxes, np.float64))
            after.append(np.random.rand())
        found[name] = {"sizes": sizes, "boxes": Approx(np.stack(boxes), atol=1e-4), "next": np.array(after)}
    return found


def case_output_shapes():
    """ResizeShortestEdge's rule over many sizes, exactly."""
    rng = np.random.RandomState(3)
    sizes = rng.randint(1, 3000, (3000, 2))
    targets = rng.randint(1, 1500, 3000)
    rule = T.ResizeShortestEdge.get_output_shape
    shapes = [rule(int(h), int(w), int(s), 1333) for (h, w), s in zip(sizes, targets, strict=True)]
    return {"shapes": np.array(shapes)}


def case_apply_augmentations():
    np.random.seed(0)
    image, transforms = T.apply_augmentations([T.RandomFlip(1.0), T.Resize((20, 20))], noise(HEIGHT, WIDTH, 3))
    data = T.AugInput(noise(HEIGHT, WIDTH, 3), boxes=BOXES.copy())
    same, _ = T.apply_augmentations([T.RandomFlip(1.0)], data)
    return {"image": image, "transforms": repr(transforms), "same": same is data, "boxes": data.boxes}
