"""Losses: values by hand, and what the mean over instances must not depend on."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detectron2.structures import PolygonMasks
from sam_d2.modeling.losses import iou_prediction_loss, mask_dice_loss, mask_focal_loss, mask_iou
from sam_d2.modeling.masks import low_res_targets, object_cells

ZERO = torch.zeros(1, 2, 2)  # probability 1/2 everywhere
HALF = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])


def sure(targets: torch.Tensor) -> torch.Tensor:
    """Logits that say the targets with a probability of 1."""
    return (targets * 2 - 1) * 40


def test_focal_by_hand():
    # p = 1/2: cross entropy ln 2, damped by (1 - p_t)^2 = 1/4, weight 0.25 on two cells and 0.75 on two:
    # mean = ln 2 / 4 * (0.25 + 0.25 + 0.75 + 0.75) / 4 = ln 2 / 8
    torch.testing.assert_close(mask_focal_loss(ZERO, HALF), torch.tensor([math.log(2) / 8]))


def test_focal_of_a_confident_error():
    # logit -3 on foreground: p = 1 / (1 + e^3) = 0.0474259, ce = 3.0485874, (1 - p)^2 = 0.9073975, alpha 0.25:
    # 0.25 * 0.9073975 * 3.0485874 = 0.6915688
    loss = mask_focal_loss(torch.full((1, 1, 1), -3.0), torch.ones(1, 1, 1))
    torch.testing.assert_close(loss, torch.tensor([0.6915688]))


def test_focal_without_damping_and_weight_is_cross_entropy():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 8, 8) * 4, torch.rand(5, 8, 8)
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(mask_focal_loss(logits, targets, alpha=-1, gamma=0), expected)


def test_dice_by_hand():
    # p = 1/2 on 4 cells, 2 true: overlap 1, sum 2 + 2: 1 - (2 + 1) / (4 + 1) = 0.4
    torch.testing.assert_close(mask_dice_loss(ZERO, HALF), torch.tensor([0.4]))
    # without smoothing 1 - 2 / 4
    torch.testing.assert_close(mask_dice_loss(ZERO, HALF, smooth=0.0), torch.tensor([0.5]))


def test_perfect_masks_cost_nothing():
    assert mask_dice_loss(sure(HALF), HALF).item() == pytest.approx(0, abs=1e-6)
    assert mask_focal_loss(sure(HALF), HALF).item() == pytest.approx(0, abs=1e-6)
    empty = torch.zeros(1, 4, 4)
    assert mask_dice_loss(sure(empty), empty).item() == pytest.approx(0, abs=1e-6)


def test_one_big_perfect_instance_does_not_hide_nine_missed_small_ones():
    targets = torch.zeros(10, 64, 64)
    targets[0, :48, :48] = 1
    for row in range(1, 10):
        targets[row, 50:52, 5 * row : 5 * row + 2] = 1
    logits = torch.full_like(targets, -40.0)
    logits[0] = sure(targets[0])
    losses = mask_dice_loss(logits, targets)
    # a missed object of 4 cells: 1 - (0 + 1) / (0 + 4 + 1) = 0.8
    torch.testing.assert_close(losses, torch.tensor([0.0] + [0.8] * 9))
    # nine of ten missed: 0.72 (0.90 without smoothing); one dice over all pixels would say
    # 1 - 2 * 2304 / (2304 + 2304 + 36) = 0.008
    assert losses.mean().item() == pytest.approx(0.72)


@pytest.mark.parametrize("loss", [mask_focal_loss, mask_dice_loss, mask_iou])
def test_each_mask_counts_by_itself(loss):
    torch.manual_seed(1)
    logits, targets = torch.randn(6, 8, 8), (torch.rand(6, 8, 8) > 0.5).float()
    together = loss(logits, targets)
    assert together.shape == (6,)
    alone = torch.cat([loss(logits[row : row + 1], targets[row : row + 1]) for row in range(6)])
    torch.testing.assert_close(together, alone)
    # so a batch of the same masks three times over has the same mean, and M masks per prompt work as well
    torch.testing.assert_close(loss(logits.repeat(3, 1, 1), targets.repeat(3, 1, 1)).mean(), together.mean())
    assert torch.equal(loss(logits.view(2, 3, 8, 8), targets.view(2, 3, 8, 8)), together.view(2, 3))


@pytest.mark.parametrize("loss", [mask_focal_loss, mask_dice_loss, mask_iou])
def test_no_masks_give_no_values(loss):
    values = loss(torch.zeros(0, 8, 8), torch.zeros(0, 8, 8))
    assert values.shape == (0,) and values.dtype == torch.float32


def test_gradients_push_towards_the_target():
    for loss in (mask_focal_loss, mask_dice_loss):
        logits = torch.zeros(1, 2, 2, requires_grad=True)
        loss(logits, HALF).sum().backward()
        assert (logits.grad[HALF == 1] < 0).all() and (logits.grad[HALF == 0] > 0).all()


def test_iou_by_hand():
    logits = torch.tensor([[[1.0, 1.0, 1.0, -1.0]], [[0.0, -1.0, -1.0, -1.0]], [[-1.0, -1.0, -1.0, -1.0]]])
    targets = torch.tensor([[[1.0, 0.5, 0.49, 1.0]], [[0.9, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    # first: predicted cells 0 1 2, true 0 1 3 (one half counts): 2 / 4; second: a logit of 0 is background,
    # so 0 / 1; third: both empty, 1
    assert mask_iou(logits, targets).tolist() == [0.5, 0.0, 1.0]


def test_an_object_that_covers_half_of_no_cell_is_not_nothing():
    targets = torch.tensor([[[0.4, 0.2, 0.19, 0.0]]])
    answers = [[-1.0, -1, -1, -1], [1.0, 1, -1, -1], [1.0, 1, 1, 1]]  # nothing; its cells; everything
    # the most covered cell has 0.4, half of which two cells have: 0 / 2, 2 / 2, 2 / 4
    assert [mask_iou(torch.tensor([[row]]), targets).item() for row in answers] == [0.0, 1.0, 0.5]
    # once one cell is half covered it is the object, however many are covered a little
    assert mask_iou(torch.tensor([[answers[1]]]), targets + 0.1).item() == 0.5


def test_a_line_of_two_pixels_is_worth_its_own_cells():
    # Rows 11 and 12 are in two rows of cells, columns 10 to 109 in cells 2 (2 of 4 pixels) to 27 (2 of 4): shares
    # 1 / 4 and, at either end, 1 / 8, which is half of it: 2 * 26 cells.
    line = PolygonMasks([[np.array([10.0, 11, 110, 11, 110, 13, 10, 13])]])
    targets = low_res_targets([(line, (128, 128))], 32, 4)
    own = torch.zeros(1, 32, 32, dtype=torch.bool)
    own[0, 2:4, 2:28] = True
    assert targets.max() == 0.25 and torch.equal(object_cells(targets), own)
    assert mask_iou(torch.where(own, 5.0, -5.0), targets).item() == 1
    assert mask_iou(torch.full((1, 32, 32), -5.0), targets).item() == 0


def test_the_cells_of_an_object_with_a_half_covered_one_are_those():
    torch.manual_seed(2)
    targets = torch.rand(20, 3, 8, 8)
    assert torch.equal(object_cells(targets), targets >= 0.5) and not object_cells(torch.zeros(2, 8, 8)).any()


def test_iou_takes_no_gradient():
    logits = torch.randn(2, 4, 4, requires_grad=True)
    assert not mask_iou(logits, torch.ones(2, 4, 4)).requires_grad


def test_iou_prediction_by_hand():
    predicted = torch.tensor([0.5, 1.2, 0.0], requires_grad=True)
    loss = iou_prediction_loss(predicted, torch.tensor([0.7, 1.0, 0.0]))
    torch.testing.assert_close(loss, torch.tensor([0.04, 0.04, 0.0]))  # (-0.2)^2, 0.2^2, 0
    loss.sum().backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([-0.4, 0.4, 0.0]))  # 2 * difference
