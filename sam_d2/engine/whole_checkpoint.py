"""The checkpoint that a run goes on from: the last one, or the one before it where the last is damaged."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from sam_d2.engine.checkpoint_file import load_checkpoint_file
from sam_d2.errors import UserError

TAG = "last_checkpoint"
"""File that names the newest checkpoint of a folder."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run folder, None where none was ever written.

    Raises:
        UserError: the file that ``last_checkpoint`` names is gone.
    """
    tag = folder / TAG
    if not tag.is_file():
        return None
    file = folder / tag.read_text().strip()
    if not file.is_file():
        raise UserError(_gone(file))
    return file


def whole_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint of a run folder that is whole: to the bit, as its checksums say.

    It is the one that ``last_checkpoint`` names, or else the nearest before it.

    Args:
        folder: of the run.

    Returns:
        The file, None where none was ever written; and what is wrong with those that are passed over.

    Raises:
        UserError: there were some, and none is whole.
    """
    problems: list[str] = []
    for file in _candidates(folder):
        problem = _problem(file)
        if problem is None:
            return file, [f"*** {text} Going on from the one before it, {file.name} ***" for text in problems]
        problems.append(problem)
    if problems:
        raise UserError(" ".join(problems))
    return None, []


def _candidates(folder: Path) -> Iterator[Path]:
    tag = folder / TAG
    if not tag.is_file():
        return
    named = tag.read_text(errors="replace").strip().strip("\0")
    numbered = {_step(file): file for file in folder.glob("model_[0-9]*.pth") if file.stem[6:].isdigit()}
    limit = max(numbered, default=0) + 1
    if named:  # empty, where the power failed in the moment in which it was written
        file = folder / named
        yield file
        limit = _step(file) if file.stem[6:].isdigit() else limit
    for step in sorted(numbered, reverse=True):
        if step < limit:
            yield numbered[step]


def _step(file: Path) -> int:
    return int(file.stem[6:]) if file.stem[6:].isdigit() else -1


def _problem(file: Path) -> str | None:
    if not file.is_file():
        return _gone(file)
    status = file.stat()
    return _damage(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _damage(file: Path, _size: int, _time: int) -> str | None:
    """Return what is wrong with a file; it is read once per process, at the speed of the disk."""
    try:
        if not zipfile.is_zipfile(file):
            load_checkpoint_file(file)  # truncated, or of torch before 1.6
            return None
        with zipfile.ZipFile(file) as archive:
            member = archive.testzip()
    except UserError as error:
        return str(error)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        return f"{file}: damaged ({error})."
    return f"{file}: damaged ({member} has another checksum than when it was written)." if member else None


def _gone(file: Path) -> str:
    return (
        f"{file} does not exist, but {file.parent / TAG} names it as the one to go on from. Write the name of another "
        "model_*.pth of that folder into it, or delete it to begin anew."
    )
