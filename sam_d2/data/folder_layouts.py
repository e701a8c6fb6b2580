"""Recognise how a dataset folder is laid out."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sam_d2.data.manifest import clean_name
from sam_d2.data.split import Split
from sam_d2.errors import UserError

_WORDS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
MAX_SUGGESTIONS = 5
_ROBOFLOW_FILE = "_annotations.coco.json"


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split of a folder.

    Attributes:
        json_file: the dataset file.
        image_roots: existing folders to look for the images in, in turn.
        split: the part of the file that it is; None for all of it.
    """

    json_file: Path
    image_roots: tuple[Path, ...]
    split: Split | None = None

    def may_share_images(self, other: SplitFiles) -> bool:
        """Tell whether another split of the same file may have images of this one."""
        if self.split is None or other.split is None:
            return True
        alike = (self.split.fraction, self.split.seed) == (other.split.fraction, other.split.seed)
        return not alike or self.split.part == other.split.part


def find_splits(folder: Path) -> dict[str, SplitFiles]:
    """Return the splits of a folder, by `train`, `val`, `test`; none where no layout is recognised.

    In this order, the first one that has a training file and one to test on:

    - `dataset_train.json`, `dataset_test.json` (or `_val`), images relative to the folder or above it;
    - COCO: `annotations/instances_train*.json`, ..., images in `<split>`, `images/<split>` or `images`;
    - Roboflow: `train/_annotations.coco.json` beside its images, ...;
    - any one `*train*.json`, one `*val*.json`, one `*test*.json` in the folder or in `annotations`.

    Raises:
        UserError: several files could be the same split.
    """
    layouts: tuple[Callable[[Path, str], list[Path]], ...] = (
        lambda root, split: [root / f"dataset_{split}.json"],
        lambda root, split: sorted((root / "annotations").glob(f"instances_{split}*.json")),
        lambda root, split: [root / word / _ROBOFLOW_FILE for word in _WORDS[split]],
        lambda root, split: _named_after(root, split),
        lambda root, split: _named_after(root / "annotations", split),
    )
    for layout in layouts:
        found = {split: [path for path in layout(folder, split) if path.is_file()] for split in _WORDS}
        if found["train"] and (found["test"] or found["val"]):
            return {split: _split_files(folder, split, paths) for split, paths in found.items() if paths}
    return {}


def suggest_registration(folder: Path, name: str) -> str:
    """Return lines of register_dataset.py that would register the JSON files of a folder."""
    command = f"python tools/register_dataset.py {name}"
    return suggest_lines(folder, f"{command} --train-json {{file}} --train-images {{images}} --split 0.8")


def suggest_lines(folder: Path, line: str) -> str:
    """Return a line for each of the first JSON files in a folder and below it, or for FILE.json where there is none.

    Args:
        folder: where they are looked for.
        line: what to do with one, with the fields ``{file}`` and ``{images}``.
    """
    images = shlex.quote(str(folder / "images" if (folder / "images").is_dir() else folder))
    files = [shlex.quote(str(path)) for path in sorted(folder.rglob("*.json"))[:MAX_SUGGESTIONS]]
    return "\n".join(f"  {line.format(file=file, images=images)}" for file in files or ["FILE.json"])


def _named_after(folder: Path, split: str) -> list[Path]:
    """Return the JSON files whose name holds this split's word and no other's; `trainval` is neither."""
    return [
        path
        for path in sorted(folder.glob("*.json"))
        if [key for key, words in _WORDS.items() if any(word in path.stem.lower() for word in words)] == [split]
    ]


def _split_files(folder: Path, split: str, paths: list[Path]) -> SplitFiles:
    if len(paths) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in paths)
        raise UserError(
            f"{folder}: several files could be the {split} split: {names}. Register the one to use under a "
            f"name, for example:\n{suggest_registration(folder, clean_name(folder.name))}"
        )
    file = paths[0]
    # the file's own word first: instances_train2017.json goes with images/train2017
    word = file.stem.removeprefix("instances_").removesuffix(".coco")
    words = dict.fromkeys((word, *_WORDS[split]))
    candidates = [
        *(folder / "images" / item for item in words),
        *(folder / item for item in words),
        folder / "images",
    ]
    return SplitFiles(file, tuple(path for path in candidates if path.is_dir()))
