"""A small model that runs out of memory on demand, trained in this process or in two that import this file by name."""

import logging
import weakref

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sam_d2  # noqa: F401
from detectron2.utils.events import get_event_storage
from sam_d2.engine import gradient_exchange
from sam_d2.engine.trainer import Trainer

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of 3.00 GiB, none of it free."


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError(MESSAGE)


def norm():
    """A batch norm that can train on one image: of 8 channels four with two cells."""
    return nn.Sequential(nn.Unflatten(1, (4, 2)), nn.BatchNorm1d(4), nn.Flatten())


class Net(nn.Module):
    """Losses that are means over the images, of two layers with a norm between them.

    ``unused`` is in no loss, ``rare`` in that of samples with ``rare``.
    """

    def __init__(self, fault=None, where="forward", error=None, norm=nn.Identity):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 8), norm(), nn.Linear(8, 3)
        self.unused, self.rare = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(()))
        self.fault, self.where = fault or (lambda samples: False), where
        self.error = error
        self.seen, self.draws, self.held = [], [], []

    def forward(self, samples):
        assert all(hidden() is None for hidden in self.held), "a failed try holds memory"
        self.seen.append(len(samples))
        self.draws.append(torch.rand(1).item())
        get_event_storage().put_scalar("images_at_once", len(samples))
        hidden = self.norm(self.first(torch.stack([sample["value"] for sample in samples])))
        if self.fault(samples):
            self.held.append(weakref.ref(hidden))
            if self.where == "forward":
                raise self.error or torch.OutOfMemoryError(MESSAGE)
            hidden = FailsBackward.apply(hidden)
        output = self.last(nn.functional.gelu(hidden))
        losses = {"loss_square": output.square().mean(), "loss_mean": 0.1 * output.mean()}
        if rare := [sample["value"].mean() for sample in samples if "rare" in sample]:
            losses["loss_mean"] = losses["loss_mean"] + self.rare * sum(rare) / len(samples)
        return losses


def images(count, start=0):
    values = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))[start : start + count]
    return [{"value": value, "file_name": f"{start + number}.png"} for number, value in enumerate(values)]


def steps_of(batch, count=3, start=0):
    return [images(batch, start + batch * step) for step in range(count)]


def train(model, batches, *, steps=None, hooks=(), start=0, state=None, scaler=None, **options):
    """A trainer after its steps; ``oom_retry`` is on unless the options say otherwise."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    trainer = Trainer(model, batches, optimizer, **{"oom_retry": True, **options})
    trainer.grad_scaler = scaler or trainer.grad_scaler
    trainer.register_hooks(hooks)
    if state:
        trainer.load_state_dict(state)
    trainer.train(start, start + (steps or len(batches) // options.get("accumulate", 1)))
    return trainer


def bare(model):
    return model.module if isinstance(model, DistributedDataParallel) else model


def momentum(trainer):
    """What the optimizer keeps, by the name of the parameter."""
    names = {parameter: name for name, parameter in bare(trainer.model).named_parameters()}
    return {names[p]: state["momentum_buffer"].clone() for p, state in trainer.optimizer.state.items()}


def large(samples):
    return len(samples) > 1


def poisoned(samples):
    return any("poison" in sample for sample in samples)


# Name of a training of two processes: whether oom_retry is on, what fails in the second process, and the norm.
IN_TWO = {
    "ddp": (False, None, nn.Identity),
    "whole": (True, None, nn.Identity),
    "in_parts": (True, large, nn.Identity),
    "skipped": (True, poisoned, nn.Identity),
    "skipped_with_norm": (True, poisoned, norm),
}


def rows_of_two():
    """Six images a step, three for each process; the second's hold all that is special."""
    rows = steps_of(6)
    rows[0][4]["rare"] = True
    rows[1][3]["poison"] = True
    return rows


def train_as_rank(rank, folder):
    torch.set_num_threads(1)
    gradient_exchange._BUCKET = 20  # of 86 gradients, the largest tensor of which has 48
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("sam_d2.engine.oom").addHandler(handler)
    results = {}
    for name, (oom_retry, fault, norm) in IN_TWO.items():
        said.clear()
        net = Net(fault if rank == 1 else None, norm=norm)
        model = DistributedDataParallel(net, find_unused_parameters=True, broadcast_buffers=False)
        batches = [row[3 * rank : 3 * rank + 3] for row in rows_of_two()]
        trainer = train(model, batches, oom_retry=oom_retry)
        results[name] = {
            "weights": net.state_dict(),
            "momentum": momentum(trainer),
            "counts": trainer.oom.state_dict(),
            "seen": net.seen,
            "said": list(said),
        }
    torch.save(results, folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()
