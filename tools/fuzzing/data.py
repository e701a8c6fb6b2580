"""Dataset files, results files and manifests: all are JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from fuzzing import Target
from fuzzing.mutate import json_bytes, mutated_bytes, mutated_tree

_SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]
_TRIANGLE = [20, 5, 28, 5, 20, 15]
_OUTSIDE = [25.0, 5.0, 45.0, 5.0, 45.0, 15.0, 25.0, 15.0]
_TURNED = {"id": 9, "file_name": "turned.png", "height": 30, "width": 20}
COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 7, "file_name": "sub/b.png", "height": 20, "width": 30, "domain": "sketch"},
    ],
    "annotations": [
        {"id": 0, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "segmentation": [_SQUARE], "area": 100.0},
        {
            "id": 5,
            "image_id": 7,
            "category_id": 3,
            "bbox": [0, 0, 30, 20],
            "iscrowd": 1,
            "segmentation": {"size": [20, 30], "counts": [0, 600]},
        },
        {
            "id": 6,
            "image_id": 7,
            "category_id": 3,
            "bbox": [0, 0, 1, 20],
            "area": 20,
            "iscrowd": 0,
            "segmentation": {"size": [20, 30], "counts": "0d0Tb0"},
        },
    ],
    "categories": [{"id": 1, "name": "nut"}, {"id": 3, "name": "bolt"}],
}
DICTS = [
    {
        "file_name": "a.png",
        "image_id": "a",
        "height": 20,
        "width": 30,
        "annotations": [
            {"bbox": [2, 2, 12, 12], "bbox_mode": 0, "category_id": 0, "segmentation": [_SQUARE], "iscrowd": 0}
        ],
    },
    {"file_name": "sub/b.png", "image_id": 4, "height": 20, "width": 30, "annotations": []},
]
_FAULTY_DICTS = [
    {
        "file_name": "turned.png",
        "image_id": 4,
        "height": 30,
        "width": 20,
        "annotations": [
            {"bbox": [2, 2, 10, 10], "bbox_mode": 0, "category_id": 0, "segmentation": [_SQUARE], "area": 3},
            {"bbox": [20, 5, 8, 10], "bbox_mode": 1, "category_id": 1, "segmentation": [_TRIANGLE]},
            {"bbox": [20, 5, 8, 10], "bbox_mode": 1, "category_id": 1, "segmentation": [_TRIANGLE]},
        ],
    },
]
BOXES = {**COCO, "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10]}]}
RESULTS: list[dict[str, Any]] = [
    {"image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "score": 0.9, "segmentation": [_SQUARE]},
    {
        "file_name": "sub/b.png",
        "category_id": 3,
        "bbox": [0.5, 0, 3, 4],
        "score": 1,
        "segmentation": {"size": [20, 30], "counts": "0d0Tb0"},
    },
]
_FAULTY = {
    "images": [*COCO["images"], {"id": 1, "file_name": "a.png", "height": 20, "width": 30}, _TURNED],
    "annotations": [
        {"id": 0, "image_id": 1, "category_id": 1, "bbox": [2, 2, 12, 12], "segmentation": [_SQUARE], "area": 99},
        {"id": 0, "image_id": 1, "category_id": 1, "bbox": [2, 2, 12, 12], "segmentation": [_SQUARE], "area": 99},
        {"id": 4, "image_id": 1, "category_id": 3, "bbox": None, "segmentation": _TRIANGLE, "area": None},
        {"id": 4, "image_id": 7, "category_id": 3, "bbox": [25, 5, 20, 10], "segmentation": [_OUTSIDE, [1, 1, 2, 2]]},
        {"id": 8, "image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5], "segmentation": []},
        {"id": 9, "image_id": 9, "category_id": 1, "bbox": [2, 2, 0, 0], "segmentation": [_TRIANGLE], "iscrowd": 0},
    ],
    "categories": [*COCO["categories"], {"id": 3, "name": "bolt"}],
}
"""With what ``--fix`` mends: sizes, records twice, ids, boxes, areas, polygons."""
_ROWS = [{key: value for key, value in row.items() if key != "segmentation"} for row in RESULTS]
MANIFEST = {
    "version": 1,
    "datasets": {
        "nuts": {
            "classes": ["nut", "bolt"],
            "splits": {
                "train": {
                    "json": "coco.json",
                    "images": "images",
                    "split": {"part": "train", "fraction": 0.5, "seed": 0},
                },
                "test": {
                    "json": "coco.json",
                    "images": "images",
                    "split": {"part": "test", "fraction": 0.5, "seed": 0},
                },
            },
        },
        "plain": {
            "classes": ["nut", "bolt"],
            "splits": {
                "train": {"json": "coco.json", "images": "images"},
                "val": {"json": "coco.json", "images": "images"},
            },
        },
    },
}


class JsonTarget(Target):
    """A reader of a JSON file.

    Attributes:
        seeds: valid content.
        byte_share: how many of the inputs are changed as bytes and not as values, 0-1.
    """

    seeds: ClassVar[list[Any]]
    byte_share = 0.2

    def prepare(self, folder: Path) -> None:
        """Make the file's folder."""
        self.file = folder / f"{self.name}.json"
        self.copy = folder / f"{self.name}_mended.json"
        (folder / "images" / "sub").mkdir(parents=True, exist_ok=True)
        for name in ("a.png", "sub/b.png"):
            (folder / "images" / name).touch()

    def make(self, random: Random) -> bytes:
        """Change a seed as a value, or as bytes."""
        seed = random.choice(self.seeds)
        if random.random() < self.byte_share:
            return mutated_bytes(json.dumps(seed).encode(), random)
        return json_bytes(mutated_tree(seed, random), random)

    def parses(self, content: bytes) -> bool:
        """Whether Python reads it as JSON."""
        try:
            json.loads(content)
        except (ValueError, RecursionError):
            return False
        return True


class Dataset(JsonTarget):
    """COCO files, with masks and of boxes alone, and Detectron2's list of dicts."""

    name = "dataset"
    share = 40
    seeds: ClassVar[list[Any]] = [COCO, COCO, DICTS, BOXES]

    def read(self, content: bytes) -> None:
        """Read the file as a training does, and as the labelling of boxes does."""
        from sam_d2.data.dataset_digest import dataset_digest
        from sam_d2.data.dataset_file import inspect_dataset_file, load_dataset_file
        from sam_d2.data.findings import raise_findings

        self.file.write_bytes(content)
        root = self.file.parent / "images"
        boxes = inspect_dataset_file(self.file, root, require_masks=False)
        for record in boxes.dataset_dicts:
            list(record["annotations"])
        for alone in (True, False):
            dataset = load_dataset_file(self.file, root, boxes_alone=alone)
            for record in dataset.dataset_dicts:
                list(record["annotations"])
            dataset_digest(dataset.dataset_dicts)
        raise_findings(boxes.findings)


class Mend(JsonTarget):
    """Dataset files of which ``tools/check_dataset.py --images --fix`` writes a copy."""

    name = "mend"
    share = 6
    seeds: ClassVar[list[Any]] = [COCO, _FAULTY, _FAULTY, DICTS, _FAULTY_DICTS]

    def prepare(self, folder: Path) -> None:
        """Write images that can be read."""
        from PIL import Image

        super().prepare(folder)
        for number, name in enumerate(["a.png", "sub/b.png", "turned.png"]):
            Image.new("RGB", (30, 20), (50 * number, 9, 9)).save(folder / "images" / name)

    def read(self, content: bytes) -> None:
        """Check the file, mend it, and mend the copy: it holds nothing that is mended, and stays as it is."""
        from rich.console import Console

        from sam_d2.doctor.checkup import check_dataset
        from sam_d2.doctor.mend import mend
        from sam_d2.doctor.parts import Source
        from sam_d2.doctor.report import report_json
        from sam_d2.doctor.show import show_checkup, show_mended

        self.file.write_bytes(content)
        source = Source("", self.file, (self.file.parent / "images",))
        checkup = check_dataset([source], images=True)
        console = Console(file=io.StringIO())
        show_checkup(console, checkup)
        json.dumps(report_json(self.name, checkup)).encode("ascii")
        mended = mend(source, checkup)
        written = mended.content()
        show_mended(console, mended, self.copy)
        assert self.file.read_bytes() == content, "the file itself is changed"
        json.loads(written, parse_constant=None if mended.has_constants else _no_constant)
        self.copy.write_bytes(written)
        again = Source("", self.copy, source.image_roots)
        checked = check_dataset([again], images=True)
        left, found = ([(one.kind, one.image_id, one.annotation_id) for one in part.findings]
                       for part in (mended.checkup, checked))  # fmt: skip
        # Of other kinds a record that has no one right answer may be left beside those that were mended.
        assert not {"annotation-id-zero", "annotation-id-twice"} & {kind for kind, *_ in left}, "ids are left"
        assert left == found, f"of the copy is said {left}, and it has {found}"
        twice = mend(again, checked)
        assert not twice.counts, f"the copy is mended again: {twice.counts}"
        assert twice.content() == written, "the copy of the copy is another"


class Results(JsonTarget):
    """COCO results lists, as prompts and as detections."""

    name = "results"
    share = 20
    seeds: ClassVar[list[Any]] = [RESULTS, _ROWS]

    def prepare(self, folder: Path) -> None:
        """Register the dataset that the results are on."""
        from sam_d2.data.register import register_dataset

        super().prepare(folder)
        truth = folder / "truth.json"
        truth.write_text(json.dumps(COCO))
        self.dataset = f"fuzz_{folder.name}"
        register_dataset(self.dataset, truth, folder / "images", ["nut", "bolt"])

    def read(self, content: bytes) -> None:
        """Read the file as ``--prompt-boxes`` does, and as the boxes of ``tools/demo.py``."""
        from sam_d2.data.prompt_boxes import PromptBoxes
        from sam_d2.evaluation.prompt_file import read_prompt_file

        self.file.write_bytes(content)
        PromptBoxes(self.file).of(self.file.parent / "images" / "a.png")
        read_prompt_file(self.file, self.dataset)


class ManifestFile(JsonTarget):
    """data/datasets.json."""

    name = "manifest"
    share = 2
    seeds: ClassVar[list[Any]] = [MANIFEST]

    def prepare(self, folder: Path) -> None:
        """Write the dataset that the manifest names."""
        super().prepare(folder)
        (folder / "coco.json").write_text(json.dumps(COCO))

    def read(self, content: bytes) -> None:
        """Read the manifest, and the datasets that it names."""
        from detectron2.data import DatasetCatalog, MetadataCatalog
        from sam_d2.data.manifest import read_manifest
        from sam_d2.data.register import registered_names
        from sam_d2.data.resolve import resolve_dataset
        from sam_d2.errors import UserError

        for name in registered_names():  # by the input before
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)
        self.file.write_bytes(content)
        refused = None
        for name in read_manifest(self.file).datasets:
            try:
                resolve_dataset(name, self.file)
            except UserError as error:
                refused = error
        if refused is not None:
            raise refused


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
