"""Boxes as prompts: what is kept of those of a detector or of a file, and what is said of the others."""

import json
import logging
import re

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from sam_d2.data import resolve_dataset
from sam_d2.errors import UserError
from sam_d2.evaluation import ImageDetections
from sam_d2.evaluation.detector_prompts import DetectorPrompts, image_sizes
from sam_d2.evaluation.prompt_file import read_prompt_file

SIZES = {1: (50, 100), 2: (30, 30)}


def found(image_id, *rows):
    """Detections of (box, score, class)."""
    boxes, scores, classes = zip(*rows, strict=True)
    return ImageDetections(image_id, np.array(scores), np.array(classes), np.array(boxes, dtype=float), None)


def boxes_of(prompts, image_id):
    return prompts[image_id].pred_boxes.tensor.tolist()


class TestPrompts:
    def test_by_falling_score_the_first_of_equals_first(self):
        prompts = DetectorPrompts(
            [found(1, ([0, 0, 9, 9], 0.2, 4), ([1, 1, 9, 9], 0.9, 5), ([2, 2, 9, 9], 0.2, 6))], SIZES, source="file"
        )
        assert boxes_of(prompts, 1) == [[1, 1, 9, 9], [0, 0, 9, 9], [2, 2, 9, 9]]
        assert prompts[1].pred_classes.tolist() == [5, 4, 6]
        assert prompts[1].scores.tolist() == pytest.approx([0.9, 0.2, 0.2])
        assert prompts[1].image_size == (50, 100) and not any(prompts.counts.values())

    def test_an_image_without_boxes_has_no_prompts(self, caplog):
        prompts = DetectorPrompts([], SIZES, source="detector")
        assert caplog.messages == [f"prompts: 0 boxes in {len(SIZES)} images, from the detector"]  # a warning
        assert len(prompts[2]) == 0 and prompts[2].image_size == (30, 30)
        assert prompts[2].get_fields().keys() == {"pred_boxes", "scores", "pred_classes"}
        assert prompts[2].pred_boxes.tensor.shape == (0, 4)

    def test_what_is_left_out_is_counted_and_said(self, caplog):
        rows = [
            ([-5, -5, 20, 20], 0.9, 0),  # clipped
            ([90, 40, 120, 45], 0.8, 0),  # clipped
            ([10, 10, 20, 20], 0.7, 0),
            ([10, 10, 30, 20], 0.6, 0),  # beyond the three surest
            ([120, 0, 130, 20], 0.95, 0),  # outside
            ([10, 10, 10, 20], 0.95, 0),  # no width
            ([0, 0, 9, 9], 0.05, 0),
            ([0, 0, 9, 9], 0.04, 0),  # unsure
            ([300, 0, 309, 9], 0.04, 0),  # unsure, and counted once
        ]
        with caplog.at_level(logging.INFO):
            prompts = DetectorPrompts([found(1, *rows)], SIZES, source="file", min_score=0.05, max_boxes=3)
        assert boxes_of(prompts, 1) == [[0, 0, 20, 20], [90, 40, 100, 45], [10, 10, 20, 20]]
        assert prompts.counts == {"clipped": 2, "empty": 2, "max_boxes": 2, "min_score": 2}
        assert prompts.left_out == {"min_score": 2, "max_boxes": 2}
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(said) == 3 and any("2 boxes without area in their image: left out" in line for line in said)
        assert "prompts: 3 boxes in 2 images, from the file" in caplog.text

    def test_of_each_class_as_many_as_count(self):
        rows = [([0, 0, 9, 9 + row], 1 - row / 10, row % 2) for row in range(5)]  # classes 0 1 0 1 0
        prompts = DetectorPrompts([found(1, *rows)], SIZES, source="file", limit=2)
        assert [box[3] for box in boxes_of(prompts, 1)] == [9, 10, 11, 12]
        assert prompts.left_out == {"limit": 1}

    def test_they_are_attached_to_each_sample(self):
        prompts = DetectorPrompts([found(2, ([0, 0, 9, 9], 0.2, 0))], SIZES, source="detector")
        batches = [[{"image_id": 1, "file_name": "a"}], [{"image_id": 2, "file_name": "b"}]]
        loader = prompts.attached_to(batches)
        assert len(loader) == 2
        seen = [sample for batch in loader for sample in batch]
        assert [len(sample["prompt_instances"]) for sample in seen] == [0, 1]
        assert [sample["file_name"] for sample in seen] == ["a", "b"] and "prompt_instances" not in batches[0][0]


@pytest.fixture
def dataset(shapes_folder):
    """Registered test part: images 0 to 3 (96 x 64 and 60 x 80 pixels), category 3."""
    return resolve_dataset(str(shapes_folder)).test


@pytest.fixture
def read(tmp_path, dataset):
    def of(rows):
        (tmp_path / "boxes.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
        return read_prompt_file(tmp_path / "boxes.json", dataset)

    return of


ROW = {"image_id": 0, "category_id": 3, "bbox": [10, 5, 20, 10], "score": 0.5}


class TestFile:
    def test_ids_are_the_datasets_own(self, read):
        first, second = read([{**ROW, "image_id": 2}, ROW, {**ROW, "image_id": 2, "bbox": [0.5, 1, 2, 3], "score": 1}])
        assert (first.image_id, second.image_id) == (2, 0)
        assert first.boxes.tolist() == [[10, 5, 30, 15], [0.5, 1, 2.5, 4]] and first.scores.tolist() == [0.5, 1]
        assert first.classes.tolist() == [0, 0] and first.rles is None

    def test_nothing_found_is_legal(self, read):
        assert read([]) == []

    def test_a_file_name_finds_an_image_where_there_is_no_id(self, read):
        row = {name: value for name, value in ROW.items() if name != "image_id"}
        (image,) = read([{**row, "file_name": "test_1.png"}])
        assert image.image_id == 1

    def test_the_id_goes_before_the_file_name(self, read):
        """The folders of the name may be those of another machine."""
        (image,) = read([{**ROW, "image_id": 2, "file_name": "/elsewhere/test_2.png"}])
        assert image.image_id == 2

    def test_a_perfect_detection_is_legal_and_so_is_a_score_of_nothing(self, read):
        (image,) = read([{**ROW, "score": 1}, {**ROW, "score": 0}])
        assert image.scores.tolist() == [1, 0]

    def test_masks_of_all_forms(self, read):
        """The square of 4 x 4 pixels at the corner of 64 x 96: 60 background pixels between its columns."""
        runs = [0, *[4, 60] * 3, 4, 64 * 96 - 4 * 64 + 60]
        compressed = mask_utils.frPyObjects({"size": [64, 96], "counts": runs}, 64, 96)["counts"].decode()
        forms = [
            [[0, 0, 4, 0, 4, 4, 0, 4], [1, 1, 2, 2]],  # the line is left out, as of a dataset
            {"size": [64, 96], "counts": runs},
            {"size": [64, 96], "counts": compressed},
        ]
        (image,) = read([{**ROW, "segmentation": form} for form in forms])
        assert [mask_utils.area(rle) for rle in image.rles] == [16, 16, 16]
        assert all(mask_utils.decode(rle)[:4, :4].all() for rle in image.rles)

    def test_masks_of_the_files_maker_are_kept(self, read):
        square = [[0, 0, 4, 0, 4, 4, 0, 4]]
        (image,) = read([{**ROW, "segmentation": square}])
        assert image.rles is not None and image.rles[0]["size"] == [64, 96]
        (image,) = read([{**ROW, "segmentation": square}, ROW])
        assert image.rles is None

    def test_sizes_of_images(self, dataset):
        assert image_sizes(dataset) == {0: (64, 96), 1: (80, 60), 2: (64, 96), 3: (80, 60)}

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            (
                [ROW, {**ROW, "image_id": 77}, {**ROW, "image_id": 78}],
                [
                    "2 errors:",
                    "row 1, image_id: 77; .* has no such image, it has 0, 1, 2, 3; leave",
                    "row 2, image_id: 78;",
                ],
            ),
            (
                [{**ROW, "image_id": 99999}] * 30 + [{**ROW, "category_id": 9}, {**ROW, "image_id": 99999}],
                [
                    "2 errors:",
                    r"\n  rows 0-29, 31 \(31 rows\), image_id: 99999; .* has no such image, it has 0, 1, 2, 3; .*\n",
                    r"row 30 \(image_id 0\), category_id: 9; expected a category id of .*: 3$",
                ],
            ),
            (
                [{**ROW, "image_id": number} for number in range(10, 40, 2)],
                [r"1 error:\n  rows 0-14 \(15 rows\), image_id: 10, 12, 14, 16, 18, ...; .* has no such"],
            ),
            (
                [{name: value for name, value in ROW.items() if name != "category_id"}],
                [r"row 0 \(image_id 0\), category_id: missing; expected a category id of .*: 3"],
            ),
            (
                [{**ROW, "file_name": "test_1.png"}, {**ROW, "image_id": None, "file_name": "none.png"}],
                [
                    "2 errors:",
                    r"row 0, file_name: 'test_1.png', but image 0 is 'test_0.png'; correct",
                    r"row 1, file_name: 'none.png'; .* has no",
                ],
            ),
            (
                [{**ROW, "image_id": 7, "file_name": f"{'a/' * 40}test_1.png"}],
                [r"row 0 \(file_name '\.\.\.[a/]*test_1.png'\), image_id: 7; .*, or leave the id out"],
            ),
            (
                [ROW, {**ROW, "category_id": 1}],
                [r"row 1 \(image_id 0\), category_id: 1; expected a category id of .*: 3"],
            ),
            (
                [{**ROW, "score": float("nan")}, {**ROW, "score": None}, {**ROW, "bbox": [1, 2, float("inf"), 3]}],
                [
                    "3 errors",
                    "row 0 .*, score: nan; expected a finite number from 0 to 1",
                    "row 1 .*, score: None",
                    r"row 2 .*, bbox: \[1, 2, inf, 3\]; expected x, y, width and height in pixels",
                ],
            ),
            (
                [{**ROW, "bbox": [], "score": "high"}, {**ROW, "bbox": [5, 5, -1, 3]}, 7, {"image_id": 0}],
                [
                    "5 errors",
                    r"row 0 .*, bbox: \[\];",
                    "row 0 .*, score: 'high'",
                    r"row 1 .*, bbox: \[5, 5, -1, 3\]",
                    "row 2, record: a JSON number; write a JSON object",
                    "row 3 .*, bbox: missing key",
                ],
            ),
            (
                [{**ROW, "score": score} for score in (87.5, 0.5, -0.01)],
                ["2 errors:", "row 0 .*, score: 87.5; .* divide percentages by 100", "row 2 .*, score: -0.01"],
            ),
            (
                [ROW, {name: value for name, value in ROW.items() if name != "score"}] * 2,
                ["1 error:", r"row 1 \(image_id 0\), score: missing key, as in 2 of 4 rows; add it, 0 to 1"],
            ),
            (
                [
                    {**ROW, "segmentation": segmentation}
                    for segmentation in (
                        [[1, 2]],
                        [[0, 0, 1e30, 0, 1e30, 9]],
                        [[0, 0, 9, 0, 9, 9, 0]],
                        {"size": [1, 1], "counts": [1]},
                        {"size": [64, 96], "counts": [0, 7000]},
                        {"size": [64, 96], "counts": "01"},
                        {"size": [64, 96], "counts": "garbage!!"},
                    )
                ],
                [
                    "7 errors:",
                    r"row 0 \(image_id 0\), segmentation: no polygon has 3 points; write polygons",
                    r"row 1 .*, segmentation: polygons reach over \[0.0, 0.0, 1e\+30, 9.0\]",
                    "row 2 .*, segmentation: polygon 0 has 7 numbers",
                    r"row 3 .*, segmentation.size: \[1, 1\], but the image is \[64, 96\]",
                    r"row 4 .*, segmentation.counts: the runs sum to 7000, size \[64, 96\] needs 6144",
                    r"row 5 .*, segmentation.counts: the runs sum to 1, size",
                    "row 6 .*, segmentation.counts: counts 'garbage!!' is not a compressed run-length string",
                ],
            ),
            (
                [
                    {**ROW, "segmentation": segmentation}
                    for segmentation in ("garbage", [["x"]], {"size": [64, 96], "counts": [-5, 7000]}, {"counts": "a"})
                ],
                ["4 errors:", *(rf"row {row} .*, segmentation: .*; expected a list of polygons" for row in range(4))],
            ),
            ([ROW, {"bbox": [0, 0, 1, 1]}], ["row 1, image_id: missing key; add it, or a file_name"]),
            ({"annotations": []}, ["top level: a JSON object; expected a COCO results list"]),
            ("[{", ["JSON: the file is cut off"]),
            ("", ["file: it is empty; expected a COCO results list"]),
            ([{**ROW, "score": None}] * 23, [r"1 error:\n  rows 0-22 \(23 rows\), score: None; expected a finite"]),
        ],
    )
    def test_what_cannot_be_interpreted_is_listed(self, read, rows, words):
        with pytest.raises(UserError, match=r"boxes\.json: ") as error:
            read(rows)
        for word in words:
            assert re.search(word, str(error.value)), (word, str(error.value))

    def test_no_file(self, tmp_path, dataset):
        with pytest.raises(UserError, match=r"none.json: cannot be read \(No such file"):
            read_prompt_file(tmp_path / "none.json", dataset)
