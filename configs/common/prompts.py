"""How each ``--prompt`` is drawn in training and what it is tested with."""

from detectron2.config import LazyCall as L
from sam_d2.modeling.prompt_recipes import PromptRecipe, prompt_recipes
from sam_d2.modeling.prompt_samplers import (
    BoxSampler,
    DetectedBoxSampler,
    DetectorErrorSampler,
    MixedSampler,
    PointSampler,
)

box = L(BoxSampler)(jitter=0.1, max_jitter=20.0)  # share of the side; pixels of the canvas
point = L(PointSampler)(random=True)
_detected = dict(
    train=L(DetectorErrorSampler)(  # errors: of tools/detector_errors.py, in place of the jitter
        errors="", jitter=0.1, max_jitter=20.0
    ),
    test=L(DetectedBoxSampler)(),
    prompt_source="detector",
    score="class_score*predicted_iou",  # the box's class and the mask's fit
)

prompts = L(prompt_recipes)(
    box=L(PromptRecipe)(train=box, test=L(BoxSampler)(jitter=0.0)),
    point=L(PromptRecipe)(train=point, test=L(PointSampler)(random=False)),
    points=L(PromptRecipe)(
        train=L(PointSampler)(random=True, positive=3, negative=1),
        test=L(PointSampler)(random=False, positive=3, negative=1),
    ),
    mixed=L(PromptRecipe)(train=L(MixedSampler)(box=box, point=point), tested_as=["box", "point"]),
    clicks=L(PromptRecipe)(train=point, train_corrections=4, tested_as=["clicks_1", "clicks_3", "clicks_5"]),
    detector=L(PromptRecipe)(**_detected, tested_as=["box", "detector", "detector_cascade"]),
    detector_cascade=L(PromptRecipe)(**_detected, refinements=1, tested_as=["box", "detector_cascade"]),
    detector_best_of_3=L(PromptRecipe)(**_detected, best_of_3=True, tested_as=["box", "detector_best_of_3"]),
    clicks_1=L(PromptRecipe)(test=L(PointSampler)(random=False)),
    clicks_3=L(PromptRecipe)(test=L(PointSampler)(random=False), test_corrections=2),
    clicks_5=L(PromptRecipe)(test=L(PointSampler)(random=False), test_corrections=4),
)
