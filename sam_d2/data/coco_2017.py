"""COCO 2017 in the folders where Detectron2 looks for it."""

from __future__ import annotations

import os
from pathlib import Path

from sam_d2.data.folder_layouts import SplitFiles
from sam_d2.errors import UserError

NAME = "coco_2017"
ROOT_VARIABLE = "DETECTRON2_DATASETS"
_SPLITS = ("train", "val")
_URLS = (
    "http://images.cocodataset.org/zips/train2017.zip",
    "http://images.cocodataset.org/zips/val2017.zip",
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
)


def find_coco_2017(data_folder: Path) -> dict[str, SplitFiles]:
    """Return COCO's files by split, ``train`` and ``val``.

    Args:
        data_folder: where ``coco`` is looked for besides the folder that ``DETECTRON2_DATASETS`` names.

    Raises:
        UserError: no folder has all of them; the message shows the tree and where the files are from.
    """
    roots = [data_folder]
    if os.environ.get(ROOT_VARIABLE):
        roots.insert(0, Path(os.environ[ROOT_VARIABLE]).expanduser())
    for root in roots:
        files = {split: _files(root / "coco", split) for split in _SPLITS}
        if all(file.json_file.is_file() and file.image_roots[0].is_dir() for file in files.values()):
            return files
    absent = [
        str(path)
        for split in _SPLITS
        for path in (_files(roots[0] / "coco", split).json_file, *_files(roots[0] / "coco", split).image_roots)
        if not path.exists()
    ]
    tree = "\n".join(
        ["  coco/annotations/instances_train2017.json", "  coco/annotations/instances_val2017.json"]
        + [f"  coco/{split}2017/*.jpg" for split in _SPLITS]
    )
    raise UserError(
        f"--dataset {NAME}: not found in {' or '.join(str(root.absolute()) for root in roots)} (missing: "
        f"{', '.join(absent)}). Expected there, or in the folder that {ROOT_VARIABLE} names:\n{tree}\n"
        f"Unpack {', '.join(_URLS)}."
    )


def forget_builtin(names: list[str], ours: set[str]) -> None:
    """Take COCO out of the catalogs where an installed Detectron2 has put it, to be registered in our form.

    Its own registration looks in one folder alone, and drops annotations that it cannot read in silence.

    Args:
        names: keys of the catalogs.
        ours: keys that sam_d2 has registered.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name in names:
        if name in DatasetCatalog.list() and name not in ours:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _files(coco: Path, split: str) -> SplitFiles:
    return SplitFiles(coco / "annotations" / f"instances_{split}2017.json", (coco / f"{split}2017",))
