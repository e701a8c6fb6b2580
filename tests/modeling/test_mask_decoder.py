"""The decoder in another order of work, against segment_anything's own, and chunks of prompts of several images."""

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch.utils._python_dispatch import TorchDispatchMode

from sam_d2.errors import UserError
from sam_d2.modeling import mask_decoder
from sam_d2.modeling.instance_losses import InstanceLosses
from sam_d2.modeling.mask_decoder import SharedMaskDecoder
from sam_d2.modeling.prompt_encoder import SelectingPromptEncoder

WIDTH, SIDE = 32, 6


def decoder(kind):
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=48, num_heads=4)
    found = kind(num_multimask_outputs=3, transformer=transformer, transformer_dim=WIDTH, iou_head_hidden_dim=32)
    for parameter in found.parameters():  # biases of 0 and scales of 1 would hide where one is forgotten
        torch.nn.init.normal_(parameter, std=0.3)
    return found


def prompt_encoder(kind=PromptEncoder):
    torch.manual_seed(1)
    return kind(embed_dim=WIDTH, image_embedding_size=(SIDE, SIDE), input_image_size=(96, 96), mask_in_chans=4)


def given(prompt, count=5, seed=2):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * 96
    points = (torch.rand(count, 3, 2, generator=generator) * 96, torch.randint(-1, 2, (count, 3), generator=generator))
    masks = torch.randn(count, 1, 4 * SIDE, 4 * SIDE, generator=generator)
    return {
        "box": {"points": None, "boxes": boxes, "masks": None},
        "points": {"points": points, "boxes": None, "masks": None},
        "all": {"points": points, "boxes": boxes, "masks": masks},
    }[prompt]


def answers(which, image, prompt, multimask, count=5):
    encoder = prompt_encoder()
    sparse, dense = encoder(**given(prompt, count))
    return which(
        image_embeddings=image,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )


@pytest.fixture
def image():
    return torch.randn(1, WIDTH, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("prompt", ["box", "points", "all"])
@pytest.mark.parametrize("count", [1, 5])
def test_masks_iou_and_gradients_are_those_of_segment_anything(image, prompt, multimask, count):
    found = {}
    for kind in (MaskDecoder, SharedMaskDecoder):
        one, own = decoder(kind), image.clone().requires_grad_()
        logits, iou = answers(one, own, prompt, multimask, count)
        (logits.sigmoid().mean() + (iou**2).mean()).backward()
        # where a mask is not asked for, segment_anything's gradients are 0 and these are none
        gradients = {name: 0 if p.grad is None else p.grad for name, p in one.named_parameters()}
        found[kind] = logits.detach(), iou.detach(), {"image": own.grad, **gradients}
    logits, iou, gradients = found[SharedMaskDecoder]
    expected_logits, expected_iou, expected = found[MaskDecoder]
    assert expected_logits.shape == (count, 3 if multimask else 1, 4 * SIDE, 4 * SIDE) and expected_logits.std() > 0.1
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(iou, expected_iou, atol=1e-5, rtol=1e-5)
    assert list(gradients) == list(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(torch.as_tensor(gradients[name]).expand_as(gradient).float(), gradient)
    assert min(expected[name].abs().max() for name in ("image", "transformer.layers.1.norm4.bias")) > 1e-4


def test_layers_whose_weights_are_not_the_whole_are_refused(image):
    one = decoder(SharedMaskDecoder)
    attention = one.transformer.layers[1].cross_attn_token_to_image
    attention.k_proj = torch.nn.Sequential(attention.k_proj)
    with pytest.raises(UserError, match=r"Sequential.*LoRA.*_target_=segment_anything\.modeling\.MaskDecoder"):
        answers(one, image, "box", False)


def test_many_prompts_are_taken_a_few_at_a_time_where_no_gradient_is_asked_for(image, monkeypatch):
    one, sizes = decoder(SharedMaskDecoder), []
    attend = one._attend
    monkeypatch.setattr(one, "_attend", lambda tokens, *rest: sizes.append(len(tokens)) or attend(tokens, *rest))
    monkeypatch.setattr(mask_decoder, "PROMPTS_AT_ONCE", 2)
    expected = answers(one, image, "box", True)
    with torch.no_grad():
        found = answers(one, image, "box", True)
        of_each = answers(one, image.expand(5, -1, -1, -1).contiguous(), "all", True)
    assert sizes == [5, 2, 2, 1, 2, 2, 1]
    for ours, theirs in zip((*found, *of_each), (*expected, *answers(one, image, "all", True)), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", ["box", "points", "all"])
def test_prompts_of_several_images(prompt):
    images = torch.randn(5, WIDTH, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    one = decoder(SharedMaskDecoder)
    together = answers(one, images, prompt, False)
    for row in range(5):
        alone = answers(decoder(MaskDecoder), images[row : row + 1], prompt, False)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[row], theirs[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", ["points", "all"])
def test_points_are_those_of_segment_anything(prompt):
    expected, found = prompt_encoder()(**given(prompt)), prompt_encoder(SelectingPromptEncoder)(**given(prompt))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: numbers for Python, rows that have to be counted, and copies to it."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.device = device  # that stands for the GPU
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [
            one
            for arg in args[1:2]
            for one in (arg if isinstance(arg, list | tuple) else [arg])
            if isinstance(one, torch.Tensor) and one.dtype == torch.bool
        ]
        reads = name in ("_local_scalar_dense", "nonzero", "masked_select") or (name.startswith("index") and masks)
        if reads and args[0].device.type == self.device:
            self.found.append(name)
        device = (kwargs or {}).get("device")
        if name == "_to_copy" and device is not None and device != args[0].device and not kwargs.get("non_blocking"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("multimask", ["true", "false"])
@pytest.mark.parametrize("prompt", ["box", "point", "clicks"])
def test_nothing_waits_for_the_device(build_model, batch, monkeypatch, prompt, multimask):
    model = build_model(f"model.prompt={prompt}", f"model.multimask={multimask}")
    waits, of_chunk = Waits(), InstanceLosses._of_chunk

    def watched(*args):
        with waits:
            return of_chunk(*args)

    monkeypatch.setattr(InstanceLosses, "_of_chunk", watched)
    model(batch)
    assert waits.found == []
    with waits:
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert len(waits.found) == 2


@pytest.mark.parametrize("prompt", ["box", "clicks", "mixed"])
def test_no_loss_waits_for_the_device(build_model, batch, prompt):
    """The meta device stands for a GPU: what is not there when the call returns cannot be waited for."""
    model = build_model(f"model.prompt={prompt}", "model.activation_checkpointing=true").to("meta")
    with (waits := Waits("meta")):
        losses = model(batch)
        sum(losses.values()).backward()
    assert {loss.device.type for loss in losses.values()} == {"meta"} and waits.found == []
    with waits:
        batch[0]["image"].to("meta", non_blocking=True)
        batch[0]["image"].to("meta")
    assert waits.found == ["_to_copy"]


def test_a_chunk_has_prompts_of_several_images(build_model, make_sample, monkeypatch):
    """Losses and gradients are those of one image after the other; kinds of prompts stay apart."""
    samples = [make_sample(count, (48, 64), seed) for seed, count in zip((0, 1, 2, 6, 7), (5, 0, 1, 7, 3), strict=True)]

    def step(shared):
        model, chunks = build_model("model.prompt=mixed", "model.instances_per_chunk=6"), []
        decode = model.decode
        monkeypatch.setattr(model, "decode", lambda one, prompts, _: chunks.append(prompts) or decode(one, prompts))
        if not shared:
            monkeypatch.setattr("sam_d2.modeling.sam.SharedMaskDecoder", type(None))
        losses = model(samples)
        sum(losses.values()).backward()
        return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, chunks

    found = {shared: step(shared) for shared in (True, False)}
    losses, gradients, chunks = found[True]
    torch.testing.assert_close(losses, found[False][0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients, found[False][1], atol=1e-5, rtol=1e-5)
    boxes = [len(one) for one in chunks if one.boxes is not None]
    points = [len(one) for one in chunks if one.boxes is None]
    assert sum(boxes) + sum(points) == 16 and boxes and points
    assert boxes[:-1] == [6] * (len(boxes) - 1) and points[:-1] == [6] * (len(points) - 1)
    assert len(chunks) < len(found[False][2])
