"""The checkpoint that a run goes on from: the last one, or the one before it where the last is damaged."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from sam_d2.engine.checkpoint_file import load_checkpoint_file
from sam_d2.errors import UserError
from sam_d2.zip_limits import check_unpacked

TAG = "last_checkpoint"
"""File that names the newest checkpoint of a folder."""
_LONGEST_TAG = 4096
"""Bytes that a path has at most; a longer file names nothing, and is not read whole."""


def tagged_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that ``last_checkpoint`` names, None where there is none or no such file."""
    file = _named(folder)
    return file if file is not None and _is_there(file, folder) else None


def has_checkpoint(folder: Path) -> bool:
    """Tell whether a run folder has a checkpoint to go on from: one that ``last_checkpoint`` names, or a numbered one.

    What is named counts also where it is gone: then that is to be said, and not a run begun over the other files.
    """
    return next(_candidates(folder), None) is not None


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run folder, None where none is there; whether it is whole is not looked at.

    It is the one that ``last_checkpoint`` names, or else, where that is gone, the nearest before it; without a name
    the one with the highest number.
    """
    return next((file for file in _candidates(folder) if _is_there(file, folder)), None)


def whole_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint of a run folder that is whole: to the bit, as its checksums say.

    It is the one that ``last_checkpoint`` names, or else the nearest before it; without a name the one with the
    highest number, because a kill between a run's first checkpoint and its naming, or a copy that lost the small
    file, must not cost the run.

    Args:
        folder: of the run.

    Returns:
        The file, None where none was ever written; and what is wrong with those that are passed over, or with
        ``last_checkpoint``.

    Raises:
        UserError: there were some, and none is whole.
    """
    problems: list[str] = []
    for file in _candidates(folder):
        problem = _problem(file, folder)
        if problem is None:
            passed = [f"*** {text} Going on from the one before it, {file.name} ***" for text in problems]
            _, fault = _read_tag(folder)
            if fault:
                passed.append(f"*** {folder / TAG} {fault}. Going on from the newest checkpoint, {file.name} ***")
            return file, passed
        problems.append(problem)
    if problems:
        raise UserError(" ".join(problems))
    return None, []


def _named(folder: Path) -> Path | None:
    name, _ = _read_tag(folder)
    return folder / name if name else None


def _read_tag(folder: Path) -> tuple[str, str]:
    """Return the name in ``last_checkpoint``, or empty and why there is none."""
    tag = folder / TAG
    if not tag.is_file():
        return "", "is missing"
    with tag.open("rb") as file:
        content = file.read(_LONGEST_TAG + 1)
    if len(content) > _LONGEST_TAG:
        return "", f"is damaged (longer than {_LONGEST_TAG} bytes)"
    # A power failure in the moment in which it was written leaves it empty, full of zeros or with noise in it.
    name = content.decode(errors="replace").strip("\0 \t\r\n")
    return name, "" if name else "is damaged (empty)"


def _is_there(file: Path, folder: Path) -> bool:
    """Tell whether a checkpoint is there and in the folder: what names it may come with the run, from anywhere."""
    try:
        return _is_in(file, folder) and file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _is_in(file: Path, folder: Path) -> bool:
    # As the names say: a folder may be a link, and a link in it is its owner's.
    return os.path.dirname(os.path.abspath(file)) == os.path.abspath(folder)  # noqa: PTH100, PTH120


def _candidates(folder: Path) -> Iterator[Path]:
    steps = {file: step_of(file) for file in folder.glob("model_[0-9]*.pth") if file.is_file()}
    numbered = {step: file for file, step in steps.items() if step is not None}
    limit = max(numbered, default=0) + 1
    if file := _named(folder):
        yield file
        step = step_of(file)
        limit = limit if step is None else step
    for step in sorted(numbered, reverse=True):
        if step < limit:
            yield numbered[step]


def step_of(file: Path) -> int | None:
    """Return the step in a checkpoint's name, None where it has none: the final one, or a user's copy."""
    number = re.fullmatch("model_([0-9]{1,18})", file.stem)
    return int(number[1]) if number else None


def _problem(file: Path, folder: Path) -> str | None:
    if not _is_there(file, folder):
        return _gone(file, folder)
    status = file.stat()
    return _damage(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _damage(file: Path, size: int, _time: int) -> str | None:
    """Return what is wrong with a file; it is read once per process, at the speed of the disk."""
    try:
        if zipfile.is_zipfile(file):
            check_unpacked(file, size)  # before the checksums, which are of what the archive unpacks to
            with zipfile.ZipFile(file) as archive:
                member = archive.testzip()
            if member:
                return f"{file}: damaged ({member} has another checksum than when it was written)."
        load_checkpoint_file(file, mmap=True)  # the checksums do not cover the archive's table of contents
    except UserError as error:
        return str(error)
    except Exception as error:  # a flipped bit makes zipfile stumble over anything: an encoding, a password, a method
        return f"{file}: damaged ({error or type(error).__name__})."
    return None


def _gone(file: Path, folder: Path) -> str:
    state = "does not exist" if _is_in(file, folder) else "is not in the folder of the run"
    return (
        f"{file} {state}, but {folder / TAG} names it as the one to go on from. Write the name of another model_*.pth "
        "of that folder into it, or begin another run with --output-dir DIR."
    )
