"""Networks with the same weights on both sides, and what is compared of them."""

import zlib

import numpy as np
import torch
from answers import Approx
from inputs import text

SAMPLES = 10
POOL = torch.randn(65521, generator=torch.Generator().manual_seed(0))  # a prime: no layer's rows repeat


def seeded(name, shape):
    """Numbers of a normal distribution that depend on the name alone."""
    count, start = torch.Size(shape).numel(), zlib.crc32(name.encode()) % len(POOL)
    return POOL.repeat((start + count) // len(POOL) + 1)[start : start + count].view(shape)


def blank(make):
    """Make a network without drawing its first weights, which :func:`filled` sets."""
    with torch.device("meta"):
        net = make()
    return net.to_empty(device="cpu")


def filled(module):
    """Set every parameter and buffer by its name, such that features keep about the size of the images."""
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            value.zero_()
            continue
        noise = seeded(name, value.shape)
        if value.dim() > 1:
            noise = noise * (1.5 / value[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            noise = 1 + noise.abs() / 4
        else:
            noise = noise / 10 + ("norm" in name and name.endswith("weight"))
        value.copy_(noise)
    return module


def image(*shape):
    return seeded("image", shape)


def sampled(values):
    """A few evenly spread values, and the mean and spread of all."""
    values = values.detach().double().reshape(-1)
    places = np.unique(np.linspace(0, len(values) - 1, min(SAMPLES, len(values))).astype(int))
    summary = torch.stack([values.mean(), values.std(unbiased=False)])
    digits = [float(f"{value:.8g}") for value in torch.cat([values[places], summary]).tolist()]
    return Approx(digits, rtol=1e-5, atol=1e-5)


def signature(module):
    """Names, shapes and kinds of all weights in order; hashed where they are many."""
    parameters = dict(module.named_parameters())
    rows = [[name, list(value.shape), name in parameters] for name, value in module.state_dict().items()]
    return {"count": len(rows), "rows": text(rows)}


def answer_of(module, x, train=False):
    """Outputs for an image, and the gradients of their weighted sum."""
    filled(module).train(train)
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    outputs = module(x)
    found = {name: {"shape": list(value.shape), "values": sampled(value)} for name, value in outputs.items()}
    sum((value * seeded(name, value.shape)).mean() for name, value in outputs.items()).backward()
    trained = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    largest = torch.stack([value.abs().max() for value in trained.values()])
    found["image_gradient"] = sampled(x.grad / x.grad.abs().max())
    found["gradients"] = sampled(torch.cat([value.flatten() for value in trained.values()]) / largest.max())
    found["largest_gradients"] = sampled(largest / largest.max())
    found["scale"] = sampled(torch.stack([x.grad.abs().max(), largest.max()]))
    return {**found, "trained": text(sorted(trained)), "weights": signature(module)}
