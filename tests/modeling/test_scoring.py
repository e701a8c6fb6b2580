"""Scores of masks."""

import pytest
import torch

from sam_d2.errors import UserError
from sam_d2.modeling.scoring import SCORES, combine_scores, parse_score


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
