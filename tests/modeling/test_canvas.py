"""Position embeddings of another canvas: what is resampled, how, and what stays an error."""

import logging

import pytest
import torch

import sam_d2  # noqa: F401
from sam_d2.engine.checkpoint import Checkpointer, load_checkpoint_file
from sam_d2.engine.weights import FOLDER_VARIABLE
from sam_d2.errors import UserError
from sam_d2.modeling.canvas import resample_positions

POSITIONS = "image_encoder.pos_embed"
GLOBAL = ["image_encoder.blocks.1.attn.rel_pos_h", "image_encoder.blocks.1.attn.rel_pos_w"]
WINDOWED = "image_encoder.blocks.0.attn.rel_pos_h"
# As SAM has it: block 0 in windows, of 3 x 3 tokens here, and block 1 global. Patches of 8 pixels, 2 heads of 16.
LAYOUT = [
    "model.image_encoder.depth=2",
    "model.image_encoder.use_rel_pos=true",
    "model.image_encoder.window_size=3",
    "model.image_encoder.global_attn_indexes=[1]",
]


@pytest.fixture
def build(build_model):
    """``build(canvas)``: a model of that canvas with random position embeddings, which begin as zeros."""

    def build(canvas, *overrides):
        model = build_model(*LAYOUT, f"model.image_encoder.img_size={canvas}", *overrides)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "pos_embed" in name or "rel_pos" in name:
                    value.normal_()
        return model

    return build


@pytest.fixture
def official():
    """``official(tokens)``: an encoder with ViT-B's names and shapes of position embeddings, and nothing else."""

    def build(tokens):
        model = torch.nn.Module()
        encoder = model.image_encoder = torch.nn.Module()
        encoder.img_size = 16 * tokens
        encoder.pos_embed = torch.nn.Parameter(torch.randn(1, tokens, tokens, 768))
        encoder.blocks = torch.nn.ModuleList(torch.nn.Module() for _ in range(12))
        for index, block in enumerate(encoder.blocks):
            block.attn = torch.nn.Module()
            length = 2 * tokens - 1 if index in (2, 5, 8, 11) else 27
            block.attn.rel_pos_h = torch.nn.Parameter(torch.randn(length, 64))
            block.attn.rel_pos_w = torch.nn.Parameter(torch.randn(length, 64))
        return model

    return build


def save(model, path, **extra):
    torch.save({"model": model.state_dict(), **extra}, path)
    return str(path)


@pytest.mark.parametrize("canvas", [32, 40, 96])
def test_a_model_of_another_canvas_loads(build, batch, tmp_path, caplog, canvas):
    source, model = build(64), build(canvas)
    with caplog.at_level(logging.INFO):
        Checkpointer(model).load(save(source, tmp_path / "a.pth"))
    tokens = canvas // 8
    expected = f"from a canvas of 64 pixels (8 x 8 tokens) to {canvas} ({tokens} x {tokens})"
    assert [record.getMessage() for record in caplog.records if "resampled" in record.getMessage()] == [
        f"Position embeddings resampled {expected}"
    ]
    state, loaded = source.state_dict(), model.state_dict()
    for name in loaded.keys() - {POSITIONS, *GLOBAL}:
        assert torch.equal(loaded[name], state[name]), name
    assert loaded[POSITIONS].shape == (1, tokens, tokens, 32)
    assert [loaded[name].shape for name in GLOBAL] == [(2 * tokens - 1, 16)] * 2
    small = {**batch[0], "image": batch[0]["image"][:, :24, :32]}
    small["height"], small["width"] = 24, 32
    small["instances"] = batch[0]["instances"][:0]
    assert len(model.eval()([small])[0]["instances"]) == 0


def test_the_official_layout(official):
    source, model = official(64), official(32)
    resampled = resample_positions(source.state_dict(), model)
    relative = {f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in (2, 5, 8, 11) for axis in "hw"}
    assert resampled.keys() == {POSITIONS} | relative
    assert resampled[POSITIONS].shape == (1, 32, 32, 768)
    assert {resampled[name].shape for name in relative} == {(63, 64)}
    assert all(value.is_contiguous() for value in resampled.values())
    # Of 127 distances to 63, place i is at (i + 0.5) * 127 / 63 - 0.5 of the old ones: 31 at 63, the middle, which
    # is distance 0 of both; 0 at 0.5079.
    before, after = source.state_dict()[GLOBAL[0].replace(".1.", ".2.")], resampled[GLOBAL[0].replace(".1.", ".2.")]
    torch.testing.assert_close(after[31], before[63])
    place = 0.5 * 127 / 63 - 0.5
    torch.testing.assert_close(after[0], (1 - place) * before[0] + place * before[1])


def test_the_same_canvas_is_left_alone(build, monkeypatch):
    monkeypatch.setattr("torch.nn.functional.interpolate", None)
    assert resample_positions(build(64).state_dict(), build(64)) == {}


@pytest.mark.parametrize("canvas", [32, 96])
def test_a_constant_stays_constant(build, canvas):
    source = build(64)
    torch.nn.init.constant_(source.image_encoder.pos_embed, 0.75)
    for name in GLOBAL:
        torch.nn.init.constant_(source.get_parameter(name), -2.0)
    resampled = resample_positions(source.state_dict(), build(canvas))
    torch.testing.assert_close(resampled[POSITIONS], torch.full((1, canvas // 8, canvas // 8, 32), 0.75))
    torch.testing.assert_close(resampled[GLOBAL[0]], torch.full((canvas // 4 - 1, 16), -2.0))


@pytest.mark.parametrize("canvas", [40, 128])
def test_a_ramp_rises_along_its_own_axis(build, canvas):
    source = build(64)
    with torch.no_grad():
        source.image_encoder.pos_embed[:] = torch.arange(8.0).view(1, 1, 8, 1)
        source.get_parameter(GLOBAL[0])[:] = torch.arange(15.0).view(15, 1)
    resampled = resample_positions(source.state_dict(), build(canvas))
    ramp = resampled[POSITIONS]
    assert (ramp.diff(dim=2) > 0).all()
    assert ramp.diff(dim=1).abs().max() < 1e-5 and ramp.diff(dim=3).abs().max() < 1e-5
    # Column i is at (i + 0.5) * 64 / canvas - 0.5; away from the borders torch's bicubic keeps a ramp within 0.05.
    tokens = canvas // 8
    columns = (torch.arange(tokens) + 0.5) * 8 / tokens - 0.5
    inner = (columns >= 2) & (columns <= 5)
    assert inner.any()
    torch.testing.assert_close(ramp[0, 0, inner, 0], columns[inner], atol=0.1, rtol=0)
    assert (resampled[GLOBAL[0]].diff(dim=0) >= 0).all() and (resampled[GLOBAL[0]][-1] > 13).all()


class TestErrors:
    def refused(self, model, path, *words):
        with pytest.raises(UserError, match="does not fit the model") as caught:
            Checkpointer(model).load(path)
        assert all(word in str(caught.value) for word in words), caught.value

    def test_other_patches(self, build, tmp_path):
        path = save(build(64), tmp_path / "a.pth")
        patches = "patch_embed.proj.weight (32, 3, 8, 8) instead of (32, 3, 16, 16)"
        self.refused(build(64, "model.image_encoder.patch_size=16"), path, patches)
        self.refused(build(128, "model.image_encoder.patch_size=16"), path, patches)  # 8 x 8 tokens as in the file

    def test_another_window(self, build, tmp_path):
        path = save(build(64), tmp_path / "a.pth")
        self.refused(build(96, "model.image_encoder.window_size=4"), path, WINDOWED)

    def test_global_where_the_file_has_windows(self, build, tmp_path):
        path = save(build(64), tmp_path / "a.pth")
        self.refused(build(96, "model.image_encoder.global_attn_indexes=[0,1]"), path, f"{WINDOWED} (5, 16)")
        self.refused(build(64, "model.image_encoder.global_attn_indexes=[0,1]"), path, f"{WINDOWED} (5, 16)")

    def test_a_key_that_is_missing(self, build, tmp_path, caplog):
        state = build(64).state_dict()
        del state["mask_decoder.iou_token.weight"]
        torch.save({"model": state}, tmp_path / "a.pth")
        with caplog.at_level(logging.INFO):
            self.refused(build(96), str(tmp_path / "a.pth"), "1 missing from the file", POSITIONS)
        assert "resampled" not in caplog.text

    @pytest.mark.parametrize("shape", [(1, 4, 8, 32), (2, 4, 4, 32), (1, 4, 4, 16), (1, 16, 32)])
    def test_another_shape_than_a_square_of_the_same_vectors(self, build, tmp_path, shape):
        state = build(64).state_dict()
        state[POSITIONS] = torch.zeros(shape)
        torch.save({"model": state}, tmp_path / "a.pth")
        self.refused(build(64), str(tmp_path / "a.pth"), POSITIONS)


def test_a_small_checkpoint_holds_what_was_resampled(build, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "checkpoints"))
    (tmp_path / "checkpoints").mkdir()
    path = save(build(64), tmp_path / "checkpoints" / "base.pth")
    model = build(96)
    checkpointer = Checkpointer(model, str(tmp_path), save_to_disk=True)
    checkpointer.resume_or_load(path, resume=False)
    checkpointer.save("model_final")
    content = load_checkpoint_file(tmp_path / "model_final.pth")
    assert content["model"].keys() == {POSITIONS, *GLOBAL}
    assert content["base"]["file"] == "base.pth"
    again = build(96)
    with torch.no_grad():
        again.mask_decoder.iou_token.weight.zero_()
    Checkpointer(again).load(str(tmp_path / "model_final.pth"))
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    Checkpointer(build(48)).load(str(tmp_path / "model_final.pth"))  # on to a third canvas
