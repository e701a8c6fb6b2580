"""Places of records in a JSON file, against the standard library's reading of the same file."""

import json

import pytest

from sam_d2.data import json_records
from sam_d2.data.json_records import IrregularJsonError, JsonRecords, first_member

CONTENT = {
    "info": {"year": "2026", "note": 'brackets ]}{[ and "quotes" \\ \\" in text'},
    "version": 1.5,
    "none": None,
    "images": [{"id": 1, "file_name": "a]\\.png"}, {"id": 2, "file_name": 'b"}.png', "tags": ["x", ["y"]]}],
    "licenses": [],
    "annotations": [{"id": 7, "segmentation": [[1, 2.5], [3, 4]]}, {}],
    "names": ["plain", "strings"],
    "categories": [],
}
KEYS = ("images", "annotations", "categories")


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("style", [{}, {"indent": 1}, {"separators": (",", ":")}, {"bom": True}])
def test_places_are_those_of_the_records(tmp_path, monkeypatch, block, style):
    monkeypatch.setattr(json_records, "_BLOCK", block)  # so that each token is cut in turn
    bom = b"\xef\xbb\xbf" if style.get("bom") else b""
    content = bom + json.dumps(CONTENT, **{key: value for key, value in style.items() if key != "bom"}).encode()
    file = tmp_path / "records.json"
    file.write_bytes(content)
    records = JsonRecords(file, KEYS)
    found = [(key, json.loads(content[begin:end])) for key, begin, end in records]
    assert found == [(key, record) for key in KEYS for record in CONTENT[key]]
    assert list(records.members) == list(CONTENT)
    assert records.members["version"] == 1.5 and records.members["none"] is None
    for key in ("info", "images", "licenses", "names"):
        begin, end = records.members[key]
        assert json.loads(content[begin:end]) == CONTENT[key]


def test_a_file_that_is_a_list(tmp_path):
    content = json.dumps(
        [{"image_id": 1, "annotations": [{"bbox": [1, 2, 3, 4]}, {}]}, {}, {"image_id": "]"}], indent=2
    )
    file = tmp_path / "records.json"
    file.write_text(content)
    records = JsonRecords(file, ("",))
    assert [json.loads(content[begin:end]) for _, begin, end in records] == json.loads(content)
    assert records.members == {}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"info": {"a": [1, "}"]}, "images": []}', ("info", 9, 24)),
        (' {\n"images" : [ {} ], "info": {}}', ("images", 14, 20)),
        ('{"version": 1, "info": {}}', None),
        ('{"version": "info", "info": {}}', None),
        ("{}", None), ("[[1]]", None), ('"info"', None), ("", None),
    ],
)  # fmt: skip
def test_first_member(tmp_path, content, found):
    (tmp_path / "a.json").write_text(content)
    assert first_member(tmp_path / "a.json") == found


@pytest.mark.parametrize(
    "content",
    ['{"images": [], "images": []}', '{"a": 1, "b": "a", "a": 2}', '{"images": [{}], "note": "a:", "images": [{}]}'],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(IrregularJsonError, match=r"'(images|a)' is there twice"):
        list(JsonRecords(tmp_path / "a.json", KEYS))


@pytest.mark.parametrize(
    "content", ["[{}, 1]", "[{} {}]", "[{},]", "[{}] []", "[[{}]]", '["a"]', "[{}", "{}]", "[{}]]"]
)
def test_a_list_of_another_form_is_refused(tmp_path, content):
    file = tmp_path / "records.json"
    file.write_text(content)
    with pytest.raises(IrregularJsonError):
        list(JsonRecords(file, ("",)))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "3",
        '"images"',
        "[[1]]",
        '{"images": [{"id": 1}',
        '{"images": [{"id": 1}]',
        '{"images": [{"id": 1} {"id": 2}]}',
        '{"images": [{"id": 1},,{"id": 2}]}',
        '{"images": [{"id": 1},]}',
        '{"images": [1, {"id": 1}]}',
        '{"images": ["a"]}',
        '{"images": [[{"id": 1}]]}',
        '{"images": [{"id": 1}]} {}',
        '{"images": [{"id": 1}]} more',
        '{"images": [{"id": 1}]}}',
        '{"images": [{"id": 1}}}',
        '{"images": [{"id": [1}]}]}',
        '{"images" [{"id": 1}]}',
        '{"images": [{"id": "cut off]}',
    ],
)
def test_another_form_is_refused(tmp_path, content):
    file = tmp_path / "records.json"
    file.write_text(content)
    with pytest.raises(IrregularJsonError):
        list(JsonRecords(file, KEYS))
