"""Find the folder under which all images of a dataset lie."""

import contextlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from sam_d2.data.findings import Finding, RecordId

MAX_NAMES = 5
LEAVES_ROOT = "path-leaves-root"
"""Kind of the finding on a name that leads out of the image folder."""
NAME_FOLDER = (
    "name the folder that these names are relative to (--train-images, --test-images of tools/register_dataset.py; "
    "'images' in the manifest)"
)


RENAME = "write the names as the files have them: they differ in case, or in how accents are written"
"""Fix of the finding on images that are there under another name."""


def find_image_root(
    json_file: Path,
    file_names: Sequence[str],
    image_ids: Sequence[RecordId],
    image_roots: Iterable[Path] = (),
) -> tuple[Path | None, list[Finding]]:
    """Return the first folder under which every image exists.

    Looked at in this order: the given folders, the JSON's folder, the working directory, each parent of the
    JSON's folder but the file system's root; of ``DIR/annotations/instances_val2017.json``, COCO's layout, then
    ``DIR/images/val2017``, ``DIR/val2017`` and ``DIR/images``.

    A name must stay inside the folder: `..` that leads out of it, and an absolute path elsewhere, are errors.
    A symbolic link inside the folder may point anywhere, since that is how large datasets are commonly laid
    out and whoever placed the link owns the folder, whereas the names come with the file.

    Args:
        json_file: the dataset file, absolute.
        file_names: the images' paths as the file has them.
        image_ids: what messages call the images, as many.
        image_roots: folders that the user named.

    Returns:
        The folder, absolute, or None where there is none, and the problems.
    """
    candidates = search_folders(json_file, image_roots)
    trials: list[tuple[Path, list[int], list[str]]] = []
    # Only these can lead out of a folder; a colon is a drive's.
    unusual = [row for row, name in enumerate(file_names) if ".." in name or ":" in name or name[:1] in "/\\"]
    for candidate in candidates:
        outside = [row for row in unusual if not _stays_inside(candidate, file_names[row])]
        absent = missing_files(candidate, file_names)
        if not outside and not absent:
            return candidate, []
        trials.append((candidate, outside, absent))
    base, outside, absent = min(trials, key=lambda trial: len(trial[1]) + len(trial[2]))
    escaping = [
        Finding("error", json_file, image_ids[row], None, "file_name",
                f"{file_names[row]!r} leads out of the image folder {base}",
                "write a path inside the image folder", kind=LEAVES_ROOT)
        for row in outside
    ]  # fmt: skip
    if not absent:
        return None, escaping
    return None, [*escaping, _missing(json_file, base, absent, len(file_names), candidates)]


def search_folders(json_file: Path, image_roots: Iterable[Path] = ()) -> list[Path]:
    """Return the folders that :func:`find_image_root` looks at, in its order."""
    folder = json_file.parent
    parents = [path for path in folder.parents if path != Path(path.anchor)]
    named = (path.absolute() for path in image_roots)
    return list(dict.fromkeys([*named, folder, Path.cwd(), *parents, *_beside_annotations(json_file)]))


def _beside_annotations(json_file: Path) -> list[Path]:
    if json_file.parent.name != "annotations":
        return []
    root, name = json_file.parent.parent, json_file.stem.removeprefix("instances_")
    parts = dict.fromkeys((name, name.partition(".")[0]))  # of train.coco.json it is the word before the first dot
    folders = [*(folder / part for part in parts for folder in (root / "images", root)), root / "images"]
    return [path for path in folders if path.is_dir()]


def folders_text(folders: Iterable[Path]) -> str:
    """Return folders as a list for a message, which says of one that it does not exist."""
    return ", ".join(f"{path}{'' if path.is_dir() else ' (no such folder)'}" for path in folders)


def names_folder(finding: Finding) -> bool:
    """Tell whether a problem of :func:`find_image_root` is mended by naming another image folder."""
    return finding.field == "file_name" and NAME_FOLDER in finding.fix


def alike_names(base: Path, names: Iterable[str]) -> dict[str, str]:
    """Return, of missing names, the files under `base` that differ in case or in how accents are written alone.

    File systems of macOS and Windows do not tell such names apart, others do. Each folder is listed once.

    Returns:
        By name the one path there is; those of none and of several are left out.
    """
    listed: dict[str, dict[str, list[str]]] = {}
    alike = {}
    for name in names:
        found = [""]
        for part in PurePath(name).parts:
            for folder in found:
                if folder not in listed:
                    listed[folder] = _folded_entries(base / folder)
            key = _folded(part)
            found = [f"{folder}{other}/" for folder in found for other in listed[folder].get(key, [])]
        files = [path for other in found if (base / (path := other.removesuffix("/"))).is_file()]
        if len(files) == 1:
            alike[name] = files[0]
    return alike


def names_text(name: str, other: str) -> tuple[str, str]:
    """Return two names so that a difference shows that a terminal would not, of accents."""
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other):
        return ascii(name), ascii(other)
    return repr(name), repr(other)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _folded_entries(folder: Path) -> dict[str, list[str]]:
    entries: defaultdict[str, list[str]] = defaultdict(list)
    with contextlib.suppress(OSError):  # a file, or none
        for path in folder.iterdir():
            entries[_folded(path.name)].append(path.name)
    return entries


def _missing(json_file: Path, base: Path, absent: Sequence[str], total: int, searched: Sequence[Path]) -> Finding:
    """Say what is missing: single files, where most are there, or else the folder."""
    names = ", ".join(repr(name) for name in absent[:MAX_NAMES]) + (", ..." if len(absent) > MAX_NAMES else "")
    names += " (backslashes do not separate folders here)" if any("\\" in name for name in absent) else ""
    restore = "restore these files, or remove the images and their annotations from the dataset file"
    first = absent[:MAX_NAMES]
    for folder in searched if len(absent) == total else [base]:
        alike = alike_names(folder, first)
        if len(alike) == len(set(first)):
            asked, there = names_text(first[0], alike[first[0]])
            found = f"{len(absent)} of {total} images are missing under {folder}: {asked}, but there is {there}"
            return Finding("error", json_file, None, None, "file_name", found, RENAME, kind="image-missing")
    fixes = [restore, f"{NAME_FOLDER}. Looked in: {folders_text(searched)}"]
    if len(absent) == total:
        found, fix = f"none of its {total} images was found: {names}", _other_place(absent[0], searched) or fixes[1]
    else:
        found = f"{len(absent)} of {total} images are missing under {base}: {names}"
        fix = restore if 2 * len(absent) <= total else "; or ".join(fixes)
    return Finding("error", json_file, None, None, "file_name", found, fix, kind="image-missing")


def _other_place(name: str, searched: Iterable[Path]) -> str:
    """Return what to do where an image lies in a folder without those that its name begins with; "" elsewhere."""
    prefix, _, last = name.rpartition("/")
    folder = next((folder for folder in searched if prefix and (folder / last).is_file()), None)
    if folder is None:
        return ""
    return (
        f"{last!r} lies in {folder}, but the names begin with {prefix + '/'!r}: take that off the names in the file, "
        f"or move that folder to a place that ends in {prefix}"
    )


def missing_files(base: Path, file_names: Sequence[str]) -> list[str]:
    """Return the names that are no file under `base`; lists each folder once, which spares network disks."""
    folders: dict[str, set[str]] = defaultdict(set)
    for name in file_names:
        folder, slash, last = name.rpartition("/")  # a million pathlib objects take seconds
        folders[folder + slash].add(last)
    absent: set[str] = set()
    for folder, names in folders.items():
        absent.update(folder + last for last in names - _files_of(base, folder))
    return [name for name in file_names if name in absent] if absent else []


def _files_of(base: Path, folder: str) -> set[str]:
    try:
        with os.scandir(base / folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # no such folder; ValueError: a name that no file system has (a zero byte)
        return set()


def _stays_inside(base: Path, name: str) -> bool:
    path = os.path.normpath(base / name)
    return PurePath(path).is_relative_to(base)
