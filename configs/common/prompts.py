"""How each ``--prompt`` is drawn in training and at a test."""

from detectron2.config import LazyCall as L
from sam_d2.modeling.prompt_samplers import BoxSampler, PointSampler, PromptRecipe, prompt_recipes

prompts = L(prompt_recipes)(
    box=L(PromptRecipe)(
        train=L(BoxSampler)(jitter=0.1, max_jitter=20.0),  # share of the side; pixels of the canvas
        test=L(BoxSampler)(jitter=0.0),
    ),
    point=L(PromptRecipe)(
        train=L(PointSampler)(random=True),
        test=L(PointSampler)(random=False),
    ),
)
