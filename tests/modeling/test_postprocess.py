"""From low-res logits to masks of the original image, against segment_anything's steps and pycocotools' run lengths."""

from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import calculate_stability_score

from sam_d2.modeling import postprocess
from sam_d2.modeling.float32_precision import float32_precision
from sam_d2.modeling.postprocess import MaskCodes, axis_weights, encode_logits, instances_of
from sam_d2.modeling.scoring import SCORES

FRAMES = [  # canvas, resized, original
    (64, (48, 64), (120, 160)),
    (64, (64, 48), (100, 75)),
    (64, (64, 64), (64, 64)),
    (64, (33, 64), (17, 33)),
    (64, (1, 64), (3, 200)),
]


def random_logits(seed: int) -> torch.Tensor:
    """Objects of all sizes, one in the padding, one everywhere, one nowhere, and noise whose every cell is an edge."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centres, radii = torch.rand(12, 2, generator=generator) * 16, torch.rand(12, generator=generator) * 6
    distance = ((x - centres[:, 0, None, None]) ** 2 + (y - centres[:, 1, None, None]) ** 2).sqrt()
    objects = (radii[:, None, None] - distance) * 2 + 0.3 * torch.randn(12, 16, 16, generator=generator)
    noise = torch.randn(4, 16, 16, generator=generator) * 3
    special = torch.full((4, 16, 16), -9.0)
    special[0, 15, 15], special[1], special[3, 0, 0] = 9.0, 4.0, 9.0
    return torch.cat([objects, noise, special])


def segment_anything_logits(logits: torch.Tensor, canvas: int, resized: tuple, original: tuple) -> torch.Tensor:
    sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=canvas))
    return Sam.postprocess_masks(sam, logits[:, None], resized, original)[:, 0]


@pytest.fixture(params=["one by one", "together"])
def scan(request, monkeypatch):
    """Masks are worked out one by one on a CPU, several together on a GPU; the latter runs on a CPU too."""
    if request.param == "together":
        monkeypatch.setattr(postprocess, "_scan_on_cpu", postprocess._scan)
        batches = postprocess._batches
        monkeypatch.setattr(postprocess, "_batches", lambda crops, _: batches(crops, 50_000))


@pytest.mark.usefixtures("scan")
def test_runs_of_neighbouring_columns_stay_apart():
    # So steep that the mask fills its crop from the first row to the last.
    logits = torch.full((2, 16, 16), -1.01)
    logits[:, 4:9, 3:7] = 1e4
    codes = encode_logits(logits, 64, (64, 64), (90, 70))
    full = segment_anything_logits(logits, 64, (64, 64), (90, 70))
    assert torch.equal(codes.dense(), full > 0)
    assert codes.rles == mask_util.encode(np.asfortranarray((full > 0).numpy().transpose(1, 2, 0).astype(np.uint8)))


@pytest.mark.usefixtures("scan")
@pytest.mark.parametrize(("canvas", "resized", "original"), FRAMES)
def test_masks_codes_areas_boxes_and_scores(canvas, resized, original):
    logits = random_logits(sum(original))
    full = segment_anything_logits(logits, canvas, resized, original)
    codes = encode_logits(logits, canvas, resized, original)
    masks = codes.dense()
    assert ((masks != (full > 0)) & (full.abs() > 1e-4)).sum() == 0, "only where the logit is 0 but for rounding"
    assert (masks != (full > 0)).float().mean() < 1e-4
    assert 0 < masks.float().mean() < 1

    expected = mask_util.encode(np.asfortranarray(masks.numpy().transpose(1, 2, 0).astype(np.uint8)))
    assert codes.rles == expected, "byte for byte"
    assert codes.areas.tolist() == [int(mask_util.area(rle)) for rle in expected]
    boxes = np.array([mask_util.toBbox(rle) for rle in expected])
    boxes[:, 2:] += boxes[:, :2]
    assert codes.boxes.tolist() == boxes.tolist()

    stability = calculate_stability_score(full, 0.0, 1.0).nan_to_num(0.0)
    torch.testing.assert_close(codes.stability, stability, atol=2e-3, rtol=0)  # a pixel at a threshold
    mean = (full.double().sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)
    torch.testing.assert_close(codes.mean_probability.double(), mean, atol=1e-5, rtol=0)


def test_scores_by_hand():
    # No interpolation: four cells are the canvas and the image's row. sigmoid(ln 3) = 3/4.
    ln3 = torch.tensor(3.0).log().item()
    rows = torch.tensor([[2.0, ln3, 0.5, -0.5], [ln3, ln3, 0.0, -5.0], [-1.0, -2.0, -3.0, -1.0], [60.0, 0.0, 0.0, 0.0]])
    logits = torch.full((4, 4, 4), -9.0)
    logits[:, 0] = rows
    codes = encode_logits(logits, 4, (1, 4), (1, 4))
    assert codes.areas.tolist() == [3, 2, 0, 1]
    # above 1 and above -1: 2 of 4, 2 of 3, none of none (-1 is not above), 1 of 4
    torch.testing.assert_close(codes.stability, torch.tensor([0.5, 2 / 3, 0.0, 0.25]))
    torch.testing.assert_close(codes.mean_probability, torch.tensor([(0.880797 + 0.75 + 0.622459) / 3, 0.75, 0.0, 1.0]))


def test_padding_is_cut_before_the_image_is_scaled():
    # Canvas 64, image 64 x 32: the right half of the low-res frame is padding. A foreground there must not come back.
    logits = torch.full((2, 16, 16), -10.0)
    logits[0, :, 10:] = 10.0
    logits[1, :, :4] = 10.0  # the image's left quarter, cells 0..3 of 8, is the left half of the original
    none, half = encode_logits(logits, 64, (64, 32), (128, 64)).dense()
    assert not none.any()
    assert half[:, :32].all() and not half[:, 32:].any()


def test_both_steps_are_taken_by_hand():
    # Two cells, 0 and 4. To 4 pixels (half-pixel centres): -0.25 and 1.25 of a cell clamp or interpolate to
    # 0, 1, 3, 4. The image is the first two of them: 0, 1. To 4 pixels again: 0, 0.25, 0.75, 1.
    # In one step from cells to the image it would be 0, 0, 0.5, ...
    weights = axis_weights(2, 4, 2, 4)
    torch.testing.assert_close(torch.tensor([0.0, 4.0]) @ weights, torch.tensor([0.0, 0.25, 0.75, 1.0]))
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(4))


def test_a_mask_of_the_whole_image_is_one_run():
    codes = encode_logits(torch.full((1, 16, 16), 2.0), 64, (48, 64), (120, 160))
    assert codes.rles == mask_util.encode(np.ones((120, 160, 1), dtype=np.uint8, order="F"))
    assert codes.boxes.tolist() == [[0, 0, 160, 120]]
    assert codes.stability.tolist() == [1.0]


def test_a_lower_precision_around_it_changes_nothing():
    logits = random_logits(3)
    expected = encode_logits(logits, 64, (48, 64), (120, 160))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encode_logits(logits, 64, (48, 64), (120, 160)).rles == expected.rles


@pytest.mark.parametrize("older_torch", [False, True])
def test_its_products_are_exact_where_a_run_allows_less(older_torch, monkeypatch):
    """No CPU rounds them as a GPU does, so what torch is told is looked at."""
    if older_torch:
        monkeypatch.setattr("sam_d2.modeling.float32_precision._BACKENDS", ())
    told, interpolate = [], postprocess._Axis.interpolate
    monkeypatch.setattr(
        postprocess._Axis, "interpolate", lambda *args: told.append(float32_precision()[:2]) or interpolate(*args)
    )
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            settings = float32_precision()
            encode_logits(random_logits(3), 64, (48, 64), (120, 160))
            assert float32_precision() == settings and torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert told and {value for values in told for value in values} <= {"ieee", "none", "highest", True}


@pytest.mark.usefixtures("scan")
def test_torchs_defaults_change_nothing():
    """float64 as the default dtype, and as the default device meta, whose values NumPy cannot see, as a GPU's."""
    logits, frames = random_logits(5), (64, (48, 64), (120, 160))
    expected, none = encode_logits(logits, *frames), encode_logits(logits[:0], *frames)
    postprocess._Axis.between.cache_clear()
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            found, still_none = encode_logits(logits, *frames), encode_logits(logits[:0], *frames)
            masks = found.dense()
    finally:
        torch.set_default_dtype(default)
    assert found.rles == expected.rles and torch.equal(masks, expected.dense())
    for name in ("areas", "boxes", "stability", "mean_probability"):
        for one, other in ((found, expected), (still_none, none)):
            assert torch.equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype


@pytest.mark.usefixtures("scan")
def test_an_infinite_logit_leaves_its_neighbours_alone():
    logits = torch.full((2, 16, 16), -5.0)
    logits[:, 4:9, 3:7] = 5.0
    logits[0, 6, 5], logits[0, 0, 0] = float("inf"), -float("inf")
    logits[1, 6, 5], logits[1, 0, 0] = 1e4, -1e4
    codes = encode_logits(logits, 64, (64, 64), (64, 64))
    assert codes.rles[0] == codes.rles[1] and codes.areas[0] > 300
    assert 0.5 < codes.mean_probability[0] == codes.mean_probability[1] < 1


def test_weights_of_an_image_size_are_made_once(monkeypatch):
    frames = (64, (48, 64), (121, 163))
    expected = encode_logits(random_logits(3), *frames)
    monkeypatch.setattr(postprocess, "axis_weights", lambda *_: pytest.fail("made again"))
    assert encode_logits(random_logits(3), *frames).rles == expected.rles
    assert len(encode_logits(torch.zeros(0, 16, 16), 64, (48, 64), (999, 999))) == 0, "not at all without masks"


def test_no_masks():
    codes = encode_logits(torch.zeros(0, 16, 16), 64, (48, 64), (120, 160))
    assert len(codes) == 0 and codes.boxes.shape == (0, 4) and codes.dense().shape == (0, 120, 160)
    assert len(MaskCodes.cat([codes, codes])) == 0
    empty = encode_logits(torch.full((2, 16, 16), -3.0), 64, (48, 64), (120, 160))
    assert empty.boxes.tolist() == [[0] * 4] * 2 and empty.areas.tolist() == [0, 0]
    assert empty.rles == mask_util.encode(np.zeros((120, 160, 2), dtype=np.uint8, order="F"))
    assert len(MaskCodes.cat([codes, empty])) == 2


def test_instances_have_every_score_by_its_name():
    codes = encode_logits(random_logits(5), 64, (48, 64), (120, 160))
    iou, confidence = torch.rand(len(codes)), torch.rand(len(codes))
    found = instances_of(codes, iou, confidence, dense=True)
    assert set(found.get_fields()) == {"pred_masks", "pred_boxes", *SCORES}
    assert torch.equal(found.pred_masks, codes.dense()) and torch.equal(found.predicted_iou, iou)
    assert torch.equal(found.class_score, confidence) and torch.equal(found.stability, codes.stability)
    coded = instances_of(codes, iou, confidence, dense=False)
    assert coded.pred_masks_rle == codes.rles and not coded.has("pred_masks")
