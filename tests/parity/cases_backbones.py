"""Cases of detectron2.layers and detectron2.modeling.backbone: networks of equal weights on small images."""

from functools import partial

import torch
from inputs import raised, text
from networks import answer_of, blank, filled, image, sampled, seeded, signature
from torch import nn

from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    FrozenBatchNorm2d,
    NaiveSyncBatchNorm,
    ShapeSpec,
    cat,
    cross_entropy,
    get_norm,
    nonzero_tuple,
)
from detectron2.modeling import FPN, MViT, ResNet
from detectron2.modeling.backbone import utils
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, make_stage

STAGES = ["res2", "res3", "res4", "res5"]
ODD = (2, 3, 67, 90)  # of no stride a multiple


def resnet(depth, norm="BN", out_features=STAGES, freeze_at=0, num_classes=None, **options):
    stages = ResNet.make_default_stages(depth, norm=norm, **options)
    return ResNet(BasicStem(norm=norm), stages, num_classes, out_features, freeze_at)


def narrow(norm="BN", **options):
    """All four stages of ResNet-50's kind, with few channels."""
    stages = []
    for number in range(4):
        strides, channels = (
            [1 if number == 0 else 2, 1],
            {"in_channels": 32 + 32 * number, "out_channels": 64 + 32 * number},
        )
        inner = {"bottleneck_channels": 32, "stride_per_block": strides, "norm": norm}
        stages.append(ResNet.make_stage(BottleneckBlock, 2, **channels, **inner))
    return ResNet(BasicStem(3, 32, norm), stages, **{"out_features": STAGES, **options})


def pyramid(bottom_up, names=STAGES, channels=256, **options):
    return FPN(bottom_up, names, channels, top_block=LastLevelMaxPool(), **options)


def mvit(**options):
    """MViTv2-T as Detectron2's configs have it, but for what is given."""
    tiny = {"embed_dim": 96, "depth": 10, "num_heads": 1, "last_block_indexes": (0, 2, 7, 9), "drop_path_rate": 0.2}
    return MViT(**{**tiny, "norm_layer": partial(nn.LayerNorm, eps=1e-6), **options})


def small_mvit(**options):
    return mvit(**{"embed_dim": 8, "img_size": 64, "adaptive_window_size": 8, **options})


SCALES = ["scale2", "scale3", "scale4", "scale5"]


def case_resnet_18():
    return answer_of(blank(lambda: resnet(18)), image(*ODD))


def case_resnet_34_frozen():
    return answer_of(blank(lambda: resnet(34, "FrozenBN")), image(*ODD))


def case_resnet_50_stride_in_1x1():
    return answer_of(blank(lambda: resnet(50, "FrozenBN", freeze_at=2, stride_in_1x1=True)), image(*ODD))


def case_resnet_50_sync():
    return answer_of(blank(lambda: resnet(50, "SyncBN", stride_in_1x1=False)), image(*ODD))


def case_resnet_50_train():
    """Batch statistics; frozen stages keep theirs."""
    net = blank(lambda: resnet(50, "BN", freeze_at=3))
    return {**answer_of(net, image(*ODD), train=True), "after": sampled(net.res5[0].conv1.norm.running_var)}


def case_resnet_101_groups():
    return answer_of(blank(lambda: resnet(101, "GN", ["res4", "stem"])), image(1, 3, 61, 75))


def case_resnet_classifier():
    return answer_of(blank(lambda: resnet(18, "FrozenBN", ["linear", "res3", "res5"], num_classes=7)), image(*ODD))


def case_fpn():
    return {
        "sum": answer_of(pyramid(narrow("FrozenBN"), channels=16), image(2, 3, 96, 64)),
        "avg": answer_of(pyramid(narrow("GN"), channels=32, fuse_type="avg", norm="GN"), image(1, 3, 64, 32)),
        "two_levels": answer_of(FPN(narrow(), ["res3", "res4"], 16), image(1, 3, 48, 80)),
    }


def case_mvit_tiny():
    return answer_of(mvit(), image(1, 3, 70, 101))


def case_mvit_variants():
    """Shrunk: of its own size, windows that need padding, absolute positions, drop path."""
    x, own = image(3, 3, 75, 58), image(2, 3, 64, 64)
    return {
        "own_size": answer_of(small_mvit(), own),
        "odd_size": answer_of(small_mvit(num_heads=2), x),
        "drop_path": answer_of(small_mvit(drop_path_rate=0.5), x, train=True),
        "absolute": answer_of(small_mvit(use_abs_pos=True, pretrain_img_size=64, use_rel_pos=False), x),
        "absolute_own": answer_of(
            small_mvit(use_abs_pos=True, pretrain_img_size=64, pretrain_use_cls_token=False, qkv_bias=False), own
        ),
        "no_residual": answer_of(small_mvit(residual_pooling=False, mlp_ratio=2.0, out_features=SCALES[1:3]), x),
        "in_fpn": answer_of(pyramid(small_mvit(), SCALES, 16, square_pad=64), own),
        "uneven": answer_of(
            small_mvit(depth=6, last_block_indexes=(1, 2, 3, 5), adaptive_kv_stride=2, qkv_pool_kernel=(5, 5)), own
        ),
    }


def case_weights():
    """Names and shapes of the published detectors' backbones."""
    with torch.device("meta"):
        nets = {
            "R_50_FPN": pyramid(resnet(50, "FrozenBN", stride_in_1x1=True)),
            "R_50_FPN_SyncBN": pyramid(resnet(50, "SyncBN"), norm="SyncBN"),
            "R_101_FPN": pyramid(resnet(101, "FrozenBN")),
            "R_152_GN": resnet(152, "GN"),
        }
    nets["MViTv2_T_FPN"] = pyramid(mvit(), SCALES)  # the real one counts on values while it is made
    nets["MViTv2_B"] = mvit(embed_dim=8, depth=24, last_block_indexes=(1, 4, 20, 23))
    return {name: signature(net) for name, net in nets.items()}


def case_initial_weights():
    """What a seed begins with."""
    found = {}
    for name, make in {
        "resnet_18": lambda: resnet(18, num_classes=5, out_features=["res5", "linear"]),
        "pyramid": lambda: pyramid(narrow(), channels=16),
        "mvit": small_mvit,
        "mvit_positions": lambda: small_mvit(use_abs_pos=True, rel_pos_zero_init=False),
    }.items():
        torch.manual_seed(3)
        net = make()
        found[name] = sampled(torch.cat([value.flatten().float() for value in net.state_dict().values()]))
        found[f"{name} next"] = sampled(torch.rand(3))
    return found


def described(backbone):
    shapes = {name: vars(shape) for name, shape in backbone.output_shape().items()}
    return {"shapes": shapes, "pad": [backbone.size_divisibility, backbone.padding_constraints]}


def case_output_shapes():
    return {
        "resnet": described(narrow()),
        "one": described(narrow(out_features=None)),
        "stem": described(narrow(out_features=["stem"])),
        "classifier": [list(narrow(out_features=None, num_classes=3)(image(2, 3, 40, 40)))],
        "fpn": described(pyramid(narrow(), channels=16, square_pad=128)),
        "fpn_part": described(FPN(narrow(), ["res2", "res3", "res4"], 16)),
        "mvit": described(small_mvit()),
        "mvit_part": described(small_mvit(out_features=["scale3", "scale5"])),
        "spec": [repr(ShapeSpec()), repr(ShapeSpec(channels=3, stride=4)), ShapeSpec(channels=1) == ShapeSpec(1)],
    }


def case_freeze():
    """Which parameters train, and what becomes of batch normalisation."""
    found = {}
    for norm in ("BN", "SyncBN", "FrozenBN", "GN"):
        for freeze_at in (0, 1, 3, 5):
            net = narrow(norm, freeze_at=freeze_at)
            found[f"{norm} {freeze_at}"] = {
                "trained": text([name for name, value in net.named_parameters() if value.requires_grad]),
                "types": text([[name, type(module).__name__] for name, module in net.named_modules()]),
                "weights": signature(net),
            }
    return found


def case_errors():
    images = image(1, 3, 64, 64)
    return {
        "not_divisible": raised(lambda: pyramid(narrow(), channels=8)(image(1, 3, 80, 64))),
        "three_dimensions": raised(lambda: narrow()(images[0])),
        "unknown_feature": raised(lambda: narrow(out_features=["res9"])),
        "no_backbone": raised(lambda: FPN(nn.Identity(), ["res2"], 8)),
        "gap": raised(lambda: FPN(narrow(), ["res2", "res4"], 8)),
        "fuse_type": raised(lambda: FPN(narrow(), ["res2"], 8, fuse_type="max")),
        "no_features": raised(lambda: FPN(narrow(), [], 8)),
        "depth": raised(lambda: ResNet.make_default_stages(20)),
        "per_block": raised(lambda: make_stage(BasicBlock, 2, in_channels=8, out_channels=8, stride_per_block=[1])),
        "both": raised(
            lambda: make_stage(BasicBlock, 1, in_channels=8, out_channels=8, stride_per_block=[1], stride=1)
        ),
        "no_block": raised(lambda: ResNet(BasicStem(), [[nn.Identity()]])),
        "empty_stage": raised(lambda: ResNet(BasicStem(), [[]])),
        "norm": raised(lambda: get_norm("XN", 3)),
        "oblong": raised(lambda: small_mvit(patch_stride=(4, 2))),
        "stats_mode": raised(lambda: NaiveSyncBatchNorm(3, stats_mode="M")),
    }


def case_norms():
    x = image(2, 32, 5, 7)
    found = {}
    for norm in ("BN", "SyncBN", "FrozenBN", "GN", "LN", "naiveSyncBN", "naiveSyncBN_N", "nnSyncBN", nn.BatchNorm2d):
        layer = filled(get_norm(norm, 32)).eval()
        inputs = x.clone().requires_grad_()
        layer(inputs).square().mean().backward()
        found[str(norm)] = {
            "type": type(layer).__name__,
            "weights": signature(layer),
            "fused": sampled(layer(x)),
            "with_gradient": sampled(layer(inputs)),
            "gradient": sampled(inputs.grad * 1000),
            "half": sampled(layer.half()(x.half()).float()) if norm == "FrozenBN" else [],
        }
    return {**found, "none": [get_norm(None, 3), get_norm("", 3)], "repr": repr(FrozenBatchNorm2d(4, 1e-3))}


def case_frozen_batch_norm():
    """Weights without statistics (Caffe2's), of the version without them, and conversion."""
    found = {}
    weights = {"weight": seeded("w", (4,)), "bias": seeded("b", (4,))}
    for version in (None, 1, 2, 3):
        layer = filled(FrozenBatchNorm2d(4))
        state = dict(weights) if version is None else nn.Module().state_dict().__class__(weights)
        if version is not None:
            state._metadata = {"": {"version": version}}
        keys = layer.load_state_dict(state, strict=False)
        found[str(version)] = [list(layer.state_dict().values()), list(keys.missing_keys), list(keys.unexpected_keys)]
    norm = filled(nn.BatchNorm2d(4, eps=1e-3))
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Sequential(nn.SyncBatchNorm(4, affine=False), nn.BatchNorm1d(4)))
    same = FrozenBatchNorm2d.convert_frozen_batchnorm(net) is net
    alone = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    found["net"] = [repr(net), signature(net), same, [type(alone).__name__, alone.eps, list(alone.state_dict())]]
    found["values"] = sampled(torch.cat([value for value in net[1].state_dict().values() if value.dim()]))
    found["shared"] = [
        alone.running_mean.data_ptr() == norm.running_mean.data_ptr(),
        alone.weight.data_ptr() == norm.weight.data_ptr(),
    ]
    return found


class Doubled(CNNBlockBase):
    def __init__(self, in_channels, out_channels, stride=1, factor=1):
        super().__init__(in_channels, out_channels, stride)
        self.layer = Conv2d(
            in_channels,
            out_channels,
            3,
            stride=stride,
            padding=1,
            norm=nn.BatchNorm2d(out_channels),
            activation=torch.tanh,
        )
        self.factor = factor

    def forward(self, x):
        return self.factor * self.layer(x)


def case_blocks():
    stage = make_stage(
        Doubled, 3, in_channels=4, out_channels=6, stride_per_block=[2, 1, 1], factor_per_block=[1, 2, 3]
    )
    groups = {"bottleneck_channels": 8, "num_groups": 4, "dilation": 2, "stride": 2}
    plain = BottleneckBlock(8, 8, norm="", **groups)
    x = image(2, 4, 9, 12)
    return {
        "stage": [[block.in_channels, block.out_channels, block.stride, block.factor] for block in stage],
        "values": sampled(filled(nn.Sequential(*stage)).eval()(x)),
        "frozen": [stage[0].freeze() is stage[0], repr(stage[0]), stage[0].layer.weight.requires_grad],
        "groups": sampled(filled(BottleneckBlock(4, 8, **groups)).eval()(x)),
        "no_norm": signature(plain),
        "of_class": [type(stage[-1]).__name__ for stage in ResNet.make_default_stages(18, Doubled, factor=2)],
        "width": ResNet.make_default_stages(50, bottleneck_channels=3)[1][0].conv2.out_channels,
        "empty": list(Conv2d(3, 4, 3, padding=1)(torch.zeros(0, 3, 8, 8)).shape),
        "empty_sync": raised(lambda: Conv2d(3, 4, 3, norm=nn.SyncBatchNorm(4))(torch.zeros(0, 3, 8, 8))),
    }


def case_functions():
    x, y = image(2, 5), torch.tensor([1, 3])
    one = [x]
    return {
        "cat": [cat(one) is x, list(cat([x, x], 1).shape), raised(lambda: cat(x))],
        "nonzero": [part.tolist() for part in nonzero_tuple(x > 0)],
        "loss": [sampled(cross_entropy(x, y, reduction=how)) for how in ("mean", "sum", "none")],
        "smooth": sampled(cross_entropy(x, y, label_smoothing=0.1)),
        "empty": [cross_entropy(x[:0].requires_grad_(), y[:0]), list(cross_entropy(x[:0], y[:0], reduction="none"))],
        "empty_gradient": cross_entropy(x[:0].requires_grad_(), y[:0]).requires_grad,
    }


def case_transformer_functions():
    tokens = image(2, 9, 11, 4)
    found = {}
    for size in (3, 4, 16):
        windows, padded = utils.window_partition(tokens, size)
        whole = utils.window_unpartition(windows, size, padded, (9, 11))
        found[f"windows {size}"] = [windows[:2, :2, :2], list(windows.shape), list(padded), torch.equal(whole, tokens)]
    positions = seeded("positions", (9, 4))
    for queries, keys in ((5, 5), (5, 2), (2, 5), (8, 8), (7, 3), (3, 8)):
        found[f"relative {queries} {keys}"] = sampled(utils.get_rel_pos(queries, keys, positions))
    attention, q = image(2, 12, 6), image(2, 12, 4)
    found["added"] = sampled(utils.add_decomposed_rel_pos(attention, q, positions, positions[:7], (3, 4), (3, 2)))
    table = seeded("table", (1, 17, 4))
    for cls_token, size in ((True, (4, 4)), (True, (6, 3)), (False, (4, 4))):
        found[f"absolute {cls_token} {size}"] = sampled(utils.get_abs_pos(table[:, not cls_token :], cls_token, size))
    found["no_square"] = raised(lambda: utils.get_abs_pos(table, False, (4, 4)))
    embed = filled(utils.PatchEmbed((5, 3), (3, 2), (1, 0), 2, 6))
    found["patches"] = [list(embed(image(1, 2, 20, 21)).shape), sampled(embed(image(1, 2, 20, 21))), signature(embed)]
    return found
