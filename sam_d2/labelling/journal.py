"""What a run has made so far, on disk: a folder beside the output, which the same command goes on from."""

from __future__ import annotations

import heapq
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sam_d2.atomic import write_atomically
from sam_d2.errors import UserError
from sam_d2.file_lock import FileLock

SETTINGS = "settings.json"
INDEX = "index.sqlite"
LOCK = "lock"
THREADS = "threads"
MADE = "made"
"""Outcome of a box that has become a mask; any other says why it has not."""

_WAIT_SECONDS = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (row INTEGER PRIMARY KEY, problem TEXT);
CREATE TABLE IF NOT EXISTS annotations (row INTEGER PRIMARY KEY, outcome TEXT, fields BLOB);
"""


@dataclass(frozen=True)
class MadeAnnotation:
    """What has become of a box.

    Attributes:
        row: place of its annotation in the file.
        outcome: :data:`MADE`, or why there is no mask.
        fields: JSON object of the annotation's new fields; None where there is no mask.
    """

    row: int
    outcome: str
    fields: bytes | None = None


@dataclass(frozen=True)
class FinishedImage:
    """What has become of an image's boxes.

    Attributes:
        row: place of the image in the file.
        annotations: of its boxes; none where there was a problem.
        problem: why the image could not be read; None where it was.
    """

    row: int
    annotations: list[MadeAnnotation]
    problem: str | None = None


class Journal:
    """The folder of a run: its settings, the tables of its dataset, and a file of finished images per process.

    Every process writes to a file of its own, and any number of processes can go on from the files of any other number.

    Args:
        folder: of the journal.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK)

    @property
    def index(self) -> Path:
        """Where the tables of the dataset are."""
        return self.folder / INDEX

    def begin(self, settings: dict[str, Any], build_index: Callable[[Path], None], *, threads: int) -> bool:
        """Make the folder, or take up the one that is there; for one process of a run.

        Args:
            settings: all that decides what is made, as plain values.
            build_index: makes the tables of the dataset at a path.
            threads: of torch in each process, for a run that begins here; see :attr:`threads`.

        Returns:
            Whether there is something to go on from.

        Raises:
            UserError: the folder is that of a run with other settings or of one at work, or something else; or the
                dataset has errors.
        """
        file = self.folder / SETTINGS
        if file.is_file():
            self._require_same(settings)
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"{self.folder} is no journal. Move it away, or name another --output.")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = msgspec.json.encode({**settings, THREADS: threads})
            write_atomically(file, msgspec.json.format(content, indent=1) + b"\n")
        self._lock.acquire()  # until the process ends: two at once would each make every mask
        if not self.index.is_file():
            try:
                build_index(self.index)
            except UserError:
                self.remove()  # nothing is begun, and the dataset will be another when it is corrected
                raise
        return any(self._shards())

    @property
    def threads(self) -> int:
        """Threads that the run was begun with: with another number, scores differ in their last bits on a CPU."""
        return self._settings()[THREADS]

    def finished(self, images: int) -> np.ndarray:
        """Return which images are finished and had no problem, bool (images,); those with one are tried again."""
        done = np.zeros(images, dtype=bool)
        for (row,) in self._rows("SELECT row FROM images WHERE problem IS NULL"):
            done[row] = True
        return done

    def writer(self, process: int) -> JournalWriter:
        """Return what a process of a run writes with."""
        return JournalWriter(self.folder / f"finished-{process:05d}.sqlite")

    def made(self) -> Iterator[MadeAnnotation]:
        """Return what has become of all boxes, in the order of their annotations."""
        connections = [_open(shard) for shard in self._shards()]
        try:
            rows = [connection.execute("SELECT row, outcome, fields FROM annotations ORDER BY row")
                    for connection in connections]  # fmt: skip
            yield from (MadeAnnotation(*row) for row in heapq.merge(*rows, key=lambda row: row[0]))
        finally:
            for connection in connections:
                connection.close()

    def outcomes(self) -> Counter[str]:
        """Return how many boxes have had each outcome."""
        counts: Counter[str] = Counter()
        for outcome, count in self._rows("SELECT outcome, COUNT(*) FROM annotations GROUP BY outcome"):
            counts[outcome] += count
        return counts

    def problems(self) -> dict[int, str]:
        """Return the images that could not be read and why, by their places, in order."""
        found = dict(sorted(self._rows("SELECT row, problem FROM images WHERE problem IS NOT NULL")))
        query = "SELECT row FROM images WHERE problem IS NULL AND row = ?"
        return {row: problem for row, problem in found.items() if not any(self._rows(query, row))}

    def remove(self) -> None:
        """Delete the folder: its run has written its output.

        It goes at once, under another name; a kill in the middle leaves no half of a journal, which would be none.
        """
        self.sweep()
        self.folder.rename(self._removed)
        sync_folder(self.folder.parent)
        self.sweep()

    def sweep(self) -> None:
        """Delete what a kill has left of a removed journal."""
        shutil.rmtree(self._removed, ignore_errors=True)

    @property
    def _removed(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.removed")

    def _rows(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Return what the files of all processes answer."""
        for shard in self._shards():
            connection = _open(shard)
            try:
                yield from connection.execute(query, values)
            finally:
                connection.close()

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("finished-*.sqlite"))

    def _settings(self) -> dict[str, Any]:
        file = self.folder / SETTINGS
        try:
            settings = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
            if not isinstance(settings.get(THREADS), int):
                raise msgspec.ValidationError(f"no number of {THREADS}")
        except msgspec.DecodeError as error:
            raise UserError(f"{file}: damaged ({error}). Delete {self.folder} to begin anew.") from error
        return settings

    def _require_same(self, settings: dict[str, Any]) -> None:
        before = self._settings()
        del before[THREADS]
        now = msgspec.json.decode(msgspec.json.encode(settings))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            lines = "\n".join(f"  {key}: {_shown(before.get(key))}, now {_shown(now.get(key))}" for key in changed)
            raise UserError(
                f"{self.folder} is of a run with other settings:\n{lines}\n"
                "Repeat that command to go on with it. To begin anew, delete the folder or name another --output."
            )


class JournalWriter:
    """Writes the finished images of one process; a batch is there whole or not at all, and stays.

    Args:
        path: of the process's file.
    """

    def __init__(self, path: Path) -> None:
        self._connection = _open(path)
        # FULL: the file is flushed to the disk before a batch counts as written.
        self._connection.executescript(f"PRAGMA synchronous=FULL; {_SCHEMA}")

    def write(self, batch: list[FinishedImage]) -> None:
        """Add images, in one transaction."""
        with self._connection:
            self._connection.execute("BEGIN")
            for image in batch:
                self._connection.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (image.row, image.problem))
                self._connection.executemany(
                    "INSERT INTO annotations VALUES (?, ?, ?)",
                    ((made.row, made.outcome, made.fields) for made in image.annotations),
                )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a file renamed in it stays so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 70 else f"{text[:67]}..."
