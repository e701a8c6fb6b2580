"""What an evaluation would end on after minutes of work, found before a run writes anything."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from detectron2.config import instantiate
from sam_d2.engine.checkpoint_file import load_checkpoint_file
from sam_d2.engine.distributed import choose_device
from sam_d2.errors import UserError
from sam_d2.evaluation.box_source import box_source
from sam_d2.modeling.prompt_recipes import DETECTOR, PromptRecipe
from sam_d2.modeling.prompt_samplers import may_be_ambiguous
from sam_d2.modeling.weights_record import WeightsRecord


def check_tests(cfg: DictConfig, weights: Path | None, *, training: bool) -> None:
    """Refuse test prompts that cannot be answered with these weights, or whose boxes nobody can give.

    Args:
        cfg: of a run whose datasets are registered; one whose model takes no prompts passes.
        weights: the file that is to be evaluated or to begin with; None for random ones.
        training: whether the weights are trained before they are evaluated.

    Raises:
        UserError: the weights have no calibration that ``model.calibrate`` asks for; three masks are asked for that
            they never learned, and no training teaches them; or what ``dataloader.detector`` names cannot be read or
            is of other classes or images than the dataset.
    """
    if "prompts" not in cfg.model:
        return
    recipes: dict[str, PromptRecipe] = instantiate(cfg.model.prompts)
    asked = str(cfg.model.prompt)
    tests = {name: recipes[name] for name in recipes[asked].tested_as or [asked]}
    record = _record_of(cfg, weights)
    if cfg.model.get("calibrate") and not training:
        for name, recipe in tests.items():
            record.calibration(name, str(recipe.score or cfg.model.score))
    if training:
        _require_taught(cfg, record, recipes[asked], tests)
    elif any(_has_three_masks(cfg, recipe) for recipe in tests.values()):
        record.require_multimask()
    source = box_source(cfg, choose_device(cfg.train.device))
    if source is not None and any(recipe.prompt_source == DETECTOR for recipe in tests.values()):
        source.check(str(cfg.dataloader.test.dataset.names))


def _record_of(cfg: DictConfig, weights: Path | None) -> WeightsRecord:
    """What a file says of its weights, without its tensors; of random ones nothing."""
    record = WeightsRecord(draw_boxes=bool(cfg.model.get("draw_boxes")))
    if weights is not None:
        content = load_checkpoint_file(weights, mmap=True)
        saved = {name: content[name] for name in (record.MULTIMASK, record.CALIBRATIONS) if name in content}
        # whether boxes are drawn is compared where the weights are loaded
        record.came_from(str(weights), {**saved, record.DRAW_BOXES: record.draw_boxes}, begins=False)
    return record


def _has_three_masks(cfg: DictConfig, recipe: PromptRecipe) -> bool:
    ambiguous = cfg.model.get("multimask") and recipe.test is not None and may_be_ambiguous(recipe.test)
    return bool(recipe.best_of_3 or ambiguous)


def _require_taught(
    cfg: DictConfig, record: WeightsRecord, recipe: PromptRecipe, tests: dict[str, PromptRecipe]
) -> None:
    """Refuse a training that is tested with the best of three masks which nobody teaches."""
    best = next((name for name, test in tests.items() if test.best_of_3), None)
    if best is None or record.multimask_trained:
        return
    if not (cfg.model.get("multimask") and recipe.train is not None and may_be_ambiguous(recipe.train)):
        raise UserError(
            f"--prompt {cfg.model.prompt}: {best} takes the best of SAM's three masks, which "
            f"{record.file or 'random weights'} never learned, and this training does not teach them. Begin with "
            "weights that have (train.init_checkpoint: SAM's published ones have), or take --prompt detector."
        )
    if record.file and cfg.train.eval_base:
        record.require_multimask()
