"""Join COCO files to one, each image tagged with the domain of its file; the images stay where they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sam_d2.data.decode import decode_dataset
from sam_d2.data.findings import Finding, plural, raise_findings
from sam_d2.data.image_root import find_image_root, folders_text, names_folder, search_folders
from sam_d2.data.records import CocoFile, domain_name
from sam_d2.data.references import check_references
from sam_d2.errors import UserError

MAX_LISTED = 5
_UTF8_BOM = b"\xef\xbb\xbf"
_MERGED = "Merged from"
"""How the description of a merged file begins."""
_BOXES_ALONE = ("segmentation", "missing key")
"""Field and found of the finding on a record without a mask, which a merged file may hold as well."""


@dataclass(frozen=True)
class Source:
    """A file to merge.

    Attributes:
        domain: tag of its images.
        file: COCO JSON.
        image_root: folder that its file names are relative to; looked for where None.
    """

    domain: str
    file: Path
    image_root: Path | None = None


@dataclass
class Merged:
    """What :func:`merge_coco` makes.

    Attributes:
        document: the COCO file's content.
        image_root: folder that its file names are relative to; None where they are absolute.
        counts: (images, annotations) by domain, in the order of the sources.
        notes: what a user should know, a line each.
    """

    document: dict[str, Any]
    image_root: Path | None
    counts: dict[str, tuple[int, int]]
    notes: list[str] = field(default_factory=list)


@dataclass
class _Content:
    """A source's JSON, with the absolute path of each image."""

    source: Source
    raw: dict[str, Any]
    paths: list[str]


def is_merged(file: Path) -> bool:
    """Tell whether a file is one that :func:`merge_coco` made."""
    try:
        info = msgspec.json.decode(file.read_bytes())["info"]
        return isinstance(info["sources"], list) and str(info["description"]).startswith(_MERGED)
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return False


def merge_coco(sources: Sequence[Source], output: Path, rename: Mapping[str, str] | None = None) -> Merged:
    """Join COCO files.

    Images and annotations are numbered anew from 1, in the order of the sources and of their records. Categories are
    the same where their names are; one keeps its id in the first file that has it, unless that is taken by then, so
    that files with the same categories keep them as they are. Licences are numbered anew, equal ones once. All other
    fields of the records stay. `info` gets `sources`: the domain, file, counts and `info` of each.

    Args:
        sources: files, each of another domain.
        output: where the result is going to be: file names are relative to the nearest folder above it that holds
            all images, which is where :func:`~sam_d2.data.image_root.find_image_root` looks, else absolute.
        rename: old name of a category -> the one that it is counted under, in all files.

    Returns:
        The content of the new file; the same for the same files.

    Raises:
        UserError: a file cannot be read or has errors, a domain is named twice, or an image lies in two of them or
            has another domain already, or the output is there and is no merged file.

    Example:
        >>> merged = merge_coco([Source("sketch", Path("sketch.json"))], Path("all.json"))  # doctest: +SKIP
    """
    output, rename = output.absolute(), dict(rename or {})
    _check_domains(sources, output)
    contents = [_read(source) for source in sources]
    _check_images(contents)
    categories, category_ids, notes = _merge_categories(contents, rename)
    licences, licence_ids, licence_notes = _merge_licences(contents)
    root = _common_root([path for content in contents for path in content.paths], output)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    described = []
    counts = {}
    for content, to_category, to_licence in zip(contents, category_ids, licence_ids, strict=True):
        domain = content.source.domain
        numbers = {}
        for image, path in zip(content.raw["images"], content.paths, strict=True):
            numbers[image["id"]] = len(images) + 1
            changed = {"id": len(images) + 1, "file_name": _relative(path, root), "domain": domain}
            licence = _key(image.get("license"))
            kept = {name: value for name, value in image.items() if name != "license" or licence in to_licence}
            images.append({**kept, **changed, **({"license": to_licence[licence]} if "license" in kept else {})})
        for annotation in content.raw["annotations"]:
            changed = {
                "id": len(annotations) + 1,
                "image_id": numbers[annotation["image_id"]],
                "category_id": to_category[annotation["category_id"]],
            }
            annotations.append({**annotation, **changed})
        counts[domain] = (len(content.raw["images"]), len(content.raw["annotations"]))
        described.append(
            {
                "domain": domain,
                "file": _relative(os.path.normpath(content.source.file.absolute()), root),
                "images": counts[domain][0],
                "annotations": counts[domain][1],
                "info": content.raw.get("info") or {},
            }
        )
    names = ", ".join(source.domain for source in sources)
    document = {
        "info": {"description": f"{_MERGED} {len(sources)} files, domains: {names}", "sources": described},
        "licenses": licences,
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    return Merged(document, root, counts, notes + licence_notes + _category_notes(contents, rename))


def _check_domains(sources: Sequence[Source], output: Path) -> None:
    for domain, count in Counter(source.domain for source in sources).items():
        if count > 1:
            files = ", ".join(str(source.file) for source in sources if source.domain == domain)
            raise UserError(f"Domain {domain!r} is named {count} times ({files}). Give every file a domain of its own.")
    for source in sources:
        if output.exists() and source.file.exists() and source.file.samefile(output):
            raise UserError(f"{source.file} would be overwritten. Name another --output.")
    if output.exists() and not is_merged(output):
        raise UserError(f"--output {output}: exists and is no file that was merged here. Name another file.")


def _read(source: Source) -> _Content:
    """Read and check a file as far as merging needs it: what concerns masks and boxes is checked where it is loaded."""
    file = source.file.absolute()
    records, findings = decode_dataset(file)
    if records is not None and not isinstance(records, CocoFile):
        raise UserError(
            f"{source.file}: is Detectron2's list of dicts; only COCO files, which name their classes, can be merged. "
            "Write it in COCO's form first."
        )
    if isinstance(records, CocoFile):
        findings = [finding for finding in findings if (finding.field, finding.found) != _BOXES_ALONE]
        findings += check_references(records, file, {finding.field for finding in findings})
    errors = [finding for finding in findings if finding.severity == "error" or finding.field == "categories.name"]
    raise_findings([_as_error(finding) for finding in errors])
    try:
        raw = msgspec.json.decode(file.read_bytes().removeprefix(_UTF8_BOM))
    except msgspec.DecodeError as error:
        raise UserError(f"{source.file}: {error}; write null, or leave out what is NaN or infinite.") from error
    return _Content(source, raw, _image_paths(source, raw["images"]))


def _as_error(finding: Finding) -> Finding:
    """Categories of one name cannot be told apart by it."""
    if finding.severity == "error":
        return finding
    fix = "categories are merged by name: give each its own"
    return Finding("error", finding.file, None, None, finding.field, finding.found, fix)


def _image_paths(source: Source, images: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [image["file_name"] for image in images]
    given = [] if source.image_root is None else [source.image_root]
    root, findings = find_image_root(source.file.absolute(), names, [image["id"] for image in images], given)
    if root is None:
        if any(names_folder(finding) for finding in findings):
            missing = "; ".join(finding.found for finding in findings)
            searched = folders_text(search_folders(source.file.absolute(), given))
            raise UserError(
                f"{source.file}: {missing}; name the folder that its names are relative to: "
                f"--images {source.domain}=FOLDER. Looked in: {searched}"
            )
        raise_findings(findings)
    if source.image_root is not None and root != source.image_root.absolute():
        raise UserError(
            f"--images {source.domain}={source.image_root}: does not hold all images of {source.file}, which are under "
            f"{root}. Name their folder, or leave the option out."
        )
    assert root is not None  # without a folder there are findings, which are errors
    return [os.path.normpath(root / name) for name in names]


def _check_images(contents: Sequence[_Content]) -> None:
    """Refuse an image of two records, and one that has another domain already."""
    owners: dict[str, tuple[Source, Any]] = {}
    twice = []
    for content in contents:
        for image, path in zip(content.raw["images"], content.paths, strict=True):
            domain = domain_name(image.get("domain"))
            if domain not in (None, content.source.domain):
                raise UserError(
                    f"{content.source.file}: image {image['id']} is of domain {domain!r} already, "
                    f"not {content.source.domain!r}. Merge the files that this one was made from."
                )
            if path in owners:
                other, image_id = owners[path]
                twice.append(
                    f"{path} (image {image_id} of {other.domain}, image {image['id']} of {content.source.domain})"
                )
            owners.setdefault(path, (content.source, image["id"]))
    if twice:
        listed = "; ".join(twice[:MAX_LISTED]) + ("; ..." if len(twice) > MAX_LISTED else "")
        count = plural(len(twice), "image is", "images are")
        raise UserError(
            f"{count} in two records: {listed}. Take one of each out, or, where these are different "
            "images under one name, name each file's own folder with --images DOMAIN=FOLDER."
        )


def _merge_categories(
    contents: Sequence[_Content], rename: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[dict[int, int]], list[str]]:
    """The categories by rising id, of each file old id -> new id, and which supercategories were left out."""
    used = {category["name"] for content in contents for category in content.raw["categories"]}
    unknown = sorted(set(rename) - used)
    if unknown:
        raise UserError(
            f"--map: no file has a category {', '.join(map(repr, unknown))}. There are: {', '.join(sorted(used))}."
        )
    merged: dict[str, dict[str, Any]] = {}
    origin: dict[str, Source] = {}
    taken: set[int] = set()
    notes: list[str] = []
    highest = max(category["id"] for content in contents for category in content.raw["categories"])
    # Those that have the name themselves say what the category is; renamed ones come after them.
    ordered = sorted(
        ((content.source, category) for content in contents for category in content.raw["categories"]),
        key=lambda pair: pair[1]["name"] in rename,
    )
    for source, category in ordered:
        name = rename.get(category["name"], category["name"])
        if name not in merged:
            identifier = category["id"]
            if identifier in taken:
                highest = identifier = highest + 1
            taken.add(identifier)
            merged[name] = {**category, "id": identifier, "name": name}
            origin[name] = source
        elif category["name"] not in rename:
            mine, other = merged[name].get("supercategory"), category.get("supercategory")
            if mine is not None and other is not None and mine != other:
                notes.append(
                    f"{source.domain}: category {name!r} is of supercategory {other!r} there; {mine!r}, as in "
                    f"{origin[name].domain}, is kept. Where it is another category, rename it in one of the files"
                )
            merged[name] = {**category, **merged[name]}
    to_new = [
        {one["id"]: merged[rename.get(one["name"], one["name"])]["id"] for one in content.raw["categories"]}
        for content in contents
    ]
    return sorted(merged.values(), key=lambda category: category["id"]), to_new, notes


def _category_notes(contents: Sequence[_Content], rename: Mapping[str, str]) -> list[str]:
    """Which categories some file lacks: there they have no AP; and how to count those of one meaning as one."""
    names = [{rename.get(one["name"], one["name"]) for one in content.raw["categories"]} for content in contents]
    notes = []
    for content, own in zip(contents, names, strict=True):
        lacking = sorted(set().union(*names) - own)
        if lacking:
            listed = ", ".join(lacking[:MAX_LISTED]) + (", ..." if len(lacking) > MAX_LISTED else "")
            count = plural(len(lacking), "category", "categories")
            notes.append(f"{content.source.domain}: its file lacks {count} that others have: {listed}")
    if notes:
        notes.append("where a category has another name in another file, --map OLD=NEW counts both as one")
    return notes


def _merge_licences(
    contents: Sequence[_Content],
) -> tuple[list[dict[str, Any]], list[dict[int | str | None, int]], list[str]]:
    """The licences, of each file old id -> new id, and what was wrong with them."""
    merged: list[dict[str, Any]] = []
    to_new: list[dict[int | str | None, int]] = []
    notes = []
    for content in contents:
        ids: dict[int | str | None, int] = {}
        listed = content.raw.get("licenses")
        for licence in listed if isinstance(listed, list) else []:
            if not isinstance(licence, dict):
                continue  # says nothing; images that name it are counted below
            facts = {key: value for key, value in licence.items() if key != "id"}
            known = next((one["id"] for one in merged if {**one, "id": None} == {**facts, "id": None}), None)
            if known is None:
                known = len(merged) + 1
                merged.append({"id": known, **facts})
            ids[_key(licence.get("id"))] = known
        lost = sum(_key(image.get("license")) not in ids for image in content.raw["images"] if "license" in image)
        if lost:
            images = plural(lost, "image names", "images name")
            notes.append(f"{content.source.domain}: {images} a licence that is not in the file: left out")
        to_new.append(ids)
    return merged, to_new, notes


def _key(licence_id: Any) -> int | str | None:
    """A licence's id, which no check has looked at, as a key."""
    return licence_id if isinstance(licence_id, int | str) else None


def _common_root(paths: Sequence[str], output: Path) -> Path | None:
    """The nearest folder above the output, but the file system's root, in which all images lie."""
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120  of many
    folders = (folder for folder in output.parents if folder != Path(folder.anchor))
    return next((folder for folder in folders if Path(shared).is_relative_to(folder)), None)


def _relative(path: str, root: Path | None) -> str:
    if root is None or not Path(path).is_relative_to(root):
        return path
    return Path(path).relative_to(root).as_posix()
