"""Scores of masks."""

import pytest
import torch
from segment_anything.utils.amg import calculate_stability_score

from sam_d2.errors import UserError
from sam_d2.modeling.scoring import (
    SCORES,
    combine_scores,
    mask_scores,
    mean_probability,
    parse_score,
    stability_score,
)


def test_scores_are_names_joined_by_a_star():
    for name in SCORES:
        assert parse_score(name) == {name: 1.0}
    assert parse_score("class_score*predicted_iou") == {"class_score": 1.0, "predicted_iou": 1.0}
    assert list(parse_score("stability^2*class_score^0.5").items()) == [("stability", 2.0), ("class_score", 0.5)]


UNKNOWN = ["", "iou", "predicted_iou*", "predicted_iou * stability", "stability*stability", "Stability"]
EXPONENTS = ["stability^", "stability^0", "stability^0.0", "stability^-1", "stability^nan", "stability^inf"]
EXPONENTS += ["stability^2^2", "^2", "stability^1e3", "stability^2*stability", "stability**2", f"stability^{'9' * 400}"]


@pytest.mark.parametrize("score", UNKNOWN + EXPONENTS)
def test_what_is_no_score_is_refused(score):
    with pytest.raises(
        UserError, match=r"model\.score=.*expected one of class_score, predicted_iou.* positive exponent"
    ):
        parse_score(score)
    with pytest.raises(UserError, match=r"^here="):
        parse_score(score, key="here")


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
    assert torch.equal(combine_scores(parse_score("predicted_iou"), values), torch.tensor([0.8, 0.9]))
    torch.testing.assert_close(
        combine_scores(parse_score("class_score*predicted_iou"), values), torch.tensor([0.4, 0.9])
    )
    assert values["class_score"].tolist() == [0.5, 1.0]


def test_exponents():
    values = {"class_score": torch.tensor([0.25, 1.0]), "predicted_iou": torch.tensor([0.8, 0.9])}
    # 0.25^0.5 = 0.5, times 0.8^2 = 0.64; 1 times 0.81
    found = combine_scores(parse_score("class_score^0.5*predicted_iou^2"), values)
    torch.testing.assert_close(found, torch.tensor([0.32, 0.81]))


def test_an_iou_predicted_below_0_has_no_root():
    values = {"predicted_iou": torch.tensor([-0.1, 0.04])}
    assert combine_scores(parse_score("predicted_iou"), values).tolist() == pytest.approx([-0.1, 0.04])
    assert combine_scores(parse_score("predicted_iou^0.5"), values).tolist() == pytest.approx([0.0, 0.2])
    assert combine_scores(parse_score("predicted_iou^2"), values).tolist() == pytest.approx([0.0, 0.0016])


def test_all_scores_of_a_mask():
    logits = torch.tensor([[[2.0, 0.5, -0.5, -3.0]]])
    scores = mask_scores(logits, torch.tensor([0.7]), torch.tensor([0.4]))
    assert list(scores) == list(SCORES)
    # above 1: one cell, above -1: three; sigmoid(2) and sigmoid(0.5) lie above 0
    expected = {
        "class_score": 0.4,
        "predicted_iou": 0.7,
        "stability": 1 / 3,
        "mean_probability": (0.880797 + 0.622459) / 2,
    }
    assert {name: value.item() for name, value in scores.items()} == pytest.approx(expected, abs=1e-6)


def test_no_masks_have_no_scores():
    none = torch.zeros(0, 4, 4)
    assert stability_score(none).shape == (0,) and mean_probability(none).shape == (0,)
