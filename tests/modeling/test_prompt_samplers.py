"""Prompt samplers: statistics of the random ones, exact answers of the deterministic ones."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from sam_d2.modeling.prompt_recipes import PromptRecipe, prompt_recipes
from sam_d2.modeling.prompt_samplers import BoxSampler, PointSampler


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_boxes(boxes: list[list[float]], size: tuple[int, int]) -> Instances:
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    return instances


def with_bitmaps(*bitmaps: list[str]) -> Instances:
    """Instances whose masks are drawn with ``#``."""
    masks = BitMasks(np.array([[[cell == "#" for cell in line] for line in bitmap] for bitmap in bitmaps]))
    instances = Instances(tuple(masks.tensor.shape[1:]))
    instances.gt_masks = masks
    instances.gt_boxes = masks.get_bounding_boxes()
    return instances


class TestBoxSampler:
    def test_without_jitter_it_is_the_annotated_box(self):
        boxes = [[1.5, 2.0, 30.25, 40.0], [0.0, 0.0, 100.0, 80.0]]
        prompts = BoxSampler()(with_boxes(boxes, (80, 100)), generator())
        assert prompts.boxes.tolist() == boxes and prompts.points is None

    def test_deviation_is_a_share_of_the_side(self):
        # sides 100 and 50 far from the border; 10 % are 10 and 5 pixels. Of 20,000 draws the deviation is known
        # to 1 / sqrt(2 * 20000) = 0.5 %, and the cut at 20 (2 deviations of x) leaves 0.9595 of it.
        count = 20_000
        moved = BoxSampler(jitter=0.1, max_jitter=20)(
            with_boxes([[500, 500, 600, 550]] * count, (2000, 2000)), generator()
        ).boxes
        noise = moved - torch.tensor([500.0, 500, 600, 550])
        assert noise.mean(dim=0).abs().max() < 0.3
        expected = torch.tensor([9.595, 5.0, 9.595, 5.0])
        torch.testing.assert_close(noise.std(dim=0), expected, rtol=0.02, atol=0)
        # the four edges move independently of each other
        assert (torch.corrcoef(noise.T) - torch.eye(4)).abs().max() < 0.03

    def test_no_edge_moves_further_than_the_limit(self):
        boxes = with_boxes([[500, 500, 1500, 600]] * 1000, (2000, 2000))
        noise = BoxSampler(jitter=0.1, max_jitter=20)(boxes, generator()).boxes - boxes.gt_boxes.tensor
        assert noise.abs().max() == 20
        assert (noise[:, 0].abs() == 20).float().mean() > 0.7  # 100 pixels of deviation: 84 % reach the limit

    def test_prompts_are_boxes_inside_the_image(self):
        boxes = with_boxes([[0, 0, 3, 2], [97, 70, 100, 80], [0, 0, 100, 80], [50, 40, 50.5, 40.5]] * 500, (80, 100))
        moved = BoxSampler(jitter=2.0, max_jitter=20)(boxes, generator()).boxes
        assert moved[:, 0].min() == 0 and moved[:, 1].min() == 0
        assert moved[:, 2].max() == 100 and moved[:, 3].max() == 80
        assert (moved[:, :2] <= moved[:, 2:]).all()

    def test_the_annotations_stay(self):
        boxes = with_boxes([[10, 10, 20, 20]], (80, 100))
        BoxSampler(jitter=0.1)(boxes, generator())
        assert boxes.gt_boxes.tensor.tolist() == [[10, 10, 20, 20]]

    def test_the_generator_alone_decides(self):
        boxes = with_boxes([[10, 10, 60, 60]] * 5, (80, 100))
        sampler = BoxSampler(jitter=0.1)
        first = sampler(boxes, generator(1)).boxes
        torch.manual_seed(99)
        assert torch.equal(sampler(boxes, generator(1)).boxes, first)
        assert not torch.equal(sampler(boxes, generator(2)).boxes, first)

    def test_no_instances(self):
        assert len(BoxSampler(jitter=0.1)(with_boxes([], (80, 100)), generator())) == 0


class TestTestPoint:
    @pytest.mark.parametrize(
        ("bitmap", "point"),
        [
            # 5 x 5: the centre alone has a distance of 3
            (["#####"] * 5, (2, 2)),
            # 3 rows of 5: three pixels have 2, the first is taken
            (["#####"] * 3, (1, 1)),
            # 2 x 2 alone: all have 1, the first in row order
            ([".....", ".##..", ".##..", "....."], (1, 1)),
            # two equal parts, in row order the upper one, though it stands further right
            ([".....###", ".....###", "###..###", "###.....", "###....."], (6, 1)),
            # the larger part wins, though it comes later
            (["##......", "##......", "...#####", "...#####", "...#####", "...#####", "...#####"], (5, 4)),
            # a ring: never its hole
            (["#####", "#...#", "#...#", "#####"], (0, 0)),
            # one pixel
            (["....", "..#.", "...."], (2, 1)),
        ],
    )
    def test_is_the_innermost_pixel_first_in_row_order(self, bitmap, point):
        prompts = PointSampler()(with_bitmaps(bitmap), generator())
        assert prompts.points.tolist() == [[list(point)]] and prompts.labels.tolist() == [[1]]

    def test_is_the_maximum_of_the_distance_to_background_and_border(self):
        random = np.random.default_rng(3)
        noise = random.normal(size=(40, 30, 50)).cumsum(axis=1).cumsum(axis=2)
        bitmaps = noise > np.quantile(noise, 0.6, axis=(1, 2), keepdims=True)
        instances = Instances((30, 50))
        instances.gt_masks = BitMasks(bitmaps)
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        points = PointSampler()(instances, generator()).points[:, 0].int().tolist()
        for bitmap, point in zip(bitmaps, points, strict=True):
            distance = distance_transform_edt(np.pad(bitmap, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(distance.argmax(), distance.shape)
            assert point == [x, y]

    def test_needs_no_generator_state(self):
        instances = with_bitmaps(["####", "####", "#..."])
        used = generator()
        state = used.get_state()
        PointSampler()(instances, used)
        assert torch.equal(used.get_state(), state)


class TestTrainingPoint:
    def test_lies_inside_the_mask_and_reaches_all_of_it(self):
        bitmap = ["..##....", ".####...", "..##..#.", "........"]
        instances = with_bitmaps(*[bitmap] * 4000)
        prompts = PointSampler(random=True)(instances, generator())
        x, y = prompts.points[:, 0].long().unbind(1)
        assert instances.gt_masks.tensor[0][y, x].all()
        # uniform over 9 pixels: 4000 / 9 = 444 each, deviation sqrt(4000 * 1/9 * 8/9) = 20
        counts = torch.bincount(y * 8 + x, minlength=32)
        counts = counts[counts > 0]
        assert len(counts) == 9 and counts.min() > 344 and counts.max() < 544
        assert (prompts.labels == 1).all() and prompts.labels.dtype == torch.int64

    def test_the_generator_alone_decides(self):
        instances = with_bitmaps(*[["#" * 20] * 20] * 5)
        sampler = PointSampler(random=True)
        first = sampler(instances, generator(1)).points
        np.random.seed(0)
        torch.manual_seed(7)
        assert torch.equal(sampler(instances, generator(1)).points, first)
        assert not torch.equal(sampler(instances, generator(2)).points, first)
        assert len(first.unique(dim=0)) > 1, "each instance has its own draw"

    def test_a_point_does_not_depend_on_the_other_masks(self):
        full, empty = ["#" * 6] * 6, ["." * 6] * 6
        one = PointSampler(random=True)(with_bitmaps(full, full, full), generator()).points
        other = PointSampler(random=True)(with_bitmaps(empty, full, empty), generator()).points
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("random", [False, True])
class TestAnyPoint:
    def test_an_empty_mask_is_prompted_at_the_centre_of_its_box(self, random):
        instances = with_bitmaps(["." * 8] * 8)
        instances.gt_boxes = Boxes(torch.tensor([[2.0, 3.0, 6.0, 4.0]]))
        # edges 2..6 are pixels 2..5, whose middle is 3.5; edges 3..4 are pixel 3
        assert PointSampler(random)(instances, generator()).points.tolist() == [[[3.5, 3.0]]]

    def test_a_pixel_is_prompted_at_itself(self, random):
        instances = with_bitmaps([".....", "...#.", "....."])
        assert PointSampler(random)(instances, generator()).points.tolist() == [[[3.0, 1.0]]]

    def test_polygons_and_bitmaps_have_the_same_points(self, random):
        rng = np.random.default_rng(8)
        polygons = [
            [rng.uniform(-5, 65, size=(int(rng.integers(3, 8)), 2)).reshape(-1) for _ in range(int(rng.integers(1, 3)))]
            for _ in range(40)
        ]
        instances = Instances((50, 60))
        instances.gt_masks = PolygonMasks(polygons)
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        bitmaps = Instances((50, 60))
        bitmaps.gt_masks = BitMasks.from_polygon_masks(instances.gt_masks.polygons, 50, 60)
        bitmaps.gt_boxes = instances.gt_boxes
        one = PointSampler(random)(instances, generator())
        other = PointSampler(random)(bitmaps, generator())
        assert torch.equal(one.points, other.points)

    def test_no_instances(self, random):
        instances = Instances((8, 8))
        instances.gt_boxes = Boxes(torch.zeros((0, 4)))
        instances.gt_masks = PolygonMasks([])
        prompts = PointSampler(random)(instances, generator())
        assert prompts.points.shape == (0, 1, 2) and prompts.labels.shape == (0, 1)


def test_recipes_keep_their_names():
    recipe = PromptRecipe(train=PointSampler(random=True), test=PointSampler())
    assert prompt_recipes(point=recipe) == {"point": recipe}
