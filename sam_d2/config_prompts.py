"""The kinds of prompt that a config has: the names that ``--prompt`` and ``model.prompt`` can take."""

import difflib

from omegaconf import DictConfig, OmegaConf

from sam_d2.errors import UserError


def check_prompt(cfg: DictConfig, source: str) -> None:
    """Refuse a prompt that the config has no recipe for, before anything is read or built.

    Args:
        cfg: a config whose overrides are applied; one whose model takes no prompts passes.
        source: the config file, for the message.

    Raises:
        UserError: ``model.prompt`` is none of the recipes in ``model.prompts`` that can train. The message lists
            these, and suggests the nearest.
    """
    if "prompts" not in cfg.model:
        return
    recipes = {str(name): recipe for name, recipe in cfg.model.prompts.items() if isinstance(recipe, DictConfig)}
    trainable = [name for name, recipe in recipes.items() if recipe.get("train") is not None]
    asked = str(cfg.model.prompt)
    if asked in trainable:
        _check_boxes(cfg, recipes, asked)
        return
    near = difflib.get_close_matches(asked, trainable, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    why = "is for a test only" if asked in recipes else "is not among the config's prompts"
    raise UserError(
        f"--prompt {asked}: it {why}.{hint} {source} has {', '.join(trainable)}; "
        "add your own to model.prompts (configs/common/prompts.py)."
    )


def check_edge_errors(cfg: DictConfig) -> None:
    """Refuse a training whose boxes are to have a detector's errors where these cannot be read.

    Args:
        cfg: as for :func:`check_prompt`.

    Raises:
        UserError: as :func:`~sam_d2.data.edge_errors.read_edge_errors`, or the errors are of other boxes than
            those that the training adds them to.
    """
    key = f"model.prompts.{cfg.model.prompt}.train.errors" if "prompts" in cfg.model else ""
    file = OmegaConf.select(cfg, key) if key else None
    if file:
        from sam_d2.data.edge_errors import read_edge_errors

        measured = read_edge_errors(file, key=key).boxes
        drawn = "mask" if cfg.dataloader.train.mapper.recompute_boxes else "file"
        if measured != drawn:
            raise UserError(
                f"{key}={file}: was measured against the boxes of the {measured}, and the training adds it to those of "
                f"the {drawn} (dataloader.train.mapper.recompute_boxes={str(drawn == 'mask').lower()}). Measure again "
                f"with tools/detector_errors.py --boxes {drawn}."
            )


def _check_boxes(cfg: DictConfig, recipes: dict[str, DictConfig], asked: str) -> None:
    """Refuse a prompt that is tested with a detector's boxes where the config names neither detector nor file."""
    tests = [str(name) for name in recipes[asked].get("tested_as") or [asked]]
    found = [test for test in tests if test in recipes and recipes[test].get("prompt_source") == "detector"]
    named = [OmegaConf.select(cfg, f"dataloader.detector.{key}") for key in ("config", "file")]
    if found and not any(named):
        raise UserError(
            f"--prompt {asked}: {found[0]} is tested with a detector's boxes. Name the detector with "
            "dataloader.detector.config=RUN_OR_CONFIG, or a COCO results list with --prompt-boxes FILE."
        )
    if not found and named[1]:
        raise UserError(f"--prompt-boxes {named[1]}: --prompt {asked} uses none. Take --prompt detector.")
