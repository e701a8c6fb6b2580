"""Scores of masks."""

import pytest
import torch
from segment_anything.utils.amg import calculate_stability_score

from sam_d2.errors import UserError
from sam_d2.modeling.scoring import SCORES, combine_scores, mean_probability, parse_score, stability_score


def test_scores_are_names_joined_by_a_star():
    for name in SCORES:
        assert parse_score(name) == (name,)
    assert parse_score("class_score*predicted_iou") == ("class_score", "predicted_iou")


@pytest.mark.parametrize("score", ["", "iou", "predicted_iou*", "predicted_iou * stability", "stability*stability"])
def test_unknown_scores_are_refused(score):
    with pytest.raises(UserError, match=r"model\.score=.*expected one of class_score, predicted_iou"):
        parse_score(score)


def test_stability_by_hand():
    logits = torch.tensor([[[2.0, 1.5, 0.5, -0.5]], [[3.0, 3.0, 3.0, -3.0]], [[-2.0, -2.0, -2.0, -2.0]]])
    # above 1: 2 cells of 4 above -1; 3 of 3; none of none
    assert stability_score(logits).tolist() == [0.5, 1.0, 0.0]
    # offset 2: strictly above 2 is none, above -2 all
    assert stability_score(logits, offset=2.0).tolist() == [0.0, 1.0, 0.0]


def test_stability_is_that_of_segment_anything():
    torch.manual_seed(0)
    logits = torch.randn(6, 30, 40) * 2
    torch.testing.assert_close(stability_score(logits), calculate_stability_score(logits, 0.0, 1.0))


def test_mean_probability_by_hand():
    ln3 = torch.tensor(3.0).log().item()
    logits = torch.tensor([[[ln3, ln3, 0.0, -5.0]], [[-1.0, -1.0, -1.0, -1.0]], [[60.0, 0.0, 0.0, 0.0]]])
    # sigmoid(ln 3) = 3/4 on two cells; a logit of 0 is outside; an empty mask has 0
    torch.testing.assert_close(mean_probability(logits), torch.tensor([0.75, 0.0, 1.0]))


def test_combined_scores_multiply():
    values = {"class_score": torch.tensor([0.5, 1.0]), "predicted_iou": torch.tensor([0.8, 0.9])}
    torch.testing.assert_close(combine_scores(("predicted_iou",), values), torch.tensor([0.8, 0.9]))
    torch.testing.assert_close(combine_scores(("class_score", "predicted_iou"), values), torch.tensor([0.4, 0.9]))
    assert values["class_score"].tolist() == [0.5, 1.0]


def test_no_masks_have_no_scores():
    none = torch.zeros(0, 4, 4)
    assert stability_score(none).shape == (0,) and mean_probability(none).shape == (0,)
