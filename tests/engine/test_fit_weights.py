"""Which weights fit a model, and what a training may begin with."""

import logging

import pytest
import torch

from sam_d2.engine.fit_weights import fit_weights
from sam_d2.errors import UserError


def weights(**shapes):
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


OWN = weights(
    backbone__bottom_up__conv__weight=(4, 3),
    backbone__bottom_up__conv__norm__weight=(4,),
    backbone__bottom_up__conv__norm__running_mean=(4,),
    backbone__fpn__weight=(8, 4),
    roi_heads__box_predictor__cls_score__weight=(6, 8),
    roi_heads__box_predictor__cls_score__bias=(6,),
)
CLASSES = [name for name in OWN if "predictor" in name]


def fit(state, *, begins=False, matched=False):
    return fit_weights(state, OWN, begins=begins, matched=matched, file="weights.pkl")


def test_a_perfect_fit_is_taken_as_it_is():
    assert fit(dict(OWN)).keys() == OWN.keys()


def test_what_the_config_makes_is_not_looked_at():
    former = weights(pixel_mean=(3, 1, 1), proposal_generator__anchor_generator__cell_anchors__0=(3, 4))
    assert fit({**OWN, **former}).keys() == OWN.keys()


@pytest.mark.parametrize("begins", [False, True])
def test_a_missing_and_an_unknown_key_are_an_error(begins):
    state = dict(OWN)
    state["backbone.fpm.weight"] = state.pop("backbone.fpn.weight")
    words = r"weights.pkl does not fit the model: keys 1 missing .*backbone.fpn.weight\); 1 in the file only .*fpm"
    with pytest.raises(UserError, match=words):
        fit(state, begins=begins)


def test_predictors_of_other_classes(caplog):
    state = {**OWN, **{name: torch.ones(81, *OWN[name].shape[1:]) for name in CLASSES}}
    with pytest.raises(UserError, match=r"cls_score.weight \(81, 8\) instead of \(6, 8\).* other classes; a training"):
        fit(state)
    assert fit(state, begins=True).keys() == OWN.keys() - set(CLASSES)
    assert "weights.pkl was trained on other classes" in caplog.text and CLASSES[0] in caplog.text


def test_another_width_is_never_legal():
    state = {**OWN, CLASSES[0]: torch.ones(81, 16)}
    with pytest.raises(UserError, match=r"\(81, 16\) instead of \(6, 8\)"):
        fit(state, begins=True)
    with pytest.raises(UserError, match="of another shape"):
        fit({**OWN, "backbone.fpn.weight": torch.ones(16, 4)}, begins=True)


@pytest.mark.parametrize("prefix", ["backbone.bottom_up.", "backbone.body."])
@pytest.mark.parametrize(
    ("of_file", "of_model"),
    [(5, 22), (22, 5)],  # blocks of a stage that the file has and the model has: a ResNet-50's and a 101's, and turned
)
def test_a_backbone_of_another_depth_begins_nothing(prefix, of_file, of_model):
    def network(blocks):
        names = [f"{prefix}res3.0.weight", *(f"{prefix}res4.{block}.weight" for block in range(blocks))]
        return {name: torch.zeros(4) for name in names}

    own = {**network(of_model), "roi_heads.weight": torch.zeros(3)}
    with pytest.raises(UserError, match=r"does not fit the model.*res4\.5"):
        fit_weights(network(of_file), own, begins=True, matched=True, file="R-X.pkl")
    assert (
        fit_weights(network(of_model), own, begins=True, matched=True, file="R-X.pkl").keys()
        == network(of_model).keys()
    )


def test_parts_of_a_backbone_that_a_file_does_not_know_begin_at_random():
    """As the norms after MViT's scales, which its classifier lacks; what only the classifier has is let go."""
    own = {f"backbone.bottom_up.{name}.weight": torch.zeros(4) for name in ("blocks.0", "blocks.1", "scale2_norm")}
    own["roi_heads.weight"] = torch.zeros(3)
    state = {name: value for name, value in own.items() if "blocks" in name} | {"head.weight": torch.zeros(5)}
    taken = fit_weights(state, own, begins=True, matched=True, file="MViT.pyth")
    assert taken.keys() == {name for name in own if "blocks" in name}


def test_a_backbone_may_begin_a_training(caplog):
    state = {name: value for name, value in OWN.items() if "bottom_up" in name and "running" not in name}
    state["fc1000.weight"] = torch.zeros(1000, 4)
    with pytest.raises(UserError, match="3 missing from the file"):
        fit(state, matched=True)
    with caplog.at_level(logging.INFO):
        taken = fit(state, begins=True, matched=True)
    assert len(taken) == 2 and "fc1000.weight" not in taken
    # of 6 weights the pyramid's and the predictor's two: the statistics of MSRA's are in its scales
    assert (
        "holds a backbone alone: 3 of the model's 6 weights stay random (backbone.fpn 1, roi_heads.box_" in caplog.text
    )
    assert "Not used of weights.pkl: fc1000.weight" in caplog.text


def test_a_file_of_nothing_is_no_backbone():
    with pytest.raises(UserError, match=r"6 missing from the file .*1 in the file only"):
        fit(weights(fc1000__weight=(1000, 4)), begins=True, matched=True)
