"""Which files a dataset has, where they are not to be read for a training."""

from __future__ import annotations

from pathlib import Path

from sam_d2.data.coco_2017 import NAME as COCO_2017
from sam_d2.data.coco_2017 import find_coco_2017
from sam_d2.data.folder_layouts import SplitFiles, find_splits, suggest_lines
from sam_d2.data.manifest import RESERVED_NAME, read_manifest
from sam_d2.data.resolve import image_folders, manifest_files
from sam_d2.errors import UserError


def find_files(argument: str, manifest: Path, *, remedy: str) -> dict[str, SplitFiles]:
    """Return the files of a dataset by split, unread; a lone file is that of the training.

    Args:
        argument: a name of the manifest, ``quickstart`` or ``coco_2017``, a folder in one of the layouts that
            :func:`sam_d2.data.resolve_dataset` knows, or a file.
        manifest: the file.
        remedy: what to write where this is not found, with the fields ``{file}`` and ``{images}``.

    Raises:
        UserError: nothing is known by that name, or the folder has another layout.
    """
    known = read_manifest(manifest).datasets
    path = Path(argument).expanduser()
    if argument in known:
        return {name: manifest_files(item, manifest) for name, item in known[argument].splits.items()}
    if argument == COCO_2017:
        return find_coco_2017(manifest.parent)
    if argument == RESERVED_NAME:
        from sam_d2.data.scenes import ensure_quickstart

        return find_splits(ensure_quickstart(manifest.parent / RESERVED_NAME))
    if path.is_dir():
        splits = find_splits(path.resolve())
        if not splits:
            raise UserError(
                f"{path}: the layout of this folder is not known (docs/datasets.md lists those that are). "
                f"Name a file, for example:\n{suggest_lines(path.resolve(), remedy)}"
            )
        return splits
    if path.is_file():
        return {"train": SplitFiles(path.resolve(), tuple(image_folders(path.resolve())))}
    raise UserError(
        f"Dataset {argument!r} is not known. Known: {', '.join([*known, RESERVED_NAME, COCO_2017])} (manifest "
        f"{manifest}). Name the file: {remedy.format(file='FILE.json', images='DIR')}"
    )
