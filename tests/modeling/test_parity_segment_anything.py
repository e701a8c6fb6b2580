"""The same weights in segment_anything and here: from an image file to masks, through the whole of either."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide

import detectron2.data.transforms as T
from detectron2.config import instantiate
from detectron2.structures import BoxMode
from sam_d2.config import apply_overrides, load_config
from sam_d2.data.mapper import PromptableMapper

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TOLERANCE = 1e-4
# Share of pixels whose logit may be 0 but for rounding, which differs between one prompt and several at once.
BORDERLINE = 1e-4
CANVAS = 128
# (height, width): portrait and landscape, smaller than the canvas, larger, of its size, and far from square
SIZES = [(90, 61), (75, 100), (301, 200), (250, 333), (128, 128), (128, 97), (37, 400)]
TINY = [
    f"model.image_encoder.img_size={CANVAS}",
    "model.image_encoder.patch_size=16",
    "model.image_encoder.embed_dim=48",
    "model.image_encoder.depth=2",
    "model.image_encoder.num_heads=3",
    "model.image_encoder.out_chans=64",
    "model.image_encoder.window_size=3",
    "model.image_encoder.global_attn_indexes=[1]",
    "model.mask_decoder.transformer.mlp_dim=64",
    "model.mask_decoder.iou_head_hidden_dim=32",
]


def tiny_sam() -> Sam:
    """A Sam of segment_anything's own classes with the sizes of ``TINY``."""
    tokens = CANVAS // 16
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=CANVAS,
            embed_dim=48,
            depth=2,
            num_heads=3,
            out_chans=64,
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
            norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=64,
            image_embedding_size=(tokens, tokens),
            input_image_size=(CANVAS, CANVAS),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=64,
            transformer=TwoWayTransformer(depth=2, embedding_dim=64, num_heads=8, mlp_dim=64),
            iou_head_hidden_dim=32,
        ),
    )


@pytest.fixture(scope="module")
def tiny(with_random_weights: Callable[[Callable[[], Sam], float], Sam]) -> tuple[Sam, torch.nn.Module]:
    sam = with_random_weights(tiny_sam, 30)
    model = instantiate(apply_overrides(load_config(CONFIGS / "sam.py"), TINY).model)
    model.load_state_dict(sam.state_dict(), strict=True)
    return sam, model.eval()


def write_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Write a smooth image with noise as PNG and return it."""
    random = np.random.default_rng(size)
    coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)).astype(np.int64)
    image = (smooth + random.integers(-25, 26, smooth.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(image).save(path)
    return image


def annotations(size: tuple[int, int], count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng([7, *size])
    height, width = size
    found = []
    for _ in range(count):
        centre, radius = random.uniform((0.1 * width, 0.1 * height), (0.9 * width, 0.9 * height)), 0.3 * min(size)
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        corners = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * random.uniform(0.3, 1, (9, 1)) * radius
        corners = corners.clip(0, (width, height))
        low, high = corners.min(axis=0), corners.max(axis=0)
        found.append(
            {
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "segmentation": [corners.reshape(-1).tolist()],
                "iscrowd": 0,
            }
        )
    return found


def reference(
    sam: Sam, image: np.ndarray, annotated: list[dict[str, Any]], prompt: str
) -> list[tuple[np.ndarray, ...]]:
    """Return (mask, full-size logits, low-res logits, predicted IoU) of each instance, one call for each."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    answers = []
    for annotation in annotated:
        if prompt == "box":
            x, y, width, height = annotation["bbox"]
            given = {"box": np.array([x, y, x + width, y + height])}
        else:
            mask = mask_util.decode(mask_util.frPyObjects(annotation["segmentation"], *image.shape[:2]))[..., 0]
            distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(distance.argmax(), distance.shape)
            given = {"point_coords": np.array([[column, row]]), "point_labels": np.array([1])}
        full, iou, low_res = predictor.predict(**given, multimask_output=False, return_logits=True)
        answers.append((full[0] > sam.mask_threshold, full[0], low_res[0], iou[0]))
    return answers


def differing_share(
    sam: Sam, model: torch.nn.Module, folder: Path, size: tuple[int, int], prompt: str, count: int
) -> float:
    """Compare both on one made image; return the share of differing mask pixels."""
    image = write_image(folder / "image.png", size)
    annotated = annotations(size, count)
    sample = {
        "file_name": str(folder / "image.png"),
        "height": size[0],
        "width": size[1],
        "image_id": 1,
        "annotations": annotated,
    }
    expected = reference(sam, image, annotated, prompt)
    decoded = []
    decode = model.decode
    model.prompt, model.instances_per_chunk = prompt, 3
    model.decode = lambda *args: decoded.append(decode(*args)) or decoded[-1]
    try:
        with torch.no_grad():
            result = model([PromptableMapper(is_train=False, image_size=model.canvas)(sample)])[0]["instances"]
    finally:
        del model.decode
    logits = torch.cat([masks[:, 0] for masks, _ in decoded]).numpy()
    assert len(result) == len(expected) == len(logits) == count
    differing = 0
    for row, (mask, full, low_res, iou) in enumerate(expected):
        assert 0.02 < mask.mean() < 0.98 and low_res.std() > 0.5, "a trivial mask would prove nothing"
        np.testing.assert_allclose(logits[row], low_res, atol=TOLERANCE, rtol=0)
        assert abs(result.scores[row].item() - iou) <= TOLERANCE
        wrong = result.pred_masks[row].numpy() != mask
        assert (np.abs(full[wrong]) <= TOLERANCE).all()
        differing += int(wrong.sum())
    return differing / (count * size[0] * size[1])


@pytest.mark.parametrize("prompt", ["box", "point"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")
def test_tiny(tiny, tmp_path, size, prompt):
    assert differing_share(*tiny, tmp_path, size, prompt, count=5) <= BORDERLINE


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1300, 900), (600, 800)], ids=["larger", "smaller"])
def test_vit_b(tmp_path, size, with_random_weights):
    sam = with_random_weights(sam_model_registry["vit_b"], 30)
    model = instantiate(load_config(CONFIGS / "sam.py").model)
    model.load_state_dict(sam.state_dict(), strict=True)
    for prompt in ("box", "point"):
        assert differing_share(sam, model.eval(), tmp_path, size, prompt, count=4) <= BORDERLINE


def test_the_mappers_size_is_that_of_resize_longest_side():
    random = np.random.default_rng(0)
    for canvas in (64, 1024):
        resize = T.ResizeShortestEdge(canvas, canvas)
        for height, width in random.integers(40, 1500, (100, 2)).tolist():
            transform = resize.get_transform(np.empty((height, width, 3), dtype=np.uint8))
            assert (transform.new_h, transform.new_w) == ResizeLongestSide.get_preprocess_shape(height, width, canvas)
