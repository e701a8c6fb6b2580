"""Read a dataset file into typed records: at once where it is sound, record by record where it is not."""

import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sam_d2.data.findings import Finding, RecordId, shortened
from sam_d2.data.records import (
    CocoAnnotation,
    CocoBoxAnnotation,
    CocoBoxFile,
    CocoCategory,
    CocoFile,
    CocoImage,
    DatasetAnnotation,
    DatasetBoxAnnotation,
    DatasetBoxDict,
    DatasetDict,
)

NOT_STRICT = "not-strict-json"
"""Kind of the finding on a value that JSON does not have, where no reader needs it."""

UTF8_BOM = b"\xef\xbb\xbf"
# By whether masks are required.
_COCO_DECODERS: dict[bool, msgspec.json.Decoder] = {
    True: msgspec.json.Decoder(CocoFile),
    False: msgspec.json.Decoder(CocoBoxFile),
}
_DICTS_DECODERS: dict[bool, msgspec.json.Decoder] = {
    True: msgspec.json.Decoder(list[DatasetDict]),
    False: msgspec.json.Decoder(list[DatasetBoxDict]),
}
_COCO_ANNOTATIONS: dict[bool, type] = {True: CocoAnnotation, False: CocoBoxAnnotation}
_DATASET_ANNOTATIONS: dict[bool, type] = {True: DatasetAnnotation, False: DatasetBoxAnnotation}
ANNOTATION_DECODERS: dict[bool, msgspec.json.Decoder] = {
    masks: msgspec.json.Decoder(record_type) for masks, record_type in _COCO_ANNOTATIONS.items()
}
"""Of one annotation of a COCO file, by whether masks are required."""
_PERHAPS_LOOSE = re.compile(rb"NaN|Infinity|\\u[dD][89a-fA-F]")
_CHECKED = ("bbox", "segmentation", "area")  # whose NaN is an error of its own
_NO_NAME = ("file_name", "missing-key")
_FIRST = re.compile(rb"\s*(.?)", re.DOTALL)
_EXPECTED = (
    "expected a COCO file {'images': [...], 'annotations': [...], 'categories': [...]} or Detectron2's list of dicts"
)


def decode_dataset(
    file: Path, *, require_masks: bool = True
) -> tuple[CocoFile | list[DatasetDict] | None, list[Finding]]:
    """Read a dataset file; its first character says whether it is COCO's form or Detectron2's.

    msgspec stops at the first problem. So a file that it refuses is read again with the standard library,
    which also takes NaN, and every field of every record is converted on its own.

    Args:
        file: a JSON file in UTF-8, with or without a byte order mark.
        require_masks: whether an annotation without the key `segmentation` is an error.

    Returns:
        The records and the problems. The records are None where the file as a whole cannot be read; a field
        whose problem is reported is `msgspec.UNSET` in its record.
    """
    content, problem = read_content(file)
    if problem is not None:
        return None, [problem]
    return decode_content(file, content, require_masks=require_masks)


def read_content(file: Path) -> tuple[np.ndarray, Finding | None]:
    """Return the bytes of a dataset file, uint8 (n,), without a byte order mark, or the problem that prevents it.

    An array, because the memory of one can be shared between processes.
    """
    content = np.empty(0, dtype=np.uint8)
    try:
        content = np.fromfile(file, dtype=np.uint8)
    except IsADirectoryError:
        return content, _of_file(file, "file", "it is a folder", "name the JSON file in it", "file-unreadable")
    except OSError as error:
        return content, _of_file(
            file, "file", error.strerror or str(error), "check the path and its permissions", "file-unreadable"
        )
    if content[: len(UTF8_BOM)].tobytes() == UTF8_BOM:
        content = content[len(UTF8_BOM) :]
    if not _first_character(content):
        return content, _of_file(file, "file", "it is empty", "write or copy the file again", "file-empty")
    return content, None


def is_coco(content: np.ndarray) -> bool:
    """Tell whether a file's content, as :func:`read_content` returns it, is in COCO's form rather than a list."""
    return _first_character(content) != b"["


def decode_content(
    file: Path, content: np.ndarray, *, require_masks: bool
) -> tuple[CocoFile | list[DatasetDict] | None, list[Finding]]:
    """Do what :func:`decode_dataset` does with the content of the file, as :func:`read_content` returns it."""
    try:
        decoders = _COCO_DECODERS if is_coco(content) else _DICTS_DECODERS
        return decoders[require_masks].decode(content.data), []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_by_record(file, content.tobytes(), require_masks)


def place_in(content: np.ndarray, value: msgspec.Raw) -> int:
    """Return where a value begins that was decoded from a file's content, and is a view of it."""
    address = np.frombuffer(value, dtype=np.uint8).__array_interface__["data"][0]
    return address - content.__array_interface__["data"][0]


def _first_character(content: np.ndarray) -> bytes:
    """Return the first byte that is no white space; none where there is no such."""
    found = _FIRST.match(content.data)
    assert found is not None  # it matches anything
    return found[1]


def decode_coco_annotations(
    file: Path, records: Sequence[Any], *, require_masks: bool
) -> tuple[list[CocoAnnotation], list[Finding]]:
    """Return annotations of a COCO file from the bytes of each, or what is wrong with them.

    Args:
        file: for the findings.
        records: of each annotation the JSON object, bytes or a uint8 array.
        require_masks: as for :func:`decode_dataset`.
    """
    decode = ANNOTATION_DECODERS[require_masks].decode
    try:
        return [decode(record) for record in records], []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        reader = _RecordReader(file, require_masks)
        value = {"annotations": [json.loads(bytes(record)) for record in records]}
        return reader.coco_list(value, "annotations", _COCO_ANNOTATIONS[require_masks]), reader.findings


def decode_rows(file: Path, row_type: type, expected: str) -> tuple[list[Any], list[Finding]]:
    """Read a JSON list of objects; of a damaged one every row and field that is wrong is said.

    Args:
        file: a JSON file in UTF-8, with or without a byte order mark.
        row_type: a struct, each of whose fields has a description.
        expected: what the file should have been, where it is no list.

    Returns:
        The rows, none where there are problems, and the problems; they have the row's number, from 0 on, and what it
        says of its image.

    Raises:
        OSError: the file cannot be read.
    """
    content = file.read_bytes().removeprefix(UTF8_BOM)
    if not content.strip():
        return [], [_of_file(file, "file", "it is empty", expected, "file-empty")]
    try:
        return msgspec.json.decode(content, type=list[row_type]), []  # type: ignore[valid-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refused = str(error)
        value, problem = _parse(file, content)
    if problem is not None:
        return [], [problem]
    if not isinstance(value, list):
        return [], [_of_file(file, "top level", f"a JSON {_json_type(value)}", expected, "wrong-form")]
    reader = _RecordReader(file, require_masks=False)
    for number, raw in enumerate(value):
        reader.record(raw, row_type, "", None, None, row=number)
    # Each row may pass by itself: half of a surrogate pair is no text that msgspec reads, and is one that Python has.
    return [], reader.findings or [_of_file(file, "JSON", refused, "correct it there", "not-json")]


def row_of(row: Mapping[str, Any]) -> str:
    """Return what a row says of its image, such as ``image_id 17``; empty where it says nothing."""
    key = next((key for key in ("file_name", "image_id") if row.get(key) is not None), None)
    if key is None:
        return ""
    value = row[key]
    # of a path the end says which file it is
    shown = repr(f"...{value[-57:]}" if len(value) > 60 else value) if isinstance(value, str) else shortened(value)
    return f"{key} {shown}"


def _decode_by_record(
    file: Path, content: bytes, require_masks: bool
) -> tuple[CocoFile | list[DatasetDict] | None, list[Finding]]:
    value, problem = _parse(file, content)
    if problem is not None:
        return None, [problem]
    if (other := _other_form(value)) is not None:
        return None, [_of_file(file, "top level", f"{other[0]}, not a dataset", other[1], "wrong-form")]
    reader = _RecordReader(file, require_masks)
    if isinstance(value, dict):
        annotation_type = _COCO_ANNOTATIONS[require_masks]
        types = {"images": CocoImage, "annotations": annotation_type, "categories": CocoCategory}
        lists = {key: reader.coco_list(value, key, record_type) for key, record_type in types.items()}
        if lists["images"] and all(isinstance(raw, dict) and _is_lvis(raw) for raw in value["images"]):
            reader.findings = _without_names(file, reader.findings)
        return CocoFile(**lists), [*reader.findings, *_loose_values(file, content, value, reader.findings)]
    if not isinstance(value, list):
        return None, [_of_file(file, "top level", f"a JSON {_json_type(value)}", _EXPECTED, "wrong-form")]
    if value and isinstance(value[0], dict) and "score" in value[0] and "file_name" not in value[0]:
        found = "a list of COCO results (they have a 'score'), not a dataset"
        return None, [_of_file(file, "top level", found, _EXPECTED, "wrong-form")]
    records = reader.dataset_dicts(value)
    return records, [*reader.findings, *_loose_values(file, content, value, reader.findings)]


def _other_form(value: Any) -> tuple[str, str] | None:
    """Return what another program's file is, and how it becomes a COCO file; None of what may be a dataset."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict) and {"data", "annotations"} <= first.keys() and "file_name" not in first:
        return "tasks of Label Studio", "export them there as COCO"
    if not isinstance(value, dict) or "images" in value:
        return None
    if {"shapes", "imagePath"} <= value.keys():
        return "the outlines of one image by LabelMe", "write all of them as one COCO file, as its labelme2coco.py does"
    images = value.get("_via_img_metadata", value)
    if (
        isinstance(images, dict)
        and images
        and all(isinstance(one, dict) and "regions" in one for one in images.values())
    ):
        return "a file of the VGG Image Annotator", "export it there as COCO (Annotation > Export Annotations)"
    return None


def _is_lvis(image: dict[str, Any]) -> bool:
    return "file_name" not in image and isinstance(image.get("coco_url"), str)


def _without_names(file: Path, findings: list[Finding]) -> list[Finding]:
    """Return the findings with one in place of those on each name that is not there."""
    others = [one for one in findings if one.annotation_id is not None or (one.field, one.kind) != _NO_NAME]
    fix = "write the end of the coco_url as file_name, such as train2017/000000391895.jpg"
    return [
        *others,
        _of_file(file, "images.file_name", "images have a coco_url alone, as those of LVIS", fix, _NO_NAME[1]),
    ]


def _loose_values(file: Path, content: bytes, value: Any, reported: Sequence[Finding]) -> list[Finding]:
    """Return warnings on values that Python reads and JSON does not have, where nobody looks at them.

    Args:
        file: for the findings.
        content: of the file.
        value: the same, parsed.
        reported: what was found in the records, which is not said again.
    """
    if not _PERHAPS_LOOSE.search(content):
        return []
    known = {(finding.image_id, finding.annotation_id, finding.field) for finding in reported}
    found = []
    for image_id, annotation_id, prefix, record in _all_records(value):
        for key, item in record.items() if isinstance(record, dict) else ():
            place = image_id, annotation_id, prefix + key
            if key not in _CHECKED and place not in known and not _is_strict(item):
                found.append(
                    Finding("warning", file, *place, f"{_shortened_json(item)} is no JSON",
                            "other programs refuse the file: write null, or leave the key out", kind=NOT_STRICT)
                )  # fmt: skip
    return found


def _all_records(value: Any) -> Iterator[tuple[RecordId, RecordId, str, Any]]:
    """Yield a file without its lists, and their records: image id, annotation id, prefix of fields, and the record."""
    if isinstance(value, list):
        for index, raw in enumerate(value):
            image_id = _id_of(raw, "image_id", f"[{index}]")
            image = dict(raw) if isinstance(raw, dict) else {}
            items = image.pop("annotations", None)
            yield image_id, None, "", image
            for place, item in enumerate(items if isinstance(items, list) else []):
                yield image_id, _id_of(item, "id", f"annotations[{place}]"), "", item
        return
    lists = ("images", "annotations", "categories")
    yield None, None, "", {key: value[key] for key in value if key not in lists}
    for key in lists:
        for index, raw in enumerate(value[key] if isinstance(value.get(key), list) else []):
            yield *_ids_of(raw, key, index), f"{key}[{index}]." if key == "categories" else "", raw


def _ids_of(raw: Any, key: str, index: int) -> tuple[RecordId, RecordId]:
    """Return what messages call the image and the annotation of a record of one of COCO's lists."""
    position = f"{key}[{index}]"
    if key == "images":
        return _id_of(raw, "id", position), None
    return (_id_of(raw, "image_id", None), _id_of(raw, "id", position)) if key == "annotations" else (None, None)


def _shortened_json(value: Any, limit: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _is_strict(value: Any) -> bool:
    try:
        msgspec.json.decode(json.dumps(value), type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    except RecursionError:  # nested too deeply is another matter
        return True
    return True


def _parse(file: Path, content: bytes) -> tuple[Any, Finding | None]:
    """Return the JSON value, NaN and Infinity included, or the one problem that prevents it."""
    try:
        text = content.decode("utf-8")
        return json.loads(text), None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte {error.start} (line {line}) is not UTF-8"
        return None, _of_file(file, "encoding", found, "save the file as UTF-8", "encoding")
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode("utf-8", "surrogatepass"))
        place = f"line {error.lineno}, column {error.colno} (byte {byte} of {len(content)})"
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            found = f"the file is cut off: a value begun at {place} has no end"
            return None, _of_file(file, "JSON", found, "write or copy the file again", "cut-off")
        return None, _of_file(file, "JSON", f"{error.msg} at {place}", "correct the JSON there", "not-json")
    except RecursionError:
        return None, _of_file(file, "JSON", "lists or objects nested too deeply", _EXPECTED, "not-json")
    except ValueError as error:  # an integer of thousands of digits
        return None, _of_file(file, "JSON", str(error), "correct the number", "not-json")


class _RecordReader:
    """Converts parsed JSON to records field by field, and keeps every problem."""

    def __init__(self, file: Path, require_masks: bool) -> None:
        self.file = file
        self.annotation_type = _DATASET_ANNOTATIONS[require_masks]
        self.findings: list[Finding] = []

    def coco_list(self, value: dict[str, Any], key: str, record_type: type) -> list[Any]:
        if not isinstance(value.get(key), list):
            found = "missing key" if key not in value else f"a JSON {_json_type(value[key])}"
            self.findings.append(_of_file(self.file, key, found, _EXPECTED, "wrong-form"))
            return []
        records = []
        for index, raw in enumerate(value[key]):
            prefix = f"{key}[{index}]." if key == "categories" else ""
            records.append(self.record(raw, record_type, prefix, *_ids_of(raw, key, index)))
        return [record for record in records if record is not None]

    def dataset_dicts(self, value: list[Any]) -> list[DatasetDict]:
        records = []
        for index, raw in enumerate(value):
            image_id = _id_of(raw, "image_id", f"[{index}]")
            record = self.record(raw, DatasetDict, "", image_id, None)
            if record is None:
                continue
            annotations = [
                self.record(item, self.annotation_type, "", image_id, _id_of(item, "id", f"annotations[{position}]"))
                for position, item in enumerate([] if record.annotations is msgspec.UNSET else record.annotations)
            ]
            record.annotations = [annotation for annotation in annotations if annotation is not None]
            records.append(record)
        return records

    def record(
        self,
        raw: Any,
        record_type: type,
        prefix: str,
        image_id: RecordId,
        annotation_id: RecordId,
        row: int | None = None,
    ) -> Any | None:
        """Return the record, or None where it is no JSON object. Nested annotations are left as parsed.

        ``row`` is the number of one that is named by it.
        """
        rows = () if row is None else (row,)
        of_image = row_of(raw) if isinstance(raw, dict) and rows else ""

        def report(field: str, found: str, fix: str, kind: str) -> None:
            ids = image_id, annotation_id
            self.findings.append(Finding("error", self.file, *ids, prefix + field, found, fix, rows, of_image, kind))

        if not isinstance(raw, dict):
            report("record", f"a JSON {_json_type(raw)}", "write a JSON object", "wrong-type")
            return None
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(record_type):
            expected = f"expected {_description(field.type)}"
            key = field.encode_name
            if key not in raw:
                if field.required:
                    report(key, "missing key", expected, "missing-key")
                    values[field.name] = msgspec.UNSET
                continue
            wanted = list[Any] if record_type is DatasetDict and key == "annotations" else field.type
            try:
                values[field.name] = msgspec.convert(raw[key], wanted)
            except (msgspec.ValidationError, RecursionError, UnicodeError) as error:  # the last of half a character
                # of a row the remedy says all that is expected
                found = shortened(raw[key]) + (f" ({error})" if row is None else "")
                report(key, found, expected, "wrong-type")
                values[field.name] = msgspec.UNSET
        return record_type(**values)


def _of_file(file: Path, field: str, found: str, fix: str, kind: str) -> Finding:
    return Finding("error", file, None, None, field, found, fix, kind=kind)


def _id_of(raw: Any, key: str, position: str | None) -> RecordId:
    value = raw.get(key) if isinstance(raw, dict) else None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else position


def _description(annotation: Any) -> str:
    """Return the `description` of an annotated type."""
    metas = [meta for meta in typing.get_args(annotation) if isinstance(meta, msgspec.Meta)]
    return next(meta.description for meta in metas if meta.description is not None)


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
