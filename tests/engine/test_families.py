"""Every family of models through the trainer: gradients of two processes, mixed precision."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

import detectron2
from detectron2.config import instantiate
from detectron2.engine import HookBase
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from sam_d2.config import apply_overrides, load_config
from sam_d2.data.loader import sample_seed
from sam_d2.engine.distributed import distribute
from sam_d2.engine.trainer import Trainer

SEED = 5
SIDE = 64

REGIONS = [
    "model.roi_heads.num_classes=2",
    "model.roi_heads.batch_size_per_image=16",
    "model.proposal_generator.post_nms_topk=[40,20]",
    "model.backbone.out_channels=32",
    "model.roi_heads.mask_head.conv_dims=[32,32]",
]
HEADS = ["model.roi_heads.box_head.fc_dims=[16]", "model.roi_heads.box_predictor.input_shape.channels=16"]
MVIT = [
    *REGIONS,
    "model.backbone.bottom_up.depth=4",
    "model.backbone.bottom_up.embed_dim=8",
    "model.backbone.bottom_up.last_block_indexes=[0,1,2,3]",
]
CASCADE = [
    *MVIT,
    *(f"model.roi_heads.box_heads.{stage}.conv_dims=[32]" for stage in range(3)),
    *(f"model.roi_heads.box_heads.{stage}.fc_dims=[16]" for stage in range(3)),
    *(f"model.roi_heads.box_predictors.{stage}.input_shape.channels=16" for stage in range(3)),
]
TORCHVISION = [
    "train.init_checkpoint=",
    "model.num_classes=2",
    f"model.min_size=[{SIDE}]",
    f"model.max_size={SIDE}",
    "model.rpn_post_nms_top_n_train=20",
    "model.box_batch_size_per_image=8",
]
SAM = [
    f"model.image_encoder.img_size={SIDE}",
    "model.image_encoder.depth=1",
    "model.image_encoder.embed_dim=32",
    "model.image_encoder.out_chans=32",
]
GROUPS = [f"model.roi_heads.box_heads.{stage}.conv_norm=GN" for stage in range(3)]
FAMILIES = {
    "mask_rcnn": ("mask_rcnn_R_18_FPN.py", [*REGIONS, *HEADS]),
    "mask_rcnn_frozen": ("mask_rcnn_R_18_FPN.py", [*REGIONS, *HEADS, "model.backbone.bottom_up.freeze_at=2"]),
    "mvitv2": ("mvitv2_mask_rcnn.py", [*MVIT, *HEADS]),
    "cascade": ("cascade_mask_rcnn_mvitv2_t.py", [*CASCADE, *GROUPS, "model.roi_heads.mask_head.conv_norm=GN"]),
    "torchvision": ("cartons.py", TORCHVISION),
    "sam": ("sam_tiny.py", [*SAM, "model.prompt=mixed"]),
    "sam_decoder": ("sam_tiny.py", [*SAM, "model.freeze=[image_encoder,prompt_encoder]"]),
    "sam_clicks": ("sam_tiny.py", [*SAM, "model.prompt=clicks", "model.activation_checkpointing=true"]),
    "sam_lora": ("sam_tiny_lora.py", SAM),
}
"""Config and overrides of a small model of each family; how DDP wraps it is the config's own."""
COUPLED = {"cascade_coupled": ("cascade_mask_rcnn_mvitv2_t.py", CASCADE)}
"""As configured, its heads normalise by the regions of all processes: no process alone has a gradient to compare."""
MISSING = (
    ()
    if "sam_d2" in detectron2.__version__ or importlib.util.find_spec("timm")
    else ("mvitv2", "cascade", "cascade_coupled")
)
"""What Detectron2 itself takes two layers of timm for."""
LARGE = "torchvision"
"""A ResNet-50, the smallest that torchvision has."""
STEPS = {"all have some": ([2, 1], [1, 3]), "the second has none": ([2, 1], [0, 0]), "none": ([0, 0], [0, 0])}
"""Instances of the two images of each process."""


def sample(number, count):
    """An image with ``count`` rectangles, 0 to 3, of two classes."""
    generator = torch.Generator().manual_seed(number)
    boxes = torch.tensor([[4.0 + 20 * i, 8, 20 + 20 * i, 30 + 10 * i] for i in range(count)]).reshape(-1, 4)
    instances = Instances((SIDE, SIDE))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_masks = PolygonMasks(
        [[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes.tolist()]
    )
    instances.gt_classes = torch.arange(count) % 2
    image = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    size = {"height": SIDE, "width": SIDE}
    return {"image": image, "instances": instances, "image_id": number, "seed": number, **size}


def batches(rank):
    return [
        [sample(10 * step + 2 * rank + i, count) for i, count in enumerate(counts[rank])]
        for step, counts in enumerate(STEPS.values())
    ]


def build(root, name, more=()):
    if name in MISSING:
        pytest.skip("Detectron2's MViT needs timm")
    config, overrides = {**FAMILIES, **COUPLED}[name]
    cfg = apply_overrides(load_config(root / "configs" / config), [*overrides, *more])
    torch.manual_seed(0)
    return cfg, instantiate(cfg.model)


MOST = 1000
"""Numbers of a parameter's gradient that are compared, at equal distances: a ResNet-50 has 44 million."""


class Recorder(HookBase):
    """Keeps some numbers of each gradient, and the sum of the losses."""

    def __init__(self, model):
        self.model, self.gradients, self.losses = model, [], []

    def after_backward(self):
        self.gradients.append(some_numbers(self.model))

    def after_step(self):
        if comm.is_main_process():
            self.losses.append(self.trainer.storage.latest()["total_loss"][0])


def some_numbers(model):
    gradients = {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}
    return {name: gradient[:: -(-len(gradient) // MOST)].clone() for name, gradient in gradients.items()}


def train(cfg, model, data, **options):
    recorder = Recorder(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=options.pop("lr", 0.0))
    trainer = Trainer(distribute(model, **cfg.train.ddp), data, optimizer, seed=SEED, **options)
    trainer.register_hooks([recorder])
    trainer.train(0, len(data))
    return recorder


def gradients_of(root, names):
    found = {}
    for name in names:
        cfg, model = build(root, name)
        found[name] = train(cfg, model, batches(comm.get_rank()), oom_retry=name not in BY_DDP).gradients
    return found


BY_DDP = ("mask_rcnn", "sam_decoder")
"""The others exchange gradients after the backward pass, as ``train.oom_retry`` has it by default."""


@pytest.fixture(scope="module")
def in_both(in_two_processes, root):
    """The gradients of each process, by family, of steps at rate 0; that it ends is a part of the test."""
    names = [name for name in (*FAMILIES, *COUPLED) if name not in (LARGE, *MISSING)]
    return in_two_processes(gradients_of, root, names)


def single_gradients(model, batch, seed):
    model.zero_grad()
    torch.manual_seed(seed)
    with EventStorage():
        sum(model(batch).values()).backward()
    return some_numbers(model)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != LARGE])
def test_the_gradient_is_the_mean_of_two_single_ones(in_both, root, name):
    check_means(in_both, root, name)


@pytest.mark.slow
def test_and_torchvisions(in_two_processes, root):
    check_means(in_two_processes(gradients_of, root, [LARGE]), root, LARGE)


def check_means(in_both, root, name):
    model = build(root, name)[1].train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert 0 < len(trained) < len(list(model.parameters())) or "frozen" not in name
    for step, what in enumerate(STEPS):
        # what a model draws by itself is seeded from run, step and process
        single = [single_gradients(model, batches(rank)[step], sample_seed(SEED, 2 * step + rank)) for rank in range(2)]
        first, second = (gradients[name][step] for gradients in in_both)
        assert first.keys() == second.keys() == single[0].keys() == single[1].keys() == trained
        largest = max(gradient.abs().max().item() for gradient in first.values())
        assert 0 < largest < 1e6 or what == "none"
        for parameter, gradient in first.items():
            assert torch.equal(gradient, second[parameter]), (what, parameter)
            mean = (single[0][parameter] + single[1][parameter]) / 2
            where = f"{what}, {parameter}: {{}}".format
            torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6 * largest, msg=where)


@pytest.mark.skipif("cascade_coupled" in MISSING, reason="Detectron2's MViT needs timm")
def test_heads_that_normalise_over_all_processes(in_both):
    first, second = (gradients["cascade_coupled"] for gradients in in_both)
    for step in range(len(STEPS)):
        assert first[step].keys() == second[step].keys()
        assert all(torch.equal(gradient, second[step][name]) for name, gradient in first[step].items())
        assert all(gradient.isfinite().all() for gradient in first[step].values())
    heads = [name for name in first[0] if "box_head.0.conv" in name and name.endswith("norm.weight")]
    assert heads and all(first[0][name].abs().max() > 0 for name in heads)


NORMAL = {LARGE: ["model.norm=BN"]}
"""Random weights under frozen statistics make activations that grow from layer to layer."""


HALF_FAMILIES = ("mask_rcnn", "mvitv2", "cascade_coupled", "sam", "sam_lora")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in HALF_FAMILIES),
        *(pytest.param(name, torch.float16, marks=pytest.mark.slow) for name in HALF_FAMILIES if name != "sam"),
        ("sam", torch.float16),
        pytest.param(LARGE, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_mixed_precision(root, name, dtype):
    cfg, model = build(root, name, NORMAL.get(name, ()))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    seen = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    data = batches(0)
    recorder = train(cfg, model, [data[0], data[0], data[2]], lr=1e-3, amp_dtype=dtype)
    assert seen == {dtype}
    full = train(*build(root, name, NORMAL.get(name, ())), data[:1]).losses[0]
    # other roundings propose other regions
    assert recorder.losses[0] == pytest.approx(full, rel=0.3) and np.isfinite(recorder.losses).all()
    after = dict(model.named_parameters())
    assert {p.dtype for p in after.values()} == {torch.float32} and all(p.isfinite().all() for p in after.values())
    assert sum(not torch.equal(p, before[name]) for name, p in after.items()) > len(after) / 20
    seen.clear()
    with torch.no_grad():
        model.eval()([sample(0, 2)])
    assert seen == {torch.float32}, "tests are in full precision"
