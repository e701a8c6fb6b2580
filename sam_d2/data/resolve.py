"""What `--dataset NAME|FOLDER|FILE` means."""

import difflib
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from sam_d2.data.coco_2017 import NAME as COCO_2017
from sam_d2.data.coco_2017 import find_coco_2017, forget_builtin
from sam_d2.data.dataset_file import common_classes, inspect_dataset_file
from sam_d2.data.findings import plural
from sam_d2.data.folder_layouts import SplitFiles, find_splits, suggest_registration
from sam_d2.data.image_root import names_folder
from sam_d2.data.manifest import (
    RESERVED_NAME,
    ManifestDataset,
    ManifestSplit,
    clean_name,
    from_manifest,
    manifest_path,
    read_manifest,
)
from sam_d2.data.register import cached_dataset_file, key_of_file, register_dataset, registered_names
from sam_d2.data.split import Split
from sam_d2.errors import UserError

logger = logging.getLogger(__name__)

_MOST_SHARED = 3


@dataclass(frozen=True)
class ResolvedDataset:
    """A dataset whose two parts are registered and checked.

    Attributes:
        name: for the output folder.
        train: key of Detectron2's catalogs.
        test: key of Detectron2's catalogs.
        classes: names in order of the class index, the same for both.
    """

    name: str
    train: str
    test: str
    classes: list[str]


@dataclass(frozen=True)
class _Part:
    split_name: str
    files: SplitFiles
    split: Split | None = None


def resolve_dataset(argument: str, manifest: Path | None = None, *, boxes_alone: bool = False) -> ResolvedDataset:
    """Register the dataset that an argument means, and read and check both of its parts.

    Args:
        argument: a name of the manifest, or of Detectron2's catalogs without its `_train`; `quickstart` for
            generated scenes; `coco_2017` in Detectron2's standard folders; a folder in one of the layouts of
            :func:`sam_d2.data.folder_layouts.find_splits`; or a dataset file, which is split by image, 0.8
            for training.
        manifest: instead of `SAM_D2_DATASETS` or data/datasets.json.
        boxes_alone: whether files without a mask may be read, for an evaluation of boxes.

    Raises:
        UserError: nothing is known by that name, the folder is not recognised, a file has errors, or the two
            parts have different classes.

    Example:
        >>> resolve_dataset("data/iwp")  # doctest: +SKIP
        ResolvedDataset(name='iwp', train='iwp_train', test='iwp_test', classes=['class_0'])
    """
    manifest = manifest_path(manifest)
    path = Path(argument).expanduser()
    known = read_manifest(manifest).datasets
    if argument in known:
        return _resolve_entry(argument, known[argument], manifest, boxes_alone)
    if argument == COCO_2017:
        return _resolve_coco_2017(manifest)
    if argument == RESERVED_NAME:
        from sam_d2.data.scenes import ensure_quickstart
        from sam_d2.processes import first_process_first

        with first_process_first():
            folder = ensure_quickstart(manifest.parent / RESERVED_NAME)
        return _resolve_folder(folder, RESERVED_NAME)
    if path.is_dir():
        return _resolve_folder(path.resolve(), clean_name(path.resolve().name), boxes_alone)
    if path.is_file():
        return _resolve_file(path.resolve(), boxes_alone)
    return _resolve_catalog(argument, sorted(known), manifest)


def resolve_part(argument: str, manifest: Path | None = None) -> str:
    """Register one part of a dataset, and read and check it.

    Args:
        argument: a key of the catalogs; a name of the manifest, `quickstart` or `coco_2017` with `_train`, `_test` or
            `_val`; such a name or a folder alone, which means its training part; or a dataset file, all of it.
        manifest: instead of `SAM_D2_DATASETS` or data/datasets.json.

    Returns:
        Its key in Detectron2's catalogs.

    Raises:
        UserError: nothing is known by that name, or a file has errors.
    """
    from detectron2.data import DatasetCatalog

    path = Path(argument).expanduser()
    if argument in registered_names():
        return argument
    manifest = manifest_path(manifest)
    known = read_manifest(manifest).datasets
    name, _, part = argument.rpartition("_")
    if argument not in known and name in known and part in known[name].splits:
        item = known[name].splits[part]
        files = manifest_files(item, manifest)
        register_dataset(argument, files.json_file, files.image_roots, known[name].classes, item.split)
    elif name in (COCO_2017, RESERVED_NAME) and part in ("train", "test", "val"):
        resolved = resolve_dataset(name, manifest)
        argument = resolved.train if part == "train" else resolved.test
    elif path.is_file():
        path = path.resolve()
        argument = key_of_file(path) or clean_name(f"{path.parent.name}_{path.stem}")
        if argument not in registered_names():
            register_dataset(argument, path, tuple(image_folders(path)))
    elif argument in known or argument not in DatasetCatalog.list():
        argument = resolve_dataset(argument, manifest).train
    DatasetCatalog.get(argument)
    return argument


def _resolve_coco_2017(manifest: Path) -> ResolvedDataset:
    files = find_coco_2017(manifest.parent)
    forget_builtin([f"{COCO_2017}_{split}" for split in files], set(registered_names()))
    return _register_parts(COCO_2017, _Part("train", files["train"]), _Part("val", files["val"]), None)


def _resolve_entry(name: str, entry: ManifestDataset, manifest: Path, boxes_alone: bool) -> ResolvedDataset:
    parts = {
        split_name: _Part(split_name, manifest_files(item, manifest), item.split)
        for split_name, item in entry.splits.items()
    }
    test = parts.get("test") or parts.get("val")
    if "train" not in parts or test is None:
        raise UserError(
            f"Manifest {manifest}: dataset {name!r} has the splits {sorted(parts)}; it needs 'train', and "
            "'test' or 'val'. Register it again with tools/register_dataset.py."
        )
    return _register_parts(name, parts["train"], test, entry, boxes_alone)


def manifest_files(item: ManifestSplit, manifest: Path) -> SplitFiles:
    """Return the files of a split in the manifest."""
    images = () if item.images is None else (from_manifest(item.images, manifest),)
    return SplitFiles(from_manifest(item.json, manifest), images, item.split)


def _resolve_folder(folder: Path, name: str, boxes_alone: bool = False) -> ResolvedDataset:
    splits = find_splits(folder)
    if not splits:
        raise UserError(
            f"{folder}: the layout of this folder is not known (docs/datasets.md lists those that are). "
            f"Register its files under a name, for example:\n{suggest_registration(folder, name)}\n"
            f"and then pass --dataset {name}."
        )
    test = "test" if "test" in splits else "val"
    return _register_parts(name, _Part("train", splits["train"]), _Part(test, splits[test]), None, boxes_alone)


def _resolve_file(file: Path, boxes_alone: bool) -> ResolvedDataset:
    folders = (folder.name for folder in file.parents if folder.name not in ("", "annotations"))
    name = clean_name("_".join((*list(folders)[:1], file.stem)))
    files = SplitFiles(file, tuple(image_folders(file)))
    logger.info(f"{file} is one file: its images are split, {Split('train').fraction:g} of them for training")
    return _register_parts(
        name, _Part("train", files, Split("train")), _Part("test", files, Split("test")), None, boxes_alone
    )


def image_folders(file: Path) -> list[Path]:
    """Return where the images of a lone file usually are, of the folders that exist: beside it or beside its folder."""
    return [folder for folder in (file.parent / "images", file.parent.parent / "images") if folder.is_dir()]


def _register_parts(
    name: str, train: _Part, test: _Part, entry: ManifestDataset | None, boxes_alone: bool = False
) -> ResolvedDataset:
    try:
        return _register_and_read(name, (train, test), None if entry is None else entry.classes, boxes_alone)
    except UserError as error:
        command = _registration_of_images(name, train, test, entry)
        if not command:
            raise
        again = f"Register it with its image folder in place of DIR, and then pass --dataset {name}:"
        raise UserError(f"{error}\n{again}\n  {command}") from error


def _registration_of_images(name: str, train: _Part, test: _Part, entry: ManifestDataset | None) -> str:
    """Return the line of register_dataset.py that names the image folders; "" where they are not what is wrong."""
    files = {
        part.files.json_file: inspect_dataset_file(part.files.json_file, part.files.image_roots)
        for part in (train, test)
    }
    findings = [finding for file in files.values() for finding in file.findings]
    if name == RESERVED_NAME or not any(map(names_folder, findings)):
        return ""
    words = ["python", "tools/register_dataset.py", name]
    for option, json_file in zip(("train", "test"), files, strict=False):
        images = files[json_file].image_root or "DIR"
        words += [f"--{option}-json", str(json_file), f"--{option}-images", str(images)]
    if len(files) == 1 and train.split is not None:
        words += ["--split", f"{train.split.fraction:g}", "--seed", str(train.split.seed)]
    if entry is not None:
        unnamed = all(file.format == "detectron2" for file in files.values())
        words += [*(["--classes", ",".join(entry.classes)] if unnamed else []), "--replace"]
    return shlex.join(words)


def _register_and_read(
    name: str, parts: tuple[_Part, _Part], classes: list[str] | None, boxes_alone: bool
) -> ResolvedDataset:
    from detectron2.data import DatasetCatalog

    if classes is None:
        files = [
            cached_dataset_file(part.files.json_file, part.files.image_roots, boxes_alone=boxes_alone) for part in parts
        ]
        classes = common_classes(files)
    keys = [f"{name}_{part.split_name}" for part in parts]
    for key, part in zip(keys, parts, strict=True):
        register_dataset(
            key, part.files.json_file, part.files.image_roots, classes, part.split, boxes_alone=boxes_alone
        )
        DatasetCatalog.get(key)  # read and checked before anything else happens, and completes the metadata
    _warn_of_shared_images(*keys)
    return ResolvedDataset(name, keys[0], keys[1], classes)


def _warn_of_shared_images(train: str, test: str) -> None:
    """Say which files are in both parts; that one is a copy of another only reading all of them would tell."""
    from detectron2.data import DatasetCatalog

    names = {record["file_name"] for record in DatasetCatalog.get(train)}
    shared = [record["file_name"] for record in DatasetCatalog.get(test) if record["file_name"] in names]
    if shared:
        logger.warning(
            "%s of %s are trained on too, which makes its scores worthless: %s%s",
            plural(len(shared), "image"), test, ", ".join(shared[:_MOST_SHARED]),
            ", ..." if len(shared) > _MOST_SHARED else "",
        )  # fmt: skip


def _resolve_catalog(name: str, known: list[str], manifest: Path) -> ResolvedDataset:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    registered = set(DatasetCatalog.list())
    test = next((key for key in (f"{name}_test", f"{name}_val") if key in registered), None)
    train = f"{name}_train"
    if train not in registered or test is None:
        raise UserError(_unknown(name, known, registered, manifest))
    classes = []
    for key in (train, test):
        if not hasattr(MetadataCatalog.get(key), "thing_classes"):
            DatasetCatalog.get(key)
        classes.append(list(MetadataCatalog.get(key).get("thing_classes", [])))
    if not classes[0] or classes[0] != classes[1]:
        raise UserError(
            f"Datasets {train!r} and {test!r} need the same thing_classes in MetadataCatalog, have {classes}."
        )
    return ResolvedDataset(name, train, test, classes[0])


def _unknown(name: str, known: list[str], registered: set[str], manifest: Path) -> str:
    if "/" in name or name.endswith(".json"):
        return f"{name}: no such folder or file. Check the path (the working directory is {Path.cwd()})."
    complete = {key.removesuffix("_train") for key in registered if key.endswith("_train")}
    names = [*known, RESERVED_NAME]
    close = difflib.get_close_matches(name, {*names, *complete}, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"Dataset {name!r} is not known.{hint} Known: {', '.join(names)} (manifest {manifest}). "
        f"Register it: python tools/register_dataset.py {clean_name(name)} --train-json FILE --train-images DIR"
    )
