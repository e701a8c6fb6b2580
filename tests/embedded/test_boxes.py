import numpy as np
import pytest
import torch

from detectron2.structures import Boxes, BoxMode, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection

XYXY, XYWH = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS


def test_box_mode_has_the_numbers_that_dataset_dicts_carry():
    assert [mode.value for mode in BoxMode] == [0, 1, 2, 3, 4]
    assert (BoxMode(1), BoxMode["XYXY_ABS"]) == (XYWH, XYXY)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_convert_keeps_the_type_and_the_input(kind):
    rows = [[1.0, 2.0, 3.5, 4.0]]
    box = kind(rows[0]) if kind in (list, tuple) else kind(rows)
    converted = BoxMode.convert(box, XYWH, XYXY)
    assert type(converted) is type(box)
    # right = 1 + 3.5, bottom = 2 + 4
    assert np.asarray(converted).reshape(-1).tolist() == [1.0, 2.0, 4.5, 6.0]
    assert np.asarray(BoxMode.convert(converted, XYXY, XYWH)).reshape(-1).tolist() == rows[0]
    assert np.asarray(box).reshape(-1).tolist() == rows[0]


def test_convert_of_a_list_rounds_to_float32_and_keeps_integers():
    assert BoxMode.convert([0.1, 0, 0.2, 1], XYWH, XYXY)[2] == float(np.float32(0.1) + np.float32(0.2))
    assert BoxMode.convert([1, 2, 3, 4], XYWH, XYXY) == [1, 2, 4, 6]


def test_convert_refuses_relative_boxes_and_wrong_lengths():
    with pytest.raises(AssertionError):
        BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_REL, XYXY)
    with pytest.raises(AssertionError):
        BoxMode.convert([0, 0, 1], XYWH, XYXY)
    same = [0, 0, 1]
    assert BoxMode.convert(same, XYWH, XYWH) is same


def test_boxes_are_float32_rows_of_four():
    assert Boxes([[1, 2, 3, 4]]).tensor.dtype == torch.float32
    assert Boxes(torch.zeros(1, 4, dtype=torch.float64)).tensor.dtype == torch.float32
    assert Boxes([]).tensor.shape == Boxes(torch.zeros(0)).tensor.shape == (0, 4)
    with pytest.raises(AssertionError):
        Boxes([1, 2, 3, 4])


def test_area_centre_and_nonempty():
    boxes = Boxes([[0, 0, 4, 3], [1, 1, 1, 5], [5, 5, 4, 6]])
    assert boxes.area().tolist() == [12, 0, -1]  # 4*3, 0*4, (-1)*1
    assert boxes.get_centers().tolist() == [[2, 1.5], [1, 3], [4.5, 5.5]]
    assert boxes.nonempty().tolist() == [True, False, False]
    assert boxes.nonempty(threshold=3).tolist() == [False, False, False]  # the height is 3, not more


def test_clip_and_scale_work_in_place():
    boxes = Boxes([[-1, -2, 30, 40], [5, 6, 7, 8]])
    boxes.clip((10, 20))  # height 10, width 20
    assert boxes.tensor.tolist() == [[0, 0, 20, 10], [5, 6, 7, 8]]
    boxes.scale(2, 0.5)
    assert boxes.tensor.tolist() == [[0, 0, 40, 5], [10, 3, 14, 4]]
    empty = Boxes([])
    empty.clip((10, 20))
    assert empty.tensor.shape == (0, 4)
    with pytest.raises(AssertionError):
        Boxes([[0, 0, float("nan"), 1]]).clip((5, 5))


def test_inside_box_excludes_the_far_edge():
    boxes = Boxes([[0, 0, 9, 9], [0, 0, 10, 9], [-1, 0, 5, 5]])
    assert boxes.inside_box((10, 10)).tolist() == [True, False, False]
    assert boxes.inside_box((10, 10), boundary_threshold=1).tolist() == [True, True, True]


def test_indexing_iterating_and_joining():
    boxes = Boxes(torch.arange(12).view(3, 4))
    assert boxes[1].tensor.tolist() == [[4, 5, 6, 7]]
    assert len(boxes[1:]) == 2 and len(boxes[torch.tensor([True, False, True])]) == 2
    assert [box.shape for box in boxes] == [(4,)] * 3
    assert Boxes.cat([boxes, boxes[0]]).tensor.shape == (4, 4)
    assert len(Boxes.cat([])) == 0
    with pytest.raises(AssertionError):
        boxes[0, 1]
    copy = boxes.clone()
    copy.tensor.zero_()
    assert boxes.tensor.sum() == 66  # 0 + 1 + ... + 11


def test_pairwise_overlap():
    first = Boxes([[0, 0, 2, 2], [0, 0, 0, 0]])
    second = Boxes([[1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 2, 2]])
    # with the first box: 1*1, none (they touch), all 4 square pixels; the second box is empty
    assert pairwise_intersection(first, second).tolist() == [[1, 0, 4], [0, 0, 0]]
    torch.testing.assert_close(pairwise_iou(first, second), torch.tensor([[1 / 7, 0, 1], [0, 0, 0]]))  # 1 / (4 + 4 - 1)
    torch.testing.assert_close(pairwise_ioa(first, second), torch.tensor([[1 / 4, 0, 1], [0, 0, 0]]))
    assert pairwise_iou(first, Boxes([])).shape == (2, 0)
    assert pairwise_iou(Boxes([[1, 1, 1, 1]]), Boxes([[1, 1, 1, 1]])).item() == 0  # 0 / 0 is 0


def test_matched_iou_is_the_diagonal():
    torch.manual_seed(0)
    corners = torch.rand(2, 6, 2) * 10
    first = Boxes(torch.cat([corners[0], corners[0] + 5], dim=1))
    second = Boxes(torch.cat([corners[1], corners[1] + 3], dim=1))
    torch.testing.assert_close(matched_pairwise_iou(first, second), pairwise_iou(first, second).diagonal())
    with pytest.raises(AssertionError):
        matched_pairwise_iou(first, second[0])


def test_point_box_distance():
    distance = pairwise_point_box_distance(torch.tensor([[1.0, 2.0], [9.0, 0.0]]), Boxes([[0, 0, 4, 8]]))
    # point (1, 2): 1 from the left, 2 from the top, 4-1 from the right, 8-2 from the bottom
    assert distance.tolist() == [[[1, 2, 3, 6]], [[9, 0, -5, 8]]]
