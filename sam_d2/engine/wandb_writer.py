"""The curves of a run in Weights & Biases, where ``train.wandb.enabled`` asks for it (extra ``wandb``)."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from detectron2.utils.events import EventWriter, get_event_storage
from sam_d2.errors import UserError

ID_FILE = "wandb_run_id"


class WandbWriter(EventWriter):
    """Writes the scalars of a training to one W&B run, which a resumed training goes on with.

    Under a sweep's agent the run is the agent's. Without a network ``mode=offline`` (or ``WANDB_MODE=offline``)
    writes into ``<output_dir>/wandb``, which ``wandb sync`` uploads later.

    Args:
        output_dir: run folder; the run is named after it and its id is kept there.
        project: W&B's project; the environment's ``WANDB_PROJECT`` and a sweep's win.
        name: of the run; the folder's by default.
        mode: online, offline or disabled; None is what the environment says, else online.
        config: of the run, plain data, for W&B's table.
        window_size: the median of noisy scalars is over so many iterations.

    Raises:
        UserError: wandb is not installed, has no key, or cannot begin.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        project: str = "sam_d2",
        name: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        config: dict[str, Any] | None = None,
        window_size: int = 20,
    ) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise UserError(f"train.wandb.mode={mode!r}: expected online, offline, disabled or null.")
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"train.wandb.enabled=True needs wandb ({error}): pip install 'sam_d2[wandb]', or set it to False."
            ) from error
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        run_id = _run_id(folder)
        try:
            with _no_input():
                self._run = wandb.init(
                    project=os.environ.get("WANDB_PROJECT", project),
                    name=name or folder.resolve().name,
                    id=run_id,
                    resume="allow",
                    dir=str(folder),
                    mode=mode,
                    config=config,
                )
        except wandb.Error as error:
            raise UserError(
                f"W&B cannot begin ({error}). Log in with `wandb login`, or set train.wandb.mode=offline."
            ) from error
        _keep_run_id(folder, run_id)
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Write the scalars of iterations later than the last written one."""
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                by_iteration.setdefault(iteration, {})[name] = value
        for iteration in sorted(by_iteration):  # W&B drops a step lower than the last
            self._run.log(by_iteration[iteration], step=iteration)
        self._last_write = max(by_iteration, default=self._last_write)

    def close(self) -> None:
        """End the run; as a failed one where the training ends with an error or Ctrl-C."""
        failed = isinstance(sys.exc_info()[1], (Exception, KeyboardInterrupt))
        self._run.finish(exit_code=int(failed))


@contextlib.contextmanager
def _no_input() -> Iterator[None]:
    """Give W&B no terminal to ask for a key in: a training must begin or say why it does not, not wait."""
    before = sys.stdin
    with Path(os.devnull).open(encoding="utf-8") as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = before


def _run_id(folder: Path) -> str:
    """Return the run's id: the agent's, the one that the folder keeps, or a new one."""
    file = folder / ID_FILE
    return os.environ.get("WANDB_RUN_ID") or (file.read_text().strip() if file.is_file() else uuid.uuid4().hex[:12])


def _keep_run_id(folder: Path, run_id: str) -> None:
    """Write the id of a run that has begun, but for an agent's, which gives it again."""
    if not os.environ.get("WANDB_RUN_ID"):
        temporary = folder / f".{ID_FILE}.partial"
        temporary.write_text(run_id)
        temporary.replace(folder / ID_FILE)
