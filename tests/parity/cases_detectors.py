"""Cases of detectron2.modeling: whole detectors, and options of their parts."""

import json
import os

import numpy as np
import torch
from answers import Approx, Live, Masks, Unavailable, depends_on, real_data
from detectors import ARCHITECTURES, FULL, SMALL, detector, matcher, picture, proposals, truth
from inputs import raised, text
from networks import sampled, seeded, signature
from PIL import Image

from detectron2.layers import ROIAlign, ShapeSpec, batched_nms, paste_masks_in_image
from detectron2.modeling import detector_postprocess
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

SIZES = [(96, 128), (120, 90), (64, 140), (110, 110)]
# Factors of the class logits with which every image has detections of several classes.
CONFIDENCE = {
    "mask_rcnn_R_18_FPN_GN": 8.0,
    "mvitv2_t_mask_rcnn": 2.5,
    "cascade_mask_rcnn_mvitv2_t": 15.0,
}
REAL_CONFIDENCE = {"mask_rcnn_R_18_FPN_GN": 5.0, "mvitv2_t_mask_rcnn": 2.5, "cascade_mask_rcnn_mvitv2_t": 20.0}
# A pyramid and heads as in the configs; fewer regions, which change nothing but the time.
REAL = {**FULL, "proposals": ((2000, 1000), (300, 100)), "sampled": (256, 64), "detections": 30}


def detections(instances):
    boxes, classes = instances.pred_boxes.tensor, instances.pred_classes
    assert len(boxes) >= 10 and len(classes.unique()) >= 3, "there is too little to compare"
    return {
        "size": list(instances.image_size),
        "boxes": [Approx(column, rtol=0, atol=1e-3) for column in boxes.T],
        "scores": Approx(instances.scores, rtol=0, atol=1e-5),
        "classes": classes,
        "best_masks": Masks(instances.pred_masks[:3]),
        "masks": Live(Masks(instances.pred_masks)),
    }


def scalars(values):
    return {name: Approx(float(value), rtol=1e-5, atol=1e-5) for name, value in values.items()}


def events(storage):
    return scalars({name: value for name, (value, _) in storage.latest().items()})


def gradients(model):
    """The largest gradient of each parameter, and all of them against it."""
    found = {name: value.grad for name, value in sorted(model.named_parameters()) if value.grad is not None}
    largest = torch.stack([value.abs().max() for value in found.values()])
    return {
        "names": text(list(found)),
        "largest": [Approx(part, rtol=1e-4, atol=1e-7) for part in largest.split(64)],
        "each": Live({
            name: Approx(value / scale.clamp(min=1e-12), rtol=0, atol=1e-4)
            for (name, value), scale in zip(found.items(), largest, strict=True)
        }),
    }  # fmt: skip


def trained(model, inputs, fixed):
    """Losses, scalars and gradients; the region heads get the given proposals, and once those of the network."""
    torch.manual_seed(3)
    model.train()
    images = model.preprocess_image(inputs)
    instances = [one["instances"] for one in inputs]
    with EventStorage() as storage:
        features = model.backbone(images.tensor)
        _, proposal_losses = model.proposal_generator(images, features, instances)
        _, head_losses = model.roi_heads(images, features, fixed, instances)
        losses = {**proposal_losses, **head_losses}
        sum(losses.values()).backward()
        found = {"losses": scalars(losses), "events": events(storage), "gradients": gradients(model)}
    with EventStorage() as storage, torch.no_grad():
        found["as_one"] = {"losses": scalars(model(inputs)), "events": events(storage)}
    return {**found, "next_random_number": Approx(torch.rand(()))}


def whole(name):
    model = detector(name, SMALL, CONFIDENCE.get(name, 3.0)).eval()
    inputs = [
        {"image": picture(*size, i), "height": size[0] * 3 // 4, "width": size[1]} for i, size in enumerate(SIZES)
    ]
    with torch.no_grad():
        outputs = [detections(one["instances"]) for one in model(inputs)]
    for i, (one, size) in enumerate(zip(inputs, SIZES, strict=True)):
        one["instances"] = truth(*size, seed=i, count=0 if i == 2 else 6, bitmaps=i == 1)
    chosen = inputs[:3]
    fixed = [proposals(one["instances"], i) for i, one in enumerate(chosen)]
    return {"weights": signature(model), "outputs": outputs, **trained(model, chosen, fixed)}


@depends_on("torch", "torchvision")
def case_mask_rcnn_r50():
    return whole("mask_rcnn_R_50_FPN")


@depends_on("torch", "torchvision")
def case_mask_rcnn_r101():
    return whole("mask_rcnn_R_101_FPN")


@depends_on("torch", "torchvision")
def case_mask_rcnn_r18_gn():
    return whole("mask_rcnn_R_18_FPN_GN")


@depends_on("torch", "torchvision")
def case_mask_rcnn_mvitv2():
    return whole("mvitv2_t_mask_rcnn")


@depends_on("torch", "torchvision")
def case_cascade_mvitv2():
    return whole("cascade_mask_rcnn_mvitv2_t")


def photographs():
    """Four of coco_tiny80's images of different shapes, the short side 320 px, with their annotations."""
    if not os.environ.get("SAM_D2_PARITY_FULL"):
        raise Unavailable("SAM_D2_PARITY_FULL is not set: these cases take minutes")
    folder = real_data() / "coco_tiny80"
    dataset = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    ids = {category["id"]: k for k, category in enumerate(dataset["categories"])}
    shapes = {}
    for image in dataset["images"]:
        found = [a for a in dataset["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        if len(found) >= 3:
            shapes.setdefault((image["height"], image["width"]), (image, found))
    by_shape = sorted(shapes.items(), key=lambda item: item[0][1] / item[0][0])
    for (height, width), (image, annotations) in [by_shape[i * (len(by_shape) - 1) // 3] for i in range(4)]:
        scale = 320 / min(height, width)
        h, w = round(height * scale), round(width * scale)
        path = folder / "images" / "val2017" / image["file_name"]
        pixels = np.asarray(Image.open(path).convert("RGB").resize((w, h), Image.Resampling.BILINEAR))[:, :, ::-1]
        boxes = torch.tensor([a["bbox"] for a in annotations]) * scale
        instances = Instances((h, w))
        instances.gt_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
        instances.gt_classes = torch.tensor([ids[a["category_id"]] for a in annotations])
        instances.gt_masks = PolygonMasks([[np.array(p) * scale for p in a["segmentation"]] for a in annotations])
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        yield {"image": tensor, "height": height, "width": width, "instances": instances}


def real(name):
    inputs = list(photographs())
    model = detector(name, REAL, REAL_CONFIDENCE.get(name, 3.0)).eval()
    with torch.no_grad():
        outputs = [detections(model([one])[0]["instances"]) for one in inputs]
    chosen = inputs[:2]
    fixed = [proposals(one["instances"], i) for i, one in enumerate(chosen)]
    return {"found": Live({"outputs": outputs, **trained(model, chosen, fixed)})}


def case_photographs_r50():
    return real("mask_rcnn_R_50_FPN")


def case_photographs_r101():
    return real("mask_rcnn_R_101_FPN")


def case_photographs_r18_gn():
    return real("mask_rcnn_R_18_FPN_GN")


def case_photographs_mvitv2():
    return real("mvitv2_t_mask_rcnn")


def case_photographs_cascade():
    return real("cascade_mask_rcnn_mvitv2_t")


@depends_on("torch")
def case_initial_weights():
    """A seed gives the same weights, layer by layer."""
    found = {}
    for name in ("mask_rcnn_R_18_FPN_GN", "cascade_mask_rcnn_mvitv2_t"):
        torch.manual_seed(5)
        model = ARCHITECTURES[name](SMALL)
        parts = {"rpn": model.proposal_generator, "heads": model.roi_heads}
        values = {
            f"{part}.{key}": value
            for part, module in parts.items()
            for key, value in module.state_dict().items()
            if value.is_floating_point() and value.dim() > 1
        }
        found[name] = {"names": text(list(values)), "values": [sampled(value) for value in values.values()]}
    return found


def case_given_boxes():
    """Masks for boxes that are known, outputs in the frame of the input, and proposals that come with it."""
    model = detector("mask_rcnn_R_18_FPN_GN", confidence=8.0).eval()
    inputs = [{"image": picture(*size, i)} for i, size in enumerate(SIZES[:2])]
    given = []
    for i, size in enumerate(SIZES[:2]):
        target = truth(*size, seed=i, count=3)
        given.append(Instances(size, pred_boxes=target.gt_boxes, pred_classes=target.gt_classes))
    generator = model.proposal_generator
    with torch.no_grad():
        there = model.inference(inputs, given, do_postprocess=False)
        raw = model.inference(inputs, do_postprocess=False)
        model.proposal_generator = None
        fixed = [proposals(truth(*size, seed=i), i) for i, size in enumerate(SIZES[:2])]
        outputs = model([{**one, "proposals": own} for one, own in zip(inputs, fixed, strict=True)])
        model.proposal_generator = generator
    return {
        "given": [sampled(one.pred_masks) for one in there],
        "raw": [{"masks": sampled(one.pred_masks), "classes": one.pred_classes} for one in raw],
        "own_proposals": [detections(one["instances"][:10]) for one in outputs],
        "no_images": raised(lambda: model([])),
    }


def case_no_ground_truth():
    """A batch without any object: losses of the background alone."""
    found = {}
    for name in ("mask_rcnn_R_18_FPN_GN", "cascade_mask_rcnn_mvitv2_t"):
        model = detector(name)
        inputs = [{"image": picture(64, 96, 0), "instances": truth(64, 96, seed=0, count=0)}]
        found[name] = trained(model, inputs, [proposals(inputs[0]["instances"], 0)])
    return found


def case_proposal_options():
    """Losses and proposals with each option of the region proposal network."""
    found = {}
    images = [picture(96, 128, 1), picture(96, 128, 2)]
    instances = [truth(96, 128, seed=1), truth(96, 128, seed=2)]
    options = {
        "boundary": {"anchor_boundary_thresh": 0},
        "weights": {"loss_weight": {"loss_rpn_cls": 2.0, "loss_rpn_loc": 0.5}},
        "smooth": {"smooth_l1_beta": 0.5},
        "size": {"min_box_size": 12.0},
        **{kind: {"box_reg_loss_type": kind} for kind in ("giou", "diou", "ciou")},
    }
    model = detector("mask_rcnn_R_18_FPN_GN")
    generator = model.proposal_generator
    batch = model.preprocess_image([{"image": image} for image in images])
    with torch.no_grad():
        features = model.backbone(batch.tensor)
        for name, settings in options.items():
            before = {key: getattr(generator, key) for key in settings}
            vars(generator).update(settings)
            torch.manual_seed(0)
            with EventStorage() as storage:
                generator.train()
                proposed, losses = generator(batch, features, instances)
            vars(generator).update(before)
            found[name] = {
                "losses": scalars(losses),
                "events": events(storage),
                "boxes": [sampled(one.proposal_boxes.tensor) for one in proposed],
                "logits": [sampled(one.objectness_logits) for one in proposed],
            }
        broken = {name: value * float("nan") for name, value in features.items()}
        found["nan"] = raised(lambda: generator(batch, broken, instances))
        generator.eval()
        found["nan_at_test"] = [len(one) for one in generator(batch, broken, None)[0]]
    return found


def case_box_predictor():
    """Losses, boxes and detections with each option of the box predictor."""
    options = {
        "plain": {},
        "agnostic": {"cls_agnostic_bbox_reg": True},
        "sigmoid": {"use_sigmoid_ce": True},
        "smooth": {"smooth_l1_beta": 0.3, "loss_weight": {"loss_box_reg": 3.0}},
        **{kind: {"box_reg_loss_type": kind, "loss_weight": 2.0} for kind in ("giou", "diou", "ciou")},
    }
    targets = [truth(64, 96, seed=i, count=5) for i in range(2)]
    own = [proposals(target, i, count=20) for i, target in enumerate(targets)]
    for one, target in zip(own, targets, strict=True):
        nearest = torch.arange(len(one)) % 5
        one.gt_boxes, one.gt_classes = target.gt_boxes[nearest], target.gt_classes[nearest] % 7
        one.gt_classes[::3] = 7
    x = seeded("features", (sum(map(len, own)), 12))
    found = {}
    for name, settings in options.items():
        layers = FastRCNNOutputLayers(
            ShapeSpec(channels=12),
            box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
            num_classes=7,
            test_score_thresh=0.1,
            **settings,
        )
        for key, value in layers.state_dict().items():
            value.copy_(seeded(key, value.shape))
        with torch.no_grad(), EventStorage() as storage:
            predictions = layers(x)
            instances, rows = layers.inference(predictions, own)
            found[name] = {
                "losses": scalars(layers.losses(predictions, own)),
                "empty": scalars(layers.losses(layers(x[:0]), [one[:0] for one in own])),
                "events": events(storage),
                "boxes": [sampled(one) for one in layers.predict_boxes(predictions, own)],
                "for_class": [sampled(one) for one in layers.predict_boxes_for_gt_classes(predictions, own)],
                "rows": rows,
                "detected": [
                    [sampled(one.pred_boxes.tensor), sampled(one.scores), one.pred_classes] for one in instances
                ],
            }
            predictions[0][3] = float("nan")
            found[name]["nan"] = [one.pred_classes for one in layers.inference(predictions, own)[0]]
    return found


def case_mask_head():
    """A mask for all classes, masks as bitmaps and as polygons, the training on predicted boxes."""
    found = {}
    for name, classes, bitmaps in (("each", 7, False), ("each_bitmaps", 7, True), ("shared", 1, False)):
        head = MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=4, height=5, width=5),
            num_classes=classes,
            conv_dims=[6, 8],
            conv_norm="BN",
            loss_weight=2.0,
        )
        for key, value in head.state_dict().items():
            if value.is_floating_point():
                value.copy_(seeded(key, value.shape).abs() if "running_var" in key else seeded(key, value.shape))
        instances = []
        for i in range(2):
            one = truth(40, 50, seed=i, count=4, bitmaps=bitmaps)
            one.gt_classes %= 7
            one.proposal_boxes = Boxes(one.gt_boxes.tensor + torch.tensor([-2.0, 1.0, 3.0, 0.5]))
            one.pred_classes = one.gt_classes
            instances.append(one)
        x = seeded("regions", (8, 4, 5, 5))
        with EventStorage() as storage, torch.no_grad():
            found[name] = {"loss": scalars(head(x, instances)), "events": events(storage)}
            found[name]["empty"] = scalars(head(x[:0], [one[:0] for one in instances]))
            found[name]["masks"] = [sampled(one.pred_masks) for one in head.eval()(x, instances)]
    model = detector("mask_rcnn_R_18_FPN_GN")
    model.roi_heads.train_on_pred_boxes = True
    inputs = [{"image": picture(64, 96, 0), "instances": truth(64, 96, seed=0)}]
    found["on_predicted_boxes"] = trained(model, inputs, [proposals(inputs[0]["instances"], 0)])
    return found


def case_anchors():
    features = [torch.zeros(1, 1, 3, 5), torch.zeros(1, 1, 2, 3)]
    generators = {
        "plain": DefaultAnchorGenerator(sizes=[[32], [64]], aspect_ratios=[0.5, 1.0, 2.0], strides=[4, 8], offset=0.0),
        "middle": DefaultAnchorGenerator(sizes=[8, 20.5], aspect_ratios=[[1.0], [0.25, 3.0]], strides=[5, 10]),
    }
    wrong = {
        "offset": {"sizes": [8], "aspect_ratios": [1], "strides": [4], "offset": 1.0},
        "levels": {"sizes": [[8], [9]], "aspect_ratios": [1], "strides": [4, 8, 16]},
        "empty": {"sizes": [], "aspect_ratios": [1], "strides": [4]},
    }
    return {
        **{
            name: {"anchors": [one.tensor for one in generator(features)], "number": generator.num_anchors}
            for name, generator in generators.items()
        },
        "saved": list(generators["plain"].state_dict()),
        "default": generators["plain"].generate_cell_anchors(),
        "wrong": {name: raised(lambda k=k: DefaultAnchorGenerator(**k)) for name, k in wrong.items()},
    }


def case_matching():
    quality = torch.from_numpy(np.random.RandomState(0).rand(6, 400)).float() ** 3
    quality[2] = 0
    quality[:, 10:20] = 0.3
    matchers = {
        "proposals": matcher(0.5),
        "anchors": Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        "strict": Matcher([0.3, 0.7], [0, -1, 1]),
    }
    wrong = [([0.5], [0, 2]), ([0.7, 0.3], [0, -1, 1]), ([0.5], [0]), ([-0.1], [0, 1])]
    return {
        **{name: [one(quality), one(quality[:0]), one(quality[:, :0])] for name, one in matchers.items()},
        "wrong": [raised(lambda arguments=arguments: Matcher(*arguments)) for arguments in wrong],
        "negative": raised(lambda: matcher(0.5)(quality - 0.5)),
    }


@depends_on("torch")
def case_sampling():
    labels = torch.from_numpy(np.random.RandomState(1).randint(-1, 4, 500))
    found = {}
    for number, fraction, background in [(64, 0.25, 0), (512, 0.5, 3), (1000, 1.0, 0), (3, 0.5, 9)]:
        torch.manual_seed(number)
        found[str((number, fraction, background))] = subsample_labels(labels, number, fraction, background)
    return found


def case_deltas():
    sources, targets = (truth(200, 300, seed=i, count=40).gt_boxes.tensor for i in range(2))
    found = {}
    for weights in [(1.0, 1.0, 1.0, 1.0), (10, 10, 5, 5), [30, 30, 15, 15]]:
        transform = Box2BoxTransform(weights=weights)
        deltas = transform.get_deltas(sources, targets)
        noise = seeded("deltas", (40, 12)) * 20
        applied = [transform.apply_deltas(one, sources) for one in (deltas, noise, noise.half())]
        found[str(list(weights))] = [sampled(one.T[i]) for one in (deltas, *applied) for i in range(4)]
    flat = sources.clone()
    flat[3, 2] = flat[3, 0]
    return {
        **found,
        "flat": raised(lambda: Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).get_deltas(flat, targets)) != "no error",
    }


def case_pooling():
    features = [seeded(f"level {i}", (2, 3, 64 // 2**i, 80 // 2**i)) for i in range(4)]
    boxes = [truth(256, 320, seed=i, count=30).gt_boxes for i in range(2)]
    boxes[0].tensor[:5] *= torch.tensor([[0.02], [0.1], [0.2], [0.3], [0.0]])
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    found = {}
    for kind in ("ROIAlignV2", "ROIAlign"):
        for ratio in (0, 2):
            pooled = ROIPooler(7, scales, ratio, kind)(features, boxes)
            found[f"{kind} {ratio}"] = [sampled(pooled), sampled(pooled.mean(dim=(1, 2, 3)))]
    one = ROIPooler((3, 5), scales[:1], 0, "ROIAlignV2")
    found["one level"] = sampled(one(features[:1], boxes))
    found["canonical"] = sampled(ROIPooler(2, scales, 0, "ROIAlignV2", 64, 3)(features, boxes))
    found["empty"] = list(ROIPooler(7, scales, 0, "ROIAlignV2")(features, [one[:0] for one in boxes]).shape)
    regions = torch.cat([torch.zeros(30, 1), boxes[0].tensor], dim=1)
    found["module"] = sampled(ROIAlign((4, 6), 0.25, 0)(features[0], regions))
    wrong = {
        "kind": lambda: ROIPooler(7, scales, 0, "ROIAligned"),
        "power": lambda: ROIPooler(7, (1 / 3, 1 / 6), 0, "ROIAlign"),
        "pyramid": lambda: ROIPooler(7, (1 / 4, 1 / 16), 0, "ROIAlign"),
        "features": lambda: one(features, boxes),
        "images": lambda: one(features[:1], boxes[:1]),
    }
    return {**found, "wrong": {name: raised(call) for name, call in wrong.items()}}


def case_pasting():
    masks = torch.sigmoid(seeded("masks", (8, 28, 28)) * 2)
    boxes = truth(90, 120, seed=4, count=8).gt_boxes
    boxes.tensor[0] = torch.tensor([-10.0, -5.5, 130.0, 95.0])
    boxes.tensor[1] = torch.tensor([50.2, 40.1, 50.9, 40.8])
    return {
        "half": Masks(paste_masks_in_image(masks, boxes, (90, 120))),
        "low": Masks(paste_masks_in_image(masks, boxes.tensor, (90, 120), threshold=0.1)),
        "values": Approx(paste_masks_in_image(masks, boxes, (90, 120), threshold=-1), atol=1),
        "integers": Masks(paste_masks_in_image((masks > 0.5).long(), boxes, (90, 120))),
        "none": paste_masks_in_image(masks[:0], boxes[:0], (90, 120)),
        "oblong": raised(lambda: paste_masks_in_image(masks[:, 1:], boxes, (90, 120))),
    }


def case_postprocessing():
    def results():
        one = Instances((90, 120))
        one.pred_boxes = truth(90, 120, seed=4, count=8).gt_boxes
        one.pred_boxes.tensor[2] = torch.tensor([130.0, 20.0, 140.0, 30.0])  # outside
        one.scores = torch.linspace(0, 1, 8)
        one.pred_masks = torch.sigmoid(seeded("masks", (8, 1, 28, 28)) * 2)
        return one

    found = {}
    for size in [(90, 120), (45, 170), (131, 129)]:
        for threshold in (0.5, 0.7):
            one = detector_postprocess(results(), *size, threshold)
            found[str((*size, threshold))] = {
                "boxes": Approx(one.pred_boxes.tensor, rtol=1e-5),
                "scores": Approx(one.scores),
                "masks": Masks(one.pred_masks[:3]),
                "size": list(one.image_size),
            }
    proposed = Instances((90, 120), proposal_boxes=results().pred_boxes)
    found["proposals"] = Approx(detector_postprocess(proposed, 45, 60).proposal_boxes.tensor)
    found["no boxes"] = raised(lambda: detector_postprocess(Instances((9, 12), scores=torch.ones(2)), 9, 12))
    return found


def case_suppression():
    boxes = truth(100, 100, seed=7, count=60).gt_boxes.tensor
    scores, groups = seeded("scores", (60,)).sigmoid(), torch.arange(60) % 3
    return {str(limit): batched_nms(boxes, scores, groups, limit) for limit in (0.1, 0.5, 0.9)}
