"""Cases of detectron2.checkpoint: files, resume state, what is loaded, what is ignored, what is logged."""

import contextlib
import pickle
import re
import tempfile
from pathlib import Path

import torch
from fvcore.common.param_scheduler import CosineParamScheduler
from inputs import logged, raised
from torch import nn

from detectron2.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer
from detectron2.solver import LRMultiplier


class Net(nn.Module):
    def __init__(self, seed=0, classes=2):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, classes)
        self.register_buffer("pixel_mean", torch.full((3,), float(seed)))
        self.register_buffer("pixel_std", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.head(self.body(x))


def training(seed=0, steps=3):
    """A model, its optimizer and schedule after some steps."""
    net = Net(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = LRMultiplier(optimizer, CosineParamScheduler(1.0, 0.0), 10)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 3, generator=generator)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    return net, optimizer, scheduler


@contextlib.contextmanager
def folder_and_log():
    """A folder, and the list of what Detectron2's and fvcore's checkpointers log, the folder's name left out."""
    lines = []
    with tempfile.TemporaryDirectory() as folder, logged("detectron2") as ours, logged("fvcore") as theirs:
        yield Path(folder), lines
        # fvcore colours names of parameters
        for part in (ours, theirs):
            lines.append([[level, re.sub(r"\x1b\[\d*m", "", text).replace(folder, "FOLDER")] for level, text in part])


def same(net, other):
    """Names of the tensors that are equal."""
    there = other.state_dict()
    return [name for name, value in net.state_dict().items() if name in there and torch.equal(value, there[name])]


def described(value):
    """Nested keys and types of what a file holds."""
    if isinstance(value, dict):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape)]
    return value if value is None or isinstance(value, (bool, int, str)) else type(value).__name__


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def case_save():
    with folder_and_log() as (folder, log):
        net, optimizer, scheduler = training()
        checkpointer = DetectionCheckpointer(net, str(folder), optimizer=optimizer, scheduler=scheduler)
        before = [checkpointer.has_checkpoint(), checkpointer.get_checkpoint_file()]
        checkpointer.save("model_0", iteration=3, note={"a": [1, "b"]})
        checkpointer.save("model_1")
        content = torch.load(folder / "model_0.pth", weights_only=True)
        DetectionCheckpointer(net, str(folder / "unwritten"), save_to_disk=False).save("model")
        DetectionCheckpointer(net).save("model")
        DetectionCheckpointer(nn.DataParallel(net), str(folder)).save("wrapped", model={"given": 1})
        found = {
            "files": names(folder),
            "last": (folder / "last_checkpoint").read_text(),
            "before": before,
            "after": [
                checkpointer.has_checkpoint(),
                Path(checkpointer.get_checkpoint_file()).name,
                sorted(Path(file).name for file in checkpointer.get_all_checkpoint_files()),
            ],
            "order": [list(content), list(content["model"])],
            "model": described(content["model"]),
            "optimizer": {**described(content["optimizer"]), "param_groups": sorted(content["optimizer"])},
            "scheduler": [list(content["scheduler"]), content["scheduler"]["last_epoch"]],
            "extra": [content["iteration"], content["note"]],
            "wrapped": described(torch.load(folder / "wrapped.pth", weights_only=True)),
            "unwrapped": isinstance(DetectionCheckpointer(nn.DataParallel(net)).model, Net),
            "interface": issubclass(DetectionCheckpointer, Checkpointer),
            "errors": [
                raised(lambda: checkpointer.save("sub/model")),
                raised(lambda: checkpointer.add_checkpointable("optimizer", optimizer)),
                raised(lambda: checkpointer.add_checkpointable("number", 3)),
            ],
        }
    return {**found, "log": log}


def case_resume():
    """A training that goes on from the file; with and without a checkpoint, and with parts of one."""
    with folder_and_log() as (folder, log):
        net, optimizer, scheduler = training()
        DetectionCheckpointer(net, str(folder), optimizer=optimizer, scheduler=scheduler).save("model_2", iteration=2)
        file = str(folder / "model_2.pth")

        def loaded(call):
            other, other_optimizer, other_scheduler = training(seed=1, steps=1)
            checkpointer = DetectionCheckpointer(
                other, str(folder), optimizer=other_optimizer, scheduler=other_scheduler
            )
            rest = call(checkpointer)
            momentum = other_optimizer.state_dict()["state"][0]["momentum_buffer"]
            return {
                "rest": sorted(rest),
                "iteration": rest.get("iteration"),
                "model": same(other, net),
                "momentum": torch.equal(momentum, optimizer.state_dict()["state"][0]["momentum_buffer"]),
                "rate": other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"],
                "scheduler": other_scheduler.last_epoch,
            }

        found = {
            "resumed": loaded(lambda checkpointer: checkpointer.resume_or_load("", resume=True)),
            "not_resumed": loaded(lambda checkpointer: checkpointer.resume_or_load(file, resume=False)),
            "not_resumed_from_nothing": loaded(lambda checkpointer: checkpointer.resume_or_load("", resume=False)),
            "loaded": loaded(lambda checkpointer: checkpointer.load(file)),
            "model_alone": loaded(lambda checkpointer: checkpointer.load(file, checkpointables=[])),
            "scheduler_alone": loaded(lambda checkpointer: checkpointer.load(file, ["scheduler"])),
            "nothing": [DetectionCheckpointer(Net()).load(path) for path in ("", None)],
            "errors": [
                raised(lambda: loaded(lambda checkpointer: checkpointer.load(file, ["nothing"]))),
                raised(lambda: loaded(lambda checkpointer: checkpointer.load(file + "x"))),
                raised(lambda: loaded(lambda checkpointer: checkpointer.load(f"file://{file}"))),
                raised(lambda: loaded(lambda checkpointer: checkpointer.load(file + "?wrong=1"))),
                raised(lambda: loaded(lambda checkpointer: checkpointer.load(file + "?matching_heuristics=No&b=1"))),
            ],
        }
        Path(file).unlink()
        found["deleted"] = raised(lambda: loaded(lambda checkpointer: checkpointer.resume_or_load("")))
    return {**found, "log": log}


def changed(**changes):
    """The state of another net, entries replaced by others, or left out where the value is None."""
    state = Net(seed=5).state_dict()
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


def contents():
    """What a file holds, by the file's name."""
    arrays = {name: value.numpy() for name, value in changed().items()}
    wrapped = {f"module.{name}": value for name, value in changed().items()}
    return {
        "bare.pth": changed(),
        "bare_wrapped.pth": wrapped,
        "partly_wrapped.pth": {**wrapped, "head.bias": torch.zeros(2)},
        "with_more.pth": {"model": changed(), "author": "me", "steps": [1, 2]},
        "without_head.pth": {"model": changed(head__weight=None, head__bias=None)},
        "without_mean.pth": {"model": changed(pixel_mean=None)},
        "with_anchors.pth": {"model": changed(**{"proposal.anchor_generator.cell_anchors.0": torch.ones(2)})},
        "with_std.pth": {"model": changed(pixel_std=torch.zeros(3))},
        "unexpected.pth": {"model": changed(other__weight=torch.ones(1), other__bias=torch.ones(1), x=torch.ones(1))},
        "wrong_shape.pth": {"model": changed(head__weight=torch.ones(7, 4), head__bias=torch.ones(7))},
        "wrong_shape_of_buffer.pth": {"model": changed(pixel_mean=torch.ones(1, 3))},
        "transposed.pth": {"model": changed(head__weight=torch.ones(4, 2))},
        "scalar.pth": {"model": changed(head__bias=torch.tensor(1.0))},
        "no_rows.pth": {"model": changed(head__weight=torch.ones(0, 4))},
        "wrong_type.pth": {"model": changed(head__bias="text")},
        "other_dtype.pth": {"model": changed(head__bias=torch.tensor([1, 2]))},
        "half.pth": {"model": {name: value.half() for name, value in changed().items()}},
        "empty.pth": {},
        "empty_model.pth": {"model": {}},
        "zoo.pkl": {"model": arrays, "__author__": "someone", "more": 3},
        "zoo_no_head.pkl": {"model": {"body.0.weight": arrays["body.0.weight"]}, "__author__": "someone"},
    }


def case_load():
    found = {}
    with folder_and_log() as (folder, log):
        for name, content in contents().items():
            file = folder / name
            if name.endswith(".pkl"):
                file.write_bytes(pickle.dumps(content, protocol=2))
            else:
                torch.save(content, file)
            net = Net()
            try:
                rest = DetectionCheckpointer(net).load(str(file))
                found[name] = {
                    "from_file": same(net, Net(seed=5)),
                    "as_before": same(net, Net()),
                    "rest": described(rest),
                    "head": net.head.bias,
                }
            except Exception as error:
                found[name] = type(error).__name__
    return {"loaded": found, "log": log}


def case_shared_parameters():
    """A weight of two names: missing under one of them is no fault."""
    with folder_and_log() as (folder, log):
        net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        net["b"].weight = net["a"].weight
        torch.save({"model": {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)}}, folder / "shared.pth")
        DetectionCheckpointer(net).load(str(folder / "shared.pth"))
        weights = [net["a"].weight, net["b"].weight]
    return {"weights": weights, "log": log}


def case_named_like_a_buffer():
    """A missing ``pixel_mean`` is told of, unless it is a buffer of the model itself."""
    with folder_and_log() as (folder, log):
        torch.save({"model": {"x": torch.ones(1)}}, folder / "one.pth")
        inner = nn.Module()
        inner.register_buffer("pixel_std", torch.ones(1))
        net = nn.ModuleDict({"inner": inner})
        net.pixel_mean = nn.Parameter(torch.zeros(1))
        DetectionCheckpointer(net).load(str(folder / "one.pth"))
    return {"log": log}


def case_periodic_checkpointer():
    found = {}
    for name, options in {
        "all": {"period": 2, "max_iter": 7},
        "kept": {"period": 1, "max_iter": 7, "max_to_keep": 2},
        "named": {"period": 3, "file_prefix": "part", "max_to_keep": 1},
    }.items():
        with folder_and_log() as (folder, log):
            periodic = PeriodicCheckpointer(DetectionCheckpointer(Net(), str(folder)), **options)
            seen = []
            for iteration in range(7):
                periodic.step(iteration, extra=iteration)
                seen.append(names(folder))
            extra = {file: torch.load(folder / file)["extra"] for file in names(folder) if file.endswith(".pth")}
            last = (folder / "last_checkpoint").read_text()
        found[name] = {"files": seen, "extra": extra, "last": last, "log": log}
    return found
