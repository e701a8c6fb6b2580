"""Read a dataset file whole, record by record where it is damaged, and check all that it says."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from sam_d2.data.dataset_dicts import coco_table, dicts_table
from sam_d2.data.decode import decode_content, place_in
from sam_d2.data.findings import Finding
from sam_d2.data.geometry import AnnotationTable, check_geometry
from sam_d2.data.records import CocoFile, DatasetDict, known
from sam_d2.data.references import check_references, duplicate_images, foreign_domains

_ONE_KEY = re.compile(rb'\s*[{,]\s*"(?:[^"\\]|\\.)*"\s*:\s*', re.DOTALL)

ABSENT = {("segmentation", "missing key"), ("segmentation", "empty")}
"""Field and found of the findings on a mask that is not there."""

BOXES_ALONE = "the file holds boxes alone"
"""Ends what was found of a file without a mask."""


@dataclass
class CheckedRecords:
    """What a file says, and all that is wrong with it but for its images.

    Attributes:
        records: as :func:`sam_d2.data.decode.decode_dataset` returns them.
        images: COCO's in order of their ids, or the dicts of Detectron2's form.
        table: the annotations, checked.
        findings: the problems, those of the table among them.
    """

    records: CocoFile | list[DatasetDict] | None
    images: list[Any]
    table: AnnotationTable
    findings: list[Finding]


def check_records(file: Path, content: np.ndarray, problem: Finding | None, *, require_masks: bool) -> CheckedRecords:
    """Decode the content of a file and check it.

    Args:
        file: for the findings.
        content: uint8 (n,), as :func:`sam_d2.data.decode.read_content` returns it.
        problem: the other thing that it returns.
        require_masks: whether annotations without a mask are left out, and a file of boxes alone is an error.
    """
    records, findings = (
        (None, [problem]) if problem is not None else decode_content(file, content, require_masks=require_masks)
    )
    images: list[Any]
    if isinstance(records, CocoFile):
        findings += check_references(records, file, {finding.field for finding in findings})
        table = coco_table(records, file, require_masks=require_masks)
        findings += _repeated_keys(file, content)
        images = sorted(records.images, key=lambda image: (image.id is UNSET, image.id or 0))
    else:
        images = records or []
        table = dicts_table(images, file, require_masks=require_masks)
        if records is not None:
            findings += duplicate_images(images, file) + foreign_domains(images, file)
    check_geometry(table)
    findings += table.findings
    if require_masks:
        findings = _boxes_alone(table, findings)
        findings += _without_instances(table)
    return CheckedRecords(records, images, table, findings)


def _repeated_keys(file: Path, content: np.ndarray) -> list[Finding]:
    """Return warnings on keys of a COCO file that are there twice, of which readers keep the last."""
    try:
        members = msgspec.json.decode(content.data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []  # the errors say enough
    findings, end = [], 0
    places = sorted((place_in(content, value), len(memoryview(value))) for value in members.values())
    for begin, length in places:
        between = content[end:begin].tobytes()
        end = begin + length
        if _ONE_KEY.fullmatch(between) is None:  # a member lies there that another has taken the place of
            pairs = json.loads(b"{%snull}" % between.lstrip(b"{, \t\r\n"), object_pairs_hook=list)
            findings += [
                Finding("warning", file, None, None, key, "it is there twice",
                        "the last one is taken, and nothing of the others: join them", kind="key-twice")
                for key, _ in pairs[:-1]
            ]  # fmt: skip
    return findings


def _boxes_alone(table: AnnotationTable, findings: list[Finding]) -> list[Finding]:
    """Return the findings, and one error in place of those on each absent mask where a file has boxes alone."""
    instances = [item for item in table.annotations if not known(item.iscrowd)]
    others = [finding for finding in findings if (finding.field, finding.found) not in ABSENT]
    boxed = any(item.bbox is not UNSET for item in instances)
    malformed = any(finding.field.startswith("segmentation") for finding in others)
    if len(others) == len(findings) or not boxed or malformed or any(item.segmentation for item in instances):
        return findings
    found = f"none of the {len(instances)} annotations has one: {BOXES_ALONE}"
    fix = (
        f"make masks from them, and train on those: python tools/masks_from_boxes.py --dataset {table.file} "
        f"--config-file configs/sam_vit_h.py --output {table.file.with_name(table.file.stem + '_masks.json')}"
    )
    error = Finding("error", table.file, None, None, "segmentation", found, fix, kind="no-masks")
    return [*others, error]


def _without_instances(table: AnnotationTable) -> list[Finding]:
    """Return a warning where crowd regions are all that there is."""
    if not table.annotations or not all(known(item.iscrowd) for item in table.annotations):
        return []
    found = f"all of the {len(table.annotations)} annotations are crowd regions"
    fix = "they are neither learned nor scored; write 0 on those that are one object"
    return [Finding("warning", table.file, None, None, "iscrowd", found, fix, kind="all-crowd")]
