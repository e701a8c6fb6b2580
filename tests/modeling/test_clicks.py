"""Correction clicks in training and at a test, several points, mixed prompts, three masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sam_d2  # noqa: F401
from sam_d2.errors import UserError
from sam_d2.modeling.clicks import innermost_correction, random_corrections
from sam_d2.modeling.losses import best_mask_losses, mask_dice_loss, mask_focal_loss
from sam_d2.modeling.masks import rasterise_crop
from sam_d2.modeling.prompt_recipes import PromptRecipe, prompt_recipes
from sam_d2.modeling.prompt_samplers import BoxSampler, MixedSampler, PointSampler


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestRandomCorrections:
    def test_a_missed_cell_is_clicked_positive_and_a_taken_one_negative(self):
        targets = torch.zeros(2, 4, 4)
        logits = torch.full((2, 4, 4), -1.0)
        targets[0, 1, 2] = 1  # missed at column 2, row 1
        logits[1, 3, 0] = 1  # taken at column 0, row 3
        points, labels = random_corrections(logits, targets, torch.tensor([0.0, 0.999]), stride=4, size=(16, 16))
        # The centre of cell (c, r) is pixel index (c + 0.5) * 4 - 0.5.
        assert points[:, 0].tolist() == [[9.5, 5.5], [1.5, 13.5]]
        assert labels.tolist() == [[1], [0]]

    def test_draws_walk_over_the_error_in_row_order(self):
        targets = torch.zeros(4, 2, 3)
        targets[:, 0, 1:] = 1
        targets[:, 1, 0] = 0.5  # half covered counts as object
        draws = torch.tensor([0.0, 0.34, 0.67, 0.9999])
        points, labels = random_corrections(torch.full((4, 2, 3), -1.0), targets, draws, stride=1, size=(2, 3))
        # side is the number of columns
        assert points[:, 0].tolist() == [[1, 0], [2, 0], [0, 1], [0, 1]]
        assert labels.flatten().tolist() == [1, 1, 1, 1]

    def test_an_object_that_covers_half_of_no_cell_can_be_missed(self):
        targets = torch.zeros(2, 3, 3)
        targets[:, 1, 2] = 0.3
        logits = torch.stack([torch.full((3, 3), -1.0), targets[0] * 2 - 0.1])  # nothing; its cell
        points, labels = random_corrections(logits, targets, torch.tensor([0.5, 0.5]), stride=1, size=(3, 3))
        assert points[:, 0].tolist() == [[2, 1], [2, 1]] and labels.tolist() == [[1], [1]]

    def test_a_perfect_mask_is_clicked_inside_and_an_empty_one_anywhere(self):
        targets = torch.zeros(2, 3, 3)
        targets[0, 2, 2] = 1
        points, labels = random_corrections(targets * 2 - 1, targets, torch.tensor([0.5, 0.5]), stride=1, size=(3, 3))
        assert points[0, 0].tolist() == [2, 2] and labels[0] == 1
        assert points[1, 0].tolist() == [1, 1] and labels[1] == 0  # cell 4 of 9

    def test_nobody_clicks_in_the_padding(self):
        targets = torch.zeros(20, 4, 4)
        points, _ = random_corrections(
            torch.ones(20, 4, 4), targets, torch.linspace(0, 0.999, 20), stride=4, size=(5, 9)
        )
        # 5 x 9 pixels are 2 x 3 cells: the last cell's centre is 1.5 * 4 + 1.5 = 5.5 down and 9.5 to the right.
        assert points[..., 0].max() == 9.5 and points[..., 1].max() == 5.5


class TestInnermostCorrection:
    def test_the_larger_error_wins(self):
        true, predicted = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
        true[1:6, 1:6] = True  # missed: 5 x 5, its middle at (3, 3)
        predicted[7:9, 7:9] = True
        assert innermost_correction(predicted, true) == (3, 3, 1)
        assert innermost_correction(true, predicted) == (3, 3, 0)

    def test_nothing_wrong_clicks_the_object(self):
        true = np.zeros((5, 5), bool)
        true[1:4, 1:4] = True
        assert innermost_correction(true, true) == (2, 2, 1)

    def test_nothing_at_all_clicks_background(self):
        assert innermost_correction(np.zeros((3, 3), bool), np.zeros((3, 3), bool)) == (1, 1, 0)


class TestSeveralPoints:
    @pytest.mark.parametrize("random", [True, False])
    def test_positive_ones_lie_inside_and_negative_ones_outside(self, make_instances, random):
        shape = [[[5, 5, 45, 5, 45, 12, 12, 12, 12, 45, 5, 45]], [[50, 20, 60, 20, 60, 32, 50, 32]]]
        instances = make_instances(shape, (64, 80))
        prompts = PointSampler(random=random, positive=3, negative=2)(instances, generator())
        assert prompts.labels.tolist() == [[1, 1, 1, 0, 0]] * 2
        for row in range(2):
            mask = rasterise_crop(instances.gt_masks, row, (0, 0, 80, 64))
            values = [bool(mask[int(y), int(x)]) for x, y in prompts.points[row].tolist()]
            assert values == [True, True, True, False, False]
            left, top, right, bottom = instances.gt_boxes.tensor[row].tolist()
            for x, y in prompts.points[row, 3:].tolist():  # 10 % of the side around the box
                assert left - 0.1 * (right - left) - 1 <= x <= right + 0.1 * (right - left) + 1
                assert top - 0.1 * (bottom - top) - 1 <= y <= bottom + 0.1 * (bottom - top) + 1
            assert len({tuple(point) for point in prompts.points[row].tolist()}) == 5 or random

    def test_test_points_by_hand(self, make_instances):
        # A bar of 7 x 1 pixels: all are equally deep, so the first; then the one farthest from it and the ends.
        bar = np.zeros((3, 9), bool)
        bar[1, 1:8] = True
        instances = make_instances([[[1, 1, 8, 1, 8, 2, 1, 2]]], (3, 9), bitmaps=True)
        instances.gt_masks.tensor[0] = torch.from_numpy(bar)
        points = PointSampler(positive=2)(instances, generator()).points[0].tolist()
        assert points == [[1, 1], [2, 1]]

    def test_an_image_without_background_gets_positive_points_instead(self, make_instances):
        instances = make_instances([[[0, 0, 8, 0, 8, 8, 0, 8]]], (8, 8))
        prompts = PointSampler(positive=1, negative=2)(instances, generator())
        assert prompts.labels.tolist() == [[1, 1, 1]]
        assert len({tuple(point) for point in prompts.points[0].tolist()}) == 3

    def test_an_empty_mask_is_prompted_at_the_centre_of_its_box(self, make_instances):
        instances = make_instances([[[2, 2, 6, 2, 6, 6, 2, 6]]], (8, 8), bitmaps=True)
        instances.gt_masks.tensor[:] = False
        prompts = PointSampler(positive=2, negative=1)(instances, generator())
        assert prompts.points[0].tolist() == [[3.5, 3.5]] * 3


class TestMixed:
    def test_both_kinds_come_up_and_never_in_one_image(self, make_instances):
        instances = make_instances([[[2, 2, 6, 2, 6, 6, 2, 6]]], (8, 8))
        sampler = MixedSampler(box=BoxSampler(), point=PointSampler())
        kinds = [sampler(instances, generator(seed)).boxes is not None for seed in range(200)]
        assert 70 <= sum(kinds) <= 130  # binomial(200, 1/2): deviation 7

    def test_is_tested_as_box_and_as_point(self, build_model, batch):
        model = build_model("model.prompt=mixed").eval()
        assert model.test_prompts == ["box", "point"]
        alone = {name: build_model(f"model.prompt={name}").eval() for name in ("box", "point")}
        for name, other in alone.items():
            model.test_prompt = name
            for one, two in zip(model(batch), other(batch), strict=True):
                assert torch.equal(one["instances"].pred_masks, two["instances"].pred_masks)


class TestRecipes:
    @pytest.mark.parametrize("prompt", ["box", "point", "points", "mixed", "clicks"])
    def test_every_prompt_of_the_command_line_trains_and_is_tested(self, build_model, batch, prompt):
        model = build_model(f"model.prompt={prompt}").train()
        assert torch.isfinite(sum(model(batch).values()))
        model.eval()
        for name in model.test_prompts:
            model.test_prompt = name
            assert [len(answer["instances"]) for answer in model(batch)] == [5, 7]

    def test_a_recipe_must_be_tested_as_a_test(self):
        with pytest.raises(UserError, match=r"model\.prompts\.mixed: 'box' is not a recipe with test prompts"):
            prompt_recipes(mixed=PromptRecipe(train=BoxSampler(), tested_as=["box"]))

    def test_a_test_only_recipe_cannot_train(self, build_model):
        with pytest.raises(UserError, match=r"model\.prompt='clicks_3'.*box, point, points, mixed, clicks, detector"):
            build_model("model.prompt=clicks_3")


class TestClicks:
    def test_training_rounds_are_averaged_and_recomputed_alike(self, build_model, batch):
        kept = build_model("model.prompt=clicks", "model.activation_checkpointing=False").train()
        recomputed = build_model("model.prompt=clicks", "model.activation_checkpointing=True").train()
        losses = []
        for model in (kept, recomputed):
            loss = sum(model(batch).values())
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
        for (name, one), two in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
            if one.grad is not None:
                torch.testing.assert_close(one.grad, two.grad, msg=name)

    def test_the_mask_prompt_is_trained(self, build_model, batch):
        model = build_model("model.prompt=clicks").train()
        sum(model(batch).values()).backward()
        assert model.prompt_encoder.mask_downscaling[0].weight.grad.abs().sum() > 0

    def test_each_click_is_given_where_the_mask_is_wrong(self, build_model, batch, monkeypatch):
        model = build_model("model.prompt=clicks").eval()
        seen = []
        decode = model.decode
        monkeypatch.setattr(model, "decode", lambda one, prompts, _: seen.append(prompts) or decode(one, prompts))
        model.test_prompt = "clicks_3"
        model(batch[:1])
        assert [prompts.points.shape[1] for prompts in seen] == [1, 2, 3]
        assert seen[0].masks is None and seen[1].masks is not None

    def test_one_click_equals_the_point_prompt(self, build_model, batch):
        model = build_model("model.prompt=clicks").eval()
        model.test_prompt = "clicks_1"
        point = build_model("model.prompt=point").eval()
        for one, two in zip(model(batch), point(batch), strict=True):
            assert torch.equal(one["instances"].pred_masks, two["instances"].pred_masks)


class TestMultimask:
    def test_only_the_best_mask_is_trained(self):
        targets = torch.zeros(1, 4, 4)
        targets[0, :2] = 1
        logits = torch.stack([targets * 8 - 4, 4 - targets * 8, torch.zeros(1, 4, 4)], dim=1).requires_grad_()
        losses = best_mask_losses(logits, torch.tensor([[1.0, 0.0, 0.5]]), targets, focal=20.0, dice=1.0)
        torch.testing.assert_close(losses[0, 0], mask_focal_loss(logits[0, 0], targets[0]))
        torch.testing.assert_close(losses[0, 1], mask_dice_loss(logits[0, 0], targets[0]))
        # IoU 1, 0 and 0 (a logit of 0 is no mask) against 1, 0 and 0.5: (0 + 0 + 0.25) / 3
        assert losses[0, 2].item() == pytest.approx(0.25 / 3)
        losses[:, :2].sum().backward()
        assert logits.grad[0, 0].abs().sum() > 0 and logits.grad[0, 1:].abs().sum() == 0

    def test_only_a_single_point_has_three_answers(self, build_model, batch, monkeypatch):
        model = build_model("model.multimask=True").eval()
        asked = []
        decode = model.decode
        monkeypatch.setattr(
            model, "decode", lambda one, prompts, many: asked.append(many) or decode(one, prompts, many)
        )
        for name in ("box", "point", "points"):
            model.test_prompt = name
            model(batch[:1])
        assert asked == [False, True, False]

    def test_the_prediction_has_the_highest_predicted_iou(self, build_model, batch):
        model = build_model("model.multimask=True", "model.prompt=point").eval()
        embedding = model.encode(model.preprocess(batch).tensor)[0]
        prompts = model._test_prompts(batch[0], model.prompts[model.test_prompts[0]])
        with torch.no_grad():
            _, iou = model.decode(embedding, prompts, True)
        torch.testing.assert_close(model(batch)[0]["instances"].scores, iou.max(dim=1).values)

    def test_its_heads_learn_only_where_it_is_on(self, build_model, batch):
        for on in (False, True):
            model = build_model(f"model.multimask={on}", "model.prompt=point").train()
            sum(model(batch).values()).backward()
            networks = model.mask_decoder.output_hypernetworks_mlps
            trained = [sum(p.grad.abs().sum() for p in net.parameters() if p.grad is not None) > 0 for net in networks]
            assert trained[0] == (not on) and any(trained[1:]) == on
