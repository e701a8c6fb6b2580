"""Cases of detectron2.checkpoint for weights of other programs: Caffe2's, pycls', torchvision's."""

import pickle
import tempfile
from pathlib import Path

import torch
from inputs import logged, raised, text
from networks import seeded
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts, convert_c2_detectron_names
from detectron2.modeling import FPN, ResNet
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock

CLASSES = 3
NARROW = [(2, 1, 4, 8), (3, 2, 8, 12)]  # stage, stride, channels in and out
# Caffe2's names of the layers of a Mask R-CNN on a pyramid, with their shapes; biases are beside the weights.
HEADS = {
    "fpn_inner_res3_1_sum": (6, 12, 1, 1),
    "fpn_inner_res2_1_sum_lateral": (6, 8, 1, 1),
    "fpn_res3_1_sum": (6, 6, 3, 3),
    "fpn_res2_1_sum": (6, 6, 3, 3),
    "conv_rpn_fpn2": (6, 6, 3, 3),
    "rpn_cls_logits_fpn2": (3, 6, 1, 1),
    "rpn_bbox_pred_fpn2": (12, 6, 1, 1),
    "fc6": (10, 24),
    "fc7": (10, 10),
    "cls_score": (CLASSES + 1, 10),
    "bbox_pred": (4 * (CLASSES + 1), 10),
    "_[mask]_fcn1": (6, 6, 3, 3),
    "_mask_fcn2": (6, 6, 3, 3),
    "conv5_mask": (6, 6, 2, 2),
    "mask_fcn_logits": (CLASSES + 1, 6, 1, 1),
}


def backbone(norm="FrozenBN"):
    stages = []
    for _, stride, before, after in NARROW:
        shape = {"in_channels": before, "out_channels": after, "bottleneck_channels": 4}
        stages.append(ResNet.make_stage(BottleneckBlock, 2, stride_per_block=[stride, 1], norm=norm, **shape))
    return ResNet(BasicStem(3, 4, norm), stages, out_features=["res2", "res3"])


def tree(shapes):
    """A module with parameters of these names."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_parameter(last, nn.Parameter(torch.zeros(shape)))
    return root


def detector(norm="FrozenBN"):
    """A Mask R-CNN's weights, without what runs on them."""
    net = nn.Module()
    net.backbone = FPN(backbone(norm), ["res2", "res3"], 6)
    box, mask, rpn = "roi_heads.box_", "roi_heads.mask_head.", "proposal_generator.rpn_head."
    weights = {
        f"{rpn}conv": (6, 6, 3, 3),
        f"{rpn}objectness_logits": (3, 6, 1, 1),
        f"{rpn}anchor_deltas": (12, 6, 1, 1),
        f"{box}head.fc1": (10, 24),
        f"{box}head.fc2": (10, 10),
        f"{box}predictor.cls_score": (CLASSES + 1, 10),
        f"{box}predictor.bbox_pred": (4 * CLASSES, 10),
        f"{mask}mask_fcn1": (6, 6, 3, 3),
        f"{mask}mask_fcn2": (6, 6, 3, 3),
        f"{mask}deconv": (6, 6, 2, 2),
        f"{mask}predictor": (CLASSES, 6, 1, 1),
    }
    heads = tree(
        {
            f"{name}.{part}": shape[: 1 if part == "bias" else 4]
            for name, shape in weights.items()
            for part in ("weight", "bias")
        }
    )
    for name, module in heads.named_children():
        net.add_module(name, module)
    return net


def array(name, *shape):
    return seeded(name, shape).numpy()


def caffe2_backbone():
    """R-50.pkl in small: Caffe2's blobs of a residual network, without statistics."""
    shapes = {"conv1_w": (4, 3, 7, 7), "conv1_b": (4,), "res_conv1_bn_s": (4,), "res_conv1_bn_b": (4,)}
    shapes.update(fc1000_w=(7, 12), fc1000_b=(7,), conv1_w_momentum=(4, 3, 7, 7))
    for stage, _, before, after in NARROW:
        for block in range(2):
            branches = {"2a": (4, after if block else before, 1, 1), "2b": (4, 4, 3, 3), "2c": (after, 4, 1, 1)}
            if block == 0:
                branches["1"] = (after, before, 1, 1)
            for branch, shape in branches.items():
                name = f"res{stage}_{block}_branch{branch}"
                shapes.update({f"{name}_w": shape, f"{name}_bn_s": shape[:1], f"{name}_bn_b": shape[:1]})
    return {name: array(name, *shape) for name, shape in shapes.items()}


def caffe2_detector():
    found = caffe2_backbone()
    for name, shape in HEADS.items():
        found.update({f"{name}_w": array(f"{name}_w", *shape), f"{name}_b": array(f"{name}_b", *shape[:1])})
    return found


def torchvision_backbone():
    """What Detectron2's tool makes of torchvision's names."""
    state = backbone("BN").state_dict()
    return {name: array(name, *value.shape) for name, value in state.items() if value.dim()}


def files():
    """What a file holds, and the network to load it into."""
    without_statistics = {name: value for name, value in caffe2_backbone().items() if "bn" not in name}
    more = {"weight_order": array("order", 3), "pred_w": array("pred", 3), "pred_b": array("pred_b", 3)}
    pycls = {f"stem.conv1.{name}": torch.ones(4) for name in ("norm.weight", "norm.num_batches_tracked")}
    converted = {"model": torchvision_backbone(), "__author__": "torchvision", "matching_heuristics": True}
    wrong_shape = {**caffe2_backbone(), "res2_0_branch2a_w": array("x", 4, 5, 1, 1)}
    return {
        "backbone.pkl": (caffe2_backbone(), backbone),
        "backbone_in_pyramid.pkl": (caffe2_backbone(), detector),
        "blobs.pkl": ({"blobs": caffe2_detector(), "cfg": "text"}, detector),
        "no_norm.pkl": ({"blobs": {**without_statistics, **more}}, lambda: detector("")),
        "wrong_shape.pkl": (wrong_shape, backbone),
        "nothing_fits.pkl": ({"a_w": array("a", 2), "b_b": array("b", 2)}, backbone),
        "torchvision.pkl": (converted, lambda: detector("BN")),
        "named.pkl": ({"model": caffe2_backbone(), "__author__": "Caffe2", "matching_heuristics": True}, backbone),
        "pycls.pyth": ({"model_state": pycls, "epoch": 3}, detector),
        "bare.pth?matching_heuristics=True": (
            {f"{name}": torch.ones(4) for name in ("stem.conv1.norm.bias", "x")},
            detector,
        ),
        "not_asked.pth": ({"stem.conv1.norm.bias": torch.ones(4)}, detector),
        "ambiguous.pth?matching_heuristics=True": ({"norm.weight": torch.ones(4)}, backbone),
        "ambiguous.pkl": ({"bn_s": array("s", 4)}, backbone),
        "same_name.pkl": ({"fc6_w": array("a", 2), "fc6_weight": array("a", 2)}, backbone),
        "no_state.pyth": ({"model": pycls}, backbone),
        "not_an_array.pkl": ({"conv1_w": "text"}, backbone),
    }


def case_files():
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (content, make) in files().items():
            file = Path(folder) / name.split("?")[0]
            if file.suffix == ".pkl":
                file.write_bytes(pickle.dumps(content, protocol=2))
            else:
                torch.save(content, file)
            torch.manual_seed(0)
            found[name] = loaded(make(), f"{folder}/{name}")
    return found


def loaded(net, path):
    """What a file changes in a network, and what is told of it."""
    before = {key: value.clone() for key, value in net.state_dict().items()}
    checkpointer, told = DetectionCheckpointer(net), []
    checkpointer._log_incompatible_keys = told.append
    with logged() as log:
        error = raised(lambda: checkpointer.load(path))
    state = net.state_dict()
    rows = [[sorted(keys.missing_keys), sorted(keys.unexpected_keys), keys.incorrect_shapes] for keys in told]
    return {
        "fails": error != "no error",
        "loaded": text([key for key, value in state.items() if not torch.equal(value, before[key])]),
        "weights": torch.cat([value.flatten().float() for value in state.values()]),
        "warns": any(level == "WARNING" for level, _ in log),
        "keys": text(rows),
    }


def case_names():
    """Caffe2's names and what becomes of them and of the background's weights."""
    blobs = {name: torch.from_numpy(value) for name, value in caffe2_detector().items()}
    norms = ("bn_s", "bn_b", "bn_rm", "bn_riv", "bn_gamma", "bn_beta", "bn_running_mean", "bn_running_var")
    places = ("res4_22_branch2b", "res_conv1", "fpn_inner_res5_2_sum", "fpn_res4_5_sum", "head_conv1", "other")
    blobs.update(
        {f"{place}_{norm}": seeded(place, (2,)) for place in places[1:] for norm in norms[:4] if place != "res_conv1"}
    )
    groups = ("gn_s", "gn_b")
    blobs.update(
        {
            f"{place}_{norm}": seeded(place, (2,))
            for place in ("fpn_inner_res4_5_sum_lateral", "fpn_res3_3_sum", "head_conv2")
            for norm in groups
        }
    )
    old = {f"conv1_{norm}": seeded(norm, (2,)) for norm in norms[4:8]}
    more = {
        name: seeded(name, (2,))
        for name in ("pred_w", "pred_b", "conv_rpn_w", "rpn_bbox_pred_b", "x_pred_w", "_[mask]_fcn3_b")
    }
    converted, names = convert_c2_detectron_names(blobs)
    older, older_names = convert_c2_detectron_names({**old, **more})
    return {
        "names": text([list(pair) for pair in names.items()]),
        "older": text([list(pair) for pair in older_names.items()]),
        "order": text([*converted, *older]),
        "shapes": text([list(value.shape) for value in converted.values()]),
        "values": torch.cat([value.flatten() for value in converted.values()]),
        "background": [converted["cls_score.bias"], blobs["cls_score_b"], converted["mask_head.predictor.bias"]],
    }


def case_matching():
    """The longest end of a name; what fits nowhere keeps its name."""
    one, two = torch.ones(2), torch.zeros(2)
    model = {"a.b.c.w": one, "a.d.w": one, "ab.w": one, "e": one}
    found = {}
    for name, weights in {
        "longest": {"c.w": two, "b.c.w": two, "x": two},
        "whole_and_end": {"ab.w": two, "w": two, "d.w": two, "c.w": two},
        "whole_parts": {"b.w": two, "d.w": two},
        "whole_name": {"a.b.c.w": two, "c.w": two, "e": two},
        "shape": {"d.w": torch.zeros(3), "e": two},
        "same_name_other_shape": {"e": torch.zeros(3), "d.w": two},
        "nothing": {"z": two, "y": two},
    }.items():
        matched = align_and_update_state_dicts(model, weights, False)
        found[name] = [[key, list(value.shape)] for key, value in matched.items()]
    found["ambiguous"] = raised(lambda: align_and_update_state_dicts(model, {"w": two}, False))
    return found
