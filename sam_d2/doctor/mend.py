"""Mend all of a dataset file that has exactly one right answer, in a copy."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam_d2.data.decode import UTF8_BOM
from sam_d2.doctor.checkup import Checkup, check_dataset
from sam_d2.doctor.mend_annotations import mend_annotations
from sam_d2.doctor.mend_images import mend_images
from sam_d2.doctor.parts import Source
from sam_d2.errors import UserError

_MOST_PASSES = 8


@dataclass
class Mended:
    """A mended copy of a dataset file.

    Attributes:
        document: what it holds.
        counts: records that were changed, by the kind of what was wrong with them.
        checkup: of the copy: what is left.
    """

    document: Any
    counts: Counter[str]
    checkup: Checkup

    def content(self) -> bytes:
        """Return the copy as JSON. NaN, where one is left, stays as it stood."""
        return _encode(self.document) + b"\n"


def mend(source: Source, checkup: Checkup) -> Mended:
    """Mend a file until nothing more can be: a mended size decides what lies outside, a clipped mask has another area.

    Args:
        source: the file, which is not changed.
        checkup: of that file alone; its images are known where they were read.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    if checkup.parts[0].form is None:
        raise UserError(f"{source.json_file}: cannot be read, so there is nothing to mend (--fix).")
    document = json.loads(source.json_file.read_bytes().removeprefix(UTF8_BOM))
    counts: Counter[str] = Counter()
    for _ in range(_MOST_PASSES):
        part = checkup.parts[0]
        counts_now: Counter[str] = Counter()
        unsettled = mend_images(part, document, checkup.facts, counts_now)
        mend_annotations(part, document, unsettled, counts_now)
        if not counts_now:
            break
        counts += counts_now
        content = np.frombuffer(_encode(document), dtype=np.uint8)
        checkup = check_dataset(
            [source], images=checkup.images_read, facts=checkup.facts, contents={source.json_file: content}
        )
    return Mended(document, counts, checkup)


def _encode(document: Any) -> bytes:
    return json.dumps(document).encode("ascii")
