"""tools/visualize_data.py: what is drawn is what the mapper and the samplers make."""

import importlib.util
import sys

import cv2
import numpy as np
import pytest
import torch

import sam_d2  # noqa: F401
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from sam_d2.errors import UserError
from sam_d2.modeling.prompts import Prompts


@pytest.fixture
def tool(root, monkeypatch):
    spec = importlib.util.spec_from_file_location("visualize_data", root / "tools" / "visualize_data.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "visualize_data", module)  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def visualize(tool, root, shapes_folder, tiny_overrides, monkeypatch):
    """``visualize(output, *arguments)``: the picture that the program writes of the shapes."""

    def call(output, *arguments):
        line = ["--config-file", str(root / "configs" / "sam_tiny.py"), "--dataset", str(shapes_folder)]
        monkeypatch.setattr("sys.argv", ["x", *line, "--output", str(output), *arguments, *tiny_overrides])
        assert tool.main() == 0
        return cv2.imread(str(output))

    return call


def rgb(hexadecimal):
    return np.array([int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)])


def instances(size, masks):
    found = Instances(size)
    found.gt_masks = masks
    found.gt_boxes = Boxes(torch.zeros(len(masks), 4))
    return found


@pytest.mark.parametrize("kind", ["polygon", "bitmap"])
def test_masks_are_scaled_to_the_picture(tool, kind):
    # columns 2 to 6 and rows 1 to 3 of 5 x 10 pixels, in a picture four times as large: 8 to 24 and 4 to 12
    if kind == "polygon":
        masks = PolygonMasks([[np.array([2.0, 1, 6, 1, 6, 3, 2, 3])]])
    else:
        bitmap = torch.zeros(1, 5, 10, dtype=torch.bool)
        bitmap[0, 1:3, 2:6] = True
        masks = BitMasks(bitmap)
    [mask] = tool.instance_masks(instances((5, 10), masks), (20, 40))
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max() + 1) == (4, 12)
    assert (columns.min(), columns.max() + 1) == (8, 24)


def test_prompts_are_where_they_are(tool):
    image = np.full((32, 64, 3), 90, dtype=np.uint8)
    prompts = Prompts(
        boxes=torch.tensor([[8.0, 4, 40, 20]]),
        points=torch.tensor([[[20.0, 10], [50, 25]]]),
        labels=torch.tensor([[1, 0]]),
    )
    sample = tool.Sample({"instances": instances((32, 64), PolygonMasks([]))}, image, prompts)
    drawn = tool.draw(sample)
    assert drawn.shape == (320, 640, 3)  # ten times as large
    near = {name: np.abs(drawn.astype(int) - rgb(getattr(tool, name))).sum(axis=2) < 40 for name in
            ("BOX", "FOREGROUND", "BACKGROUND")}  # fmt: skip
    ys, xs = np.nonzero(near["BOX"])
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx((80, 400, 40, 200), abs=2)
    # an integer is the centre of a pixel: (20 + 0.5) x 10
    ys, xs = np.nonzero(near["FOREGROUND"])
    assert ((xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2) == pytest.approx((205, 105), abs=2)
    ys, xs = np.nonzero(near["BACKGROUND"])
    assert ((xs.min() + xs.max()) / 2, ys.max()) == pytest.approx((505, 255), abs=2)  # the triangle stands on its tip


def test_the_seed_decides_what_training_sees(visualize, tmp_path):
    first = visualize(tmp_path / "a.png", "--count", "3")
    again = visualize(tmp_path / "b.png", "--count", "3")
    other = visualize(tmp_path / "c.png", "--count", "3", "train.seed=5")
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_test_split(visualize, tmp_path, capsys, prompt):
    visualize(tmp_path / "new" / "x.png", "--split", "test", "--prompt", prompt, "--count", "9")
    # all four images of the test part, of 2, 3, 2 and 0 shapes; the crowd is no instance
    assert "4 images, 7 instances" in capsys.readouterr().out


@pytest.mark.parametrize(("prompt", "told"), [("clicks", True), ("point", False)])
@pytest.mark.parametrize("split", ["train", pytest.param("test", marks=pytest.mark.slow)])
def test_of_clicks_the_first_is_shown_which_is_said(visualize, tmp_path, capsys, prompt, split, told):
    visualize(tmp_path / "x.png", "--split", split, "--prompt", prompt, "--count", "1")
    # training adds 4 corrections; the longest test, clicks_5, as many
    assert ("Only the first point is shown: up to 4 more follow" in capsys.readouterr().out) == told


def test_output_is_no_png(visualize, tmp_path):
    with pytest.raises(UserError, match=r"FILE\.png"):
        visualize(tmp_path / "x.jpg")
