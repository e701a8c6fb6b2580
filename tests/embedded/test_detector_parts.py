"""Anchors, matching, sampling, box deltas, levels and pasted masks against values worked out by hand."""

import math

import pytest
import torch

import sam_d2  # noqa: F401  before detectron2
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import detector_postprocess
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals, find_top_rpn_proposals
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances


def test_anchors_of_a_small_grid():
    generator = DefaultAnchorGenerator(sizes=[[4]], aspect_ratios=[[1.0, 4.0]], strides=[10], offset=0.5)
    (anchors,) = generator([torch.zeros(1, 1, 1, 2)])
    # area 16: square of 4 x 4; height = 4 width, so 2 x 8. Centres (5, 5) and (15, 5).
    expected = [[3, 3, 7, 7], [4, 1, 6, 9], [13, 3, 17, 7], [14, 1, 16, 9]]
    assert anchors.tensor.tolist() == expected
    assert generator.num_anchors == [2]
    assert list(generator.state_dict()) == []


def test_one_list_of_sizes_serves_all_levels():
    generator = DefaultAnchorGenerator(sizes=[4, 8], aspect_ratios=[1.0], strides=[2, 4, 8], offset=0.0)
    levels = generator([torch.zeros(1, 1, 2, 3)] * 3)
    assert [len(level) for level in levels] == [12, 12, 12]  # 2 x 3 places with 2 anchors
    assert levels[2].tensor[-1].tolist() == [16 - 4, 8 - 4, 16 + 4, 8 + 4]  # last place (2, 1) x stride 8, size 8


QUALITY = torch.tensor([
    [0.9, 0.4, 0.10, 0.2, 0.69],
    [0.1, 0.5, 0.25, 0.0, 0.70],
])  # fmt: skip


def test_labels_by_threshold():
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(QUALITY)
    assert matches.tolist() == [0, 1, 1, 0, 1]
    assert labels.tolist() == [1, -1, 0, 0, 1]  # 0.9, 0.5, 0.25, 0.2, and 0.7, which belongs to the upper level
    assert labels.dtype == torch.int8 and matches.dtype == torch.int64


def test_low_quality_matches():
    quality = QUALITY.clone()
    quality[1, 4] = 0.5  # the second ground truth has 0.5 twice and nothing better
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(quality)
    # the last prediction becomes foreground for the second one, but its match stays the first, with 0.69
    assert labels.tolist() == [1, 1, 0, 0, 1]
    assert matches.tolist() == [0, 1, 1, 0, 0]


def test_matching_without_ground_truth():
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(QUALITY[:0])
    assert matches.tolist() == [0] * 5 and labels.tolist() == [0] * 5


@pytest.mark.parametrize("arguments", [([0.5], [0]), ([0.7, 0.3], [0, -1, 1]), ([0.5], [0, 2]), ([-1.0], [0, 1])])
def test_wrong_thresholds(arguments):
    with pytest.raises(AssertionError):
        Matcher(*arguments)


def test_sampling_fills_up_with_background():
    labels = torch.tensor([0, 1, 2, -1, 0, 0, 0, 5])
    positive, negative = subsample_labels(labels, 6, 0.25, 0)
    assert len(positive) == 1 and positive.item() in (1, 2, 7)  # int(6 x 0.25)
    assert sorted(negative.tolist()) == [0, 4, 5, 6]  # 5 are wanted, 4 are there
    positive, negative = subsample_labels(labels, 6, 1.0, 0)
    assert sorted(positive.tolist()) == [1, 2, 7] and len(set(negative.tolist())) == 3


def test_deltas():
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    source, target = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 0.0, 25.0, 10.0]])
    # centre (5, 10) to (15, 5): (10 / 10, -5 / 20); size 10 x 20 to 20 x 10: log 2 and -log 2
    deltas = transform.get_deltas(source, target)
    expected = torch.tensor([[10.0, -2.5, 5 * math.log(2), -5 * math.log(2)]])
    torch.testing.assert_close(deltas, expected)
    torch.testing.assert_close(transform.apply_deltas(deltas, source), target)
    both = transform.apply_deltas(torch.cat([deltas, torch.zeros(1, 4)], dim=1), source)
    torch.testing.assert_close(both, torch.cat([target, source], dim=1))


def test_deltas_are_clamped():
    grown = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)).apply_deltas(
        torch.tensor([[0.0, 0.0, 50.0, 50.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    )
    # 16 pixels become at most 1000, around (8, 8)
    torch.testing.assert_close(grown, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]), rtol=1e-5, atol=1e-3)


def test_dense_loss_counts_the_foreground_alone():
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    anchors = [Boxes([[0, 0, 10, 10]]), Boxes([[0, 0, 20, 20]])]
    predicted = [torch.zeros(1, 1, 4), torch.full((1, 1, 4), 7.0)]
    targets = [torch.tensor([[5.0, 0.0, 15.0, 10.0], [0.0, 0.0, 1.0, 1.0]])]
    foreground = torch.tensor([[True, False]])
    loss = _dense_box_regression_loss(anchors, transform, predicted, targets, foreground)
    assert loss.item() == pytest.approx(0.5)  # a shift of 5 pixels by a width of 10
    loss = _dense_box_regression_loss(anchors, transform, predicted, targets, foreground, "giou")
    # IoU 50 / 150, and no room around the union: 1 - 1 / 3
    assert loss.item() == pytest.approx(2 / 3, abs=1e-5)
    loss = _dense_box_regression_loss(anchors, transform, predicted, targets, foreground, smooth_l1_beta=1.0)
    assert loss.item() == pytest.approx(0.125)  # 0.5 x 0.5 squared
    with pytest.raises(ValueError, match="l7"):
        _dense_box_regression_loss(anchors, transform, predicted, targets, foreground, "l7")


def test_levels():
    sides = [0.0, 20.0, 111.9, 112.0, 223.9, 224.0, 448.0, 5000.0]
    boxes = Boxes([[0, 0, side, side] for side in sides])
    # 224 is level 4, twice as much one up, half as much one down; p2 to p5 are what there is
    expected = [2, 2, 2, 3, 3, 4, 5, 5]
    levels = assign_boxes_to_levels([boxes[:3], boxes[3:]], 2, 5, 224, 4)
    assert (levels + 2).tolist() == expected


def test_pooler_takes_the_level_of_each_box():
    features = [torch.full((2, 1, 64 // 2**i, 64 // 2**i), float(i)) for i in range(2)]
    for level in features:
        level[1] += 10  # the second image
    boxes = [Boxes([[0, 0, 200, 200], [8, 8, 40, 40]]), Boxes([[8, 8, 40, 40]])]
    pooled = ROIPooler(3, (1 / 4, 1 / 8), 2, "ROIAlignV2")(features, boxes)
    assert pooled.shape == (3, 1, 3, 3)
    assert pooled[:, 0, 1, 1].tolist() == [1.0, 0.0, 10.0]


def test_pasting_fills_the_box():
    pasted = paste_masks_in_image(torch.ones(1, 4, 4), Boxes([[2, 3, 6, 9]]), (12, 10))
    # beyond the last centre of the mask, half a cell before the box's edge, values fall from 1 to 0 over one cell;
    # at the edge they are one half, so every pixel with its centre inside of the box is set, and no other
    expected = torch.zeros(12, 10, dtype=torch.bool)
    expected[3:9, 2:6] = True
    assert pasted.dtype == torch.bool and torch.equal(pasted[0], expected)


def test_pasting_cuts_at_the_image_and_resamples():
    mask, box = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), torch.tensor([[-2.0, -2.0, 6.0, 6.0]])
    values = paste_masks_in_image(mask, box, (4, 4), threshold=-1)
    # the box is 8 wide, its 2 cells 4 each with centres at 0 and 4: the pixel centre 0.5 lies an eighth of the way
    assert values.dtype == torch.uint8
    assert values[0, 1].tolist() == [int(255 * share) for share in (0.125, 0.375, 0.625, 0.875)]
    assert paste_masks_in_image(mask, box, (4, 4))[0, 1].tolist() == [False, False, True, True]


def test_postprocessing_resizes_and_drops_what_is_outside():
    results = Instances((10, 20))
    results.pred_boxes = Boxes([[2, 2, 6, 6], [25, 2, 30, 6]])  # the second beyond the right edge
    results.scores = torch.tensor([0.5, 0.9])
    results.pred_masks = torch.ones(2, 1, 4, 4)
    resized = detector_postprocess(results, 20, 10)
    assert resized.image_size == (20, 10) and resized.scores.tolist() == [0.5]
    assert resized.pred_boxes.tensor.tolist() == [[1, 4, 3, 12]]  # x halved, y doubled
    assert resized.pred_masks.shape == (1, 20, 10) and resized.pred_masks.sum() == 2 * 8


def test_proposals_are_suppressed_within_a_level():
    box, near, far = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 40.0, 30.0]
    levels = [torch.tensor([[box, near, far]]), torch.tensor([[near]])]
    logits = [torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[3.0]])]
    (found,) = find_top_rpn_proposals(levels, logits, [(25, 30)], 0.7, 10, 10, 0.0, False)
    # IoU of the two is 0.9: the worse of the first level goes, the one of the second level stays
    assert found.objectness_logits.tolist() == [3.0, 2.0, 0.5]
    assert found.proposal_boxes.tensor[2].tolist() == [20, 20, 30, 25]  # clipped
    (found,) = find_top_rpn_proposals(levels, logits, [(25, 30)], 0.7, 10, 10, 9.5, False)
    assert found.objectness_logits.tolist() == [1.0]  # 10 x 10; the others are 10 x 9 and, clipped, 10 x 5


def test_proposals_that_are_not_finite():
    levels, logits = [torch.tensor([[[0.0, 0.0, math.nan, 10.0], [0.0, 0.0, 5.0, 5.0]]])], [torch.tensor([[1.0, 2.0]])]
    (found,) = find_top_rpn_proposals(levels, logits, [(25, 30)], 0.7, 10, 10, 0.0, False)
    assert found.objectness_logits.tolist() == [2.0]
    with pytest.raises(FloatingPointError, match="diverged"):
        find_top_rpn_proposals(levels, logits, [(25, 30)], 0.7, 10, 10, 0.0, True)


def test_ground_truth_becomes_a_proposal():
    own = Instances((9, 9), proposal_boxes=Boxes([[0, 0, 1, 1]]), objectness_logits=torch.tensor([-1.0]))
    truth = Instances((9, 9), gt_boxes=Boxes([[2, 2, 5, 5]]), gt_classes=torch.tensor([3]))
    for given in (truth, truth.gt_boxes):
        (joined,) = add_ground_truth_to_proposals([given], [own])
        assert joined.proposal_boxes.tensor.tolist() == [[0, 0, 1, 1], [2, 2, 5, 5]]
        assert joined.objectness_logits.sigmoid()[1] > 0.999 and set(joined.get_fields()) == set(own.get_fields())
    with pytest.raises(ValueError):
        add_ground_truth_to_proposals([truth, truth], [own])


def test_detections_are_suppressed_within_a_class():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [50.0, 0.0, 70.0, 9.0]])
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.04, 0.06, 0.9]])  # two classes and the background
    (found,), (rows,) = fast_rcnn_inference([boxes], [scores], [(20, 60)], 0.05, 0.5, 100)
    assert found.scores.tolist() == pytest.approx([0.7, 0.3, 0.06])
    assert found.pred_classes.tolist() == [0, 1, 1] and rows.tolist() == [0, 1, 2]
    assert found.pred_boxes.tensor[2].tolist() == [50, 0, 60, 9]  # clipped
    (found,), _ = fast_rcnn_inference([boxes], [scores], [(20, 60)], 0.05, 0.5, 2)
    assert len(found) == 2
    scores[0, 1] = math.nan
    (found,), (rows,) = fast_rcnn_inference([boxes], [scores], [(20, 60)], 0.05, 0.5, 100)
    assert found.scores.tolist() == pytest.approx([0.6, 0.3, 0.06])
