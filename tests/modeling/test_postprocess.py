"""From low-res logits to masks and boxes of the original image."""

import torch

from sam_d2.modeling.postprocess import boxes_of_masks, resize_logits


def test_constant_logits_stay_constant():
    logits = torch.tensor([-1.0, 2.0])[:, None, None].expand(2, 16, 16)
    full = resize_logits(logits, 64, (64, 48), (100, 75))
    assert full.shape == (2, 100, 75)
    torch.testing.assert_close(full, torch.tensor([-1.0, 2.0])[:, None, None].expand(2, 100, 75))


def test_padding_is_cut_before_the_image_is_scaled():
    # Canvas 64, image 64 x 32: the right half of the low-res frame is padding. A foreground there must not come back.
    logits = torch.full((1, 16, 16), -10.0)
    logits[..., 10:] = 10.0
    assert not (resize_logits(logits, 64, (64, 32), (128, 64)) > 0).any()
    # a foreground of the image's left quarter, cells 0..3 of 8, is the left half of the original
    logits = torch.full((1, 16, 16), -10.0)
    logits[..., :4] = 10.0
    mask = resize_logits(logits, 64, (64, 32), (128, 64))[0] > 0
    assert mask[:, :32].all() and not mask[:, 32:].any()


def test_both_steps_are_taken_by_hand():
    # One row of two cells, 0 and 4. To 4 pixels (half-pixel centres): -0.25 and 1.25 of a cell clamp or
    # interpolate to 0, 1, 3, 4. The image is the first two of them: 0, 1. To 4 pixels again: 0, 0.25, 0.75, 1.
    # In one step from cells to the image it would be 0, 0, 0.5, ...
    logits = torch.tensor([[[0.0, 4.0], [0.0, 4.0]]])
    full = resize_logits(logits, 4, (4, 2), (4, 4))
    torch.testing.assert_close(full[0], torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(4, 4))


def test_boxes_are_edges_not_pixel_indices():
    masks = torch.zeros(4, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, 7, 4] = True
    masks[3] = True
    # row 2 is empty
    assert boxes_of_masks(masks).tolist() == [[3, 2, 9, 5], [4, 7, 5, 8], [0, 0, 0, 0], [0, 0, 12, 10]]


def test_no_masks_have_no_boxes():
    assert boxes_of_masks(torch.zeros(0, 5, 5, dtype=torch.bool)).shape == (0, 4)
    assert boxes_of_masks(torch.zeros(2, 5, 5, dtype=torch.bool)).tolist() == [[0] * 4] * 2
