"""Which file ``--dataset`` means where one file of boxes is wanted, and not a training and a test part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam_d2.data.dataset_files import find_files
from sam_d2.data.manifest import manifest_path, read_manifest
from sam_d2.errors import UserError


@dataclass(frozen=True)
class Source:
    """A dataset file.

    Attributes:
        json_file: absolute path.
        image_roots: folders of its images, to try first.
        other_splits: of the same dataset, in other files.
        classes: names that the manifest has, for a file that names none.
    """

    json_file: Path
    image_roots: tuple[Path, ...]
    other_splits: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def find_source(
    argument: str, split: str | None = None, images: Path | None = None, manifest: Path | None = None
) -> Source:
    """Return the file of a dataset, unread.

    Args:
        argument: a name of the manifest, ``quickstart`` or ``coco_2017``, a folder in one of the layouts that
            :func:`sam_d2.data.resolve_dataset` knows, or a file.
        split: which of its files; by default the one of the training.
        images: folder of the images, in place of the dataset's.
        manifest: instead of `SAM_D2_DATASETS` or data/datasets.json.

    Raises:
        UserError: nothing is known by that name, or it has no such split.
    """
    manifest = manifest_path(manifest)
    splits = find_files(argument, manifest, remedy="--dataset {file} --images {images}")
    name = split or ("train" if "train" in splits else next(iter(splits)))
    if name not in splits:
        raise UserError(f"--split {name}: the dataset {argument} has {', '.join(splits)}.")
    files = splits[name]
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: no such folder. Check the path (the working directory is {Path.cwd()}).")
    others = tuple(other for other, its in splits.items() if its.json_file != files.json_file)
    if not files.json_file.is_file():
        raise UserError(f"{files.json_file}: no such dataset file. Check the path.")
    roots = files.image_roots if images is None else (images.absolute(),)
    known = read_manifest(manifest).datasets
    classes = tuple(known[argument].classes) if argument in known else ()
    return Source(files.json_file.absolute(), roots, others, classes)
