import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import detectron2
from detectron2.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer

embedded_only = pytest.mark.skipif(
    not detectron2.__version__.endswith("sam_d2"), reason="Detectron2 unpickles whatever the file names"
)


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))


def weights(net):
    return {name: value.tolist() for name, value in net.state_dict().items()}


def test_save_and_load_model_optimizer_and_extra_data(tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25, momentum=0.9)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    DetectionCheckpointer(net, str(tmp_path), optimizer=optimizer).save("model_0", iteration=4)

    other = model(seed=1)
    assert weights(other) != weights(net)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=9.0, momentum=0.9)
    checkpointer = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
    assert checkpointer.has_checkpoint() and checkpointer.get_checkpoint_file().endswith("model_0.pth")
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 4
    assert weights(other) == weights(net)
    assert other_optimizer.param_groups[0]["lr"] == 0.25

    third = model(seed=2)
    optimizer = torch.optim.SGD(third.parameters(), lr=9.0)
    rest = DetectionCheckpointer(third, optimizer=optimizer).load(str(tmp_path / "model_0.pth"), checkpointables=[])
    assert weights(third) == weights(net) and optimizer.param_groups[0]["lr"] == 9.0 and "optimizer" in rest


def test_nothing_to_load():
    net = model()
    before = weights(net)
    assert DetectionCheckpointer(net).load("") == {}
    assert weights(net) == before


def test_only_the_chosen_process_writes(tmp_path):
    DetectionCheckpointer(model(), str(tmp_path), save_to_disk=False).save("model")
    assert list(tmp_path.iterdir()) == []
    assert issubclass(DetectionCheckpointer, Checkpointer)
    periodic = PeriodicCheckpointer(DetectionCheckpointer(model(), str(tmp_path)), period=2, max_iter=3)
    for iteration in range(3):
        periodic.step(iteration)
    assert sorted(file.name for file in tmp_path.glob("*.pth")) == ["model_0000001.pth", "model_final.pth"]


def test_a_bare_state_dict_and_wrapped_names(tmp_path):
    net = model()
    torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, tmp_path / "bare.pth")
    other = model(seed=1)
    DetectionCheckpointer(other).load(str(tmp_path / "bare.pth"))
    assert weights(other) == weights(net)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.register_buffer("pixel_mean", torch.ones(3))


def test_incompatible_keys_are_told_but_not_those_of_old_files(tmp_path, monkeypatch):
    state = {
        "head.weight": torch.zeros(2, 2),
        "head.bias": torch.zeros(5),
        "anchor_generator.cell_anchors.0": torch.zeros(1),
        "other": torch.zeros(1),
    }
    torch.save({"model": state}, tmp_path / "old.pth")
    told = []
    monkeypatch.setattr(DetectionCheckpointer, "_log_incompatible_keys", lambda self, keys: told.append(keys))
    net = Detector()
    DetectionCheckpointer(net).load(str(tmp_path / "old.pth"))
    assert not net.head.weight.any()
    (keys,) = told
    assert keys.missing_keys == ["head.bias"]  # and not pixel_mean, which the config sets
    assert keys.unexpected_keys == ["other"]
    assert keys.incorrect_shapes == [("head.bias", (5,), (2,))]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_arrays(tmp_path, protocol):
    net = model()
    arrays = OrderedDict((name, value.numpy()) for name, value in net.state_dict().items())
    content = {"model": arrays, "__author__": "somebody", "note": ["text", b"bytes", 3, np.float32(2)]}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    other = model(seed=1)
    rest = DetectionCheckpointer(other).load(str(tmp_path / "model.pkl"))
    assert weights(other) == weights(net)
    assert rest["note"] == ["text", b"bytes", 3, 2]


class Touch:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@embedded_only
@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth"])
def test_a_checkpoint_cannot_run_code(tmp_path, name):
    content = {"model": {"w": Touch(tmp_path / "touched")}, "__author__": "somebody"}
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(pickle.UnpicklingError, match=r"io\.open"):
        DetectionCheckpointer(model()).load(str(tmp_path / name))
    assert not (tmp_path / "touched").exists()


def test_names_are_matched_to_the_model_s(tmp_path):
    state = {"conv1_w": np.full((1, 1, 1, 1), 2, np.float32), "res_conv1_bn_s": np.full(1, 3, np.float32)}
    state.update(cls_score_b=np.arange(3, dtype=np.float32), bbox_pred_b=np.arange(8, dtype=np.float32))
    (tmp_path / "caffe2.pkl").write_bytes(
        pickle.dumps({"blobs": {**state, "conv1_w_momentum": np.ones(1)}}, protocol=2)
    )
    torch.save({"model_state": {"conv1.weight": torch.full((1, 1, 1, 1), 5.0)}}, tmp_path / "pycls.pyth")
    torch.save({"conv1.weight": torch.full((1, 1, 1, 1), 7.0)}, tmp_path / "ends.pth")

    net = nn.Module()
    net.stem, net.box_predictor = nn.Module(), nn.Module()
    net.stem.conv1 = nn.Conv2d(1, 1, 1)
    net.stem.conv1.norm = nn.BatchNorm2d(1)
    net.box_predictor.cls_score, net.box_predictor.bbox_pred = nn.Linear(1, 3), nn.Linear(1, 4)
    DetectionCheckpointer(net).load(str(tmp_path / "caffe2.pkl"))
    assert net.stem.conv1.weight.item() == 2 and net.stem.conv1.norm.weight.item() == 3
    # Caffe2's background comes first, Detectron2's last, and it has no box
    assert net.box_predictor.cls_score.bias.tolist() == [1, 2, 0]
    assert net.box_predictor.bbox_pred.bias.tolist() == [4, 5, 6, 7]
    DetectionCheckpointer(net).load(str(tmp_path / "pycls.pyth"))
    assert net.stem.conv1.weight.item() == 5
    DetectionCheckpointer(net).load(str(tmp_path / "ends.pth"))
    assert net.stem.conv1.weight.item() == 5  # matching was not asked for
    DetectionCheckpointer(net).load(f"{tmp_path / 'ends.pth'}?matching_heuristics=True")
    assert net.stem.conv1.weight.item() == 7


def test_a_name_that_fits_twice(tmp_path):
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"match|fits two"):
        DetectionCheckpointer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))).load(
            f"{tmp_path / 'model.pth'}?matching_heuristics=True"
        )


def test_unknown_query(tmp_path):
    torch.save(model().state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="query"):
        DetectionCheckpointer(model()).load(f"{tmp_path / 'model.pth'}?what=1")


@embedded_only
def test_an_empty_pickle_is_named(tmp_path):
    (tmp_path / "empty.pkl").write_bytes(b"")
    with pytest.raises(pickle.UnpicklingError, match=r"empty\.pkl"):
        DetectionCheckpointer(model()).load(str(tmp_path / "empty.pkl"))
