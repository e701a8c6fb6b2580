"""tools/export_checkpoint.py: a file that the builders of the model's own library load strictly."""

import importlib.util
import shutil
import sys

import pytest
import torch
import torchvision
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from sam_d2.config import apply_overrides, load_config, save_config
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.engine.export import registry_name
from sam_d2.engine.weights import FOLDER_VARIABLE
from sam_d2.errors import UserError


@pytest.fixture
def export(root, monkeypatch, capsys):
    """``export(*arguments)``: run the tool in this process; gives what it has printed."""
    spec = importlib.util.spec_from_file_location("export_checkpoint", root / "tools" / "export_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export_checkpoint.py", *map(str, arguments)])
        assert module.main() == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """A checkpoints folder of the test's own."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "checkpoints"))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def fine_tuned(cfg, checkpoints, run, name="model_final"):
    """Write a base, and a run's small checkpoint whose decoder and encoder's bias differ from it; gives its model."""
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    torch.save(model.state_dict(), checkpoints / "base.pth")
    run.mkdir()
    checkpointer = Checkpointer(model, str(run), save_to_disk=True)
    checkpointer.load(str(checkpoints / "base.pth"))
    with torch.no_grad():
        for parameter in model.mask_decoder.parameters():
            parameter += 0.01
    checkpointer.save(name)
    save_config(cfg, run / "config.yaml")
    return model


@pytest.fixture
def tiny(root, tiny_overrides):
    return apply_overrides(load_config(root / "configs" / "sam_tiny.py"), tiny_overrides[:4])


def sam_of(cfg):
    """segment_anything's Sam, of modules as the config builds them."""
    model = instantiate(cfg.model)
    return Sam(model.image_encoder, model.prompt_encoder, model.mask_decoder)


def load_as_official(file, sam):
    state = torch.load(file, weights_only=True)
    sam.load_state_dict(state)  # strict, as segment_anything does it
    return state


def test_a_small_checkpoint_becomes_a_whole_file(tiny, checkpoints, tmp_path, export):
    model = fine_tuned(tiny, checkpoints, tmp_path / "run")
    text = export(tmp_path / "run", "--output", tmp_path / "out.pth")
    (checkpoints / "base.pth").unlink()
    state = load_as_official(tmp_path / "out.pth", sam_of(tiny))
    torch.testing.assert_close(state, dict(model.state_dict()), rtol=0, atol=0)
    assert f"out.pth: {(tmp_path / 'out.pth').stat().st_size:,} bytes, {len(state)} weights" in text
    assert "none of SAM's published ones" in text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoints", "out.pth", "run"]


def test_a_checkpoint_by_path_and_by_name(tiny, checkpoints, tmp_path, export):
    model = fine_tuned(tiny, checkpoints, tmp_path / "run", "model_0000003")
    export(tmp_path / "run" / "model_0000003.pth", "--output", tmp_path / "a.pth")
    shutil.copy(tmp_path / "run" / "model_0000003.pth", checkpoints / "tuned.pth")
    export("tuned.pth", "--output", tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        torch.testing.assert_close(load_as_official(tmp_path / name, sam_of(tiny)), dict(model.state_dict()))


def test_weights_that_need_drawn_boxes_are_exported_with_a_warning(tiny, checkpoints, tmp_path, export):
    fine_tuned(tiny, checkpoints, tmp_path / "plain")
    assert "WARNING" not in export(tmp_path / "plain", "--output", tmp_path / "a.pth")
    tiny.model.draw_boxes = True
    fine_tuned(tiny, checkpoints, tmp_path / "drawn")
    text = export(tmp_path / "drawn", "--output", tmp_path / "b.pth")
    assert "WARNING" in text and "model.draw_boxes=true" in text and "mask_input" in text


def test_a_finished_run(finished_run, tmp_path, export):
    export(finished_run, "--output", tmp_path / "out.pth")
    state = load_as_official(tmp_path / "out.pth", sam_of(load_config(finished_run / "config.yaml")))
    expected = torch.load(finished_run / "model_final.pth", weights_only=True)["model"]
    torch.testing.assert_close(state, dict(expected), rtol=0, atol=0)


@pytest.mark.slow
def test_lora_is_added_in(root, checkpoints, tmp_path, export):
    pytest.importorskip("peft")
    sizes = ["img_size=64", "embed_dim=32", "depth=1", "num_heads=2", "out_chans=32", "global_attn_indexes=[0]"]
    overrides = [f"model.image_encoder.{size}" for size in sizes] + ["model.mask_decoder.transformer.mlp_dim=32"]
    cfg = apply_overrides(load_config(root / "configs" / "sam_lora.py"), overrides)
    plain = apply_overrides(load_config(root / "configs" / "sam.py"), overrides)
    model = fine_tuned(cfg, checkpoints, tmp_path / "run")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    Checkpointer(model, str(tmp_path / "run"), save_to_disk=True).save("model_final")
    export(tmp_path / "run", "--output", tmp_path / "out.pth")
    sam = sam_of(plain)
    load_as_official(tmp_path / "out.pth", sam)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = model.eval().image_encoder(image), sam.eval().image_encoder(image)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        base = sam_of(plain)
        base.load_state_dict({**sam.state_dict(), **torch.load(checkpoints / "base.pth")}, strict=False)
        assert (base.eval().image_encoder(image) - expected).abs().max() > 0.01, "LoRA must matter"
    (tmp_path / "run" / "config.yaml").rename(tmp_path / "elsewhere.yaml")
    with pytest.raises(UserError, match=r"LoRA's matrices.*--config-file"):
        export(tmp_path / "run", "--output", tmp_path / "b.pth")
    export(tmp_path / "run", "--output", tmp_path / "b.pth", "--config-file", tmp_path / "elsewhere.yaml")
    load_as_official(tmp_path / "b.pth", sam_of(plain))


def test_a_torchvision_detector_loads_in_torchvision(root, checkpoints, tmp_path, export):
    overrides = ["model.num_classes=2", "model.min_size=[96]", "model.max_size=128"]
    for config, arguments in (("cartons", "maskrcnn_resnet50_fpn("), ("coco_o", "maskrcnn_resnet50_fpn_v2(")):
        cfg = apply_overrides(load_config(root / "configs" / f"{config}.py"), overrides)
        run = tmp_path / config
        run.mkdir()
        torch.manual_seed(0)
        model = instantiate(cfg.model).eval()
        Checkpointer(model, str(run), save_to_disk=True).save("model_final")
        save_config(cfg, run / "config.yaml")
        text = export(run, "--output", tmp_path / f"{config}.pth")
        assert arguments in text and "num_classes=3" in text  # two classes and the background
        assert "min_size=[96], max_size=128" in text and "WARNING" not in text
        assert ("rpn_nms_thresh=0.6" in text) == ('"eps", 0.0' in text) == (config == "cartons")
        space = {"torchvision": torchvision, "torch": torch}
        exec("\n".join(line.strip() for line in text.splitlines() if "model" in line and line.startswith("  ")), space)
        own, image = space["model"].eval(), torch.rand(3, 96, 128)
        with torch.no_grad():
            features, expected = own.backbone(image[None]), model.backbone(image[None])
        for name in expected:
            torch.testing.assert_close(features[name], expected[name])
        (run / "config.yaml").unlink()
        assert "name its --config-file" in export(run, "--output", tmp_path / f"{config}_bare.pth")


def test_a_detector_of_detectron2_loads_there(root, checkpoints, tmp_path, export):
    cfg = apply_overrides(load_config(root / "configs" / "mask_rcnn_R_18_FPN.py"), ["model.roi_heads.num_classes=2"])
    base = instantiate(cfg.model)
    torch.save(base.state_dict(), checkpoints / "base.pth")
    run = tmp_path / "run"
    run.mkdir()
    checkpointer = Checkpointer(base, str(run), save_to_disk=True)
    checkpointer.load(str(checkpoints / "base.pth"))
    with torch.no_grad():
        base.roi_heads.box_predictor.cls_score.bias += 1
    checkpointer.save("model_final")
    assert "MODEL.WEIGHTS" in export(run, "--output", tmp_path / "out.pth")
    (checkpoints / "base.pth").unlink()
    own = instantiate(cfg.model)
    rest = DetectionCheckpointer(own).load(str(tmp_path / "out.pth"))
    assert not rest
    torch.testing.assert_close(own.state_dict(), base.state_dict(), rtol=0, atol=0)


class TestErrors:
    def test_an_existing_output_is_kept(self, finished_run, tmp_path, export):
        (tmp_path / "out.pth").write_text("mine")
        with pytest.raises(UserError, match=r"out\.pth exists"):
            export(finished_run, "--output", tmp_path / "out.pth")
        assert (tmp_path / "out.pth").read_text() == "mine"

    def test_a_folder_that_is_not_there(self, finished_run, tmp_path, export):
        with pytest.raises(UserError, match="new does not exist"):
            export(finished_run, "--output", tmp_path / "new" / "out.pth")

    def test_a_run_that_has_not_ended(self, tmp_path, export):
        with pytest.raises(UserError, match=r"has no model_final\.pth"):
            export(tmp_path, "--output", tmp_path / "out.pth")

    def test_no_such_checkpoint(self, tmp_path, export):
        with pytest.raises(UserError, match=r"gone\.pth is not found"):
            export(tmp_path / "gone.pth", "--output", tmp_path / "out.pth")

    def test_a_missing_base(self, tiny, checkpoints, tmp_path, export):
        fine_tuned(tiny, checkpoints, tmp_path / "run")
        (checkpoints / "base.pth").unlink()
        with pytest.raises(UserError, match=r"holds only what differs from base\.pth"):
            export(tmp_path / "run", "--output", tmp_path / "out.pth")
        assert not (tmp_path / "out.pth").exists()

    @pytest.mark.parametrize("names", [["backbone.weight"], ["mask_decoder.x", "head.weight"], ["mask_decoder.x"]])
    def test_another_model(self, tmp_path, export, names):
        torch.save({name: torch.zeros(1) for name in names}, tmp_path / "other.pth")
        with pytest.raises(
            UserError, match=r"is neither a SAM of image_encoder, prompt_encoder, mask_decoder.* nor a whole detector"
        ):
            export(tmp_path / "other.pth", "--output", tmp_path / "out.pth")

    def test_a_config_that_does_not_fit(self, root, finished_run, tmp_path, export):
        with pytest.raises(UserError, match="does not fit the model"):
            export(finished_run, "--output", tmp_path / "o.pth", "--config-file", root / "configs" / "sam_tiny.py")


@pytest.mark.parametrize("name, config", [("vit_b", "sam"), ("vit_l", "sam_vit_l"), ("vit_h", "sam_vit_h")])
def test_the_published_sizes_are_recognised(root, name, config):
    with torch.device("meta"):
        state = instantiate(load_config(root / "configs" / f"{config}.py").model).state_dict()
    assert registry_name(state) == name
    state.pop("mask_decoder.iou_token.weight")
    assert registry_name(state) is None


@pytest.mark.slow
def test_vit_b_loads_with_its_registry(root, checkpoints, tmp_path, export):
    cfg = load_config(root / "configs" / "sam.py")
    model = fine_tuned(cfg, checkpoints, tmp_path / "run")
    small, whole = tmp_path / "run" / "model_final.pth", tmp_path / "out.pth"
    assert 'sam_model_registry["vit_b"]' in export(tmp_path / "run", "--output", whole)
    assert small.stat().st_size < 20e6 < 370e6 < whole.stat().st_size
    sam = sam_model_registry["vit_b"](checkpoint=str(whole))
    torch.testing.assert_close(sam.state_dict(), model.state_dict(), rtol=0, atol=0)
