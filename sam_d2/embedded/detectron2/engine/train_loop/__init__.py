"""The training loop: hooks, and the trainers that call them."""

from .amp import AMPTrainer
from .base import TrainerBase
from .hook import HookBase
from .simple import SimpleTrainer

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]
