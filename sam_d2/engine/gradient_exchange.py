"""The mean of several processes' gradients, exchanged once the whole step is through its backward passes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm

_BUCKET = 2**23
"""Elements of gradients that are sent at once, 32 MiB of float32; a larger parameter goes alone."""


class GradientExchange:
    """What DDP does during the backward pass, done after it: first a word of each process, then the gradients.

    So a process whose step has failed can say so, where the others would wait for its gradients forever. All memory
    is taken here at the beginning, because it is needed when there is none left.

    Args:
        model: whose forward and backward passes are all under ``no_sync``.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buckets: list[list[nn.Parameter]] = []
        for parameter in self._parameters:
            last = self._buckets[-1] if self._buckets else []
            fits = sum(p.numel() for p in last) + parameter.numel() <= _BUCKET
            if last and last[0].dtype == parameter.dtype and fits:
                last.append(parameter)
            else:
                self._buckets.append([parameter])
        sizes: dict[torch.dtype, int] = {}
        for bucket in self._buckets:
            dtype = bucket[0].dtype
            sizes[dtype] = max(sizes.get(dtype, 0), sum(p.numel() for p in bucket))
        device = self._parameters[0].device
        self._room = {dtype: torch.empty(size, dtype=dtype, device=device) for dtype, size in sizes.items()}
        self._words = torch.zeros(comm.get_world_size() + len(self._parameters), dtype=torch.int32, device=device)

    def agree(self, word: int) -> list[int]:
        """Return the word of each process by rank; all processes call it, once a step and before :meth:`average`.

        Args:
            word: of this process, at least 0.
        """
        processes = comm.get_world_size()
        words = [0] * processes
        words[comm.get_rank()] = word
        words += [int(parameter.grad is not None) for parameter in self._parameters]
        self._words.copy_(torch.tensor(words, dtype=torch.int32))
        torch.distributed.all_reduce(self._words, op=torch.distributed.ReduceOp.MAX)
        answers = self._words.tolist()
        # A parameter that no process has used keeps no gradient: zeros would let momentum and weight decay move it.
        self._used = {id(p) for p, used in zip(self._parameters, answers[processes:], strict=True) if used}
        return answers[:processes]

    def average(self) -> None:
        """Replace each gradient by its mean over the processes."""
        for bucket in self._buckets:
            sizes = [parameter.numel() for parameter in bucket]
            room = self._room[bucket[0].dtype][: sum(sizes)]
            places = [place.view_as(parameter) for place, parameter in zip(room.split(sizes), bucket, strict=True)]
            for place, parameter in zip(places, bucket, strict=True):
                if parameter.grad is None:
                    place.zero_()
                else:
                    place.copy_(parameter.grad)
            room.div_(comm.get_world_size())  # before the sum, as DDP does, so float16 does not overflow
            torch.distributed.all_reduce(room)
            for place, parameter in zip(places, bucket, strict=True):
                if parameter.grad is not None:
                    parameter.grad.copy_(place)
                elif id(parameter) in self._used:
                    parameter.grad = place.clone()


def talks_in_forward(model: DistributedDataParallel) -> str:
    """Return what in a model makes its processes wait for one another before the gradients; empty where nothing does.

    A function of the user's own that does so cannot be seen from here.
    """
    for name, module in model.module.named_modules():
        if isinstance(module, nn.SyncBatchNorm | NaiveSyncBatchNorm):
            return f"{name} is a {type(module).__name__}"
    return "train.ddp has buffers broadcast in each forward pass" if model.will_sync_module_buffers() else ""
