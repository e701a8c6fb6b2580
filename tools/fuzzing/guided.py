"""Inputs that are led by the code which they reach: libFuzzer, by atheris, chooses what the mutations decide."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from sam_d2.errors import UserError


def import_atheris() -> Any:
    """Return atheris, which is no requirement: it has wheels for some systems only.

    Raises:
        UserError: it is not installed.
    """
    try:
        import atheris
    except ImportError as error:
        raise UserError(
            f"--guided needs atheris ({error}): pip install -e '.[fuzz]'. There is no wheel for some systems."
        ) from error
    return atheris


class BytesRandom(Random):
    """A source of choices that bytes decide, so that changed bytes are another choice at one place, or some.

    Where they are used up, it goes on with numbers whose seed they are.

    Args:
        content: decides.
    """

    def __new__(cls, content: bytes) -> BytesRandom:
        """Leave the base without a seed: it would take the bytes for one."""
        return super().__new__(cls)

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0
        super().__init__(zlib.crc32(content))

    def getrandbits(self, k: int, /) -> int:
        """Return a number below ``2 ** k``."""
        end = self._at + (k + 7) // 8
        if end > len(self._content):
            return super().getrandbits(k)
        taken = self._content[self._at : end]
        self._at = end
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        """Return a number in [0, 1) of 65,536."""
        return self.getrandbits(16) / 65536


def follow_coverage(one: Callable[[Random], None], seed: int) -> None:
    """Call a function again and again with choices that reach new code, where there are such; never returns.

    What is to be led by was imported with :func:`instrumented`.

    Args:
        one: makes and reads an input; ends the process when it has seen enough.
        seed: other choices.
    """
    atheris = import_atheris()

    def called(content: bytes) -> None:
        one(BytesRandom(content))

    # Time and memory are limited by the harness, which knows whose they are.
    options = ["-timeout=0", "-rss_limit_mb=0", "-max_len=512", "-len_control=0", "-verbosity=0", f"-seed={seed + 1}"]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libFuzzer tells of itself there
    atheris.Setup([sys.argv[0], *options], called)
    atheris.Fuzz()


def instrumented() -> Any:
    """Return a context in which modules of sam_d2 are imported so that their branches are seen.

    Raises:
        UserError: atheris is not installed.
    """
    return import_atheris().instrument_imports(include=["sam_d2"])
