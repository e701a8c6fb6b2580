"""The folder of a run that ``--resume`` goes on with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from fuzzing.mutate import NAMES, mutated_bytes
from fuzzing.weights import CheckpointTarget

_BEFORE, _NEWEST, _FOREIGN = 3, 7, 99
_STEPS = 12
_CONFIG: dict[str, Any] = {
    "model": {
        "_target_": "torch.nn.Linear",
        "in_features": 2,
        "prompt": "box",
        "prompts": {"box": {"train": {"n": 1}}},
    },
    "dataloader": {"train": {"dataset": {"_target_": "builtins.list"}, "seed": "${train.seed}"}},
    "optimizer": {"lr": 0.01, "params": {"lr": "${..lr}"}},
    "lr_multiplier": {"warmup_length": 0.1},
    "train": {"output_dir": "", "seed": 0, "accumulate": 1, "max_iter": _STEPS, "device": "cpu", "ema": {"decay": 0.9}},
}
_TAGS = [
    f"model_{_BEFORE:07d}.pth",
    f"model_{_NEWEST:07d}.pth",
    "model_final.pth",
    "model_0000004.pth",
    f"../outside/model_{_FOREIGN:07d}.pth",
    f"./../outside/model_{_FOREIGN:07d}.pth\n",
    f"{{outside}}/model_{_FOREIGN:07d}.pth",
    f"model_{_NEWEST:07d}.pth/../../outside/model_{_FOREIGN:07d}.pth",
    f"../run/model_{_BEFORE:07d}.pth",
    ".",
    "..",
    "last_checkpoint",
    "model_99999999999999999999.pth",
]


class Resume(CheckpointTarget):
    """A run's ``last_checkpoint`` (L), or the newest of its two checkpoints (T), of a training with all it keeps."""

    name = "resume"
    share = 4

    def prepare(self, folder: Path) -> None:
        """Train a small model to a run with two checkpoints, and put a third beside its folder."""
        import torch
        from omegaconf import OmegaConf

        from sam_d2.engine.checkpoint import PeriodicCheckpoint, load_checkpoint_file

        self.folder, outside = folder / "run", folder / "outside"
        self.cfg = OmegaConf.create(_CONFIG)
        self.cfg.train.output_dir = str(self.folder)
        self.times = count(1)
        self.newest = self.folder / f"model_{_NEWEST:07d}.pth"
        for place in (self.folder, outside):
            place.mkdir()
        training = _training(self.cfg)
        training.trainer.register_hooks([PeriodicCheckpoint(training.checkpointer, period=_BEFORE + 1)])
        training.trainer.train(0, _NEWEST + 1)
        self.content = self.newest.read_bytes()
        self.seed = load_checkpoint_file(self.newest)
        foreign = outside / f"model_{_FOREIGN:07d}.pth"
        torch.save(self.seed, foreign)
        self.not_to_open = frozenset([foreign])

    def make(self, random: Random) -> bytes:
        """Change the newest checkpoint, or what names it."""
        if random.random() < 0.8:
            return b"T" + self.changed(self.seed, random)
        tag = random.choice([*_TAGS, *NAMES]).encode("utf-8", "surrogatepass")
        return b"L" + (mutated_bytes(tag, random) if random.random() < 0.3 else tag)

    def read(self, content: bytes) -> None:
        """Go on as a training does, for one step."""
        from sam_d2.engine.resume import apply_options, check_resume, optimizer_options

        named = content[:1] == b"L"
        self.newest.write_bytes(self.content if named else content[1:])
        os.utime(self.newest, ns=(0, next(self.times)))  # a file is looked at once until its time is another
        tag = content[1:].replace(b"{outside}", bytes(self.folder.parent / "outside"))
        (self.folder / "last_checkpoint").write_bytes(tag if named else self.newest.name.encode())
        check_resume(self.cfg)
        training = _training(self.cfg)
        options = optimizer_options(training.trainer.optimizer)
        training.checkpointer.resume_or_load("", resume=True)
        start = training.trainer.iter + 1
        if named:
            assert start in (_BEFORE + 1, _NEWEST + 1), start
        elif not self.parses(content):
            assert start == _BEFORE + 1, start
        if 0 < start < _STEPS:
            apply_options(training.trainer.optimizer, training.schedule, options)
            training.trainer.train(start, start + 1)

    def parses(self, content: bytes) -> bool:
        """Whether the checkpoint could be unpacked, and the name is text."""
        if content[:1] == b"T":
            return super().parses(content)
        try:
            content.decode()
        except UnicodeDecodeError:
            return False
        return True


def _training(cfg: Any) -> SimpleNamespace:
    """Make the parts of a training that a checkpoint has a state of, as experiments/train_net.py does."""
    import torch
    from fvcore.common.param_scheduler import LinearParamScheduler
    from torch import nn

    from detectron2.engine import hooks
    from detectron2.solver import LRMultiplier
    from sam_d2.engine.early_stop import EarlyStop
    from sam_d2.engine.ema import AverageCheckpointer, WeightAverage
    from sam_d2.engine.resume import run_record
    from sam_d2.engine.trainer import Trainer
    from sam_d2.modeling.weights_record import WeightsRecord

    class Model(nn.Linear):
        def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(batch[0]["x"]).square().mean()}

    def batches() -> Iterator[list[dict[str, Any]]]:
        while True:
            yield [{"x": torch.ones(2)}]

    torch.manual_seed(0)
    model = Model(2, 3)
    model.weights_record = WeightsRecord(draw_boxes=False)
    optimizer = torch.optim.AdamW(model.parameters(), cfg.optimizer.lr)
    trainer = Trainer(model, batches(), optimizer)
    average = WeightAverage(model, cfg.train.ema.decay)
    checkpointer = AverageCheckpointer(average, model, cfg.train.output_dir, save_to_disk=True, trainer=trainer)
    checkpointer.record = run_record(cfg, [])
    schedule = LRMultiplier(optimizer, LinearParamScheduler(1.0, 0.1), cfg.train.max_iter)
    stop = EarlyStop(100, checkpointer, "segm/AP", 2)
    trainer.register_hooks([hooks.IterationTimer(), hooks.LRScheduler(scheduler=schedule), average, stop])
    return SimpleNamespace(trainer=trainer, schedule=schedule, checkpointer=checkpointer)
