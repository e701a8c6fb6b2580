"""Mend all of a dataset file that has exactly one right answer, in a copy."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam_d2.data.decode import UTF8_BOM
from sam_d2.doctor.checkup import Checkup, check_dataset
from sam_d2.doctor.mend_annotations import mend_annotations
from sam_d2.doctor.mend_images import mend_images
from sam_d2.doctor.mend_numbers import mend_numbers
from sam_d2.doctor.parts import Source
from sam_d2.errors import UserError

_MOST_PASSES = 12
_CONSTANTS = (b"NaN", b"Infinity")
_TOO_DEEP = "its lists or objects are nested too deeply"
_TOO_LARGE = "it holds a number too large for a 64-bit float, which would be infinite in the copy"


@dataclass
class Mended:
    """A mended copy of a dataset file.

    Attributes:
        document: what it holds.
        counts: records that were changed, by the kind of what was wrong with them.
        checkup: of the copy: what is left.
        file: the file that was mended, which is named where the copy cannot be written.
        has_constants: whether that file spells NaN or infinity, which is no JSON; one that is left stays as it stood.
    """

    document: Any
    counts: Counter[str]
    checkup: Checkup
    file: Path
    has_constants: bool

    def content(self) -> bytes:
        """Return the copy as JSON. NaN, where one is left, stays as it stood.

        Raises:
            UserError: a number of the file is too large to be written again, or its lists are nested too deeply.
        """
        try:
            return _encode(self.document, allow_nan=self.has_constants) + b"\n"
        except RecursionError as error:
            raise _refusal(self.file, _TOO_DEEP) from error
        except ValueError as error:
            raise _refusal(self.file, _TOO_LARGE) from error


def mend(source: Source, checkup: Checkup) -> Mended:
    """Mend a file until nothing more can be: a mended size decides what lies outside, a clipped mask has another area.

    Args:
        source: the file, which is not changed.
        checkup: of that file alone; its images are known where they were read.

    Raises:
        UserError: the file as a whole cannot be read, or holds what a copy cannot hold.
    """
    if checkup.parts[0].form is None:
        raise UserError(f"{source.json_file}: cannot be read, so there is nothing to mend (--fix).")
    try:
        return _mend(source, checkup)
    except RecursionError as error:
        raise _refusal(source.json_file, _TOO_DEEP) from error


def _mend(source: Source, checkup: Checkup) -> Mended:
    original = source.json_file.read_bytes().removeprefix(UTF8_BOM)
    has_constants = any(constant in original for constant in _CONSTANTS)
    document = _decode(source.json_file, original, has_constants)
    counts: Counter[str] = Counter()
    for _ in range(_MOST_PASSES):
        part = checkup.parts[0]
        counts_now: Counter[str] = Counter()
        mend_numbers(part, document, counts_now)
        if not counts_now:  # what refers to nothing now may then refer to something
            unsettled = mend_images(part, document, checkup.facts, counts_now)
            mend_annotations(part, document, unsettled, counts_now)
        if not counts_now:
            break
        counts += counts_now
        content = np.frombuffer(_encode(document), dtype=np.uint8)
        checkup = check_dataset(
            [source], images=checkup.images_read, facts=checkup.facts, contents={source.json_file: content}
        )
        if checkup.parts[0].form is None:  # Python's stack held the file, and does not hold its copy
            raise _refusal(source.json_file, _TOO_DEEP)
    return Mended(document, counts, checkup, source.json_file, has_constants)


def _decode(file: Path, content: bytes, has_constants: bool) -> Any:
    """Parse a file that was checked; its checkup passed over the values of keys that are not read."""
    try:
        # Beside a NaN that may stay, infinity by overflow could not be told any more when the copy is written.
        return json.loads(content, parse_float=_finite if has_constants else None)
    except OverflowError as error:
        raise _refusal(file, _TOO_LARGE) from error
    except ValueError as error:
        raise _refusal(file, f"in a value that sam_d2 does not read: {error}") from error


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise OverflowError(number)
    return value


def _refusal(file: Path, reason: str) -> UserError:
    return UserError(f"{file}: cannot be mended (--fix): {reason}. Correct or remove that value.")


def _encode(document: Any, allow_nan: bool = True) -> bytes:
    return json.dumps(document, allow_nan=allow_nan).encode("ascii")
