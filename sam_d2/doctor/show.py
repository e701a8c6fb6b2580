"""What the doctor says on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath

from rich.console import Console
from rich.text import Text

from sam_d2.data.finding_kinds import KINDS
from sam_d2.data.findings import Finding, RecordId, plural
from sam_d2.data.records import known
from sam_d2.doctor.checkup import Checkup
from sam_d2.doctor.mend import Mended
from sam_d2.doctor.parts import Part
from sam_d2.doctor.report import Group, group_findings, image_names
from sam_d2.visible_text import clean

EXAMPLES = 3
_FIXES = 3
_LONGEST = 220
_NAME = 60
_Names = Mapping[tuple[Path, RecordId], str]
_STYLES = {"error": "bold red", "warning": "bold yellow"}


def show_checkup(console: Console, checkup: Checkup) -> None:
    """Print the files, the findings by kind with examples, and their number."""
    for part in checkup.parts:
        _line(console, _part_text(part))
    groups, names = group_findings(checkup.findings), image_names(checkup)
    for group in groups:
        console.print()
        _show_group(console, group, names, several=len(checkup.parts) > 1)
    console.print()
    _line(console, summary(groups, checkup))


def show_mended(console: Console, mended: Mended, output: Path) -> None:
    """Print what was mended, and what is left."""
    console.print()
    if not mended.counts:
        _line(
            console,
            Text(f"Nothing to mend that has one right answer: {clean(output)} has the same data.", style="bold"),
        )
        return
    _line(console, Text(f"Mended in {clean(output)}:", style="bold"))
    for kind, count in mended.counts.most_common():
        _line(console, Text(f"  {count:>7,} x  {KINDS[kind].title}: ").append(KINDS[kind].mended, style="dim"))
    groups = group_findings(mended.checkup.findings)
    _line(console, Text("Left in it:" if groups else "Nothing is left.", style="bold"))
    for group in groups:
        head = Text(f"  {len(group.findings):>7,} x  ").append(f"{group.severity:<8}", style=_STYLES[group.severity])
        _line(console, head.append(KINDS[group.kind].title))


def summary(groups: list[Group], checkup: Checkup) -> Text:
    """Return the last line: how much there is of what."""
    images = "" if checkup.images_read else " The images were not read: --images does."
    if not groups:
        return Text("Nothing is wrong.", style="bold green").append(images, style="none")
    text = Text()
    for severity in ("error", "warning"):
        own = [group for group in groups if group.severity == severity]
        if own:
            count = plural(sum(len(group.findings) for group in own), severity)
            text.append(" and " if text else "").append(f"{count} of {plural(len(own), 'kind')}", _STYLES[severity])
    return text.append(f".{images}")


def _part_text(part: Part) -> Text:
    text = Text(f"{part.source.split}: " if part.source.split else "", style="bold")
    text.append(clean(part.file), style="none")
    if part.form is not None:
        form = "COCO" if part.form == "coco" else "Detectron2's list of dicts"
        images = plural(len(part.images), "image")
        if without := part.without_annotations():
            name = PurePath(known(part.images[without[0]].file_name) or "").name
            name = _shorten(name, _NAME) or f"image {clean(part.image_label(without[0]))}"
            images += f" ({len(without):,} without annotations, such as {name})"
        counts = [images, plural(len(part.table.annotations), "annotation")]
        if part.form == "coco":
            counts.append(plural(len(part.categories), "category", "categories"))
        text.append(f"  {form}, {', '.join(counts)}", style="dim")
    return text


def _show_group(console: Console, group: Group, names: _Names, *, several: bool) -> None:
    kind = KINDS[group.kind]
    head = Text(f"{group.severity:<8}", style=_STYLES[group.severity])
    head.append(kind.title, style="bold").append(f"  {len(group.findings):,} x  {group.kind}", style="dim")
    _line(console, head)
    for finding in group.findings[:EXAMPLES]:
        _line(console, Text("  " + _example(finding, names, several)))
    if len(group.findings) > EXAMPLES:
        _line(console, Text(f"  ... and {len(group.findings) - EXAMPLES:,} more", style="dim"))
    for fix, count in group.fixes[:_FIXES]:
        share = f" ({count:,} of them)" if len(group.fixes) > 1 else ""
        _line(console, Text("  -> ", style="cyan").append(f"{_shorten(fix, 4 * _LONGEST)}{share}", style="none"))
    if kind.mended:
        _line(console, Text("  --fix writes: ", style="cyan").append(kind.mended, style="none"))


def _example(finding: Finding, names: _Names, several: bool) -> str:
    place = [clean(finding.file.name)] if several else []
    if finding.image_id is not None:
        name = PurePath(names.get((finding.file, finding.image_id), "")).name
        place.append(f"image {finding.image_id}" + (f" ({_shorten(name, _NAME)})" if name else ""))
    place += [f"annotation {finding.annotation_id}"] if finding.annotation_id is not None else []
    return f"{clean(', '.join([*place, finding.field]))}: {_shorten(finding.found, _LONGEST)}"


def _shorten(text: str, longest: int) -> str:
    text = clean(text)
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)
