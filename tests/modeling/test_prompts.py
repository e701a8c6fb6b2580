"""Prompts: what they accept, rows, and change of frame."""

import pytest
import torch

from sam_d2.modeling.prompts import Prompts

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
