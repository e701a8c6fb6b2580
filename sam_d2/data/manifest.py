"""The manifest: which datasets this checkout knows, by name.

    {"version": 1, "datasets": {"iwp": {"classes": ["iwp"], "splits": {
        "train": {"json": "iwp/dataset_train.json", "images": "iwp"},
        "test": {"json": "iwp/dataset_test.json", "images": "iwp"}}}}}

Paths are relative to the manifest, or absolute: so are those written that lie outside of the repository folder, because
they hold where a clone is moved. Where one file serves both, each split says which part it is:
`"split": {"part": "train", "fraction": 0.8, "seed": 0}`; nothing is copied.
"""

import os
import re
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from sam_d2.atomic import write_atomically
from sam_d2.data.split import Split
from sam_d2.errors import UserError
from sam_d2.file_lock import FileLock

MANIFEST_VARIABLE = "SAM_D2_DATASETS"
RESERVED_NAME = "quickstart"

SplitName = Literal["train", "val", "test"]


class ManifestSplit(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The files of one split.

    Attributes:
        json: the dataset file.
        images: folder of the images.
        split: the part of the file that it is; None for all of it.
    """

    json: str
    images: str | None = None
    split: Split | None = None


class ManifestDataset(Struct, forbid_unknown_fields=True):
    """A dataset.

    Attributes:
        classes: names in order of the class index.
        splits: `train`, and `test` or `val`.
    """

    classes: list[str]
    splits: dict[SplitName, ManifestSplit]


class Manifest(Struct, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        datasets: by name.
        version: of this format.
    """

    version: Literal[1] = 1
    datasets: dict[str, ManifestDataset] = msgspec.field(default_factory=dict)


def manifest_path(path: str | Path | None = None) -> Path:
    """Return where the manifest is: the given path, else `SAM_D2_DATASETS`, else data/datasets.json.

    The last is that of the checkout, or, for a library installed elsewhere, of the working directory.
    """
    if path is None:
        path = os.environ.get(MANIFEST_VARIABLE) or None
    if path is not None:
        return Path(path).absolute()
    checkout = Path(__file__).resolve().parents[2]
    root = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    return root / "data" / "datasets.json"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; a file that does not exist is one without datasets.

    Raises:
        UserError: it is not JSON, or has an unknown key or a wrong shape.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return Manifest()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"Manifest {path}: {error}. Correct it (data/README.md shows the format), or delete it and "
            "register the datasets again with tools/register_dataset.py."
        ) from error
    except OSError as error:
        raise UserError(f"Manifest {path} cannot be read: {error.strerror}. Check the path.") from error


def add_to_manifest(path: Path, name: str, entry: ManifestDataset, replace: bool = False) -> None:
    """Add a dataset; the same entry again changes nothing. Of several processes each waits for its turn.

    Args:
        path: the manifest; it and its folder are made where they do not exist.
        name: of the dataset.
        entry: with paths as :func:`relative_to_manifest` gives them.
        replace: overwrite another entry of that name.

    Raises:
        UserError: the name cannot be used or is taken, or the manifest cannot be read or written.
    """
    check_name(name)
    if read_manifest(path).datasets.get(name) == entry:
        return  # also where nothing could be written
    try:
        file = path.resolve()  # a link and what it leads to have one lock
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")) as lock:
            lock.acquire(wait=True)  # from reading to writing: what another process adds meanwhile would be lost
            _add(path, name, entry, replace)
    except OSError as error:
        raise UserError(
            f"Manifest {path} cannot be written: {error.strerror}. Check the folder's permissions."
        ) from error


def _add(path: Path, name: str, entry: ManifestDataset, replace: bool) -> None:
    manifest = read_manifest(path)
    known = manifest.datasets.get(name)
    if known not in (None, entry) and not replace:
        raise UserError(
            f"Manifest {path} has another dataset {name!r}. Choose another name, or pass --replace to overwrite it."
        )
    manifest.datasets[name] = entry
    write_atomically(path, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def check_name(name: str) -> None:
    """Raise an error where a name cannot stand in a catalog and in the name of an output folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"Dataset name {name!r}: use letters, digits, '_', '-' and '.', beginning with a letter or digit."
        )
    if name == RESERVED_NAME:
        raise UserError(f"Dataset name {name!r} is that of the generated scenes. Choose another.")


def clean_name(name: str) -> str:
    """Return a name like this one that :func:`check_name` takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip("_.-") or "dataset"


def relative_to_manifest(target: Path, manifest: Path) -> str:
    """Return a path as the manifest keeps it: relative to it, and absolute outside of the manifest's repository.

    Where the manifest is in no repository, its own folder takes the repository's place.
    """
    target, folder = target.resolve(), manifest.parent.resolve()
    repository = next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), folder)
    if not target.is_relative_to(repository):
        return target.as_posix()
    return Path(os.path.relpath(target, folder)).as_posix()


def from_manifest(entry: str, manifest: Path) -> Path:
    """Return the absolute path of a manifest's entry.

    Raises:
        UserError: it is no path: it is too long, or has a character that none may have.
    """
    try:
        path = (manifest.parent.resolve() / entry).resolve()
        path.exists()  # asks the file system, which knows its limits
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Manifest {manifest}: {entry[:60]!r} is no path ({reason}). Correct it.") from error
    return path
