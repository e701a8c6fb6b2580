"""Joining COCO files: ids, categories, licences, names of images, and what is refused."""

import json

import pytest

from sam_d2.data import load_dataset_file
from sam_d2.data.merge import Source, merge_coco
from sam_d2.errors import UserError

SQUARE = [[1, 1, 3, 1, 3, 4, 1, 4]]


def content(categories=((3, "cat"), (7, "dog")), images=("a.png", "b.png"), **keys):
    """Images 5 and 6, the first with an annotation 0 of each category."""
    keys_of = ("id", "name", "supercategory")
    categories = [dict(zip(keys_of, one, strict=False)) for one in categories]
    return {
        "images": [{"id": 5 + i, "file_name": name, "height": 8, "width": 6} for i, name in enumerate(images)],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": one["id"], "bbox": [1, 1, 2, 3], "iscrowd": 0, "area": 6,
             "segmentation": SQUARE} for i, one in enumerate(categories)
        ],
        "categories": categories,
        **keys,
    }  # fmt: skip


@pytest.fixture
def put(tmp_path):
    """``put(domain, content)``: a source whose file and images are in a folder of the domain's name."""

    def make(domain, one, folder=None):
        place = tmp_path / (folder or domain)
        place.mkdir(exist_ok=True)
        for image in one["images"]:
            (place / image["file_name"]).touch()
        file = place / f"{domain}.json"
        file.write_text(json.dumps(one))
        return Source(domain, file)

    return make


def test_same_ids_and_names_in_two_files_become_one_dataset(put, tmp_path):
    output = tmp_path / "all.json"
    merged = merge_coco([put("sketch", content()), put("weather", content())], output)
    document = merged.document
    assert [(one["id"], one["file_name"], one["domain"]) for one in document["images"]] == [
        (1, "sketch/a.png", "sketch"), (2, "sketch/b.png", "sketch"),
        (3, "weather/a.png", "weather"), (4, "weather/b.png", "weather"),
    ]  # fmt: skip
    found = [(one["id"], one["image_id"], one["category_id"]) for one in document["annotations"]]
    assert found == [(1, 1, 3), (2, 1, 7), (3, 3, 3), (4, 3, 7)]
    assert document["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert merged.counts == {"sketch": (2, 2), "weather": (2, 2)} and merged.notes == []
    output.write_text(json.dumps(document))
    dicts = load_dataset_file(output).dataset_dicts
    assert [record["domain"] for record in dicts] == ["sketch", "sketch", "weather", "weather"]
    assert len(dicts[2]["annotations"]) == 2 and dicts[2]["file_name"] == str(tmp_path / "weather" / "a.png")


def test_fields_of_records_stay(put, tmp_path):
    one = content(info={"year": 2020})
    one["images"][0]["coco_url"] = "u"
    one["annotations"][0]["provenance"] = {"model": "sam", "score": 0.5}
    document = merge_coco([put("a", one)], tmp_path / "all.json").document
    assert document["images"][0]["coco_url"] == "u"
    assert document["annotations"][0]["provenance"] == {"model": "sam", "score": 0.5}
    expected = {"domain": "a", "file": "a/a.json", "images": 2, "annotations": 2, "info": {"year": 2020}}
    assert document["info"]["sources"] == [expected]


def test_boxes_alone_can_be_merged(put, tmp_path):
    one = content()
    for annotation in one["annotations"]:
        del annotation["segmentation"]
    assert len(merge_coco([put("a", one)], tmp_path / "all.json").document["annotations"]) == 2


def test_categories_are_the_same_where_their_names_are(put, tmp_path):
    first = put("a", content([(1, "cat"), (2, "dog")]))
    second = put("b", content([(1, "dog"), (2, "cow"), (4, "car")]))
    merged = merge_coco([first, second], tmp_path / "all.json")
    # cow's own id 2 is the dog's: it takes the next after the highest of all, 4
    names = {one["name"]: one["id"] for one in merged.document["categories"]}
    assert names == {"cat": 1, "dog": 2, "car": 4, "cow": 5}
    assert [one["category_id"] for one in merged.document["annotations"]] == [1, 2, 2, 5, 4]
    assert merged.notes == [
        "a: its file lacks 2 categories that others have: car, cow",
        "b: its file lacks 1 category that others have: cat",
        "where a category has another name in another file, --map OLD=NEW counts both as one",
    ]


def test_map_counts_a_category_as_another(put, tmp_path):
    first = put("a", content([(1, "automobile", "x"), (2, "lorry")]))
    second = put("b", content([(9, "car", "vehicle")]))
    renamed = {"automobile": "car", "lorry": "car"}
    document = merge_coco([first, second], tmp_path / "all.json", renamed).document
    # what is named so itself says what the category is
    assert document["categories"] == [{"id": 9, "name": "car", "supercategory": "vehicle"}]
    assert [one["category_id"] for one in document["annotations"]] == [9, 9, 9]
    with pytest.raises(UserError, match=r"no file has a category 'van'\. There are: automobile, car, lorry"):
        merge_coco([first, second], tmp_path / "all.json", {"van": "car"})


def test_of_two_supercategories_the_first_is_kept_with_a_note(put, tmp_path):
    animal, pet = content([(3, "cat", "animal"), (7, "dog")]), content([(4, "cat", "pet"), (8, "dog", "pet")])
    merged = merge_coco([put("a", animal), put("b", pet)], tmp_path / "all.json")
    assert [(one["name"], one.get("supercategory")) for one in merged.document["categories"]] == [
        ("cat", "animal"), ("dog", "pet"),
    ]  # fmt: skip
    (note,) = merged.notes
    assert note.startswith("b: category 'cat' is of supercategory 'pet' there; 'animal', as in a, is kept")


def test_licences_are_numbered_anew_and_equal_ones_are_one(put, tmp_path):
    cc, own = {"name": "CC BY"}, {"name": "own"}
    first = content(licenses=[{"id": 1, **cc}])
    second = content(licenses=[{"id": 1, **own}, {"id": 2, **cc}])
    first["images"][0]["license"] = 1
    second["images"][0]["license"] = 2
    second["images"][1]["license"] = 8
    merged = merge_coco([put("a", first), put("b", second)], tmp_path / "all.json")
    assert merged.document["licenses"] == [{"id": 1, **cc}, {"id": 2, **own}]
    assert [image.get("license") for image in merged.document["images"]] == [1, None, 1, None]
    assert merged.notes == ["b: 1 image names a licence that is not in the file: left out"]


def test_licences_of_no_shape_end_in_a_note(put, tmp_path):
    one = content(licenses=["CC", 3])
    one["images"][0]["license"] = [1]
    assert len(merge_coco([put("a", one)], tmp_path / "all.json").notes) == 1
    assert merge_coco([put("a", {**one, "licenses": 3})], tmp_path / "all.json").document["licenses"] == []


def test_names_are_relative_to_the_nearest_folder_above_the_output(put, tmp_path):
    sources = [put("a", content()), put("b", content())]
    inside = merge_coco(sources, tmp_path / "made" / "deep" / "all.json")
    assert inside.image_root == tmp_path and inside.document["images"][0]["file_name"] == "a/a.png"
    alone = merge_coco(sources[:1], tmp_path / "a" / "all.json")
    assert alone.image_root == tmp_path / "a" and alone.document["images"][0]["file_name"] == "a.png"
    outside = merge_coco(sources, type(tmp_path)("/elsewhere/all.json"))  # nothing is written
    assert outside.image_root is None and outside.document["images"][0]["file_name"] == str(tmp_path / "a" / "a.png")


def test_a_folder_that_is_named(put, tmp_path):
    source = put("a", content())
    for name in ("a.png", "b.png"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).touch()
    named = Source("a", source.file, tmp_path / "other")
    assert merge_coco([named], tmp_path / "all.json").document["images"][0]["file_name"] == "other/a.png"
    (tmp_path / "other" / "a.png").unlink()
    with pytest.raises(UserError, match=r"--images a=.*other: does not hold all images"):
        merge_coco([named], tmp_path / "all.json")


def test_images_that_are_not_found_are_said_with_the_folders_looked_in(put, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = put("a", content())
    for name in ("a.png", "b.png"):
        (source.file.parent / name).unlink()
    given = Source("a", source.file, tmp_path / "gone")
    with pytest.raises(UserError) as caught:
        merge_coco([given], tmp_path / "all.json")
    looked = f"Looked in: {tmp_path / 'gone'} (no such folder), {tmp_path / 'a'}, {tmp_path}, {tmp_path.parent}"
    assert "none of its 2 images was found: 'a.png', 'b.png'; name the folder" in str(caught.value)
    assert "--images a=FOLDER" in str(caught.value) and looked in str(caught.value)


def test_what_is_refused(put, tmp_path):
    output = tmp_path / "all.json"
    tagged = content()
    tagged["images"][1]["domain"] = "cartoon"
    numbered = content()
    numbered["images"][1]["domain"] = 4
    lost = put("lost", content())
    (lost.file.parent / "b.png").unlink()
    infinite = put("infinite", content())
    infinite.file.write_text(infinite.file.read_text().replace('"iscrowd": 0', '"iscrowd": 0, "note": NaN', 1))
    dicts = tmp_path / "dicts.json"
    dicts.write_text("[]")
    cut = tmp_path / "cut.json"
    cut.write_text('{"images": [')
    a, b = put("a", content()), put("b", content())
    cases = [
        ([Source("a", tmp_path / "none.json")], "none.json: 1 error:.*No such file"),
        ([Source("a", cut)], "the file is cut off"),
        ([Source("a", dicts)], "Detectron2's list of dicts"),
        ([a, Source("a", b.file)], "Domain 'a' is named 2 times"),
        ([a, Source("b", a.file)], r"2 images are in two records: .*a\.png \(image 5 of a, image 5 of b\)"),
        ([put("p", content(images=("a.png", "a.png")))], "1 image is in two records"),
        ([put("q", content([(1, "cat"), (2, "cat")]))], "2 have the name 'cat'; categories are merged by name"),
        ([put("sketch", tagged)], "image 6 is of domain 'cartoon' already, not 'sketch'"),
        ([put("number", numbered)], "image 6 is of domain '4' already, not 'number'"),
        ([lost], r"1 of 2 images are missing under .*: 'b\.png'"),
        ([infinite], "write null, or leave out what is NaN"),
    ]
    for sources, message in cases:
        with pytest.raises(UserError, match=f"(?s){message}"):
            merge_coco(sources, output)
    mine = output.with_name("mine.json")
    mine.write_text('{"info": {"description": "Merged by hand"}}')
    with pytest.raises(UserError, match=r"mine\.json: exists and is no file that was merged here"):
        merge_coco([a], mine)
    mine.write_text(json.dumps(merge_coco([a], output).document))
    assert merge_coco([a], mine).document["images"]  # of an earlier time
    with pytest.raises(UserError, match=r"a\.json would be overwritten"):
        merge_coco([a], a.file)
