"""Which metric may end a training, and which way is better."""

import json
from types import SimpleNamespace

import pytest

import sam_d2  # noqa: F401
from sam_d2.engine.stop_metric import less_is_better, main_metric, require_metric
from sam_d2.errors import UserError
from sam_d2.evaluation import GroundTruth, InstanceEvaluator
from sam_d2.modeling.prompt_recipes import PromptRecipe


def require(metric, prompts=("box",), losses=("loss_dice",), validation_loss=False, **options):
    evaluator = InstanceEvaluator("cells", ground_truth=GroundTruth([], ["hair loss", "b"]), **options)
    recipes = {
        name: PromptRecipe(prompt_source="detector" if name == "detector" else "ground_truth") for name in prompts
    }
    model = SimpleNamespace(test_prompts=list(prompts), prompts=recipes, loss_weights=dict.fromkeys(losses, 1.0))
    require_metric(metric, evaluator, model, validation_loss=validation_loss)


@pytest.mark.parametrize("metric", ["validation_loss", "validation_loss_dice"])
def test_of_a_validation_loss_less_is_better(metric):
    assert less_is_better(metric)


@pytest.mark.parametrize("metric", ["segm/AP", "segm/AP-hair loss", "segm/AP-validation_loss", "validation_lossless"])
def test_of_anything_else_more(metric):
    assert not less_is_better(metric)


def test_what_an_evaluation_gives_passes():
    for metric in ("segm/AP", "segm/AP50", "segm/ARs", "segm/AP-hair loss", "segm/AP@100", "prompt/mIoU"):
        require(metric)
    for metric in ("segm/AP", "box/segm/AP", "point/segm/AP-b", "point/prompt/mIoU"):
        require(metric, prompts=("box", "point"))
    require("bbox/AP", prompt_source="detector")
    for metric in ("detector/bbox/AP", "detector/segm/AP", "box/prompt/mIoU"):
        require(metric, prompts=("box", "detector"))
    for metric in ("validation_loss", "validation_loss_dice"):
        require(metric, validation_loss=True)


@pytest.mark.parametrize(
    ("metric", "options", "words"),
    [
        ("segm/AP5", {}, r"Did you mean segm/AP"),
        ("bbox/AP", {}, r"no evaluation gives it.* There are segm/AP, prompt/mIoU, segm/AP50"),
        ("prompt/mIoU", {"prompt_source": "detector"}, r"no evaluation gives it"),
        ("prompt/mIoU", {"prompts": ("box", "point")}, r"Did you mean box/prompt/mIoU or point/prompt/mIoU\?"),
        ("segm/AP50", {"prompts": ("box", "point")}, r"Did you mean box/segm/AP50 or point/segm/AP50\?"),
        (
            "detector/prompt/mIoU",
            {"prompts": ("box", "detector")},
            r"There are box/segm/AP, box/prompt/mIoU, detector/segm/AP, detector/bbox/AP, segm/AP, ",
        ),
        ("box/bbox/AP", {"prompts": ("box", "detector")}, r"no evaluation gives it"),
        ("segm/AP-c", {}, r"Did you mean .*segm/AP-b"),
        ("validation_loss", {}, r"it is not computed\. Set train\.validation_loss=true"),
        ("validation_loss_dcie", {"validation_loss": True}, r"Did you mean validation_loss_dice"),
    ],
)
def test_anything_else_is_refused(metric, options, words):
    with pytest.raises(UserError, match=words) as caught:
        require(metric, **options)
    assert str(caught.value).startswith(f"train.early_stop.metric={metric}: ") and "\n" not in str(caught.value)


def test_a_model_that_names_no_losses_may_have_any():
    require("validation_loss_rpn_cls", losses=(), validation_loss=True)


def test_the_names_are_those_that_a_run_stores(finished_run):
    rows = [json.loads(line) for line in (finished_run / "metrics.json").read_text().splitlines()]
    evaluator = InstanceEvaluator("shapes", ground_truth=GroundTruth([], ["shape"]))
    stored = {name for row in rows for name in row if "/" in name}
    assert "segm/AP-shape" in stored
    for name in stored:
        require_metric(name, evaluator, SimpleNamespace(), validation_loss=False)


def test_a_run_does_not_begin(train_net, tmp_path):
    options = ["train.early_stop.patience=1", "train.early_stop.metric=segm/AQ", "train.eval_period=1"]
    with pytest.raises(UserError, match=r"train\.early_stop\.metric=segm/AQ: no evaluation gives it"):
        train_net(tmp_path / "run", *options)
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("prompt", "tested", "metric", "words"),
    [
        (None, [], "segm/AP", "segm/AP"),
        ("box", ["box"], "segm/AP", "segm/AP"),
        ("detector", ["detector"], "segm/AP", "segm/AP"),
        ("mixed", ["box", "point"], "segm/AP", "segm/AP, mean of box and point:"),
        ("detector", ["box", "detector"], "detector/segm/AP", "detector/segm/AP"),
    ],
)
def test_what_chooses_weights_by_default(prompt, tested, metric, words):
    recipes = {name: SimpleNamespace(prompt_source="detector" if name == "detector" else "truth") for name in tested}
    assert main_metric(SimpleNamespace(prompt=prompt, test_prompts=tested, prompts=recipes)) == (metric, words)
