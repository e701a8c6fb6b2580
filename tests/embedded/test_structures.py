import copy
import pickle

import numpy as np
import pytest
import torch

from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks, polygons_to_bitmask
from detectron2.structures.masks import rasterize_polygons_within_box

SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]  # the 4 pixels of columns 1-2 and rows 1-2
TRIANGLE = [0, 0, 4, 0, 0, 4]


def instances():
    return Instances(
        (10, 20),
        gt_boxes=Boxes([[0, 0, 1, 1], [1, 1, 3, 3]]),
        gt_masks=PolygonMasks([[TRIANGLE], [SQUARE]]),
        gt_classes=torch.tensor([3, 5]),
        names=["a", "b"],
    )


class TestInstances:
    def test_fields_are_attributes(self):
        one = instances()
        assert one.image_size == (10, 20) and len(one) == 2
        assert one.has("gt_boxes") and not one.has("scores")
        one.scores = torch.tensor([0.1, 0.9])
        assert one.get("scores") is one.scores is one.get_fields()["scores"]
        one.remove("scores")
        with pytest.raises(AttributeError, match="scores"):
            _ = one.scores
        with pytest.raises(KeyError):
            one.get("scores")

    def test_a_field_of_another_length_is_refused(self):
        with pytest.raises(AssertionError):
            instances().scores = torch.zeros(3)

    def test_an_index_cuts_all_fields(self):
        one = instances()
        one.remove("names")  # a list takes no tensor
        chosen = one[one.gt_classes == 5]
        assert len(one[torch.tensor([], dtype=torch.int64)]) == 0
        assert chosen.gt_boxes.tensor.tolist() == [[1, 1, 3, 3]] and chosen.gt_classes.tolist() == [5]
        assert chosen.gt_masks.polygons[0][0].tolist() == SQUARE

    def test_an_int_or_slice_keeps_the_dimension_of_instances(self):
        one = instances()
        assert one[:1].names == ["a"] and one[-1].names == ["b"] and one[1].image_size == (10, 20)
        for outside in (2, -3):
            with pytest.raises(IndexError):
                one[outside]

    def test_cat(self):
        both = Instances.cat([instances(), instances()[1]])
        assert len(both) == 3 and both.names == ["a", "b", "b"] and both.gt_classes.tolist() == [3, 5, 5]
        assert len(both.gt_masks) == len(both.gt_boxes) == 3
        one = instances()
        assert Instances.cat([one]) is one
        with pytest.raises(AssertionError):
            Instances.cat([one, Instances((5, 5), gt_classes=torch.zeros(1))])
        with pytest.raises(ValueError):
            Instances.cat([Instances((1, 1), x="ab"), Instances((1, 1), x="cd")])

    def test_no_length_without_fields_and_no_iteration(self):
        with pytest.raises(NotImplementedError):
            len(Instances((1, 1)))
        with pytest.raises(NotImplementedError):
            iter(instances())

    def test_to_copy_and_pickle(self):
        moved = instances().to("cpu")
        assert moved.names == ["a", "b"] and moved.gt_boxes.device.type == "cpu"
        for other in (copy.deepcopy(moved), pickle.loads(pickle.dumps(moved))):
            assert other.image_size == (10, 20) and other.gt_classes.tolist() == [3, 5]

    def test_text_names_size_and_fields(self):
        text = str(instances())
        assert text.startswith("Instances(num_instances=2, image_height=10, image_width=20, fields=[gt_boxes: ")


class TestImageList:
    def test_a_batch_is_padded_bottom_right(self):
        batch = ImageList.from_tensors([torch.ones(3, 2, 5), torch.ones(3, 4, 3)], pad_value=7)
        assert batch.tensor.shape == (2, 3, 4, 5) and batch.image_sizes == [(2, 5), (4, 3)] and len(batch) == 2
        assert batch[0].shape == (3, 2, 5) and bool((batch[0] == 1).all())
        # 2 images of 20 pixels, of which 10 and 12 are covered; the others are 7
        assert batch.tensor[:, 0].sum() == 10 + 12 + 7 * (10 + 8)
        assert batch.tensor[1, 0, 3, 3] == 7

    @pytest.mark.parametrize("count", [1, 2])
    @pytest.mark.parametrize(
        ("arguments", "shape"),
        [
            ({"size_divisibility": 4}, (4, 8)),
            ({"size_divisibility": 1}, (3, 5)),
            ({"padding_constraints": {"square_size": 9}}, (9, 9)),
            ({"padding_constraints": {"square_size": 9, "size_divisibility": 4}}, (12, 12)),
            ({"padding_constraints": {"size_divisibility": 2}, "size_divisibility": 32}, (4, 6)),
            ({"padding_constraints": {"square_size": 0}, "size_divisibility": 5}, (5, 5)),
        ],
    )
    def test_sizes(self, arguments, shape, count):
        batch = ImageList.from_tensors([torch.ones(2, 3, 5)] * count, **arguments)
        assert batch.tensor.shape == (count, 2, *shape) and batch.tensor.is_contiguous()
        assert batch.image_sizes == [(3, 5)] * count
        assert batch.tensor.sum() == count * 2 * 15

    def test_other_leading_dimensions_and_casting(self):
        batch = ImageList.from_tensors([torch.ones(4, 4), torch.ones(2, 2)]).to(torch.float64)
        assert batch.tensor.shape == (2, 4, 4) and batch.tensor.dtype == torch.float64
        assert batch.device.type == "cpu"
        with pytest.raises(AssertionError):
            ImageList.from_tensors([torch.ones(3, 4, 4), torch.ones(1, 4, 4)])
        with pytest.raises(AssertionError):
            ImageList.from_tensors([])

    def test_gradients_reach_the_images(self):
        image = torch.ones(1, 2, 2, requires_grad=True)
        ImageList.from_tensors([image], 4).tensor.sum().backward()
        assert image.grad.sum() == 4


class TestBitMasks:
    masks = torch.tensor([[[0, 0, 0], [0, 1, 1]], [[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 0, 1]]])

    def test_bounding_boxes_end_behind_the_last_pixel(self):
        boxes = BitMasks(self.masks).get_bounding_boxes()
        assert boxes.tensor.tolist() == [[1, 1, 3, 2], [0, 0, 0, 0], [0, 0, 3, 2]]

    def test_indexing_and_joining(self):
        masks = BitMasks(self.masks.numpy())
        assert masks.tensor.dtype == torch.bool and masks.image_size == (2, 3) and len(masks) == 3
        assert masks.nonempty().tolist() == [True, False, True]
        assert len(masks[1]) == 1 and len(masks[masks.nonempty()]) == 2 and len(masks[1:]) == 2
        assert len(BitMasks.cat([masks, masks[0]])) == 4
        assert [mask.shape for mask in masks] == [(2, 3)] * 3
        assert repr(masks.to("cpu")) == "BitMasks(num_instances=3)"
        with pytest.raises(AssertionError):
            BitMasks(torch.zeros(2, 2))
        with pytest.raises(AssertionError):
            masks[0, 0]

    def test_from_polygons(self):
        masks = BitMasks.from_polygon_masks(PolygonMasks([[SQUARE], []]), 4, 5)
        assert masks.tensor.shape == (2, 4, 5) and masks.tensor.sum(dim=(1, 2)).tolist() == [4, 0]
        assert masks[0].get_bounding_boxes().tensor.tolist() == [[1, 1, 3, 3]]
        assert BitMasks.from_polygon_masks([], 4, 5).tensor.shape == (0, 4, 5)

    def test_crop_and_resize(self):
        left_half = torch.zeros(1, 4, 8, dtype=torch.bool)
        left_half[..., :4] = True
        crop = BitMasks(left_half).crop_and_resize(torch.tensor([[2.0, 0, 6, 4]]), 4)
        # the box begins at column 2 and has 4 columns, of which 2 and 3 are in the mask
        assert crop.tolist() == [[[True, True, False, False]] * 4]
        assert BitMasks(left_half[:0]).crop_and_resize(torch.zeros(0, 4), 4).shape == (0, 4, 4)
        with pytest.raises(AssertionError):
            BitMasks(left_half).crop_and_resize(torch.zeros(2, 4), 4)


class TestPolygonMasks:
    def test_area_and_boxes(self):
        masks = PolygonMasks([[TRIANGLE, SQUARE], [SQUARE], []])
        assert masks.area().tolist() == [8 + 4, 4, 0]  # 4*4/2 and 2*2
        assert masks.get_bounding_boxes().tensor[:2].tolist() == [[0, 0, 4, 4], [1, 1, 3, 3]]
        assert masks.nonempty().tolist() == [True, True, False]

    def test_box_left_of_the_image_ends_at_zero(self):
        masks = PolygonMasks([[[-5, -4, -2, -4, -2, -1]]])
        assert masks.get_bounding_boxes().tensor.tolist() == [[-5, -4, 0, 0]]

    @pytest.mark.parametrize(
        "index",
        [
            slice(1, 3),
            [1, 2],
            torch.tensor([1, 2]),
            torch.tensor([1, 2], dtype=torch.int32),
            torch.tensor([False, True, True]),
        ],
    )
    def test_indices(self, index):
        masks = PolygonMasks([[TRIANGLE], [SQUARE], []])
        assert [len(polygons) for polygons in masks[index]] == [1, 0]
        assert masks[index].polygons[0][0].tolist() == SQUARE

    def test_index_of_one_and_of_a_wrong_type(self):
        masks = PolygonMasks([[TRIANGLE], [SQUARE]])
        assert len(masks[1]) == 1 and masks[1].polygons[0][0].tolist() == SQUARE
        with pytest.raises(ValueError):
            masks[torch.tensor([0.0])]

    @pytest.mark.parametrize("polygons", [np.zeros((1, 8)), [np.zeros(8)], [[[0, 0, 1, 1]]], [[[0] * 7]]])
    def test_what_is_no_polygon_is_refused(self, polygons):
        with pytest.raises(ValueError):
            PolygonMasks(polygons)

    def test_joining_moving_and_types(self):
        masks = PolygonMasks([[torch.tensor(TRIANGLE)], [np.array(SQUARE, dtype=np.float32)]])
        assert all(polygon.dtype == np.float64 for polygons in masks for polygon in polygons)
        assert masks.to("meta") is masks and masks.device.type == "cpu"
        assert len(PolygonMasks.cat([masks, masks])) == 4 and repr(masks) == "PolygonMasks(num_instances=2)"

    def test_crop_and_resize_into_the_box(self):
        masks = PolygonMasks([[SQUARE], [SQUARE]])
        crops = masks.crop_and_resize(torch.tensor([[1.0, 1, 3, 3], [0, 0, 4, 4]]), 4)
        assert bool(crops[0].all())
        assert crops[1].sum() == 4 and bool(crops[1, 1:3, 1:3].all())
        assert masks[:0].crop_and_resize(torch.zeros(0, 4), 4).shape == (0, 4, 4)
        assert masks.polygons[0][0].tolist() == SQUARE

    def test_union_of_polygons(self):
        two = [np.array(SQUARE, dtype=float), np.array(SQUARE, dtype=float) + 1]
        # two squares of 4 pixels that share the pixel (2, 2)
        assert polygons_to_bitmask(two, 5, 5).sum() == 7
        assert polygons_to_bitmask([], 5, 6).shape == (5, 6)
        assert not rasterize_polygons_within_box([], np.array([0, 0, 2, 2]), 3).any()
