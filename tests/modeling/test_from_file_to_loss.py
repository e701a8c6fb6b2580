"""From image files and annotations through mapper and loader to losses."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from sam_d2.data import load_dataset_file
from sam_d2.data.loader import TrainLoader
from sam_d2.data.mapper import PromptableMapper

CANVAS = 64
SIZE = (90, 120)  # becomes 48 x 64


def square(index: int) -> list[float]:
    """The corners of a square of 5 pixels: the ``index``-th of a grid of 17 columns."""
    x, y = 1 + 7 * (index % 17), 1 + 5 * (index // 17)
    return [x, y, x + 5, y, x + 5, y + 4, x, y + 4]


def annotate(polygon: list[float], kind: str = "polygon", **extra) -> dict:
    x0, y0, x1, y1 = min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])
    segmentation = [polygon]
    if kind != "polygon":
        mask = np.asfortranarray(mask_util.decode(mask_util.frPyObjects(segmentation, *SIZE))[..., 0])
        if kind == "compressed":
            segmentation = mask_util.encode(mask)
            segmentation["counts"] = segmentation["counts"].decode()
        else:
            flat = mask.reshape(-1, order="F")
            edges = np.flatnonzero(np.diff(flat)) + 1
            runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
            segmentation = {"size": list(SIZE), "counts": runs if flat[0] == 0 else [0, *runs]}
    return {
        "bbox": [x0, y0, x1, y1],
        "bbox_mode": int(BoxMode.XYXY_ABS),
        "category_id": 0,
        "segmentation": segmentation,
        "iscrowd": 0,
        **extra,
    }


@pytest.fixture
def make_dict(tmp_path):
    """``make_dict(annotations, size)``: the dataset dict of one image, read from a file of them."""

    def make(annotations: list[dict], size: tuple[int, int] = SIZE) -> dict:
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "image.png")
        record = {"file_name": "image.png", "height": size[0], "width": size[1], "image_id": 1}
        (tmp_path / "dataset.json").write_text(json.dumps([{**record, "annotations": annotations}]))
        return load_dataset_file(tmp_path / "dataset.json", tmp_path, ["thing"]).dataset_dicts[0]

    return make


def rows_seen(instances) -> set[int]:
    """Which squares of the grid the boxes of the resized frame are."""
    corners = instances.gt_boxes.tensor[:, :2] * 120 / 64
    return set((((corners[:, 0] - 1) / 7).round() + 17 * ((corners[:, 1] - 1) / 5).round()).int().tolist())


def first_batches(loader: TrainLoader, count: int) -> list[dict]:
    stream = iter(loader)
    return [next(stream)[0] for _ in range(count)]


class TestManyInstances:
    def test_all_are_trained_where_nothing_caps_them(self, make_dict, build_model, monkeypatch):
        data = make_dict([annotate(square(index)) for index in range(285)])
        mapper = PromptableMapper(is_train=True, image_size=CANVAS, max_instances=None)
        sample = first_batches(TrainLoader([data], mapper=mapper, total_batch_size=1, num_workers=0), 1)[0]
        assert rows_seen(sample["instances"]) == set(range(285))
        model = build_model()
        sizes = []
        decode = model.decode
        monkeypatch.setattr(model, "decode", lambda one, prompts, _: sizes.append(len(prompts)) or decode(one, prompts))
        losses = model([sample])
        assert sizes == [32] * 8 + [29]  # 285 = 8 x 32 + 29
        sum(losses.values()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)

    def test_a_cap_draws_others_each_time(self, make_dict):
        data = make_dict([annotate(square(index)) for index in range(285)])
        mapper = PromptableMapper(is_train=True, image_size=CANVAS)
        loader = TrainLoader([data], mapper=mapper, total_batch_size=1, num_workers=0)
        draws = [rows_seen(sample["instances"]) for sample in first_batches(loader, 20)]
        assert all(len(draw) == 100 for draw in draws)
        assert all(draw != set(range(100)) for draw in draws) and draws[0] != draws[1]
        # an instance is missed 20 times with a probability of (185 / 285)^20 = 0.00018: 0.05 of 285
        assert len(set.union(*draws)) >= 283
        # each is drawn with the same probability: the mean index of 2000 draws is 142 with a deviation of 1.5
        assert np.mean([index for draw in draws for index in draw]) == pytest.approx(142, abs=6)
        assert [rows_seen(sample["instances"]) for sample in first_batches(loader, 2)] == draws[:2]

    def test_a_test_leaves_out_nothing(self, make_dict, build_model):
        data = make_dict([annotate(square(index)) for index in range(285)])
        sample = PromptableMapper(is_train=False, image_size=CANVAS)(data)
        result = build_model().eval()([sample])[0]["instances"]
        assert len(result) == 285 and result.image_size == SIZE


class TestGroundTruth:
    @pytest.mark.parametrize("kind", ["compressed", "runs"])
    def test_rle_trains_like_polygons(self, make_dict, build_model, kind):
        polygons = [[20, 15, 80, 20, 70, 75], [0, 0, 30, 0, 30, 40, 0, 40], [90, 60, 119, 60, 119, 89]]
        mapper = PromptableMapper(is_train=True, image_size=CANVAS)
        drawn = mapper(make_dict([annotate(polygon) for polygon in polygons]))
        encoded = mapper(make_dict([annotate(polygon, kind) for polygon in polygons]))
        assert isinstance(drawn["instances"].gt_masks, PolygonMasks)
        assert isinstance(encoded["instances"].gt_masks, BitMasks)
        model = build_model("model.prompt=box")
        with torch.no_grad():
            one, other = model([{**drawn, "seed": 1}]), model([{**encoded, "seed": 1}])
        for name in one:  # the resize rounds the edges of a bitmap
            assert other[name].item() == pytest.approx(one[name].item(), rel=0.02)

    def test_one_rle_makes_bitmaps_of_the_whole_image(self, make_dict, build_model):
        mixed = [annotate(square(0)), annotate(square(9), "compressed"), annotate(square(20), "runs")]
        sample = PromptableMapper(is_train=True, image_size=CANVAS)(make_dict(mixed))
        assert isinstance(sample["instances"].gt_masks, BitMasks) and len(sample["instances"]) == 3
        assert all(loss.isfinite() for loss in build_model()([sample]).values())

    @pytest.mark.parametrize("is_train", [True, False])
    def test_crowds_are_no_prompts(self, make_dict, is_train):
        found = [annotate(square(0)), annotate(square(1), "compressed", iscrowd=1), annotate(square(2))]
        sample = PromptableMapper(is_train=is_train, image_size=CANVAS)(make_dict(found))
        assert len(sample["instances"]) == 2 and isinstance(sample["instances"].gt_masks, PolygonMasks)

    @pytest.mark.parametrize("is_train", [True, False])
    def test_images_without_annotations(self, make_dict, build_model, is_train):
        data = make_dict([])
        for annotations in ([], [annotate(square(0), iscrowd=1)]):
            sample = PromptableMapper(is_train=is_train, image_size=CANVAS)({**data, "annotations": annotations})
            answer = build_model().train(is_train)([sample])
            if is_train:
                assert sum(answer.values()).item() == 0
            else:
                assert len(answer[0]["instances"]) == 0


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (30, 40), (64, 64), (20, 600)])
def test_every_image_fits_the_canvas(make_dict, build_model, size):
    data = make_dict([annotate([1, 1, 18, 1, 18, 18, 1, 18])], size)
    sample = PromptableMapper(is_train=False, image_size=CANVAS)(data)
    assert max(sample["image"].shape[1:]) == CANVAS
    result = build_model().eval()([sample])[0]["instances"]
    assert result.pred_masks.shape == (1, *size)
