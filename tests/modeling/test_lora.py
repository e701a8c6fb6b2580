"""LoRA: nothing changes at first, only the matrices train, and weights go in and out under their own names."""

import sys
from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry
from torch import nn

from detectron2.config import instantiate
from sam_d2.config import apply_overrides, load_config
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.errors import UserError
from sam_d2.modeling.lora import add_lora, lora_keys, merged_state_dict

pytest.importorskip("peft", reason="the extra `lora` is not installed")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def build(tiny_overrides, *overrides, config="sam_tiny_lora.py"):
    torch.manual_seed(3)
    cfg = apply_overrides(load_config(CONFIGS / config), [*tiny_overrides, *overrides])
    return instantiate(cfg.model)


def randomised(model, names):
    """Give the named parameters of a model values of their own."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def plain(tiny_overrides):
    return build(tiny_overrides, config="sam_tiny.py").eval()


@pytest.fixture
def adapted(tiny_overrides):
    return build(tiny_overrides).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_a_layer_by_hand():
    layer = add_lora(nn.Sequential(nn.Linear(3, 2)), rank=1, alpha=4, targets=["0"])
    names = dict(layer.named_parameters())
    with torch.no_grad():
        names["0.base_layer.weight"].copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        names["0.base_layer.bias"].zero_()
        names["0.lora_A.default.weight"].copy_(torch.tensor([[1.0, 1.0, 1.0]]))
        names["0.lora_B.default.weight"].copy_(torch.tensor([[0.5], [-1.0]]))
    # W x = (1, 2); A x = 6; alpha / rank = 4: 4 * 6 * (0.5, -1) = (12, -24)
    torch.testing.assert_close(layer(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([13.0, -22.0]))
    # the sum of both: W + 4 B A
    expected = torch.tensor([[3.0, 2.0, 2.0], [-4.0, -3.0, -4.0]])
    torch.testing.assert_close(merged_state_dict(layer)["0.weight"], expected)


def test_at_first_it_computes_what_the_encoder_did(plain, adapted, images, tmp_path):
    Checkpointer(plain, str(tmp_path)).save("base")
    Checkpointer(adapted).load(str(tmp_path / "base.pth"))
    torch.testing.assert_close(adapted.encode(images), plain.encode(images), rtol=0, atol=0)


def test_only_its_matrices_and_the_decoder_train(adapted):
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    encoder = {name for name in trained if name.startswith("image_encoder.")}
    # one block, one layer, A and B
    assert encoder == {f"image_encoder.blocks.0.attn.qkv.lora_{matrix}.default.weight" for matrix in "AB"}
    assert {name.split(".")[0] for name in trained - encoder} == {"mask_decoder"}
    assert trained <= set(adapted.state_dict())
    shapes = {name: tuple(adapted.state_dict()[name].shape) for name in encoder}
    assert sorted(shapes.values()) == [(8, 32), (96, 8)]  # rank 8, 32 wide, qkv three times that


def test_a_step_moves_them(adapted, images):
    adapted.train()
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # A has a gradient once B is not zero
        optimizer.zero_grad()
        adapted.encode(images).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_its_names_are_those_of_the_encoder_and_the_matrices(plain, adapted):
    added = set(adapted.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(adapted.state_dict())
    assert added == lora_keys(adapted.state_dict()) and len(added) == 2


def test_attributes_and_sizes_of_the_encoder_stay(adapted):
    assert adapted.canvas == 64 and adapted.image_encoder.img_size == 64
    assert type(adapted.image_encoder).__name__ == "FusedImageEncoderViT"


def test_official_weights_fit_without_a_mapping():
    with torch.device("meta"):
        official = sam_model_registry["vit_b"]()
        model = instantiate(load_config(CONFIGS / "sam_lora.py").model)
    added = lora_keys(model.state_dict())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in added}
    assert shapes == {name: tuple(value.shape) for name, value in official.state_dict().items()}
    # 12 blocks; rank 8; A takes 768 values and B gives three times as many
    trained = sum(p.numel() for p in model.image_encoder.parameters() if p.requires_grad)
    assert trained == 12 * 8 * (768 + 3 * 768)


class TestCheckpoints:
    def test_round_trip(self, tiny_overrides, adapted, images, tmp_path):
        randomised(adapted, ["lora_", "qkv"])
        Checkpointer(adapted, str(tmp_path)).save("model")
        other = build(tiny_overrides).eval()
        Checkpointer(other).load(str(tmp_path / "model.pth"))
        torch.testing.assert_close(other.state_dict(), adapted.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(other.encode(images), adapted.encode(images), rtol=0, atol=0)

    def test_half_of_the_matrices_is_an_error(self, adapted, tmp_path):
        state = adapted.state_dict()
        del state[sorted(lora_keys(state))[0]]
        torch.save({"model": state}, tmp_path / "half.pth")
        with pytest.raises(UserError, match=r"1 missing from the file \(image_encoder\.blocks\.0\.attn\.qkv\.lora_A"):
            Checkpointer(adapted).load(str(tmp_path / "half.pth"))

    def test_a_base_that_lacks_another_weight_is_an_error(self, plain, adapted, tmp_path):
        state = plain.state_dict()
        del state["image_encoder.blocks.0.attn.qkv.bias"]
        torch.save(state, tmp_path / "base.pth")
        with pytest.raises(UserError, match=r"1 missing from the file \(image_encoder\.blocks\.0\.attn\.qkv\.bias\)"):
            Checkpointer(adapted).load(str(tmp_path / "base.pth"))

    def test_merged_weights_give_the_same_without_lora(self, plain, adapted, images):
        randomised(adapted, ["lora_"])
        kept = {name: value.clone() for name, value in adapted.state_dict().items()}
        merged = merged_state_dict(adapted)
        plain.load_state_dict(merged)
        assert merged.keys() == plain.state_dict().keys()
        torch.testing.assert_close(plain.encode(images), adapted.encode(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(adapted.state_dict(), kept, rtol=0, atol=0)
        assert not torch.equal(
            merged["image_encoder.blocks.0.attn.qkv.weight"], kept["image_encoder.blocks.0.attn.qkv.weight"]
        )

    def test_without_lora_merging_changes_nothing(self, plain):
        torch.testing.assert_close(merged_state_dict(plain), dict(plain.state_dict()), rtol=0, atol=0)


class TestRefusals:
    def test_peft_is_not_there(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(UserError, match=r"LoRA needs peft: pip install 'sam_d2\[lora\]'"):
            add_lora(nn.Sequential(nn.Linear(3, 2)), rank=1, alpha=1, targets=["0"])

    def test_unknown_layers(self, tiny_overrides):
        with pytest.raises(UserError, match=r"no layer is named kqv\. .* end in lin1, lin2, proj, qkv\."):
            build(tiny_overrides, "model.image_encoder.targets=[qkv,kqv]")
        with pytest.raises(UserError, match="no layer is named so"):
            build(tiny_overrides, "model.image_encoder.targets=[]")

    def test_rank(self, tiny_overrides):
        with pytest.raises(UserError, match=r"model\.image_encoder\.rank=0: expected at least 1"):
            build(tiny_overrides, "model.image_encoder.rank=0")

    def test_a_frozen_encoder(self, tiny_overrides):
        with pytest.raises(UserError, match=r"model\.freeze: image_encoder has LoRA"):
            build(tiny_overrides, "model.freeze=[image_encoder]")
