"""Boxes that are wrong by a known amount, and boxes that are wrong as a detector's."""

import json
import random

import pytest
import torch

from detectron2.structures import Boxes, Instances
from sam_d2.errors import UserError
from sam_d2.modeling.prompt_samplers import BoxSampler, DetectorErrorSampler, NoisyBoxSampler, may_be_ambiguous

SIZE = (1000, 2000)


def with_boxes(boxes, size=SIZE):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return instances


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(boxes, size=SIZE, **keys):
    return NoisyBoxSampler(**keys)(with_boxes(boxes, size), generator()).boxes


BOXES = [[500.0 + row, 400, 600 + row, 450] for row in range(200)]  # 100 x 50 each


class TestNoisyBoxes:
    def test_level_0_is_the_annotated_box(self):
        assert noisy(BOXES).tolist() == BOXES

    def test_a_shift_of_10_percent_moves_by_10_and_5_pixels(self):
        moved = noisy(BOXES, shift=0.1) - torch.tensor(BOXES)
        torch.testing.assert_close(moved.abs(), torch.tensor([[10.0, 5, 10, 5]]).expand(200, 4))
        assert torch.equal(moved[:, :2].sign(), moved[:, 2:].sign()), "both edges in one direction"
        ways = torch.unique(moved[:, :2].sign(), dim=0, return_counts=True)
        assert len(ways[0]) == 4 and ways[1].min() > 30, "each of the four diagonals for about 50 of 200"

    def test_a_scale_of_20_percent_makes_120_or_80_wide_about_the_centre(self):
        found = noisy(BOXES, scale=0.2)
        sides = found[:, 2:] - found[:, :2]
        assert set(sides[:, 0].round().tolist()) == {80, 120} and set(sides[:, 1].round().tolist()) == {40, 60}
        centres = (found[:, :2] + found[:, 2:]) / 2
        torch.testing.assert_close(centres[:, 1], torch.full((200,), 425.0))
        torch.testing.assert_close(centres[:, 0], torch.arange(200) + 550.0)

    def test_every_level_goes_the_same_way(self):
        low, high = (noisy(BOXES, shift=level) - torch.tensor(BOXES) for level in (0.1, 0.3))
        torch.testing.assert_close(3 * low, high, atol=1e-3, rtol=0)

    def test_it_belongs_to_the_instance_and_not_to_the_generator(self):
        sampler = NoisyBoxSampler(shift=0.1)
        first = sampler(with_boxes(BOXES), generator(1)).boxes
        assert torch.equal(first, sampler(with_boxes(BOXES), generator(2)).boxes)
        assert torch.equal(first[:7], sampler(with_boxes(BOXES[:7]), generator(2)).boxes)
        assert not torch.equal(first, noisy(BOXES, shift=0.1, seed=1))
        # another image: the same box in the same place has coins of its own
        ways = {tuple(noisy(BOXES[:1], (1000, width), shift=0.1)[0].tolist()) for width in range(1000, 1030)}
        assert len(ways) == 4

    def test_it_stays_inside_the_image(self):
        found = noisy([[0, 0, 100, 50], [1900, 950, 2000, 1000]] * 20, shift=0.3)
        assert found.min() == 0 and found[:, 2].max() == 2000 and found[:, 3].max() == 1000
        assert (found[:, 2] - found[:, 0] >= 69.9).all(), "no more than 30 % is cut off"

    def test_no_instances(self):
        assert noisy([], shift=0.1).shape == (0, 4)

    @pytest.mark.parametrize("keys", [{"shift": -0.1}, {"scale": 1.0}, {"shift": float("nan")}])
    def test_shares_that_leave_no_box(self, keys):
        with pytest.raises(UserError, match="expected a share of the side, 0 to below 1"):
            NoisyBoxSampler(**keys)

    def test_a_box_is_not_ambiguous(self):
        assert not may_be_ambiguous(NoisyBoxSampler()) and not may_be_ambiguous(DetectorErrorSampler())


@pytest.fixture
def errors_file(tmp_path):
    def write(content):
        path = tmp_path / "errors.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


class TestDetectorErrors:
    def test_each_box_takes_one_row(self, errors_file):
        rows = [[0.1, 0.2, 0.3, -0.4], [-0.05, 0, 0, 0.1]]
        sampler = DetectorErrorSampler(errors=errors_file({"errors": rows}))
        moved = sampler(with_boxes(BOXES), generator()).boxes - torch.tensor(BOXES)
        # of sides 100 and 50
        expected = torch.tensor([[10.0, 10, 30, -20], [-5, 0, 0, 5]])
        first = (moved - expected[0]).abs().amax(dim=1) < 1e-3
        second = (moved - expected[1]).abs().amax(dim=1) < 1e-3
        assert (first ^ second).all() and 70 < first.sum() < 130

    def test_it_draws_with_the_generator(self, errors_file):
        draw = random.Random(0).uniform
        rows = [[draw(-0.2, 0.2) for _ in range(4)] for _ in range(50)]
        sampler = DetectorErrorSampler(errors=errors_file({"errors": rows}))
        first = sampler(with_boxes(BOXES), generator(1)).boxes
        assert torch.equal(first, sampler(with_boxes(BOXES), generator(1)).boxes)
        assert not torch.equal(first, sampler(with_boxes(BOXES), generator(2)).boxes)

    def test_edges_stay_in_the_image_and_in_order(self, errors_file):
        sampler = DetectorErrorSampler(errors=errors_file({"errors": [[0.9, -0.5, -0.9, 0.5]]}))
        assert sampler(with_boxes([[0, 0, 100, 50]]), generator()).boxes.tolist() == [[10, 0, 90, 75]]

    def test_without_a_file_it_jitters(self):
        boxes = with_boxes(BOXES)
        plain = BoxSampler(jitter=0.1)(boxes, generator()).boxes
        assert torch.equal(DetectorErrorSampler(jitter=0.1)(boxes, generator()).boxes, plain)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "no file of a detector's errors"),
            ('{"errors": [[0.1, 0.2', "no file of a detector's errors"),
            ({"errors": []}, "holds no error"),
            ({"errors": [[0.1, 0.2, 0.3]]}, "no file of a detector's errors"),
            ('{"errors": [[NaN, 0, 0, 0]]}', "no file of a detector's errors"),
            ({"errors": [[7, 0, 0, 0]]}, "no file of a detector's errors"),
            ([], "no file of a detector's errors"),
            ({"errors": [[0, 0, 0, 0]], "version": 2}, "version 2"),
        ],
    )
    def test_files_that_are_none(self, errors_file, content, message):
        path = errors_file(content)
        with pytest.raises(UserError, match=message) as caught:
            DetectorErrorSampler(errors=path)(with_boxes(BOXES), generator())
        assert path in str(caught.value) and "tools/detector_errors.py" in str(caught.value)

    def test_a_file_that_is_not_there_does_not_stop_a_trained_model(self, build_model, tmp_path):
        file = tmp_path / "gone.json"
        model = build_model("model.prompt=detector", f"model.prompts.detector.train.errors={file}")
        with pytest.raises(UserError, match=r"gone\.json: cannot be read"):
            model.prompts["detector"].train(with_boxes(BOXES), generator())
