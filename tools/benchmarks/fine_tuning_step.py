"""What each way of fine-tuning costs: a training step against that of another way.

The tiny SAM takes steps of four generated scenes, SAM ViT-B (random weights, canvas of 512 pixels) of one. Images
and annotations are mapped before the clock starts. ``cpu_seconds`` are those of all threads, which other work on the
machine changes less than ``seconds``; both are of all steps together.
"""

from __future__ import annotations

import tempfile
from functools import partial
from itertools import cycle
from pathlib import Path

import torch

import sam_d2  # noqa: F401  makes detectron2 importable
from benchmarks import Benchmark, Measured, Ratio, measure
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from sam_d2.config import apply_overrides, load_config
from sam_d2.data import resolve_dataset
from sam_d2.data.scenes import write_scenes
from sam_d2.engine.ema import WeightAverage
from sam_d2.engine.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VIT_B_512 = ["train.init_checkpoint=", "model.image_encoder.img_size=512", "dataloader.train.total_batch_size=1"]


def training_steps(config: str, overrides: list[str], *, steps: int) -> Measured:
    """Measure the first ``steps`` steps; ``step_mib`` holds what the optimizer and an average keep, too."""
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), num_train=8, num_test=1)
        cfg = apply_overrides(load_config(CONFIGS / config), ["dataloader.train.num_workers=0", *overrides])
        cfg.dataloader.train.dataset.names = resolve_dataset(folder).train
        loader = iter(instantiate(cfg.dataloader.train))
        batches = cycle([next(loader) for _ in range(2 * cfg.train.accumulate)])
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    trainer = Trainer(model, batches, instantiate(cfg.optimizer), accumulate=cfg.train.accumulate)
    average = WeightAverage(model, cfg.train.ema.decay)
    trainer.register_hooks([average])
    with EventStorage() as trainer.storage:
        trainer.iter = 0
        trainer.before_train()
        _, figures = measure(partial(_run, trainer, steps))
    figures["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Measured(figures, [])


def _run(trainer: Trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.run_step()
        trainer.after_step()


_tiny = partial(training_steps, steps=8)
_vit_b = partial(training_steps, steps=2)
_FROZEN = "model.freeze=[image_encoder,prompt_encoder]"

BENCHMARK = Benchmark(
    cases={
        "tiny, everything": partial(_tiny, "sam_tiny.py", []),
        "tiny, mask decoder": partial(_tiny, "sam_tiny.py", [_FROZEN]),
        "tiny, LoRA": partial(_tiny, "sam_tiny_lora.py", []),
        "tiny, EMA": partial(_tiny, "sam_tiny.py", ["train.ema.decay=0.99"]),
        "tiny, 2 x 2 images": partial(
            _tiny, "sam_tiny.py", ["dataloader.train.total_batch_size=2", "train.accumulate=2"]
        ),
        "tiny, clicks": partial(_tiny, "sam_tiny.py", ["model.prompt=clicks"]),
        "ViT-B, mask decoder": partial(_vit_b, "sam.py", VIT_B_512),
        "ViT-B, LoRA": partial(_vit_b, "sam_lora.py", VIT_B_512),
        "ViT-B, everything": partial(_vit_b, "sam.py", [*VIT_B_512, "model.freeze=[]"]),
    },
    ratios=tuple(
        Ratio(figure, f"{model}, {way}", f"{model}, {base}")
        for model, base, ways in (
            ("tiny", "everything", ("mask decoder", "LoRA", "EMA", "2 x 2 images", "clicks")),
            ("ViT-B", "mask decoder", ("LoRA", "everything")),
        )
        for way in ways
        for figure in ("cpu_seconds", "step_mib")
    ),
)
