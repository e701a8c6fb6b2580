"""Files of Detectron2's zoo, of Caffe2 and of pycls, through the strict checkpointer."""

import logging
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.modeling import ResNet
from detectron2.modeling.backbone import BasicStem, BottleneckBlock
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.errors import UserError

CAFFE2 = {
    "conv1_w": "stem.conv1.weight",
    "res_conv1_bn_s": "stem.conv1.norm.weight",
    "res_conv1_bn_b": "stem.conv1.norm.bias",
    "res2_0_branch1_w": "res2.0.shortcut.weight",
    "res2_0_branch1_bn_s": "res2.0.shortcut.norm.weight",
    "res2_0_branch1_bn_b": "res2.0.shortcut.norm.bias",
    **{
        f"res2_0_branch2{letter}_{end}": f"res2.0.conv{number}.{name}"
        for number, letter in enumerate("abc", 1)
        for end, name in (("w", "weight"), ("bn_s", "norm.weight"), ("bn_b", "norm.bias"))
    },
}
"""Names of MSRA's ResNets beside Detectron2's."""


class Detector(nn.Module):
    """A ResNet of one block where detectors have it, and a head."""

    def __init__(self):
        super().__init__()
        blocks = ResNet.make_stage(
            BottleneckBlock, 1, in_channels=8, out_channels=16, bottleneck_channels=4, norm="FrozenBN"
        )
        resnet = ResNet(BasicStem(3, 8, norm="FrozenBN"), [blocks], out_features=["res2"])
        self.backbone = nn.ModuleDict({"bottom_up": resnet})
        self.roi_heads = nn.Linear(16, 2)


@pytest.fixture
def detector():
    return Detector()


@pytest.fixture
def blobs(detector):
    """The content of an R-50.pkl for this ResNet: no running statistics, momenta and a classifier."""
    rng = np.random.default_rng(0)
    own = detector.backbone["bottom_up"].state_dict()
    blobs = {name: rng.normal(size=own[key].shape).astype(np.float32) for name, key in CAFFE2.items()}
    return {**blobs, "conv1_w_momentum": np.zeros(3), "fc1000_w": np.zeros((10, 16)), "fc1000_b": np.zeros(10)}


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return str(path)


def begin(model, file, folder):
    Checkpointer(model, str(folder)).resume_or_load(file, resume=False)


def test_msras_resnet_begins_a_training(detector, blobs, tmp_path, caplog):
    file = write(tmp_path / "R-50.pkl", {"blobs": blobs})
    resnet = detector.backbone["bottom_up"]
    resnet.res2[0].conv1.norm.running_mean.fill_(7)
    head = detector.roi_heads.weight.clone()
    with caplog.at_level(logging.INFO):
        begin(detector, file, tmp_path)
    state = resnet.state_dict()
    for name, key in CAFFE2.items():
        torch.testing.assert_close(state[key], torch.as_tensor(blobs[name]), rtol=0, atol=0)
    # MSRA's scales and shifts have absorbed the statistics
    assert state["res2.0.conv1.norm.running_mean"].eq(0).all() and state["stem.conv1.norm.running_var"].eq(1).all()
    assert torch.equal(detector.roi_heads.weight, head)
    assert "R-50.pkl holds a backbone alone: 2 of the model's" in caplog.text and "roi_heads.weight 1" in caplog.text


def test_and_is_no_model_to_evaluate(detector, blobs, tmp_path):
    file = write(tmp_path / "R-50.pkl", {"blobs": blobs})
    with pytest.raises(UserError, match=r"R-50.pkl does not fit the model: keys 2 missing from the file \(roi_heads"):
        Checkpointer(detector).load(file)


def test_a_detector_of_the_zoo_is_loaded_whole(detector, tmp_path):
    other = Detector()
    weights = {name: value.numpy() for name, value in other.state_dict().items()}
    weights["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4))  # of files before 2020
    file = write(tmp_path / "zoo.pkl", {"model": weights, "__author__": "Detectron2 Model Zoo"})
    Checkpointer(detector).load(file)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in detector.state_dict().items())


def test_a_backbone_of_pycls_begins_a_training(detector, tmp_path):
    state = Detector().backbone["bottom_up"].state_dict()
    state.update({"head.projection.weight": torch.zeros(10, 16)})
    torch.save({"epoch": 3, "model_state": state}, tmp_path / "MViT.pyth")
    begin(detector, str(tmp_path / "MViT.pyth"), tmp_path)
    loaded = detector.backbone["bottom_up"].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


@pytest.mark.parametrize("name", ["x.pkl", "x.pyth"])
def test_what_is_no_file_of_weights(detector, tmp_path, name):
    file = tmp_path / name
    if name.endswith(".pkl"):
        write(file, {"model": {"a": "text"}, "__author__": "someone"})
    else:
        torch.save({"something": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=name):
        Checkpointer(detector).load(str(file))


def test_a_pickle_that_names_code_is_not_run(detector, tmp_path):
    marker = tmp_path / "run"
    (tmp_path / "bad.pkl").write_bytes(b"cbuiltins\nopen\n(S'" + str(marker).encode() + b"'\nS'w'\ntR.")
    with pytest.raises(UserError, match=r"bad.pkl.*it names builtins.open"):
        Checkpointer(detector).load(str(tmp_path / "bad.pkl"))
    assert not marker.exists()
