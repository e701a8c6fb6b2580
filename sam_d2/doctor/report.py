"""Findings by kind: for the terminal, and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sam_d2.data.findings import Finding, Severity
from sam_d2.doctor.checkup import Checkup
from sam_d2.doctor.kinds import KINDS

VERSION = 1
MOST = 10_000
"""Findings of one kind that the JSON holds; their number is in it whatever it is."""


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


def report_json(dataset: str, checkup: Checkup) -> dict[str, Any]:
    """Return the report that ``--json`` writes: ``kinds`` counts all findings, ``findings`` lists them.

    Args:
        dataset: what was asked for.
        checkup: what was found.
    """
    groups = group_findings(checkup.findings)
    return {
        "version": VERSION,
        "dataset": dataset,
        "exit_code": checkup.exit_code,
        "images_read": checkup.images_read,
        "files": [
            {
                "split": part.source.split,
                "file": str(part.file),
                "form": part.form,
                "images": len(part.images),
                "annotations": len(part.table.annotations),
                "image_root": None if part.root is None else str(part.root),
            }
            for part in checkup.parts
        ],
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
        "findings": [_entry(finding) for group in groups for finding in group.findings[:MOST]],
    }


def _entry(finding: Finding) -> dict[str, Any]:
    names = ("kind", "severity", "file", "image_id", "annotation_id", "field", "found", "fix")
    values = {item.name: getattr(finding, item.name) for item in dataclasses.fields(finding)}
    return {name: str(values[name]) if name == "file" else values[name] for name in names}
