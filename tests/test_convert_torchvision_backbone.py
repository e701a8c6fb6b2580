"""tools/convert_torchvision_backbone.py: a detector's backbone begins as torchvision's network."""

import importlib.util
import sys

import pytest
import torch
from torchvision.models import resnet18

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import FPN, ResNet
from detectron2.modeling.backbone.resnet import BasicStem
from sam_d2.engine.torchvision_backbone import detectron2_names
from sam_d2.errors import UserError


@pytest.fixture
def convert(root, monkeypatch):
    """``convert(*arguments)``: run the tool in this process."""
    path = root / "tools" / "convert_torchvision_backbone.py"
    spec = importlib.util.spec_from_file_location("convert_torchvision_backbone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [path.name, *map(str, arguments)])
        assert module.main() == 0

    return run


def test_the_backbone_of_a_pyramid(convert, tmp_path):
    torch.manual_seed(0)
    theirs = resnet18()
    torch.save(theirs.state_dict(), tmp_path / "r18.pth")
    convert(tmp_path / "r18.pth", "--output", tmp_path / "r18.pkl")

    stages = ResNet.make_default_stages(18, norm="FrozenBN")
    net = FPN(ResNet(BasicStem(norm="FrozenBN"), stages, out_features=["res4", "res5"]), ["res4", "res5"], 8)
    told = []
    checkpointer = DetectionCheckpointer(net)
    checkpointer._log_incompatible_keys = told.append
    checkpointer.load(str(tmp_path / "r18.pkl"))
    assert {name.split(".")[0] for name in told[0].missing_keys} <= {
        f"fpn_{kind}{level}" for kind in ("lateral", "output") for level in (4, 5)
    }
    unexpected = [name for name in told[0].unexpected_keys if not name.endswith("num_batches_tracked")]
    assert unexpected == ["stem.fc.bias", "stem.fc.weight"]

    x = torch.randn(1, 3, 64, 64)
    theirs.eval()
    with torch.inference_mode():
        middle = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(middle)))
        torch.testing.assert_close(net.bottom_up.eval()(x)["res5"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_mean", "stem.conv1.norm.running_mean"),
        ("layer1.0.conv2.weight", "res2.0.conv2.weight"),
        ("layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.weight", "res3.0.shortcut.norm.weight"),
        ("fc.bias", "stem.fc.bias"),
    ],
)
def test_names(name, expected):
    assert list(detectron2_names({name: torch.zeros(1)})) == [expected]


def test_what_is_refused(convert, tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "there.pkl").write_bytes(b"mine")
    for arguments, message in (
        (("other.pth", "new.pkl"), r"other\.pth.*not the weights of a torchvision ResNet"),
        (("other.pth", "there.pkl"), r"there\.pkl exists"),
        (("other.pth", "new.pth"), r"must end with \.pkl"),
        (("other.pth", "nowhere/new.pkl"), "nowhere does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / arguments[0], "--output", tmp_path / arguments[1])
    assert (tmp_path / "there.pkl").read_bytes() == b"mine" and not (tmp_path / "new.pkl").exists()
