"""SAM asked with a detector's boxes: their classes and scores, rounds, and nothing of the ground truth."""

import pytest
import torch

from detectron2.structures import Boxes, Instances
from sam_d2.errors import UserError
from sam_d2.modeling.prompt_recipes import PromptRecipe, detector_recipe
from sam_d2.modeling.prompt_samplers import DetectedBoxSampler


def found(size, boxes, scores, classes):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes, dtype=torch.int64)
    return instances


@pytest.fixture
def asked(batch):
    """The batch with three boxes and none."""
    boxes = [[4.0, 6, 30, 40], [10, 10, 20, 20], [0, 0, 64, 48]]
    batch[0]["prompt_instances"] = found((48, 64), boxes, [0.9, 0.5, 0.25], [2, 0, 1])
    batch[1]["prompt_instances"] = found((64, 40), [], [], [])
    return batch


def predict(model, batch, prompt="detector"):
    model.test_prompt = prompt
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(batch)]


def test_a_mask_for_each_box_with_its_class(build_model, asked):
    first, second = predict(build_model("model.prompt=detector"), asked)
    assert first.pred_classes.tolist() == [2, 0, 1] and first.prompt_index.tolist() == [0, 1, 2]
    assert first.pred_masks.shape == (3, 48, 64) and len(second) == 0


def test_the_masks_are_those_of_the_same_boxes_annotated(build_model, asked, make_instances):
    """And their score is the predicted IoU times the detector's score."""
    model = build_model("model.prompt=detector", "model.instances_per_chunk=2")
    (first, _) = predict(model, asked)
    instances = asked[0]["instances"][:3]
    instances.gt_boxes = asked[0]["prompt_instances"].pred_boxes
    (oracle,) = predict(model, [{**asked[0], "instances": instances}], "box")
    assert torch.equal(first.pred_masks, oracle.pred_masks)
    torch.testing.assert_close(first.scores, oracle.scores * torch.tensor([0.9, 0.5, 0.25]))


def test_no_ground_truth_is_looked_at(build_model, asked):
    model = build_model("model.prompt=detector")
    before = predict(model, asked)[0]
    del asked[0]["instances"], asked[1]["instances"]
    after = predict(model, asked)[0]
    assert torch.equal(before.pred_masks, after.pred_masks) and torch.equal(before.scores, after.scores)


def test_the_recipes_score_replaces_the_models(build_model, asked):
    model = build_model("model.prompt=detector", "model.prompts.detector.score=class_score", "model.score=stability")
    expected = asked[0]["prompt_instances"].scores
    assert torch.equal(predict(model, asked)[0].scores, expected)
    plain = build_model("model.prompt=detector", "model.prompts.detector.score=null", "model.score=class_score")
    assert torch.equal(predict(plain, asked)[0].scores, expected)


def test_the_cascade_gives_the_logits_again_with_the_box(build_model, asked, monkeypatch):
    model = build_model("model.prompt=detector")
    seen = []
    decode = model.decode
    monkeypatch.setattr(
        model, "decode", lambda embedding, prompts, multimask: seen.append(prompts) or decode(embedding, prompts)
    )
    first = predict(model, asked, "detector_cascade")[0]
    one, two = seen
    assert one.masks is None and torch.equal(one.boxes, two.boxes)
    embedding = model.encode(model.preprocess(asked[:1]).tensor)[0]
    with torch.no_grad():
        logits, _ = decode(embedding, one)
        torch.testing.assert_close(two.masks, logits)
        _, iou = decode(embedding, two)
    torch.testing.assert_close(first.scores, iou[:, 0] * torch.tensor([0.9, 0.5, 0.25]))


def test_best_of_three_is_the_mask_with_the_highest_predicted_iou(build_model, asked):
    model = build_model("model.prompt=detector_best_of_3")
    model.weights_record.multimask_trained = True
    first = predict(model, asked, "detector_best_of_3")[0]
    with torch.no_grad():
        embedding = model.encode(model.preprocess(asked[:1]).tensor)[0]
        prompts = DetectedBoxSampler()(asked[0]["prompt_instances"], torch.Generator())
        _, iou = model.decode(embedding, prompts, multimask=True)
    torch.testing.assert_close(first.scores, iou.max(dim=1).values * torch.tensor([0.9, 0.5, 0.25]))


def test_best_of_three_needs_outputs_that_were_trained(build_model, asked):
    model = build_model("model.prompt=detector_best_of_3")
    model.weights_record.file, model.weights_record.multimask_trained = "run.pth", False
    with pytest.raises(UserError, match=r"run.pth: the three masks .* no best_of_3"):
        predict(model, asked, "detector_best_of_3")


def test_boxes_that_nobody_gave(build_model, batch):
    with pytest.raises(UserError, match=r"no instances to make prompts from\. They are a detector's"):
        predict(build_model("model.prompt=detector"), batch)


def test_it_trains_with_jittered_boxes(build_model, batch):
    """As the box recipe does with the same jitter."""
    losses = build_model("model.prompt=detector", "model.prompts.detector.train.jitter=0.05")(batch)
    expected = build_model("model.prompt=box")(batch)  # of configs/sam_tiny.py: 0.05
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt_source": "oracle"}, "prompt_source='oracle'"),
        ({"refinements": -1}, "refinements=-1"),
        ({"prompt_source": "detector", "test_corrections": 1}, "need the truth"),
        ({"score": "sharpness"}, "sharpness"),
    ],
)
def test_what_cannot_be_asked(keys, message):
    with pytest.raises(UserError, match=message):
        PromptRecipe(test=DetectedBoxSampler(), **keys)


def test_the_recipe_of_a_model(build_model):
    model = build_model("model.prompt=detector_cascade")
    assert detector_recipe(model.prompts, model.test_prompts) is model.prompts["detector_cascade"]
    model = build_model("model.prompt=box")
    assert detector_recipe(model.prompts, model.test_prompts) is model.prompts["detector"]
    plain = detector_recipe({"box": model.prompts["box"]}, ["box"])
    assert (plain.prompt_source, plain.score) == ("detector", "class_score*predicted_iou")
