"""Put dataset files into Detectron2's catalogs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam_d2.data.dataset_file import DatasetFile, ImageRoot, load_dataset_file, with_classes
from sam_d2.data.findings import doctor_command, plural, raise_findings
from sam_d2.data.lazy_dicts import count_categories, count_empty
from sam_d2.data.split import Split, split_dataset
from sam_d2.errors import UserError
from sam_d2.visible_text import clean

logger = logging.getLogger(__name__)

_MAX_CACHED = 8
_MAX_CLASSES = 5


@dataclass(frozen=True)
class _Source:
    json_file: Path
    image_roots: tuple[Path, ...]
    classes: tuple[str, ...] | None
    split: Split | None
    boxes_alone: bool = False


_registered: dict[str, _Source] = {}
_loaded: dict[tuple[Any, ...], DatasetFile] = {}


def register_dataset(
    name: str,
    json_file: str | Path,
    image_root: ImageRoot = None,
    classes: Sequence[str] | None = None,
    split: Split | None = None,
    *,
    boxes_alone: bool = False,
) -> None:
    """Register a dataset file, or a part of it, under a name.

    The file is read and checked when `DatasetCatalog.get(name)` is first called, which also completes the
    metadata: `image_root`, `evaluator_type` ("coco"), `thing_classes`, `thing_dataset_id_to_contiguous_id`,
    and, for a whole COCO file, `json_file`. A part of a file and Detectron2's form have no `json_file`,
    because evaluators take it for the ground truth in COCO's form; without it they write one from the dataset
    dicts.

    Args:
        name: key of the catalogs.
        json_file: COCO JSON, or Detectron2's list of dicts.
        image_root: folder of the images, or several to try in turn.
        classes: class names, in order of the class index.
        split: the part of the images to take; all by default.
        boxes_alone: as for :func:`~sam_d2.data.dataset_file.load_dataset_file`.

    Raises:
        UserError: the file does not exist, or the name is registered with other files. The same name with
            the same files again changes nothing.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    source = _Source(
        Path(json_file).absolute(),
        _as_paths(image_root),
        None if classes is None else tuple(classes),
        split,
        boxes_alone,
    )
    if name in DatasetCatalog.list():
        known = _registered.get(name)
        if known == source:
            return
        if known is None or replace(known, boxes_alone=boxes_alone) != source:
            other = "code outside of sam_d2" if known is None else known.json_file
            raise UserError(
                f"Dataset {name!r} is already registered with other files ({other}, now {source.json_file}). "
                "Take another name for one of them."
            )
        DatasetCatalog.remove(name)  # the same files, of which now more, or less, may be wanted than boxes
    if not source.json_file.is_file():
        raise UserError(f"{source.json_file}: no such dataset file. Check the path.")
    DatasetCatalog.register(name, lambda: _load_registered(name, source))
    MetadataCatalog.get(name).set(evaluator_type="coco")
    _registered[name] = source


def registered_names() -> list[str]:
    """Return the keys that :func:`register_dataset` has registered in this process and that are in the catalogs yet."""
    from detectron2.data import DatasetCatalog

    return [name for name in _registered if name in DatasetCatalog.list()]


def key_of_file(json_file: Path) -> str | None:
    """Return the key under which :func:`register_dataset` has registered all of a file in this process, if it has."""
    file = json_file.resolve()
    sources = ((key, _registered[key]) for key in registered_names())
    return next((key for key, source in sources if source.json_file.resolve() == file and source.split is None), None)


def cached_dataset_file(
    json_file: str | Path,
    image_root: ImageRoot = None,
    classes: Sequence[str] | None = None,
    *,
    boxes_alone: bool = False,
) -> DatasetFile:
    """Load a file as :func:`load_dataset_file` does, but once per process as long as it does not change.

    Args:
        json_file: COCO JSON, or Detectron2's list of dicts.
        image_root: folder of the images, or several to try in turn.
        classes: class names, in order of the class index.
        boxes_alone: as for :func:`~sam_d2.data.dataset_file.load_dataset_file`.

    Raises:
        UserError: the file has errors.
    """
    file = Path(json_file).absolute()
    key = (file, _as_paths(image_root), Path.cwd(), boxes_alone, *_stamp(file))
    if key not in _loaded:
        while len(_loaded) >= _MAX_CACHED:
            _loaded.pop(next(iter(_loaded)))
        _loaded[key] = load_dataset_file(file, image_root, boxes_alone=boxes_alone)
    dataset = _loaded[key]
    if classes is None:
        return dataset
    named = with_classes(dataset, classes)
    raise_findings([finding for finding in named.findings if finding.severity == "error"])
    return named


def _load_registered(name: str, source: _Source) -> list[dict[str, Any]]:
    from detectron2.data import MetadataCatalog

    dataset = cached_dataset_file(source.json_file, source.image_roots, source.classes, boxes_alone=source.boxes_alone)
    contiguous = {category_id: index for index, category_id in enumerate(dataset.category_ids)}
    metadata = MetadataCatalog.get(name)
    metadata.set(
        image_root=str(dataset.image_root),
        thing_classes=dataset.classes,
        thing_dataset_id_to_contiguous_id=contiguous,
    )
    if source.split is not None:
        records = split_dataset(dataset.dataset_dicts, source.split, str(source.json_file))
    else:
        records = list(dataset.dataset_dicts)
        if dataset.format == "coco":
            metadata.set(json_file=str(source.json_file))
    _log_contents(name, source, records, dataset)
    return records


def _log_contents(name: str, source: _Source, records: list[dict[str, Any]], dataset: DatasetFile) -> None:
    part = ""
    if source.split is not None:
        share = f"{source.split.fraction:g} for training, seed {source.split.seed}"
        part = f", of the {len(dataset.dataset_dicts)} in {source.json_file} (split by image: {share})"
    counts = count_categories(records)
    most = ", ".join(f"{clean(dataset.classes[index])} {count}" for index, count in counts.most_common(_MAX_CLASSES))
    more = ", ..." if len(counts) > _MAX_CLASSES else ""
    empty = count_empty(records)
    logger.info(
        "%s: %d images%s, %d instances of %d classes%s%s",
        name, len(records), part, counts.total(), len(dataset.classes), f" ({most}{more})" if counts else "",
        f"; {plural(empty, 'image')} without any" if empty else "",
    )  # fmt: skip
    if warnings := [finding for finding in dataset.findings if finding.severity == "warning"]:
        # They were said when the file was read, before there was a run folder with a log.
        logger.info("%s: %s; %s says them", name, plural(len(warnings), "warning"), doctor_command(source.json_file))


def _as_paths(image_root: ImageRoot) -> tuple[Path, ...]:
    roots = [image_root] if isinstance(image_root, str | Path) else image_root or []
    return tuple(Path(root).absolute() for root in roots)


def _stamp(file: Path) -> tuple[int, ...]:
    """Return what changes when the file is written again."""
    try:
        status = file.stat()
    except OSError:
        return ()  # loading reports it
    return status.st_mtime_ns, status.st_size
