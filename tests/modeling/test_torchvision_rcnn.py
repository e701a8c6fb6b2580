"""torchvision's Mask R-CNN in Detectron2's contract: the numbers of a direct call, and every empty case."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

import sam_d2  # noqa: F401
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from sam_d2.engine.checkpoint import Checkpointer
from sam_d2.engine.torchvision_weights import torchvision_mask_rcnn
from sam_d2.errors import UserError
from sam_d2.modeling.torchvision_build import build_mask_rcnn
from sam_d2.modeling.torchvision_rcnn import TorchvisionMaskRCNN, coco_labels

SMALL = {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20}
SMALL |= {"box_batch_size_per_image": 8, "box_detections_per_img": 20}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def image(height=48, width=64):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def sample(count, height=48, width=64):
    polygons = [[np.array([8.0 + 20 * i, 8, 24 + 20 * i, 8, 24 + 20 * i, 36, 8 + 20 * i, 36])] for i in range(count)]
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[8.0 + 20 * i, 8, 24 + 20 * i, 36] for i in range(count)]).reshape(-1, 4))
    instances.gt_masks = PolygonMasks(polygons)
    instances.gt_classes = torch.arange(count)
    return {"image": image(height, width), "instances": instances, "height": height, "width": width}


def with_many_detections(model, images):
    """Give random predictors logits of a spread of 2 (boxes: 0.5) on images; few detections would prove little."""
    seen = []
    hook = model.roi_heads.box_predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        GeneralizedRCNN.forward(model, [one.float() / 255 for one in images])
        hook.remove()
        norm = seen[0].norm(dim=1).mean()
        for layer, spread in (
            (model.roi_heads.box_predictor.cls_score, 2),
            (model.roi_heads.box_predictor.bbox_pred, 0.5),
        ):
            layer.weight.normal_(0, float(spread / norm))
            layer.bias.zero_()
    return model


@pytest.fixture(scope="module")
def built():
    """``built(architecture, norm)``: a model of two classes in training mode, made once, because that takes seconds."""
    models = {}

    def get(architecture="maskrcnn_resnet50_fpn", norm="FrozenBN"):
        key = (architecture, norm)
        if key not in models:
            models[key] = build_mask_rcnn(architecture, num_classes=2, norm=norm, **SMALL)
        models[key].zero_grad()
        return models[key].train()

    return get


def on_meta(architecture="maskrcnn_resnet50_fpn", **options):
    with torch.device("meta"):
        return build_mask_rcnn(architecture, **options)


@pytest.mark.parametrize("architecture", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_detections_equal_a_direct_call(architecture):
    direct = getattr(detection, architecture)(weights=None, weights_backbone=None, num_classes=5, **SMALL)
    images = [image(), image(90, 40)]
    with_many_detections(direct, images)
    assert on_meta(architecture, num_classes=4, norm="BN").state_dict().keys() == direct.state_dict().keys()
    model = TorchvisionMaskRCNN(direct, [1, 2, 3, 4]).eval()
    with torch.no_grad():
        expected = direct([one.float() / 255 for one in images])
    found = model([{"image": one, "height": one.shape[1], "width": one.shape[2]} for one in images])
    assert sum(len(one["labels"]) for one in expected) > 20 and len(set(expected[0]["labels"].tolist())) > 1
    for one, output in zip(expected, found, strict=True):
        instances = output["instances"]
        torch.testing.assert_close(instances.pred_boxes.tensor, one["boxes"], rtol=0, atol=0)
        torch.testing.assert_close(instances.scores, one["scores"], rtol=0, atol=0)
        assert torch.equal(instances.pred_classes + 1, one["labels"])
        assert torch.equal(instances.pred_masks, one["masks"][:, 0] >= 0.5)
        assert instances.pred_masks.any()


def test_detections_are_in_the_original_frame(built):
    one = image(48, 64)
    model = with_many_detections(built(), [one])
    same, doubled = (model([{"image": one, "height": h, "width": w}])[0]["instances"] for h, w in ((48, 64), (96, 192)))
    assert len(same) > 5 and doubled.pred_masks.shape[1:] == (96, 192)
    # x 192 / 64 and y 96 / 48
    scale = torch.tensor([3.0, 2, 3, 2])
    torch.testing.assert_close(doubled.pred_boxes.tensor, same.pred_boxes.tensor * scale)


def test_losses_equal_a_direct_call():
    direct = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, **SMALL)
    model = TorchvisionMaskRCNN(direct, [1, 2])  # the same modules
    batch = [sample(2), sample(1)]
    masks = [torch.zeros(len(one["instances"]), 48, 64, dtype=torch.uint8) for one in batch]
    for mask in masks:
        for row in range(len(mask)):
            mask[row, 8:36, 8 + 20 * row : 24 + 20 * row] = 1  # pixels between the polygons' edges
    targets = [
        {"boxes": one["instances"].gt_boxes.tensor, "labels": one["instances"].gt_classes + 1, "masks": mask}
        for one, mask in zip(batch, masks, strict=True)
    ]
    torch.manual_seed(3)  # of the regions that are sampled
    expected = direct([one["image"].float() / 255 for one in batch], targets)
    torch.manual_seed(3)
    found = model(batch)
    assert found.keys() == expected.keys() and all(name.startswith("loss_") for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (0,)])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_images_without_instances_train(counts, norm, built):
    model = built("maskrcnn_resnet50_fpn_v2", norm)
    head = {name: value.clone() for name, value in model.roi_heads.mask_head.named_buffers()}
    losses = model([sample(count) for count in counts])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name, parameter in trained.items() if parameter.grad is None], "DDP would wait for these"
    assert all(torch.isfinite(parameter.grad).all() for parameter in trained.values())
    if not any(counts):
        assert losses["loss_mask"] == 0 and losses["loss_box_reg"] == 0
        for name, value in model.roi_heads.mask_head.named_buffers():
            assert torch.equal(value, head[name]), "statistics of no pixel"
    assert all(module.training for module in model.modules())


def test_norms_over_processes_are_those_of_one_in_a_process_alone(built):
    plain, synced = built("maskrcnn_resnet50_fpn_v2", "BN"), built("maskrcnn_resnet50_fpn_v2", "SyncBN")
    kinds = {type(module) for module in synced.modules() if "BatchNorm" in type(module).__name__}
    assert kinds == {nn.SyncBatchNorm}
    synced.load_state_dict(plain.state_dict())
    pixels = image(64, 64)[None].float() / 255
    features = [model.backbone(pixels)["0"] for model in (plain, synced)]
    torch.testing.assert_close(*features)


@pytest.mark.parametrize("others_have_some", [True, False])
def test_norms_over_processes_wait_for_no_process_without_instances(built, monkeypatch, others_have_some):
    """In eval mode they would take no part in the statistics, and the others would wait for ever."""
    model = built("maskrcnn_resnet50_fpn_v2", "SyncBN")
    monkeypatch.setattr(comm, "all_gather", lambda nothing: [nothing, not others_have_some])
    modes = []
    handle = model.roi_heads.mask_head.register_forward_hook(lambda head, *_: modes.append(head.training))
    model([sample(0)])
    handle.remove()
    assert modes == [others_have_some]


def test_a_norm_in_eval_mode_stays_in_it(built):
    model = built("maskrcnn_resnet50_fpn_v2", "BN")
    norm = model.roi_heads.mask_head[0][1].eval()  # as for a validation loss
    model([sample(0)])
    assert not norm.training and model.roi_heads.mask_head.training


def test_labels_are_cocos_for_as_many_classes():
    assert on_meta(num_classes=80).roi_heads.box_predictor.cls_score.out_features == 91
    assert on_meta(num_classes=80, labels="contiguous").roi_heads.box_predictor.cls_score.out_features == 81
    assert on_meta(num_classes=3).roi_heads.box_predictor.cls_score.out_features == 4


def test_bitmaps_and_polygons_give_the_same_losses(built):
    model = built()
    batch = [sample(2)]
    torch.manual_seed(1)
    polygons = model(batch)
    instances = batch[0]["instances"]
    instances.gt_masks = BitMasks.from_polygon_masks(instances.gt_masks, 48, 64)
    torch.manual_seed(1)
    bitmaps = model(batch)
    assert all(torch.equal(polygons[name], bitmaps[name]) for name in polygons)


def test_a_box_without_area_is_left_out(built):
    model = built()
    batch = [sample(2)]
    batch[0]["instances"].gt_boxes.tensor[1, 2] = batch[0]["instances"].gt_boxes.tensor[1, 0]
    torch.manual_seed(1)
    losses = model(batch)
    torch.manual_seed(1)
    alone = model([{**batch[0], "instances": batch[0]["instances"][:1]}])
    assert all(torch.equal(losses[name], alone[name]) for name in losses)


@pytest.mark.parametrize("count", range(6))
def test_trainable_layers(count):
    model = on_meta(num_classes=2, trainable_layers=count)
    body = model.backbone.body
    trained = {name.split(".")[0] for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert trained == set(["layer4", "layer3", "layer2", "layer1", "conv1"][:count])
    assert all(parameter.requires_grad for parameter in model.roi_heads.parameters())


def test_every_parameter_of_rpn_and_heads_arrives():
    model = on_meta(
        num_classes=1,
        min_size=[200, 300],
        max_size=500,
        rpn_fg_iou_thresh=0.8,
        rpn_bg_iou_thresh=0.4,
        rpn_positive_fraction=0.6,
        rpn_batch_size_per_image=99,
        rpn_nms_thresh=0.6,
        rpn_pre_nms_top_n_train=11,
        rpn_post_nms_top_n_train=12,
        rpn_pre_nms_top_n_test=13,
        rpn_post_nms_top_n_test=14,
        box_score_thresh=0.15,
        box_nms_thresh=0.35,
        box_detections_per_img=77,
        box_fg_iou_thresh=0.55,
        box_bg_iou_thresh=0.45,
        box_batch_size_per_image=88,
        box_positive_fraction=0.3,
    )
    rpn, heads = model.rpn, model.roi_heads
    assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold) == (0.8, 0.4)
    assert (rpn.fg_bg_sampler.positive_fraction, rpn.fg_bg_sampler.batch_size_per_image) == (0.6, 99)
    assert rpn.nms_thresh == 0.6
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (11, 12)
    model.eval()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (13, 14)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.15, 0.35, 77)
    assert (heads.proposal_matcher.high_threshold, heads.proposal_matcher.low_threshold) == (0.55, 0.45)
    assert (heads.fg_bg_sampler.positive_fraction, heads.fg_bg_sampler.batch_size_per_image) == (0.3, 88)
    assert (list(model.transform.min_size), model.transform.max_size) == ([200, 300], 500)


def test_coco_labels_are_its_category_ids():
    labels = coco_labels()
    # the ids that COCO leaves out of 1 to 90
    assert sorted(set(range(1, 91)) - set(labels)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert len(labels) == 80 and labels[11] == 13  # the stop sign, after the gap at 12


def test_coco_heads_give_contiguous_classes_and_drop_labels_of_no_class():
    model = build_mask_rcnn("maskrcnn_resnet50_fpn", num_classes=80, labels="coco", **SMALL).eval()
    assert model.roi_heads.box_predictor.cls_score.out_features == 91
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.zero_()
        model.roi_heads.box_predictor.cls_score.bias.fill_(-9)
        model.roi_heads.box_predictor.cls_score.bias[[12, 13, 90]] = torch.tensor([9.0, 8.0, 8.0])
    found = model([{"image": image(), "height": 48, "width": 64}])[0]["instances"]
    # label 12 is no category: the surest, and gone; 13 is the 12th class and 90 the last
    assert set(found.pred_classes.tolist()) == {11, 79}
    model.train()
    target = model._target(_one_instance(of_class=11))
    assert target["labels"].tolist() == [13]


def _one_instance(of_class):
    instances = sample(1)["instances"]
    instances.gt_classes = torch.tensor([of_class])
    return instances


def published_file(tmp_path, monkeypatch, weights, state):
    monkeypatch.setenv("SAM_D2_CHECKPOINTS", str(tmp_path))
    torch.save(state, tmp_path / weights.url.rpartition("/")[2])


def test_named_weights_are_read_from_a_local_file(tmp_path, monkeypatch):
    weights = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    other = build_mask_rcnn("maskrcnn_resnet50_fpn", num_classes=80)
    # as the published file has them: the names of before torchvision 0.13
    old = {
        name.replace("rpn.head.conv.0.0.", "rpn.head.conv.").replace("mask_head.2.0.", "mask_head.mask_fcn3."): value
        for name, value in other.state_dict().items()
    }
    assert old.keys() != other.state_dict().keys()
    published_file(tmp_path, monkeypatch, weights, old)
    model = torchvision_mask_rcnn("maskrcnn_resnet50_fpn", num_classes=80, labels="coco", weights="DEFAULT")
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.backbone.body.bn1.eps == 0  # as torchvision overwrites it for these weights

    with torch.no_grad():
        model.rpn.head.conv[0][0].weight.zero_()
    Checkpointer(model).load(str(tmp_path / weights.url.rpartition("/")[2]))  # as train.init_checkpoint does
    assert torch.equal(model.rpn.head.conv[0][0].weight, other.rpn.head.conv[0][0].weight)

    few = torchvision_mask_rcnn("maskrcnn_resnet50_fpn", num_classes=2, weights="COCO_V1").state_dict()
    assert few["roi_heads.box_predictor.cls_score.weight"].shape == (3, 1024)
    assert few["roi_heads.mask_predictor.mask_fcn_logits.weight"].shape[0] == 3
    assert torch.equal(few["roi_heads.box_head.fc6.weight"], other.state_dict()["roi_heads.box_head.fc6.weight"])


def test_named_weights_of_the_backbone(tmp_path, monkeypatch):
    from torchvision.models import ResNet50_Weights, resnet50

    backbone = resnet50(weights=None)
    nn.init.constant_(backbone.bn1.running_var, 3.0)
    published_file(tmp_path, monkeypatch, ResNet50_Weights.IMAGENET1K_V1, backbone.state_dict())
    model = torchvision_mask_rcnn("maskrcnn_resnet50_fpn", num_classes=2, weights_backbone="IMAGENET1K_V1")
    body = model.backbone.body
    assert torch.equal(body.layer4[2].conv3.weight, backbone.layer4[2].conv3.weight)
    assert (body.bn1.running_var == 3).all() and body.bn1.eps == 1e-5


def test_absent_weights_are_an_error_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SAM_D2_CHECKPOINTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("no network"))
    url = "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
    with pytest.raises(UserError, match=f"python tools/download_checkpoint.py {url}"):
        torchvision_mask_rcnn("maskrcnn_resnet50_fpn_v2", num_classes=2, weights="COCO_V1")
    with torch.device("meta"):
        torchvision_mask_rcnn("maskrcnn_resnet50_fpn_v2", num_classes=2, weights="COCO_V1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "COCO_V9"}, "torchvision has COCO_V1, DEFAULT"),
        ({"weights": "COCO_V1", "weights_backbone": "DEFAULT"}, "set model.weights_backbone to null"),
        ({"trainable_layers": 6}, "expected one of 0, 1, 2, 3, 4, 5"),
        ({"norm": "GN"}, "expected one of BN, SyncBN, FrozenBN"),
        (
            {"rpn_fg_iou_thresh": 0.3, "rpn_bg_iou_thresh": 0.4},
            r"rpn_bg_iou_thresh=0\.4 is above .*rpn_fg_iou_thresh=0\.3",
        ),
        ({"labels": "coco"}, "COCO's 80 classes, not for 2: take auto"),
        ({"num_classes": 0}, "set it to the number of the dataset's classes"),
        ({"num_classes": None}, "set it to the number of the dataset's classes"),
        ({"input_format": "BGR"}, "torchvision's models take RGB"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(UserError, match=message):
        torchvision_mask_rcnn("maskrcnn_resnet50_fpn", **{"num_classes": 2, **options})


def test_a_class_that_the_model_lacks_is_an_error(built):
    one = sample(2)
    one["instances"].gt_classes += 1
    with pytest.raises(UserError, match=r"set model.num_classes"):
        built()([one])


def test_bfloat16_autocast_trains_and_predicts(built):
    model = built()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([sample(2), sample(0)])
        assert all(torch.isfinite(loss) for loss in losses.values())
        found = model.eval()([sample(0)])[0]["instances"]
    assert found.pred_masks.dtype == torch.bool
