"""What ``tools/fuzz.py`` feeds to the readers of foreign files: seeds, mutations and targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random

OUTCOMES = ("accepted", "refused", "not parsed", "traceback", "escaped", "timeout", "memory", "died")
"""What becomes of an input; from the fourth on they are findings. ``refused`` and ``not parsed`` are our own error, the
latter where a parser alone (of JSON, YAML, zip, overrides) would have refused it; ``escaped`` is a program started, a
connection, a file written elsewhere than in the reader's folder, or one read that is not the reader's."""
FINDINGS = OUTCOMES[3:]


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
