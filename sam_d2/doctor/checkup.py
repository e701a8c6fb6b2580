"""Check all files of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sam_d2.data.findings import Finding
from sam_d2.doctor.balance import check_balance
from sam_d2.doctor.boxes import check_boxes, check_scale
from sam_d2.doctor.columns import make_columns
from sam_d2.doctor.ids import check_ids
from sam_d2.doctor.images import ImageFacts, check_images, read_images
from sam_d2.doctor.masks import check_masks
from sam_d2.doctor.parts import Part, Source, read_part
from sam_d2.doctor.splits import check_splits
from sam_d2.memory import collection_paused


@dataclass
class Checkup:
    """What was found in a dataset.

    Attributes:
        parts: its files.
        facts: of the images, where they were read.
        images_read: whether they were asked for.
    """

    parts: list[Part]
    facts: dict[Path, ImageFacts] = field(default_factory=dict)
    images_read: bool = False

    @property
    def findings(self) -> list[Finding]:
        """All of them, file by file."""
        return [finding for part in self.parts for finding in part.findings]

    @property
    def exit_code(self) -> int:
        """2 where there is an error, 1 where there are warnings alone, else 0."""
        severities = {finding.severity for finding in self.findings}
        return 2 if "error" in severities else 1 if severities else 0


def check_dataset(
    sources: Sequence[Source],
    *,
    images: bool = False,
    facts: Mapping[Path, ImageFacts] | None = None,
    contents: Mapping[Path, np.ndarray] | None = None,
) -> Checkup:
    """Check the files of a dataset; nothing is raised for what is wrong with them.

    Args:
        sources: the files, in the order train, val, test.
        images: whether every image is read and decoded.
        facts: of images that were read before, which are not read again.
        contents: of files that are to be checked as if they held this, uint8 (n,).

    Example:
        >>> checkup = check_dataset([Source("", Path("cells.json").absolute())])  # doctest: +SKIP
        >>> checkup.exit_code  # doctest: +SKIP
        0
    """
    with collection_paused():
        parts = [_check_part(source, (contents or {}).get(source.json_file)) for source in sources]
        known_facts = dict(facts or {})
        if images:
            known_facts |= read_images(path for part in parts for _, path in part.paths() if path not in known_facts)
            for part in parts:
                check_images(part, known_facts)
        check_splits(parts, known_facts)
    return Checkup(parts, known_facts, images)


def _check_part(source: Source, content: np.ndarray | None) -> Part:
    part = read_part(source, content)
    if part.form is None:
        return part
    part.columns = columns = make_columns(part.table)
    check_ids(part)
    check_masks(part, columns)
    check_boxes(part, columns)
    check_scale(part, columns)
    check_balance(part)
    return part
