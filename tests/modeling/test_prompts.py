"""Prompts: what they accept, rows, and change of frame."""

import pytest
import torch

from sam_d2.modeling.prompts import DRAWN_BOX_LOGIT, Prompts

BOXES = torch.tensor([[0.0, 0.0, 10.0, 20.0], [1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 9.0, 7.0]])
POINTS = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 2.0], [5.0, 6.0]], [[7.0, 8.0], [9.0, 9.0]]])
LABELS = torch.tensor([[1, 0], [1, 1], [1, -1]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "need boxes or points"),
        ({"boxes": torch.zeros(4)}, r"boxes: expected \(N, 4\), got \(4,\)"),
        ({"boxes": torch.zeros(2, 5)}, r"got \(2, 5\)"),
        ({"points": POINTS}, "come together"),
        ({"boxes": BOXES, "labels": LABELS}, "come together"),
        ({"points": torch.zeros(3, 2), "labels": LABELS}, r"points: expected \(N, P, 2\)"),
        ({"points": POINTS, "labels": LABELS[:, :1]}, r"labels: expected \(3, 2\), got \(3, 1\)"),
        ({"boxes": BOXES[:2], "points": POINTS, "labels": LABELS}, r"numbers of rows: \[2, 3\]"),
        ({"boxes": BOXES, "masks": torch.zeros(1, 1, 8, 8)}, r"numbers of rows: \[1, 3\]"),
    ],
)
def test_refuses_what_fits_no_prompt_encoder(fields, message):
    with pytest.raises(ValueError, match=message):
        Prompts(**fields)


def test_rows_are_taken_from_every_field():
    masks = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2)
    prompts = Prompts(boxes=BOXES, points=POINTS, labels=LABELS, masks=masks)
    assert len(prompts) == 3
    for rows in (slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True])):
        part = prompts[rows]
        assert len(part) == 2
        assert torch.equal(part.boxes, BOXES[1:]) and torch.equal(part.points, POINTS[1:])
        assert torch.equal(part.labels, LABELS[1:]) and torch.equal(part.masks, masks[1:])


def test_no_rows_are_prompts_too():
    assert len(Prompts(boxes=torch.zeros(0, 4))) == 0
    assert len(Prompts(points=POINTS, labels=LABELS)[:0]) == 0


def test_rescaled_has_its_own_scale_for_each_axis():
    masks = torch.zeros(3, 1, 2, 2)
    prompts = Prompts(boxes=BOXES, points=POINTS, labels=LABELS, masks=masks)
    # height 10 -> 5 halves y, width 20 -> 30 takes x by 1.5
    moved = prompts.rescaled((10, 20), (5, 30))
    assert moved.boxes.tolist() == [[0, 0, 15, 10], [1.5, 1, 4.5, 2], [7.5, 2.5, 13.5, 3.5]]
    assert moved.points[0].tolist() == [[4.5, 2], [0, 0]]
    assert torch.equal(moved.labels, LABELS) and moved.masks is masks
    assert torch.equal(prompts.boxes, BOXES.clone()), "the prompts themselves stay"


def test_rescaled_takes_the_ratio_in_double_precision():
    moved = Prompts(boxes=torch.tensor([[11.0, 0.0, 333.0, 1.0]])).rescaled((333, 333), (1024, 1024))
    # 11 * 1024 / 333 = 33.825825825..., as float32 33.82582474; in float32 arithmetic it would be 33.82582855
    assert moved.boxes[0, 0].item() == 33.82582473754883
    assert moved.boxes[0, 2].item() == 1024


def test_a_drawn_box_is_its_share_of_each_cell():
    # 4 pixels to a cell. Columns 4 to 10: cell 1 whole, half of cell 2. Rows 0 to 5: cell 0 whole, a quarter of cell 1.
    prompts = Prompts(boxes=torch.tensor([[4.0, 0.0, 10.0, 5.0]]), points=POINTS[:1], labels=LABELS[:1])
    drawn = prompts.with_drawn_boxes(canvas=16, low_res=4)
    share = torch.zeros(4, 4)
    share[0, 1], share[0, 2], share[1, 1], share[1, 2] = 1, 0.5, 0.25, 0.125
    assert torch.equal(drawn.masks, (2 * share - 1)[None, None] * DRAWN_BOX_LOGIT)
    assert torch.equal(drawn.boxes, prompts.boxes) and torch.equal(drawn.points, prompts.points)


def test_nothing_of_a_box_is_drawn_beyond_the_canvas_or_where_it_has_no_area():
    boxes = torch.tensor([[-8.0, -8.0, 4.0, 4.0], [20.0, 0.0, 40.0, 16.0], [8.0, 8.0, 4.0, 12.0]])
    covered = Prompts(boxes=boxes).with_drawn_boxes(canvas=16, low_res=4).masks > -DRAWN_BOX_LOGIT
    assert covered.sum(dim=(1, 2, 3)).tolist() == [1, 0, 0]


def test_a_mask_prompt_is_not_drawn_over_and_points_are_not_drawn():
    masks = torch.zeros(3, 1, 4, 4)
    assert Prompts(boxes=BOXES, masks=masks).with_drawn_boxes(16, 4).masks is masks
    assert Prompts(points=POINTS, labels=LABELS).with_drawn_boxes(16, 4).masks is None
