"""The fused image encoder against segment_anything's: outputs, gradients, weights; and attention by definition."""

from functools import partial

import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import nn

from sam_d2.modeling import cpu_linear, relative_attention
from sam_d2.modeling.image_encoder import FusedImageEncoderViT

# 8 x 8 tokens in windows of 3, so that the last window of a row or column is padded; block 1 is global.
TINY = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "out_chans": 16,
    "use_rel_pos": True,
    "window_size": 3,
    "global_attn_indexes": (1,),
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}
VARIANTS = {
    "windows and global": {},
    "no relative positions": {"use_rel_pos": False},
    "windows that fit": {"window_size": 4},
    "global only, no bias": {"window_size": 0, "qkv_bias": False},
    "no absolute positions, tanh": {"use_abs_pos": False, "act_layer": partial(nn.GELU, approximate="tanh")},
    "ReLU": {"act_layer": nn.ReLU},
}


def pair(**changes):
    """Return segment_anything's encoder and ours, with the same random weights."""
    encoders = []
    for kind in (ImageEncoderViT, FusedImageEncoderViT):
        torch.manual_seed(0)
        encoders.append(kind(**{**TINY, **changes}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoders[0].parameters():  # relative positions begin as zeros
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    encoders[1].load_state_dict(encoders[0].state_dict(), strict=True)
    return encoders


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def gradients(encoder, images):
    images = images.clone().requires_grad_()
    weight = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    (encoder(images) * weight).sum().backward()
    return {"images": images.grad, **{name: value.grad for name, value in encoder.named_parameters()}}


def assert_same_gradients(theirs, ours, images):
    expected, found = gradients(theirs, images), gradients(ours, images)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        scale = value.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(found[name], value, atol=1e-5 * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_outputs_and_gradients_are_segment_anythings(changes, images):
    theirs, ours = pair(**changes)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.1, "a trivial output would prove nothing"
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(ours(images), expected, atol=2e-6, rtol=2e-6)
    assert_same_gradients(theirs, ours, images)


def test_first_weights_are_those_of_segment_anything():
    first = []
    for kind in (ImageEncoderViT, FusedImageEncoderViT):
        torch.manual_seed(4)
        first.append(kind(**TINY).state_dict())
    assert list(first[0]) == list(first[1])
    assert all(torch.equal(value, first[1][name]) for name, value in first[0].items())


@pytest.mark.parametrize("pairs", [1, 64 * 10, 64 * 64, 64 * 64 * 3])
def test_any_division_into_blocks_gives_the_same(monkeypatch, images, pairs):
    """From one query of one head at a time to several heads; 64 tokens do not divide into blocks of 10."""
    monkeypatch.setattr(relative_attention, "_PAIRS_PER_THREAD", pairs)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    theirs, ours = pair()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=2e-6, rtol=2e-6)
    assert_same_gradients(theirs, ours, images)


def test_blocks_hold_each_pair_of_tokens_once(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for attentions, tokens in ((300, 196), (12, 4096), (1, 1), (7, 2000)):
        count = torch.zeros(attentions, tokens, dtype=torch.int64)
        for at, rows in relative_attention._blocks(attentions, tokens):
            count[at, rows] += 1
            assert count[at, rows].numel() * tokens <= 2 * 2**20, "more scores than the cache holds"
        assert (count == 1).all()


@pytest.mark.parametrize("attend", [relative_attention.relative_attention, relative_attention.folded_attention])
def test_attention_is_softmax_of_scores_with_both_biases(attend):
    """Against the definition, pair by pair, on a grid of 2 rows and 3 columns; rows and columns are not mixed up."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 6, 4, generator=generator) for _ in range(3))
    rel_h, rel_w = torch.randn(2, 6, 2, generator=generator), torch.randn(2, 6, 3, generator=generator)
    scores = torch.empty(2, 6, 6)
    for key in range(6):
        scores[:, :, key] = 0.3 * (q * k[:, key : key + 1]).sum(2) + rel_h[:, :, key // 3] + rel_w[:, :, key % 3]
    expected = scores.softmax(dim=2) @ v
    torch.testing.assert_close(attend(q, k, v, rel_h, rel_w, scale=0.3), expected)


def test_folded_attention_in_the_encoder_gives_the_same(monkeypatch, images):
    """What a GPU is given, here on the CPU: with gradients."""
    theirs, ours = pair()
    monkeypatch.setattr("sam_d2.modeling.image_encoder.relative_attention", relative_attention.folded_attention)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=2e-6, rtol=2e-6)
    assert_same_gradients(theirs, ours, images)


def test_gradients_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 6, 4), (2, 6, 4), (2, 6, 4), (2, 6, 2), (2, 6, 3))
    inputs = [torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in sizes]
    # Scores go through float32 in the backward pass: of 1e-7.
    assert torch.autograd.gradcheck(
        partial(relative_attention.relative_attention, scale=0.5), inputs, atol=1e-5, rtol=1e-4
    )


def test_relative_table_by_hand_and_as_segment_anything_has_it():
    # distances -1, 0, 1 are 10, 20, 30; entry [i, j] is that of i - j
    table = relative_attention.relative_table(torch.tensor([[10.0], [20.0], [30.0]]), 2)
    assert table[..., 0].tolist() == [[20.0, 10.0], [30.0, 20.0]]
    embedding = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    for side in (5, 8):  # 9 = 2 * 5 - 1 distances, which 8 positions need resampled
        torch.testing.assert_close(
            relative_attention.relative_table(embedding, side), get_rel_pos(side, side, embedding)
        )


@pytest.mark.parametrize("onednn", [True, False])
def test_linear_layers_with_and_without_onednn(monkeypatch, images, onednn):
    if onednn and not cpu_linear._has_onednn():
        pytest.skip("this processor or torch has not what makes oneDNN faster")
    monkeypatch.setattr(cpu_linear, "_has_onednn", lambda: onednn)
    theirs, ours = pair()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=2e-6, rtol=2e-6)


def test_the_mlp_in_parts_and_an_input_that_stays(monkeypatch, images):
    monkeypatch.setattr("sam_d2.modeling.image_encoder._MLP_TOKENS", 7)
    theirs, ours = pair(use_abs_pos=False)  # then the first tokens are a view of the patches
    before = images.clone()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=2e-6, rtol=2e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("grad", [True, False])
def test_bfloat16(images, grad):
    """Autocast rounds to 8 bits: our distance from float32 is no more than segment_anything's own."""
    theirs, ours = pair()
    with torch.set_grad_enabled(grad):
        exact = theirs(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gap, own = (ours(images) - exact).abs().mean(), (theirs(images) - exact).abs().mean()
    assert 0 < gap <= 1.2 * own
    if grad:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours(images).sum().backward()
        assert all(value.grad.isfinite().all() for value in ours.parameters())


@pytest.mark.slow
def test_vit_b(with_random_weights):
    encoder = with_random_weights(sam_model_registry["vit_b"], 30).image_encoder
    ours = FusedImageEncoderViT(
        embed_dim=768, depth=12, num_heads=12, use_rel_pos=True, window_size=14, global_attn_indexes=(2, 5, 8, 11),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    ours.load_state_dict(encoder.state_dict(), strict=True)
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(image), encoder(image), atol=1e-4, rtol=0)


def test_hooks_of_blocks_see_their_tokens(images):
    """What taps the features in between, as other heads do, is called with and without gradients."""
    encoder, seen = pair()[1], []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape, output.shape)))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            encoder(images)
    assert seen == [((2, 8, 8, 24), (2, 8, 8, 24))] * 6


def test_no_image():
    assert pair()[1](torch.zeros(0, 3, 64, 64)).shape == (0, 16, 8, 8)
