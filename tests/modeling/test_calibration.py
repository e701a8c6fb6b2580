"""A score's calibration: the curve, its way through a checkpoint, and when it is dropped."""

import logging

import numpy as np
import pytest
import torch

import sam_d2  # noqa: F401
from sam_d2.engine.checkpoint import FINAL, Checkpointer, load_checkpoint_file
from sam_d2.errors import UserError
from sam_d2.modeling.calibration import ScoreCalibration, calibrated_name
from sam_d2.modeling.weights_record import WeightsRecord, note_step

RISE = 1e-3
"""Share of the curve that only keeps the order."""


def fit(scores, ious):
    return ScoreCalibration.fit(np.array(scores, dtype=float), np.array(ious, dtype=float), score="s", dataset="d")


def curve(rises=1.0, prompt="box", score="predicted_iou"):
    """A calibration with y = ``rises`` * x, for one kind of prompt."""
    return {prompt: ScoreCalibration(score, "made", 9, np.array([0.0, 1.0]), np.array([0.0, rises]))}


class TestFit:
    def test_neighbours_in_the_wrong_order_are_pooled(self):
        # 0.4 and 0.3 fall: both become 0.35. The two of score 0.5 are one point of 0.7.
        found = fit([0.1, 0.2, 0.3, 0.4, 0.5, 0.5], [0.2, 0.4, 0.3, 0.6, 0.5, 0.9])
        isotonic = np.array([0.2, 0.35, 0.35, 0.6, 0.7])
        rank = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
        np.testing.assert_allclose(found.x, [0.1, 0.2, 0.3, 0.4, 0.5])
        np.testing.assert_allclose(found.y, (1 - RISE) * isotonic + RISE * rank)
        assert found.predictions == 6

    def test_weights_count_where_scores_are_equal(self):
        # Three at score 0.1 of mean IoU 0.6 and one at 0.9 of 0.2 pool to (3 * 0.6 + 0.2) / 4 = 0.5.
        found = fit([0.1, 0.1, 0.1, 0.9], [0.5, 0.6, 0.7, 0.2])
        np.testing.assert_allclose(found.y, [0.5 * (1 - RISE), 0.5 * (1 - RISE) + RISE])

    def test_of_a_level_stretch_two_knots_are_kept(self):
        found = fit([0.1, 0.2, 0.3, 0.4, 0.8], [0.5, 0.4, 0.3, 0.2, 0.9])
        np.testing.assert_allclose(found.x, [0.1, 0.4, 0.8])  # 0.35 from 0.1 to 0.4, then 0.9

    def test_between_knots_it_is_straight_and_beyond_them_level(self):
        found = ScoreCalibration("s", "d", 2, np.array([0.2, 0.6]), np.array([0.1, 0.5]))
        np.testing.assert_allclose(found(np.array([-1.0, 0.2, 0.3, 0.6, 2.0])), [0.1, 0.1, 0.2, 0.5, 0.5])
        tensor = found.of_tensor(torch.tensor([0.3, 2.0]))
        assert tensor.dtype == torch.float64 and tensor.tolist() == pytest.approx([0.2, 0.5])

    def test_a_model_keeps_the_order_of_scores_that_are_next_to_each_other(self):
        """Float32 numbers from 0.5 on; where the curve is level, it rises by a thousandth of their distance."""
        scores = 0.5 + torch.arange(1000) * 2.0**-23
        assert len(scores.unique()) == 1000
        level = fit([0.0, 1.0], [0.7, 0.7])
        assert (level.of_tensor(scores).diff() > 0).all()

    def test_the_order_of_masks_stays_whatever_the_iou(self):
        rng = np.random.default_rng(0)
        scores = rng.random(500)
        for ious in (rng.random(500), 1 - scores, scores > 0.5, np.full(500, 0.3)):
            calibrated = fit(scores, ious)(scores)
            assert (np.argsort(calibrated) == np.argsort(scores)).all()
            assert calibrated.min() >= 0 and calibrated.max() <= 1

    def test_predictions_without_an_iou_are_left_out(self):
        found = fit([0.1, 0.5, 0.9], [0.2, np.nan, 0.8])
        assert found.predictions == 2 and found.x.tolist() == [0.1, 0.9]

    @pytest.mark.parametrize(
        ("scores", "ious", "message"),
        [
            ([], [], "d: 0 predictions with 0 different values of s"),
            ([0.5], [0.5], "1 predictions with 1 different"),
            ([1.0, 1.0, 1.0], [0.1, 0.5, 0.9], "3 predictions with 1 different"),
            ([0.1, 0.9], [0.5, np.nan], "1 predictions with 1 different"),
        ],
    )
    def test_too_few(self, scores, ious, message):
        with pytest.raises(UserError, match=f"{message}.*at least two"):
            fit(scores, ious)


class TestEntry:
    def test_comes_back_the_same(self):
        before = fit([0.1, 0.2, 0.7], [0.2, 0.4, 0.8])
        after = ScoreCalibration.of_entry(before.entry(), "file")
        assert (after.score, after.dataset, after.predictions) == ("s", "d", 3)
        assert (after.x == before.x).all() and (after.y == before.y).all()

    @pytest.mark.parametrize(
        "change",
        [
            {"x": torch.tensor([0.1])},
            {"x": torch.tensor([0.2, 0.2, 0.7])},
            {"y": torch.tensor([0.1, float("nan"), 0.3])},
            {"y": "text"},
            {"predictions": None},
        ],
    )
    def test_what_cannot_be_read_is_said(self, change):
        entry = {**fit([0.1, 0.2, 0.7], [0.2, 0.4, 0.8]).entry(), **change}
        with pytest.raises(UserError, match=r"model_final\.pth: its calibration of scores cannot be read"):
            ScoreCalibration.of_entry(entry, "model_final.pth")
        with pytest.raises(UserError, match="cannot be read"):
            ScoreCalibration.of_entry([1], "model_final.pth")


class TestModel:
    @pytest.fixture
    def save(self, tmp_path):
        """``save(model)``: its model_final.pth."""

        def save(model):
            Checkpointer(model, str(tmp_path), save_to_disk=True).save(FINAL)
            return str(tmp_path / f"{FINAL}.pth")

        return save

    def test_predictions_carry_all_scores_and_are_ranked_by_the_calibrated_one(self, build_model, batch, save):
        model = build_model().eval()
        model.weights_record.calibrations = curve(0.5)
        plain = model(batch)[0]["instances"]
        assert torch.equal(plain.scores, plain.predicted_iou), "a calibration is used where it is asked for"
        assert plain.class_score.tolist() == [1.0] * 5
        file = save(model)
        asked = build_model("model.calibrate=true").eval()
        Checkpointer(asked).load(file)
        found = asked(batch)[0]["instances"]
        torch.testing.assert_close(found.scores, plain.scores.double().clamp(0, 1) * 0.5)
        assert torch.equal(found.predicted_iou, plain.predicted_iou)
        recipe = model.prompts["box"]
        assert (model.score_name(recipe), asked.score_name(recipe)) == ("predicted_iou", "calibrated(predicted_iou)")
        assert save(asked) and load_checkpoint_file(file)[WeightsRecord.CALIBRATIONS].keys() == {"box"}

    def test_none_for_this_prompt_or_score(self, build_model, batch, save):
        model = build_model()
        file = save(model)
        asked = build_model("model.calibrate=true").eval()
        with pytest.raises(UserError, match="a model of random weights has no calibration for box prompts"):
            asked(batch)
        Checkpointer(asked).load(file)
        with pytest.raises(UserError, match=r"model_final\.pth has no calibration for box prompts\. Fit it with"):
            asked(batch)
        model.weights_record.calibrations = {**curve(prompt="point"), **curve(score="stability", prompt="points")}
        file = save(model)
        Checkpointer(asked).load(file)
        with pytest.raises(UserError, match="for box prompts; it has that of point, points"):
            asked(batch)
        with pytest.raises(
            UserError, match=r"calibrated for model\.score=stability \(on made\), not for predicted_iou"
        ):
            asked.weights_record.calibration("points", "predicted_iou")

    def test_a_training_drops_it_loudly(self, build_model, batch, save, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("sam_d2"), "propagate", True)
        model = build_model()
        model.weights_record.calibrations = curve()
        file = save(model)
        tuned = build_model()
        Checkpointer(tuned, str(tmp_path / "other")).resume_or_load(file, resume=False)
        assert tuned.weights_record.calibrations == {}
        assert "the calibration of its scores (box) is dropped" in caplog.text
        assert WeightsRecord.CALIBRATIONS not in load_checkpoint_file(save(tuned))

    def test_so_does_a_step_of_a_training_that_goes_on(self, build_model, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("sam_d2"), "propagate", True)
        model = build_model()
        model.weights_record.calibrations = curve()
        note_step(model)
        note_step(model)
        assert model.weights_record.calibrations == {} and caplog.text.count("is dropped") == 1

    def test_name(self):
        assert calibrated_name("class_score*stability^2") == "calibrated(class_score*stability^2)"
