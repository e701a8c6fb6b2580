"""The kinds of prompt that a config has: the names that ``--prompt`` and ``model.prompt`` can take."""

import difflib

from omegaconf import DictConfig

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
        return
    near = difflib.get_close_matches(asked, trainable, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    why = "is for a test only" if asked in recipes else "is not among the config's prompts"
    raise UserError(
        f"--prompt {asked}: it {why}.{hint} {source} has {', '.join(trainable)}; "
        "add your own to model.prompts (configs/common/prompts.py)."
    )
