"""Findings by kind: for the terminal, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET

from sam_d2.data.finding_kinds import KINDS, Severity
from sam_d2.data.findings import Finding, RecordId
from sam_d2.doctor.checkup import Checkup
from sam_d2.doctor.parts import Part

VERSION = 1
KEYS = {"version", "dataset", "exit_code", "images_read", "files", "kinds", "findings"}
"""Of the report that ``--json`` writes."""
MOST = 10_000
"""Findings of one kind, or images of a file, that the JSON holds; their number is in it whatever it is."""


@dataclass(frozen=True)
class Group:
    """The findings of one kind.

    Attributes:
        kind: a key of :data:`KINDS`.
        severity: of all of them.
        findings: at least one.
    """

    kind: str
    severity: Severity
    findings: list[Finding]

    @property
    def fixes(self) -> list[tuple[str, int]]:
        """What to do, and of how many findings, the most frequent first."""
        return Counter(finding.fix for finding in self.findings).most_common()


def group_findings(findings: Sequence[Finding]) -> list[Group]:
    """Return findings by kind, errors first, else in the order of :data:`KINDS`."""
    kinds: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        kinds[finding.kind].append(finding)
    groups = [Group(kind, KINDS[kind].severity, of_kind) for kind, of_kind in kinds.items() if of_kind]
    return sorted(groups, key=lambda group: group.severity != "error")


def image_names(checkup: Checkup) -> dict[tuple[Path, RecordId], str]:
    """Return the names of image files by dataset file and image id: what a user looks an image up by."""
    return {
        (part.file, image.id): image.file_name
        for part in checkup.parts
        for image in part.images
        if image.id is not UNSET and image.file_name is not UNSET
    }


def report_json(dataset: str, checkup: Checkup) -> dict[str, Any]:
    """Return the report that ``--json`` writes: ``kinds`` counts all findings, ``findings`` lists them.

    Args:
        dataset: what was asked for.
        checkup: what was found.
    """
    groups = group_findings(checkup.findings)
    names = image_names(checkup)
    return {
        "version": VERSION,
        "dataset": dataset,
        "exit_code": checkup.exit_code,
        "images_read": checkup.images_read,
        "files": [_file_entry(part) for part in checkup.parts],
        "kinds": [
            {
                "kind": group.kind,
                "severity": group.severity,
                "title": KINDS[group.kind].title,
                "count": len(group.findings),
                "listed": min(len(group.findings), MOST),
                "mended_by_fix": KINDS[group.kind].mended,
            }
            for group in groups
        ],
        "findings": [_entry(finding, names) for group in groups for finding in group.findings[:MOST]],
    }


def _file_entry(part: Part) -> dict[str, Any]:
    without = part.without_annotations()
    return {
        "split": part.source.split,
        "file": str(part.file),
        "form": part.form,
        "images": len(part.images),
        "images_without_annotations": len(without),
        "without_annotations": [part.image_label(place) for place in without[:MOST]],
        "annotations": len(part.table.annotations),
        "image_root": None if part.root is None else str(part.root),
    }


def _entry(finding: Finding, names: Mapping[tuple[Path, RecordId], str]) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "file": str(finding.file),
        "image_id": finding.image_id,
        "file_name": names.get((finding.file, finding.image_id)),
        "annotation_id": finding.annotation_id,
        "field": finding.field,
        "found": finding.found,
        "fix": finding.fix,
    }
