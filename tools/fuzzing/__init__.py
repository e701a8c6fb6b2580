"""What ``tools/fuzz.py`` feeds to the readers of foreign files: seeds, mutations and targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random

OUTCOMES = {
    "accepted": "a result",
    "refused": "an error of ours, of a file that is well-formed",
    "not parsed": "an error of ours, of a file that any parser (of JSON, YAML, zip, overrides) would refuse",
    "traceback": "another error",
    "escaped": "a program started, a connection, a file written outside of the reader's folder, or another's read",
    "timeout": "over {seconds:.0f} s",
    "memory": "over {growth} MiB more than before, or {limit} MiB at once",
    "died": "the process ended",
}
"""What becomes of an input, and what that means."""
FINDINGS = tuple(OUTCOMES)[3:]


class Target(ABC):
    """A reader, with how its inputs are made.

    Attributes:
        name: as ``--target`` takes it.
        share: of all inputs, in percent.
        not_to_open: files outside of the reader's folder that it must not even read, made by :meth:`prepare`.
    """

    name: str
    share: int
    not_to_open: frozenset[Path] = frozenset()

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Make what all inputs need, in a folder of the process's own."""

    @abstractmethod
    def make(self, random: Random) -> bytes:
        """Return a mutated input."""

    @abstractmethod
    def read(self, content: bytes) -> None:
        """Read an input, and use what was read as a program would.

        Raises:
            UserError: the input is refused.
        """

    @abstractmethod
    def parses(self, content: bytes) -> bool:
        """Tell whether a parser that knows nothing of the program would take the input."""
