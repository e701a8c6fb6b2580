"""Cases of detectron2.data: reading images, mapping records and batching them."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from answers import depends_on, real_data
from inputs import noise, raised, text
from PIL import Image

from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode


def mapped_facts(sample):
    instances = sample["instances"]
    masks = instances.gt_masks
    bitmaps = masks.tensor if hasattr(masks, "tensor") else None
    polygons = None if bitmaps is not None else [ring for mask in masks.polygons for ring in mask]
    return {
        "image": sample["image"],
        "size": [sample["height"], sample["width"]],
        "boxes": text(instances.gt_boxes.tensor),
        "classes": text(instances.gt_classes),
        "bitmaps": bitmaps,
        "polygons": None if polygons is None else text(polygons),
        "keys": sorted(sample),
    }


def case_mapper_coco_tiny80():
    """Real photographs, crowd and polygons, as training and evaluation see them."""
    root = real_data() / "coco_tiny80"
    path = root / "annotations" / "instances_val2017.json"
    records = load_coco_json(str(path), str(root / "images" / "val2017"), "parity_coco")
    MetadataCatalog.remove("parity_coco")
    augmentations = [T.ResizeShortestEdge([320, 352, 400], 600, "choice"), T.RandomFlip()]
    found = {}
    for masks in ("polygon", "bitmask"):
        mapper = DatasetMapper(
            True,
            augmentations=augmentations,
            image_format="BGR",
            use_instance_mask=True,
            instance_mask_format=masks,
        )
        np.random.seed(11)
        for record in [r for r in records if r["annotations"]][:10]:
            if masks == "polygon" and any(isinstance(a["segmentation"], dict) for a in record["annotations"]):
                record = {**record, "annotations": [a for a in record["annotations"] if not a["iscrowd"]]}
            found[f"{masks} {record['image_id']}"] = mapped_facts(mapper(record))
    test = DatasetMapper(False, augmentations=[T.ResizeShortestEdge(200, 400)], image_format="RGB")(records[0])
    return {**found, "test": {"image": test["image"], "keys": sorted(test)}}


def case_mapper_rle():
    """Real RGBA images with compressed RLE; boxes made anew from the masks."""
    root = real_data() / "dsb2018_nuclei"
    path = min(root.rglob("*.json"))
    records = load_coco_json(str(path), str(root), "parity_nuclei")
    MetadataCatalog.remove("parity_nuclei")
    files = {file.name: file for file in root.rglob("*.png")}
    mapper = DatasetMapper(
        True,
        augmentations=[T.RandomCrop("relative", (0.6, 0.6)), T.RandomFlip(vertical=True, horizontal=False)],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )
    np.random.seed(4)
    chosen = [record for record in records if record["annotations"]][:5]
    return {
        str(i): mapped_facts(mapper({**record, "file_name": str(files[Path(record["file_name"]).name])}))
        for i, record in enumerate(chosen)
    }


def write_images(folder):
    """Images of two shapes, one of them to be seen turned, and records for them."""
    records = []
    for i in range(8):
        wide = i % 3 != 0
        pixels = noise(20, 30, 3, seed=i) if wide else noise(30, 20, 3, seed=i)
        path = Path(folder) / f"{i}.png"
        exif = Image.Exif()
        if i == 3:  # stored 30 x 20, seen 20 x 30
            exif[0x0112] = 6
            wide = True
        Image.fromarray(pixels).save(path, exif=exif)
        height, width = (20, 30) if wide else (30, 20)
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[3:9, 4 : 6 + i] = 1
        polygon = [[2.0, 2.0, 15.5, 3.0, 14.0, 17.0 - i]]
        box = {"bbox": [2, 2, 16, 17], "bbox_mode": BoxMode.XYXY_ABS}
        annotations = [
            {**box, "category_id": 0, "segmentation": polygon},
            {**box, "category_id": 1, "segmentation": mask_util.encode(mask), "iscrowd": 0},
            {**box, "category_id": 1, "segmentation": polygon, "iscrowd": 1},
            {"bbox": [5, 5, 0, 3], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "segmentation": polygon},
        ]
        records.append(
            {
                "file_name": str(path),
                "height": height,
                "width": width,
                "image_id": i,
                "annotations": annotations,
            }
        )
    return records


def loader_mapper(is_train=True):
    return DatasetMapper(
        is_train,
        augmentations=[T.ResizeShortestEdge((15, 25), 40), T.RandomFlip(), T.RandomBrightness(0.8, 1.2)],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )


def batches_of(loader, count):
    """Ids and pixels of the first batches, and every box."""
    batches = list(itertools.islice(loader, count))
    samples = [sample for batch in batches for sample in batch]
    boxes = [s["instances"].gt_boxes.tensor.numpy() for s in samples if "instances" in s]
    return {
        "ids": [[sample["image_id"] for sample in batch] for batch in batches],
        "shapes": [list(sample["image"].shape) for sample in samples],
        "pixels": np.concatenate([sample["image"].numpy().reshape(-1) for sample in samples]),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
    }


def case_mapper():
    with tempfile.TemporaryDirectory() as folder:
        records = write_images(folder)
        np.random.seed(1)
        return {str(record["image_id"]): mapped_facts(loader_mapper()(record)) for record in records}


def case_mapper_options():
    """Records without objects, with crowd alone and cut away altogether; other outputs; wrong sizes."""
    with tempfile.TemporaryDirectory() as folder:
        record = write_images(folder)[1]
        crowd = [item for item in record["annotations"] if item.get("iscrowd")]
        gone = [{**item, "bbox": [28, 18, 30, 20]} for item in record["annotations"][:2]]
        corner = [T.CropTransform(0, 0, 5, 4)]
        found = {}
        for name, annotations, augmentations in [
            ("nothing", [], []),
            ("crowd", crowd, []),
            ("cut_away", gone, corner),
            ("cut", record["annotations"], corner),
        ]:
            for masks in ("polygon", "bitmask"):
                mapper = DatasetMapper(
                    True,
                    augmentations=augmentations,
                    image_format="L",
                    use_instance_mask=True,
                    instance_mask_format=masks,
                )
                # the mask of RLE is no polygon
                chosen = [item for item in annotations if masks == "bitmask" or isinstance(item["segmentation"], list)]
                sample = mapper({**record, "annotations": chosen})
                fields = sample["instances"].get_fields()
                found[f"{name} {masks}"] = {
                    "image": sample["image"],
                    "fields": list(fields),
                    "boxes": fields["gt_boxes"].tensor,
                    "classes": fields["gt_classes"],
                    "size": list(sample["instances"].image_size),
                }
        plain = DatasetMapper(True, augmentations=[T.RandomFlip(1.0)], image_format="BGR")(record)
        tight = DatasetMapper(
            True, augmentations=corner, image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask",
            recompute_boxes=True,
        )  # fmt: skip
        tested = DatasetMapper(False, augmentations=[], image_format="RGB")(record)
        labels = Path(folder) / "labels.png"
        Image.fromarray(noise(20, 30)).save(labels)
        labelled = DatasetMapper(True, augmentations=[T.VFlipTransform(20), *corner], image_format="RGB")
        return {
            **found,
            "without_masks": [list(plain["instances"].get_fields()), plain["instances"].gt_boxes.tensor],
            "tight": mapped_facts(tight(record)),
            "tested": [sorted(tested), tested["image"]],
            "labels": labelled({**record, "sem_seg_file_name": str(labels)})["sem_seg"],
            "untouched": text(record["annotations"][2]),
            "errors": [
                raised(lambda: plain_mapper()({**record, "height": 21})),
                raised(lambda: plain_mapper()({**record, "width": 31})),
                raised(lambda: plain_mapper()({**record, "file_name": folder + "/none.png"})),
                raised(lambda: DatasetMapper(True, augmentations=[], image_format="RGB", recompute_boxes=True)),
                raised(lambda: DatasetMapper(True, augmentations=[], image_format="RGB", use_instance_mask=True,
                                             instance_mask_format="outline")(record)),
            ],
            "sizes_filled": size_facts(record),
        }  # fmt: skip


def plain_mapper():
    return DatasetMapper(True, augmentations=[], image_format="RGB")


def size_facts(record):
    """What the check of sizes adds to a record that has none."""
    bare = {"file_name": record["file_name"]}
    utils.check_image_size(bare, noise(20, 30, 3))
    return [bare["height"], bare["width"], raised(lambda: utils.check_image_size(bare, noise(30, 20, 3)))]


def case_loaders():
    with tempfile.TemporaryDirectory() as folder:
        records = write_images(folder)
        found = {}
        for grouping in (True, False):
            np.random.seed(2)
            loader = build_detection_train_loader(
                records,
                mapper=loader_mapper(),
                sampler=TrainingSampler(len(records), seed=8),
                total_batch_size=2,
                aspect_ratio_grouping=grouping,
            )
            found[f"grouped {grouping}"] = batches_of(loader, 10)
        test = build_detection_test_loader(records, mapper=loader_mapper(False), batch_size=3)
        np.random.seed(2)
        found["test"] = batches_of(test, 10)
        return found


def case_loader_with_workers():
    """Two workers, seeded: who loads what, and with which random numbers."""
    with tempfile.TemporaryDirectory() as folder:
        records = write_images(folder)
        dataset = MapDataset(DatasetFromList(records), loader_mapper())
        loader = build_batch_data_loader(
            dataset,
            TrainingSampler(len(records), seed=8),
            3,
            num_workers=2,
            seed=17,
            aspect_ratio_grouping=False,
        )
        return batches_of(loader, 6)


def case_map_dataset_fallback():
    """What is tried when the mapper gives None."""
    dataset = MapDataset(list(range(40)), lambda x: x if x % 5 == 0 else None)
    return {"found": [dataset[i] for i in (3, 5, 7, 7, 11, 12, 39, 0)]}


@depends_on("PIL")
def case_read_image():
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "image.png")
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            Image.fromarray(noise(5, 7, 3)).save(path, exif=exif)
            found[f"orientation {orientation}"] = utils.read_image(path, "BGR")
        for format in (None, "RGB", "L", "YUV-BT.601", "HSV"):
            found[str(format)] = utils.read_image(path, format)
        for mode, array in {
            "RGBA": noise(5, 7, 4),
            "L": noise(5, 7),
            "I;16": noise(5, 7).astype(np.uint16),
        }.items():
            Image.fromarray(array).save(path)
            found[f"{mode} as stored"] = utils.read_image(path)
            if mode != "I;16":
                found[f"{mode} to RGB"] = utils.read_image(path, "RGB")
        found["from YUV"] = utils.convert_image_to_rgb(found["YUV-BT.601"], "YUV-BT.601")
        found["from L"] = utils.convert_image_to_rgb(noise(5, 7, 1), "L")
        found["from BGR"] = utils.convert_image_to_rgb(torch.from_numpy(noise(5, 7, 3)), "BGR")
    return found
