"""SAM's step in parts is the whole step: the same prompts, losses and gradients; of images and of their instances."""

import logging

import pytest
import torch

from detectron2.engine import HookBase
from sam_d2.engine.trainer import Trainer

SIZES = [(48, 64), (64, 40), (64, 64), (30, 64)]


class Gradients(HookBase):
    def after_backward(self):
        named = self.trainer.model.named_parameters()
        self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


def gradients(model, samples, fails=None):
    """The gradients of one step in which forward passes of some samples fail, and the trainer."""
    if fails is not None:
        forward = model.forward

        def limited(given):
            if fails(given):
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(given)

        model.forward = limited
    trainer = Trainer(model, [samples], torch.optim.SGD(model.parameters(), lr=0.1), oom_retry=True)
    trainer.register_hooks([hook := Gradients()])
    trainer.train(0, 1)
    return getattr(hook, "found", None), trainer


@pytest.fixture
def samples(make_sample):
    """Images of 5, 0, 7 and 1 instances."""
    return [make_sample(count, size, seed) for seed, (count, size) in enumerate(zip((5, 0, 7, 1), SIZES, strict=True))]


@pytest.mark.parametrize("prompt", ["box", "point", "clicks", "mixed"])
@pytest.mark.parametrize("most", [pytest.param(2, marks=pytest.mark.slow), 1])
def test_in_parts(build_model, samples, prompt, most):
    options = (f"model.prompt={prompt}", "model.multimask=true")
    whole, expected = gradients(build_model(*options), samples)
    parts, trainer = gradients(build_model(*options), samples, lambda given: len(given) > most)
    assert trainer.oom.retried == 1
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)
    assert max(gradient.abs().max() for gradient in whole.values()) > 0.1, "or 1e-6 would say nothing"
    for name in ("loss_focal", "loss_dice", "loss_iou"):
        values = [t.storage.history(name).latest() for t in (trainer, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-5) and values[0] > 0


def test_instance_by_instance(build_model, samples, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sam_d2"), "propagate", True)
    whole, _ = gradients(build_model("model.prompt=clicks"), samples)
    model = build_model("model.prompt=clicks")
    sizes, decode = [], model.decode
    monkeypatch.setattr(model, "decode", lambda one, prompts, _: sizes.append(len(prompts)) or decode(one, prompts))
    parts, trainer = gradients(model, samples, lambda given: model.instances_per_chunk > 1)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)
    # 13 instances with 5 answers each; all but the last of each of three images are decoded again in the backward pass
    assert sizes == [1] * (13 + 10) * 5
    assert trainer.oom.retried == 1 and "Taken image by image and instance by instance" in caplog.text
    assert (model.instances_per_chunk, model.activation_checkpointing) == (32, False)


def test_a_skipped_step_has_trained_no_mask(build_model, samples):
    """What the three masks of a point have learned is said of steps that were taken."""
    model = build_model("model.prompt=point", "model.multimask=true")
    reached = []

    def late(given):
        with torch.enable_grad():
            sum(type(model).forward(model, given).values())
        reached.append(model.weights_record.multimask_reached)
        return True

    found, trainer = gradients(model, samples, late)
    assert found is None and trainer.oom.skipped == 1 and all(reached)
    assert not model.weights_record.multimask_reached and not model.weights_record.multimask_trained
