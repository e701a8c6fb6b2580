"""The training step: Detectron2's, with mixed precision on any device, several batches a step, and a clear end."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from sam_d2.data.loader import BAD_IMAGES, sample_seed
from sam_d2.engine.distributed import is_lost_connection
from sam_d2.engine.not_finite import batch_record, is_the_gradient, keep_batch, not_finite_text, run_folder
from sam_d2.engine.oom import Losses, OomRetry, running_statistics
from sam_d2.engine.saved_state import check_iteration, check_optimizer
from sam_d2.engine.step_batches import StepBatches
from sam_d2.engine.step_counts import MOST_IN_A_ROW, StepCounts
from sam_d2.engine.step_news import News, StepNews
from sam_d2.errors import UserError
from sam_d2.faults import explained
from sam_d2.interruption import stop_requests
from sam_d2.modeling.weights_record import note_skip, note_step
from sam_d2.visible_text import clean

logger = logging.getLogger(__name__)

_LEAST_SCALE = 1.0
"""Of float16's gradient scaler: a gradient that is infinite at this scale is so by itself."""
_NOTICE = "Stopping after this step, with a checkpoint. Once more: at once, without."


class _StopTraining(BaseException):
    """Leaves Detectron2's loop without the traceback that it logs for every Exception."""


class Trainer(SimpleTrainer):
    """Detectron2's SimpleTrainer with autocast, accumulated gradients, clipping and a measure of throughput.

    Detectron2's AMPTrainer asserts CUDA; this one autocasts on the device of the model. A gradient scaler is used
    for float16 only; a step that it leaves out, because its scaled gradient is not finite, is not taken.

    Args:
        model: returns a dict of scalar losses.
        data_loader: iterable of batches, lists of samples.
        optimizer: over the trainable parameters.
        amp_dtype: ``torch.bfloat16`` or ``torch.float16``; None trains in full precision.
        clip_gradient_norm: largest norm of the gradient over all parameters; None does not clip.
        accumulate: batches of the loader per step; the step takes the mean of their gradients.
        seed: of the run. What a model draws by itself, such as the regions that a detector's losses are sampled from
            or the paths that are dropped, then depends on the step and the process alone, so a resume is exact.
        oom_retry: take a step that a GPU's memory does not suffice for in smaller parts, or else skip it.
        on_not_finite: ``error`` ends the training at a loss or gradient that is not a number, ``skip`` leaves out
            its step. In float16 it is a gradient whose scale has come down to 1.

    Attributes:
        oom: counts such steps.
        counts: images and steps that the training has gone on without.
        news: of all processes about the last step.
        step_taken: whether the last step has moved the weights; False where it was skipped or left out.
        stopped: whether a hook has ended the training before ``max_iter``; ``iter`` is then the steps done.

    Raises:
        UserError: ``accumulate`` is less than 1, ``clip_gradient_norm`` is not positive, or ``on_not_finite`` is
            something else.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        clip_gradient_norm: float | None = None,
        accumulate: int = 1,
        seed: int = 0,
        oom_retry: bool = False,
        on_not_finite: str = "error",
    ) -> None:
        if accumulate < 1:
            raise UserError(f"train.accumulate={accumulate}: expected at least 1, the batches of a step.")
        if clip_gradient_norm is not None and not clip_gradient_norm > 0:
            raise UserError(f"train.clip_gradient_norm={clip_gradient_norm}: expected more than 0, or null for none.")
        if on_not_finite not in ("error", "skip"):
            raise UserError(f"train.on_not_finite={on_not_finite}: expected error or skip.")
        super().__init__(model, data_loader, optimizer)
        self.on_not_finite = on_not_finite
        self.counts = StepCounts()
        self.news = News(0, 0, 0, 0)
        self._step_news = StepNews()
        self.accumulate = accumulate
        self.seed = seed
        self.stopped = False
        self.step_taken = True
        self._not_finite = self._left_out = False
        self._gave_up = False
        self.oom = OomRetry(model, optimizer, enabled=oom_retry)
        self.device = next(model.parameters()).device
        self.amp_dtype = amp_dtype
        self.clip_gradient_norm = clip_gradient_norm
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype == torch.float16)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter`` to ``max_iter - 1``.

        Raises:
            UserError: a step met bad input. Detectron2's loop would log it with its traceback, which helps nobody.
        """
        loop_log = logging.getLogger("detectron2.engine.train_loop")
        loop_log.addFilter(_is_fault_of_ours)
        if self.accumulate > 1:
            logger.info("A step takes %d batches; images per second count them all", self.accumulate)
        try:
            with stop_requests.deferred(_NOTICE if comm.is_main_process() else ""):
                super().train(start_iter, max_iter)
        except _StopTraining:
            self.iter += 1
        finally:
            loop_log.removeFilter(_is_fault_of_ours)
            self.oom.report(self.iter)
            self.counts.report()

    def stop(self) -> None:
        """End the training once all hooks have seen this step; a hook calls it."""
        self.stopped = True

    def before_train(self) -> None:
        """Call the hooks; one of them may know that the training is over."""
        super().before_train()
        if self.stopped:
            self.iter -= 1  # no step was taken
            raise _StopTraining

    def after_step(self) -> None:
        """Call the hooks, and end the training where one of them has asked for it."""
        self.counts.add(self.news.bad_images, not_finite=self._not_finite, left_out=self._left_out)
        super().after_step()
        if self.stopped:
            raise _StopTraining

    def after_train(self) -> None:
        """Call the hooks; ``iter`` is the steps done also where none was left to take: Detectron2 counts one more."""
        self.iter = min(self.iter, max(self.start_iter, self.max_iter))
        super().after_train()

    def run_step(self) -> None:
        """Take ``accumulate`` batches through forward and backward, then the optimizer's step.

        Raises:
            UserError: a loss or the gradient is infinite or NaN; no step is taken.
        """
        self.optimizer.zero_grad()
        batches = StepBatches(self._data_loader_iter, self.accumulate)
        statistics = [(b, b.clone()) for b in running_statistics(self.model)] if self.on_not_finite == "skip" else []
        means = self.oom.gradients(self.iter + 1, batches, partial(self._gradients, batches))
        # A gradient scaler looks for itself: infinite gradients are how it finds its scale.
        norm = None if means is None or self.grad_scaler.is_enabled() else self._gradient_norm()
        self._tell_and_hear(means, norm, batches)
        self._not_finite, self._left_out = bool(self.news.not_finite), False
        if self._not_finite:
            self._meet_not_finite(means or {}, batches, statistics)
            means = None
        self.step_taken = means is not None
        if means is None:
            return
        if self.clip_gradient_norm is not None:
            self.grad_scaler.unscale_(self.optimizer)
            norm = self._gradient_norm() if norm is None else norm
            torch.nn.utils.clip_grads_with_norm_(self._trained(), self.clip_gradient_norm, norm)
        self.after_backward()
        self.write_metrics(means, batches.seconds, self.iter)
        scale = self.grad_scaler.get_scale()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.step_taken = self.grad_scaler.get_scale() >= scale
        if self.step_taken:
            note_step(self.model)
        else:
            self._meet_left_out(means, batches, statistics)
        get_event_storage().put_scalar("images", batches.images * comm.get_world_size(), smoothing_hint=False)

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _gradient_norm(self) -> Tensor:
        """Return the norm over all parameters, once the processes have exchanged their gradients."""
        return torch.nn.utils.get_total_norm([p.grad for p in self._trained() if p.grad is not None])

    def _tell_and_hear(self, means: Losses | None, norm: Tensor | None, batches: StepBatches) -> None:
        """Exchange with the other processes what has come up in this step, before it moves the weights."""
        bad = [sample[BAD_IMAGES] for sample in batches.samples if BAD_IMAGES in sample]
        self.news = self._step_news.exchange(
            received=stop_requests.received,
            bad_images=len(bad),
            not_finite=self._gave_up or (means is not None and not _all_finite(means, norm)),
        )
        for texts in bad:
            logger.warning("Step %d: %s Another image is in its place.", self.iter + 1, clean(" ".join(texts)))

    def _meet_left_out(self, losses: Losses, batches: StepBatches, statistics: list[tuple[Tensor, Tensor]]) -> None:
        """Go on after a step that the gradient scaler has left out; of several processes all have left it out.

        Raises:
            UserError: its gradient is infinite whatever the scale, and such steps are not to be skipped.
        """
        scale = self.grad_scaler.get_scale()
        if scale < _LEAST_SCALE:
            self._not_finite = True
            self.grad_scaler.update(_LEAST_SCALE)
            self._meet_not_finite(losses, batches, statistics)
            return
        self._left_out = True
        note_skip(self.model)
        logger.info(
            "Step %d: left out, its gradient is not finite in float16; the gradients are now scaled by %g",
            self.iter + 1,
            scale,
        )

    def _meet_not_finite(self, losses: Losses, batches: StepBatches, statistics: list[tuple[Tensor, Tensor]]) -> None:
        """Skip the step, or end the training and keep its images; all processes together.

        Args:
            losses: of the step.
            batches: of the step.
            statistics: running statistics, each with what it was before the step.

        Raises:
            UserError: steps are not to be skipped, or too many were in a row.
        """
        skip = self.on_not_finite == "skip" and self.counts.in_a_row < MOST_IN_A_ROW
        kept = None
        records = comm.gather(batch_record(losses, batches.samples, process=comm.get_rank()))
        gradient = is_the_gradient(records)
        folder = run_folder(self._hooks)
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        if comm.is_main_process() and folder is not None:
            kept = keep_batch(folder, self.iter, seed=self.seed, rate=rate, gradient=gradient, processes=records)
        if skip:
            self.optimizer.zero_grad()
            note_skip(self.model)
            for buffer, before in statistics:
                buffer.copy_(before)
            logger.warning(
                "Step %d: %s is not finite%s. Skipped: the weights stay as they are (train.on_not_finite=skip)",
                self.iter + 1,
                "the gradient" if gradient else "a loss",
                f"; {kept} has its images" if kept else "",
            )
            return
        step, clip = self.iter + 1, self.clip_gradient_norm
        text = not_finite_text(step, losses, self.optimizer, clip, self._hooks, kept, gradient=gradient)
        if self.grad_scaler.is_enabled():
            text += " It may be the precision: train.amp.dtype=bfloat16 has float32's range."
        if self.on_not_finite == "skip":
            text += f" {MOST_IN_A_ROW} steps before it were skipped: the weights are at fault, not the images."
        raise UserError(comm.all_gather(text)[0])

    def _gradients(self, batches: StepBatches, at_once: int | None) -> Losses:
        """Add the gradients of a step, of so many images at once; returns the mean of its losses, detached."""
        torch.manual_seed(sample_seed(self.seed, self.iter * comm.get_world_size() + comm.get_rank()))
        means: Losses = {}
        self._gave_up = False
        for samples, divisor, last in batches.parts(at_once):
            try:
                with self._exchange(last=last):
                    losses = self._backward_of(samples, divisor)
            except FloatingPointError:  # Detectron2's RPN gives up before there is a loss
                if comm.get_world_size() > 1 and not self.oom.enabled:
                    raise  # the others wait in DDP's exchange
                self._gave_up = True
                return {}
            means = {name: means[name] + loss if means else loss for name, loss in losses.items()}
        return means

    def _backward_of(self, samples: list[dict[str, Any]], divisor: float) -> Losses:
        """Add the gradients of a part; returns its losses, detached, as their share of the step's mean."""
        with self.autocast():
            losses = {name: loss / divisor for name, loss in self.model(samples).items()}
        self.grad_scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def autocast(self) -> torch.autocast:
        """Return the context in which the model makes its losses."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def _exchange(self, *, last: bool) -> AbstractContextManager[None]:
        """Let DDP's processes exchange gradients in the last backward pass of a step, unless it is done after it."""
        if isinstance(self.model, DistributedDataParallel) and (self.oom.enabled or not last):
            return self.model.no_sync()
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return iteration, hooks, optimizer, gradient scaler and all counts of what was skipped."""
        state = super().state_dict()
        counts = {"oom": self.oom.state_dict(), "counts": self.counts.state_dict()}
        return {**state, "grad_scaler": self.grad_scaler.state_dict(), **counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: it is no state of this training; nothing of it is taken.
        """
        check_iteration(state_dict["iteration"])
        check_optimizer(self.optimizer, state_dict["optimizer"])
        # The run may have begun in another precision, without a scaler, or with Detectron2's trainer, which saves none.
        scaler = state_dict.get("grad_scaler") if self.grad_scaler.is_enabled() else None
        if scaler and not 0 <= scaler["scale"] < math.inf:
            raise ValueError("the scale of its gradients is no finite number")
        super().load_state_dict(state_dict)
        if scaler:
            # An earlier sam_d2 let it fall to 0, where no step is ever taken again.
            self.grad_scaler.load_state_dict({**scaler, "scale": max(_LEAST_SCALE, scaler["scale"])})
        if "oom" in state_dict:  # not of an earlier sam_d2
            self.oom.load_state_dict(state_dict["oom"])
        if "counts" in state_dict:
            self.counts.load_state_dict(state_dict["counts"])


def _all_finite(losses: Losses, norm: Tensor | None) -> bool:
    numbers = [loss.float() for loss in losses.values()]
    if norm is not None and numbers:  # together, so that the GPU is waited for once
        numbers.append(norm.to(numbers[0]))
    return bool(torch.stack(numbers).isfinite().all()) if numbers else True


def _is_fault_of_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return True
    return not (isinstance(error, UserError) or is_lost_connection(error) or explained(error))
