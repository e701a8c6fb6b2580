from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

import detectron2
from detectron2.modeling import FPN, Backbone, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock

EMBEDDED = detectron2.__version__.endswith("sam_d2")
with_timm = pytest.mark.skipif(not EMBEDDED and find_spec("timm") is None, reason="the real MViT needs timm")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("depth", "reference"), [(18, resnet18), (50, resnet50)])
def test_resnet_equals_torchvision_s(depth, reference):
    """torchvision's weights in torchvision's order of modules, but that the shortcut comes first here."""
    torch.manual_seed(0)
    theirs = reference().eval()
    ours = ResNet(BasicStem(), ResNet.make_default_stages(depth), num_classes=1000).eval()
    names = {f"layer{number}": f"res{number + 1}" for number in range(1, 5)}
    state = {}
    for name, value in theirs.state_dict().items():
        stage, _, rest = name.partition(".")
        place = names.get(stage, "stem") + "." + rest if stage in names else f"stem.{name}"
        place = place.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for number in range(1, 4):
            place = place.replace(f"bn{number}", f"conv{number}.norm")
        state[place.replace("stem.fc", "linear")] = value
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 70, 51)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x)["linear"], theirs(x), rtol=1e-5, atol=1e-5)


class Constant(Backbone):
    """Maps of strides 2, 4 and 8, each full of one number."""

    def __init__(self):
        super().__init__()
        self._out_features = ["a", "b", "c"]
        self._out_feature_strides = {"a": 2, "b": 4, "c": 8}
        self._out_feature_channels = dict.fromkeys(self._out_features, 1)

    def forward(self, x):
        sides = {name: x.shape[-1] // stride for name, stride in self._out_feature_strides.items()}
        return {name: torch.full((1, 1, side, side), 10.0**-i) for i, (name, side) in enumerate(sides.items())}


@pytest.mark.parametrize(("fuse_type", "expected"), [("sum", [1.11, 0.11, 0.01]), ("avg", [0.5275, 0.055, 0.01])])
def test_pyramid_adds_from_coarse_to_fine(fuse_type, expected):
    net = FPN(Constant(), ["a", "b", "c"], 1, fuse_type=fuse_type)
    assert [name for name, _ in net.named_children()][:2] == ["fpn_lateral1", "fpn_output1"]
    for conv in net.children():
        for name, weight in conv.named_parameters():
            nn.init.constant_(weight, 0.0 if name == "bias" else 1.0)
            if weight.shape[-1] == 3:
                weight.data[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0  # the centre alone
    levels = net(torch.zeros(1, 3, 16, 16))
    # sum: c, b + c, a + b + c; avg: c = 0.01, (0.1 + 0.01) / 2 = 0.055, (1 + 0.055) / 2 = 0.5275
    assert {name: level.shape[-1] for name, level in levels.items()} == {"p1": 8, "p2": 4, "p3": 2}
    for level, value in zip(levels.values(), expected, strict=True):
        torch.testing.assert_close(level, torch.full_like(level, value))


def test_last_level_takes_every_second_cell():
    (level,) = LastLevelMaxPool()(torch.arange(9.0).view(1, 1, 3, 3))
    assert level.tolist() == [[[[0.0, 2.0], [6.0, 8.0]]]]


def test_frozen_parts_of_a_resnet_do_not_train():
    net = ResNet(BasicStem(), ResNet.make_default_stages(18), out_features=["res3"], freeze_at=2)
    assert not hasattr(net, "res4")
    prefixes = {name.split(".")[0] for name, value in net.named_parameters() if value.requires_grad}
    assert prefixes == {"res3"}
    before = net.stem.conv1.norm.running_mean.clone()
    net.train()(torch.randn(2, 3, 32, 32))
    assert torch.equal(net.stem.conv1.norm.running_mean, before)


def test_where_the_stride_is():
    blocks = {
        first: BottleneckBlock(4, 8, bottleneck_channels=4, stride=2, stride_in_1x1=first) for first in (True, False)
    }
    strides = {
        first: (block.conv1.stride, block.conv2.stride, block.shortcut.stride) for first, block in blocks.items()
    }
    assert strides == {True: ((2, 2), (1, 1), (2, 2)), False: ((1, 1), (2, 2), (2, 2))}


def small_mvit(**options):
    from detectron2.modeling import MViT

    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depth": 10, "last_block_indexes": (0, 2, 7, 9), "img_size": 64, "adaptive_window_size": 8}
    return MViT(**sizes, norm_layer=partial(nn.LayerNorm, eps=1e-6), **options)


@pytest.mark.skipif(not EMBEDDED, reason="the real MViT needs fairscale to recompute")
def test_recomputed_activations_change_nothing():
    found = []
    for recompute in (False, True):
        net = small_mvit(drop_path_rate=0.5, use_act_checkpoint=recompute).train()
        torch.manual_seed(1)
        outputs = net(torch.ones(4, 3, 48, 64).cumsum(-1) / 64)
        sum(value.square().sum() for value in outputs.values()).backward()
        found.append([outputs["scale5"].detach(), *(value.grad for value in net.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0][1].abs().sum() > 0


@with_timm
def test_mvit_s_first_stage_sees_windows_and_the_second_the_whole_image():
    net = small_mvit().eval()
    x = torch.zeros(1, 3, 64, 64)
    changed = x.clone()
    changed[..., :8, :8] = 1.0
    with torch.inference_mode():
        one, other = net(x), net(changed)
    differs = {name: (one[name] != other[name]).any(1)[0] for name in one}
    # The image has 2 x 2 windows of 8 tokens, 32 pixels. The change is in the first, and no token of another sees it:
    # patches reach 3 pixels, pooling one key, which is 4 tokens, and the change ends 24 pixels before the border.
    assert differs["scale2"][:8, :8].any() and not differs["scale2"][8:].any()
    assert differs["scale3"].all()


@pytest.mark.skipif(not EMBEDDED, reason="the real MViT counts on values while it is made")
def test_networks_are_made_without_values():
    with torch.device("meta"):
        assert small_mvit(drop_path_rate=0.2).blocks[9].drop_path.p == pytest.approx(0.2)
