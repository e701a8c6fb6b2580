"""Cases of detectron2.engine: training with hooks, schedules, set-up."""

import contextlib
import itertools
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from answers import Approx
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from inputs import logged
from omegaconf import OmegaConf
from torch import nn

from detectron2.engine import (
    HookBase,
    SimpleTrainer,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.solver import WarmupParamScheduler

TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")


class Fit(nn.Module):
    """Least squares with two losses and a batch-norm layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, batch):
        x, y = batch
        out = self.layers(x)
        return {"loss_fit": (out - y).square().mean(), "loss_size": 0.1 * out.abs().mean()}


def batches(count):
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator)) for _ in range(count)]


class Calls(HookBase):
    def __init__(self, log):
        self.log = log

    def note(self, event):
        self.log.append(f"{event} {self.trainer.iter} {self.trainer.storage.iter}")

    def before_train(self):
        self.note("before_train")

    def after_train(self):
        self.note("after_train")

    def before_step(self):
        self.note("before_step")

    def after_backward(self):
        self.note("after_backward")

    def after_step(self):
        self.note("after_step")


def untimed(history):
    return {name: [list(entry) for entry in values] for name, values in history.items() if name not in TIMES}


def trained(folder, iterations=5, start=0, **kwargs):
    model, calls = Fit(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = SimpleTrainer(model, batches(iterations), optimizer, **kwargs)
    scores = iter([{"segm": {"AP": score, "AP-a": 1.0}} for score in (10.0, 30.0, 20.0, 40.0)])
    checkpointer = Checkpointer(model, str(folder), trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=MultiStepParamScheduler([1.0, 0.1, 0.01], 5, [2, 4])),
            hooks.PeriodicCheckpointer(checkpointer, 2),
            hooks.EvalHook(2, lambda: next(scores)),
            hooks.BestCheckpointer(2, checkpointer, "segm/AP"),
            hooks.PeriodicWriter(default_writers(str(folder), iterations), 2),
            None,
            Calls(calls),
        ]
    )
    trainer.train(start, iterations)
    return trainer, calls


def case_training_with_hooks():
    """Losses, rates and scores of every iteration; files; the order of the calls."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, calls = trained(folder)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]
        files = sorted(re.sub(r"tfevents.*", "tfevents", path.name) for path in Path(folder).iterdir())
        best = torch.load(Path(folder) / "model_best.pth", weights_only=False)
        histories = {name: history.values() for name, history in trainer.storage.histories().items()}
        written = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        return {
            "histories": {
                name: {"values": Approx([value for value, _ in entries]), "iterations": [i for _, i in entries]}
                for name, entries in untimed(histories).items()
            },
            "names": sorted(histories),
            "timed": [iteration for _, iteration in histories["time"]],
            "hints": dict(sorted(trainer.storage.smoothing_hints().items())),
            "keys_written": [sorted(line) for line in lines],
            "written": {str(i): {key: Approx(value) for key, value in line.items()} for i, line in enumerate(written)},
            "files": files,
            "last_checkpoint": (Path(folder) / "last_checkpoint").read_text(),
            "best": {"keys": sorted(best), "iteration": best["iteration"]},
            "trainer_state": sorted(best["trainer"]),
            "hook_states": {name: sorted(state) for name, state in best["trainer"]["hooks"].items()},
            "calls": calls,
            "weights": Approx(torch.cat([p.flatten() for p in trainer.model.parameters()]), rtol=1e-4, atol=1e-5),
        }


def case_training_options():
    """Each option gives the losses that it gives in Detectron2."""
    found = {}
    options = {
        "plain": {},
        "gather_every_2": {"gather_metric_period": 2},
        "zero_grad_first": {"zero_grad_before_forward": True},
    }
    for name, kwargs in options.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer, _ = trained(folder, **kwargs)
        entries = trainer.storage.history("total_loss").values()
        found[name] = {"values": Approx([v for v, _ in entries]), "iterations": [i for _, i in entries]}
    return found


def case_log_of_training():
    """The lines that scripts search logs for."""
    with tempfile.TemporaryDirectory() as folder, logged() as lines:
        trained(folder)
    found = [message for _, message in lines if re.match("Starting training|Overall|Total training", message)]
    return {"lines": [re.sub(r"\d+:\d\d:\d\d(\.\d+)?|\d+\.\d+", "T", message) for message in found]}


def case_failed_training():
    """A loss that is not finite: what has run by then."""
    calls, model = [], Fit()
    data = batches(3)
    data[1] = (data[1][0] * float("nan"), data[1][1])
    trainer = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1))
    evaluated = []
    trainer.register_hooks([Calls(calls), hooks.EvalHook(0, lambda: evaluated.append(1))])
    with contextlib.suppress(FloatingPointError):
        trainer.train(0, 3)
        calls.append("no error")
    return {"calls": calls, "evaluated": len(evaluated), "iter": trainer.iter}


class Idle(SimpleTrainer):
    def run_step(self):
        self.optimizer.step()


def case_lr_hook():
    """Rates that the hook stores, from the start and from the middle, and its state."""
    found = {}
    schedules = {
        "cosine": lambda: CosineParamScheduler(1.0, 0.01),
        "steps": lambda: MultiStepParamScheduler([1.0, 0.1, 0.01], milestones=[6, 8], num_updates=10),
        "warmup": lambda: WarmupParamScheduler(CosineParamScheduler(1.0, 0.0), 0.001, 0.3, "linear"),
    }
    for (name, make), start in itertools.product(schedules.items(), (0, 4)):
        many, one = [nn.Parameter(torch.ones(1)) for _ in range(2)], nn.Parameter(torch.ones(1))
        groups = [
            {"params": [one], "lr": 0.3, "initial_lr": 0.3},
            {"params": many, "lr": 0.2, "initial_lr": 0.2},
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        trainer = Idle(nn.Linear(1, 1), [], optimizer)
        hook = hooks.LRScheduler(optimizer, make())
        trainer.register_hooks([hook])
        trainer.train(start, 10)
        state = {key: hook.state_dict()[key] for key in ("last_epoch", "base_lrs")}
        rates = [rate for rate, _ in trainer.storage.history("lr").values()]
        found[f"{name} from {start}"] = {
            "lr": Approx(rates, rtol=1e-12, atol=0),
            "end": Approx([group["lr"] for group in optimizer.param_groups], rtol=1e-12, atol=1e-18),
            "state": state,
            "which": hooks.LRScheduler.get_best_param_group_id(optimizer),
        }
    return found


def case_precise_bn():
    model = Fit()
    hooks.PreciseBN(0, model, batches(4), 3).update_stats()
    norm = model.layers[1]
    return {"mean": Approx(norm.running_mean), "var": Approx(norm.running_var)}


def case_argument_parser():
    parser = default_argument_parser()
    line = ["--config-file", "c.py", "--num-gpus", "2", "--eval-only", "train.x=1", "a=b"]
    defaults, given = vars(parser.parse_args([])), vars(parser.parse_args(line))
    # The port follows from the user's number.
    port = 2**15 + 2**14 + os.getuid() % 2**14
    urls = {defaults.pop("dist_url"), given.pop("dist_url")}
    return {"defaults": defaults, "given": given, "url": urls == {f"tcp://127.0.0.1:{port}"}}


def case_setup():
    """Seed, saved config and log; cuDNN's switch."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = OmegaConf.create(
            {"train": {"output_dir": folder, "seed": 11, "cudnn_benchmark": True}, "model": {"a": 1}}
        )
        default_setup(cfg, default_argument_parser().parse_args([]))
        drawn = [float(np.random.rand()), torch.rand(1).item()]
        files = sorted(path.name for path in Path(folder).iterdir())
        config = OmegaConf.to_container(OmegaConf.load(Path(folder) / "config.yaml"))
    config["train"].pop("output_dir")
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    return {"drawn": drawn, "files": files, "config": config, "benchmark": benchmark}
