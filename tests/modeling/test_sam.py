"""The meta-architecture with random weights."""

import copy
import logging

import pytest
import torch
from torch import nn

from detectron2.structures import Boxes, Instances
from sam_d2.engine.optim import parameter_groups
from sam_d2.errors import UserError
from sam_d2.evaluation import encode_masks
from sam_d2.modeling.losses import iou_prediction_loss, mask_dice_loss, mask_focal_loss, mask_iou
from sam_d2.modeling.masks import low_res_targets
from sam_d2.modeling.prompts import Prompts

LOSSES = ["loss_dice", "loss_focal", "loss_iou"]
CANVAS, LOW_RES = 64, 32
SIZES = [(64, 48), (35, 64)]  # resized frames of a portrait and a landscape image


def step(model: nn.Module, batch: list[dict]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return losses and gradients of one step."""
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    return {name: loss.detach() for name, loss in losses.items()}, gradients


class TestChunks:
    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("size", [1, 3])
    @pytest.mark.parametrize("prompt", ["box", "point"])
    def test_losses_and_gradients_are_those_of_all_at_once(self, build_model, batch, size, checkpointing, prompt):
        model = build_model(f"model.prompt={prompt}")
        model.instances_per_chunk, model.activation_checkpointing = 1000, False
        losses, gradients = step(model, batch)
        model.instances_per_chunk, model.activation_checkpointing = size, checkpointing
        chunked_losses, chunked_gradients = step(model, batch)
        torch.testing.assert_close(chunked_losses, losses, atol=1e-6, rtol=1e-5)
        assert max(gradient.abs().max() for gradient in gradients.values()) > 0.1, "or 1e-5 would say nothing"
        torch.testing.assert_close(chunked_gradients, gradients, atol=1e-5, rtol=1e-5)

    def test_predictions_are_those_of_all_at_once(self, build_model, batch):
        model = build_model().eval()
        model.instances_per_chunk = 1000
        whole = model(batch)
        model.instances_per_chunk = 2
        for one, other in zip(whole, model(batch), strict=True):
            assert torch.equal(one["instances"].pred_masks, other["instances"].pred_masks)
            torch.testing.assert_close(one["instances"].scores, other["instances"].scores, atol=1e-6, rtol=0)

    def test_no_chunk_holds_more_than_it_may(self, build_model, make_sample, monkeypatch):
        model = build_model("model.instances_per_chunk=3")
        sizes = []
        decode = model.decode
        monkeypatch.setattr(model, "decode", lambda one, prompts, _: sizes.append(len(prompts)) or decode(one, prompts))
        model([make_sample(8, SIZES[0])])
        assert sizes == [3, 3, 2]

    def test_the_backward_pass_recomputes_all_but_the_last_and_never_holds_two(
        self, build_model, make_sample, monkeypatch
    ):
        exact_boxes = "model.prompts.box.train.jitter=0"
        model = build_model("model.instances_per_chunk=3", "model.activation_checkpointing=true", exact_boxes)
        sample = make_sample(8, SIZES[0])
        events, decode = [], model.decode

        def decoded(embedding, prompts, multimask):
            logits, predicted_iou = decode(embedding, prompts, multimask)
            first = [boxes[0].tolist() for boxes in sample["instances"].gt_boxes.tensor.split(3)]
            chunk = first.index(prompts.boxes[0].tolist())
            events.append(f"decoded {chunk}")
            if logits.requires_grad:
                logits.register_hook(lambda _: events.append(f"gradient {chunk}"))
            return logits, predicted_iou

        monkeypatch.setattr(model, "decode", decoded)
        losses = model([sample])
        assert events == ["decoded 0", "decoded 1", "decoded 2"]
        events.clear()
        sum(losses.values()).backward()
        # A chunk's gradient is through before the next one's activations are made.
        assert events == ["gradient 2", "decoded 1", "gradient 1", "decoded 0", "gradient 0"]

    def test_chunks_of_bitmaps_share_their_memory(self, build_model, make_sample, monkeypatch):
        sample = make_sample(7, SIZES[0], bitmaps=True)
        storages = []

        def recorded(parts, *rest):
            storages.extend(masks.tensor.untyped_storage().data_ptr() for masks, _ in parts)
            return low_res_targets(parts, *rest)

        monkeypatch.setattr("sam_d2.modeling.instance_losses.low_res_targets", recorded)
        build_model("model.instances_per_chunk=3")([sample])
        assert storages == [sample["instances"].gt_masks.tensor.untyped_storage().data_ptr()] * 3


class TestLosses:
    def test_are_the_weighted_means_over_instances_and_then_images(self, build_model, batch):
        model = build_model("model.loss_weights={loss_focal:20.0,loss_dice:1.0,loss_iou:3.0}")
        losses = model(batch)
        embeddings = model.encode(model.preprocess(batch).tensor)
        expected = torch.zeros(3)
        for sample, embedding in zip(batch, embeddings, strict=True):
            instances = sample["instances"]
            sampler = model.prompts["box"].train
            prompts = sampler(instances, torch.Generator().manual_seed(sample["seed"]))
            logits, predicted_iou = model.decode(embedding, prompts)
            logits, predicted_iou = logits[:, 0], predicted_iou[:, 0]
            targets = low_res_targets([(instances.gt_masks, instances.image_size)], LOW_RES, CANVAS // LOW_RES)
            expected[0] += 20 * mask_focal_loss(logits, targets).mean() / 2
            expected[1] += mask_dice_loss(logits, targets).mean() / 2
            expected[2] += 3 * iou_prediction_loss(predicted_iou, mask_iou(logits, targets)).mean() / 2
        actual = torch.stack([losses["loss_focal"], losses["loss_dice"], losses["loss_iou"]])
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
        assert (actual > 0).all()

    def test_do_not_scale_with_the_number_of_instances(self, build_model, make_sample):
        model = build_model("model.prompts.box.train.jitter=0.0")
        sample = make_sample(4, SIZES[0])
        twice = copy.copy(sample)
        twice["instances"] = Instances.cat([sample["instances"], sample["instances"]])
        torch.testing.assert_close(dict(model([twice])), dict(model([sample])), atol=1e-6, rtol=1e-5)

    def test_an_image_counts_the_same_with_few_instances_and_with_many(self, build_model, make_sample):
        model = build_model()
        few, many = make_sample(1, SIZES[0], seed=1), make_sample(9, SIZES[1], seed=2)
        both, first, second = model([few, many]), model([few]), model([many])
        for name in LOSSES:
            torch.testing.assert_close(both[name], (first[name] + second[name]) / 2, atol=1e-6, rtol=1e-5)

    def test_the_seed_of_a_sample_makes_its_prompts(self, build_model, make_sample):
        model = build_model()
        sample = make_sample(4, SIZES[0])
        first = model([sample])["loss_focal"]
        torch.manual_seed(99)
        assert torch.equal(model([sample])["loss_focal"], first)
        assert not torch.equal(model([{**sample, "seed": 5}])["loss_focal"], first)

    def test_without_a_seed_prompts_differ_by_step_and_image_and_follow_torchs_own(
        self, build_model, make_sample, monkeypatch
    ):
        model = build_model()
        drawn: list[tuple[float, ...]] = []
        decode = model.decode

        def recorded(embedding, prompts, multimask):
            drawn.extend(tuple(box) for box in prompts.boxes.tolist())
            return decode(embedding, prompts, multimask)

        monkeypatch.setattr(model, "decode", recorded)
        sample = make_sample(1, SIZES[0])
        del sample["seed"]
        for torchs_seed in (7, 7, 8):
            torch.manual_seed(torchs_seed)
            for _ in range(2):
                model([sample, sample])
        first, again, other = drawn[:4], drawn[4:8], drawn[8:]
        assert len(set(first)) == 4, "two steps of two images: a box is jittered in four ways"
        assert again == first and not set(other) & set(first)

    def test_a_seed_leaves_torchs_own_generator_alone(self, build_model, make_sample):
        model = build_model()
        before = torch.get_rng_state()
        model([make_sample(2, SIZES[0])])
        assert torch.equal(torch.get_rng_state(), before)

    def test_bitmaps_and_polygons_cost_the_same(self, build_model, make_sample):
        model = build_model()
        polygons = model([make_sample(6, SIZES[0], bitmaps=False)])
        bitmaps = model([make_sample(6, SIZES[0], bitmaps=True)])
        torch.testing.assert_close(dict(bitmaps), dict(polygons), atol=0, rtol=0)

    def test_annotations_of_another_frame_are_refused(self, build_model, make_sample, make_instances):
        sample = make_sample(1, SIZES[0])
        sample["instances"] = make_instances([[[1, 1, 9, 1, 9, 9]]], (50, 50))
        with pytest.raises(ValueError, match=r"resized frame \(64, 48\), got \(50, 50\)"):
            build_model()([sample])


class TestNoInstances:
    def test_zero_loss_with_a_graph(self, build_model, make_sample):
        model = build_model()
        losses, gradients = step(model, [make_sample(0, SIZES[0]), make_sample(0, SIZES[1])])
        assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(LOSSES, 0.0)
        assert all((gradient == 0).all() for gradient in gradients.values())

    def test_an_empty_image_counts_zero_beside_a_full_one(self, build_model, make_sample):
        model = build_model()
        full, empty = make_sample(3, SIZES[0]), make_sample(0, SIZES[1])
        alone, both = model([full]), model([full, empty])
        for name in LOSSES:
            torch.testing.assert_close(both[name], alone[name] / 2)

    def test_an_empty_prediction(self, build_model, make_sample):
        sample = {**make_sample(0, SIZES[0]), "height": 50, "width": 37}
        result = build_model().eval()([sample])[0]["instances"]
        assert result.image_size == (50, 37) and len(result) == 0
        assert result.pred_masks.shape == (0, 50, 37) and result.pred_masks.dtype == torch.bool
        assert result.pred_boxes.tensor.shape == (0, 4) and result.scores.shape == (0,)
        assert result.pred_classes.shape == (0,) and result.prompt_index.shape == (0,)

    def test_decoding_no_prompts(self, build_model):
        model = build_model()
        embedding = torch.zeros(32, 8, 8)
        logits, iou = model.decode(embedding, Prompts(boxes=torch.zeros(0, 4)), multimask=True)
        assert logits.shape == (0, 3, 32, 32) and iou.shape == (0, 3)


class TestTrainedParts:
    @pytest.mark.parametrize("prompt", ["box", "point"])
    @pytest.mark.parametrize("count", [0, 3])
    def test_every_trainable_parameter_has_a_gradient(self, build_model, make_sample, prompt, count):
        model = build_model(f"model.prompt={prompt}")
        sum(model([make_sample(count, SIZES[0])]).values()).backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, "DDP would wait for these"

    def test_every_part_learns(self, build_model, batch):
        _, gradients = step(build_model(), batch)
        for part in ("image_encoder.", "prompt_encoder.point_embeddings.2", "mask_decoder.transformer.",
                     "mask_decoder.output_hypernetworks_mlps.0.", "mask_decoder.iou_prediction_head."):  # fmt: skip
            assert any(name.startswith(part) and gradient.any() for name, gradient in gradients.items()), part

    @pytest.mark.parametrize("part", ["image_encoder", "prompt_encoder", "mask_decoder"])
    def test_a_frozen_part_stays_as_it_is(self, build_model, batch, part):
        model = build_model(f"model.freeze=[{part}]").train()
        frozen = getattr(model, part)
        assert not any(module.training for module in frozen.modules()) and model.training
        before = copy.deepcopy(frozen.state_dict())
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.1)
        sum(model(batch).values()).backward()
        optimizer.step()
        assert all(parameter.grad is None for parameter in frozen.parameters())
        torch.testing.assert_close(frozen.state_dict(), before, atol=0, rtol=0)
        assert model.eval() is model and not model.mask_decoder.training

    def test_a_frozen_encoder_keeps_no_graph(self, build_model, batch):
        model = build_model("model.freeze=[image_encoder]")
        assert not model.encode(model.preprocess(batch).tensor).requires_grad
        assert build_model().encode(model.preprocess(batch).tensor).requires_grad

    def test_untrained_mask_outputs_keep_their_weights(self, build_model, batch):
        model = build_model()
        decoder = model.mask_decoder
        before = copy.deepcopy(decoder.state_dict())
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.5), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
        after = decoder.state_dict()
        last = f"iou_prediction_head.layers.{len(decoder.iou_prediction_head.layers) - 1}"
        for name in before:
            if name.startswith("output_hypernetworks_mlps.") and not name.startswith("output_hypernetworks_mlps.0."):
                assert torch.equal(after[name], before[name]), name
        for kind in ("weight", "bias"):
            assert torch.equal(after[f"{last}.{kind}"][1:], before[f"{last}.{kind}"][1:])
            assert not torch.equal(after[f"{last}.{kind}"][0], before[f"{last}.{kind}"][0])

    def test_names_what_must_not_decay(self, build_model):
        model = build_model()
        names = dict(model.named_parameters())
        assert {"mask_decoder.iou_prediction_head.layers.2.weight"} <= model.no_weight_decay() <= set(names)


class TestPredictions:
    def test_stand_in_the_order_of_the_prompts(self, build_model, make_sample):
        model = build_model().eval()
        sample = {**make_sample(6, SIZES[0]), "height": 200, "width": 150}
        result = model([sample])[0]["instances"]
        assert result.prompt_index.tolist() == list(range(6)) == result.pred_classes.tolist()
        assert result.image_size == (200, 150) and result.pred_masks.shape == (6, 200, 150)
        order = torch.tensor([4, 0, 5, 2, 1, 3])
        shuffled = model([{**sample, "instances": sample["instances"][order]}])[0]["instances"]
        assert torch.equal(shuffled.pred_masks, result.pred_masks[order])
        assert torch.equal(shuffled.pred_classes, order)

    def test_boxes_are_those_of_the_masks(self, build_model, make_sample):
        result = build_model().eval()([make_sample(3, SIZES[0])])[0]["instances"]
        assert isinstance(result.pred_boxes, Boxes)
        for mask, box in zip(result.pred_masks, result.pred_boxes.tensor, strict=True):
            y, x = mask.nonzero().unbind(1)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]

    def test_come_as_run_lengths_where_nobody_needs_them_dense(self, build_model, batch):
        model = build_model().eval()
        dense = [one["instances"] for one in model(batch)]
        with model.encoding_masks():
            coded = [one["instances"] for one in model(batch)]
        assert [one["instances"].has("pred_masks") for one in model(batch)] == [True, True]
        for one, other in zip(dense, coded, strict=True):
            assert not other.has("pred_masks") and torch.equal(one.scores, other.scores)
            assert encode_masks(one.pred_masks) == other.pred_masks_rle

    def test_prompts_of_the_original_frame_are_moved_to_the_resized_one(self, build_model, make_sample):
        # The same image annotated in a frame twice as large: the same prompts, so the same masks.
        model = build_model("model.prompt=box").eval()
        sample = make_sample(4, SIZES[0])
        large = copy.copy(sample)
        large["instances"] = Instances((128, 96), gt_boxes=sample["instances"].gt_boxes.clone())
        large["instances"].gt_boxes.scale(2, 2)
        large["instances"].gt_classes = sample["instances"].gt_classes
        one, other = model([sample])[0]["instances"], model([large])[0]["instances"]
        assert torch.equal(one.pred_masks, other.pred_masks)

    def test_come_one_per_image(self, build_model, make_sample):
        samples = [make_sample(count, SIZES[count % 2], seed=count) for count in (2, 0, 3)]
        model = build_model().eval()
        together = model(samples)
        assert [len(result["instances"]) for result in together] == [2, 0, 3]
        for sample, result in zip(samples, together, strict=True):
            alone = model([sample])[0]["instances"]
            torch.testing.assert_close(alone.scores, result["instances"].scores, atol=1e-5, rtol=0)

    def test_take_no_gradient_and_leave_the_mode(self, build_model, make_sample):
        model = build_model().eval()
        assert not model([make_sample(2, SIZES[0])])[0]["instances"].scores.requires_grad
        assert not model.training

    def test_without_annotations_there_is_nothing_to_prompt_with(self, build_model, make_sample):
        sample = make_sample(1, SIZES[0])
        del sample["instances"]
        with pytest.raises(UserError, match=r"lake\.png: no instances to make prompts from"):
            build_model().eval()([{**sample, "file_name": "lake.png"}])

    @pytest.mark.parametrize("score", ["predicted_iou", "stability", "mean_probability", "class_score"])
    def test_scores_are_chosen_by_name(self, build_model, make_sample, score):
        sample = make_sample(3, SIZES[0])
        scores = build_model(f"model.score={score}").eval()([sample])[0]["instances"].scores
        product = build_model(f"model.score='{score}*predicted_iou'") if score != "predicted_iou" else None
        assert scores.shape == (3,)
        if score == "class_score":
            assert scores.tolist() == [1, 1, 1]
        if product is not None:
            iou = build_model().eval()([sample])[0]["instances"].scores
            torch.testing.assert_close(product.eval()([sample])[0]["instances"].scores, scores * iou)


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_torchs_default_dtype_does_not_matter(build_model, batch, prompt):
    """A program may have set another for what else it does."""
    model = build_model(f"model.prompt={prompt}").eval()
    expected = model(batch)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = model(batch)
    finally:
        torch.set_default_dtype(default)
    for one, other in zip(found, expected, strict=True):
        fields, same = one["instances"].get_fields(), other["instances"].get_fields()
        assert torch.equal(fields.pop("pred_boxes").tensor, same.pop("pred_boxes").tensor)
        torch.testing.assert_close(fields, same, atol=1e-5, rtol=0)


class TestDecode:
    def test_prompts_do_not_see_each_other(self, build_model, batch):
        model = build_model().eval()
        embedding = model.encode(model.preprocess(batch).tensor)[0]
        batch[0]["instances"].pred_boxes = batch[0]["instances"].gt_boxes  # what recipes of a detector's boxes take
        for name, recipe in model.prompts.items():
            if recipe.test is None:
                continue
            prompts = recipe.test(batch[0]["instances"], torch.Generator())
            with torch.no_grad():
                together = model.decode(embedding, prompts)
                for row in range(len(prompts)):
                    alone = model.decode(embedding, prompts[row : row + 1])
                    for one, other in zip(alone, together, strict=True):
                        torch.testing.assert_close(one[0], other[row], atol=1e-5, rtol=1e-5, msg=name)

    def test_single_mask_and_three(self, build_model, batch):
        model = build_model().eval()
        embedding = model.encode(model.preprocess(batch).tensor)[0]
        prompts = model.prompts["point"].test(batch[0]["instances"], torch.Generator())
        assert model.decode(embedding, prompts)[0].shape == (5, 1, 32, 32)
        logits, iou = model.decode(embedding, prompts, multimask=True)
        assert logits.shape == (5, 3, 32, 32) and iou.shape == (5, 3)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_bfloat16_autocast(self, build_model, batch, checkpointing):
        model = build_model(f"model.activation_checkpointing={checkpointing}")
        exact = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(batch)
        sum(losses.values()).backward()
        for name in LOSSES:
            assert losses[name].dtype == torch.float32
            torch.testing.assert_close(losses[name], exact[name], rtol=0.05, atol=0.01)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = model.eval()(batch)[0]["instances"]
        assert result.scores.dtype == torch.float32 and result.scores.isfinite().all()


class TestPreprocess:
    def test_pads_bottom_right_after_normalising(self, build_model):
        model = build_model("model.pixel_mean=[10,20,30]", "model.pixel_std=[1,2,5]")
        image = torch.full((3, 50, 64), 40, dtype=torch.uint8)
        images = model.preprocess([{"image": image}])
        assert images.tensor.shape == (1, 3, 64, 64) and images.image_sizes == [(50, 64)]
        # (40 - 10) / 1, (40 - 20) / 2, (40 - 30) / 5
        for channel, value in enumerate((30, 10, 2)):
            assert (images.tensor[0, channel, :50] == value).all()
        assert (images.tensor[0, :, 50:] == 0).all()

    @pytest.mark.parametrize("size", [(65, 30), (30, 65)])
    def test_an_image_beyond_the_canvas_is_never_cropped(self, build_model, make_sample, size):
        sample = {**make_sample(1, size), "file_name": "wide.png"}
        for model in (build_model(), build_model().eval()):
            with pytest.raises(UserError, match=rf"wide\.png: {size[1]} x {size[0]} pixels .* canvas of 64"):
                model([sample])


class TestSettings:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("model.prompt=circle", "model.prompt='circle': this config has the prompts box, point"),
            ("model.score=iou", "model.score='iou'"),
            ("model.freeze=[encoder]", "model.freeze: encoder is not one of image_encoder"),
            ("+model.loss_weights.loss_edge=1.0", "model.loss_weights: expected loss_focal, loss_dice, loss_iou"),
            ("model.prompts.clicks.train_corrections=-1", "train_corrections=-1 .*: expected at least 0"),
            ("model.prompts.points.train.positive=0", "positive=0, negative=1: expected at least 1 positive"),
            ("model.prompts.points.test.negative=-1", "positive=3, negative=-1: expected at least 1 positive"),
            ("model.instances_per_chunk=0", "model.instances_per_chunk=0: expected at least 1"),
            ("model.image_encoder.img_size=70", "70 is not a multiple of patch_size=8. Take 64 or 72"),
            ("model.image_encoder.patch_size=2", "patch_size must be a multiple of 4"),
        ],
    )
    def test_are_checked_when_the_model_is_built(self, build_model, override, message):
        with pytest.raises(UserError, match=message):
            build_model(override)

    @pytest.mark.parametrize(
        ("prompt", "multimask", "warned"),
        [
            ("box", True, True),
            ("points", True, True),
            ("point", True, False),
            ("mixed", True, False),
            ("clicks", True, False),
            ("box", False, False),
        ],
    )
    def test_three_masks_that_no_prompt_asks_for(self, build_model, monkeypatch, caplog, prompt, multimask, warned):
        monkeypatch.setattr(logging.getLogger("sam_d2"), "propagate", True)
        build_model(f"model.prompt={prompt}", f"model.multimask={multimask}")
        assert ("model.multimask=true has no effect" in caplog.text) == warned


class TestDrawnBoxes:
    def test_the_decoder_gets_them_as_mask_prompts(self, build_model, batch):
        model = build_model().eval()
        embedding = model.encode(model.preprocess(batch).tensor)[0]
        prompts = Prompts(boxes=torch.tensor([[8.0, 8.0, 32.0, 40.0], [0.0, 0.0, 7.0, 9.0]]))
        plain, _ = model.decode(embedding, prompts)
        explicit, _ = model.decode(embedding, prompts.with_drawn_boxes(CANVAS, LOW_RES))
        model.draw_boxes = True
        drawn, _ = model.decode(embedding, prompts)
        assert torch.equal(drawn, explicit) and not torch.allclose(drawn, plain, atol=1e-3)

    def test_they_train_the_convolutions_of_the_mask_prompt(self, build_model, batch):
        name = "prompt_encoder.mask_downscaling.0.weight"
        gradients = [step(build_model(f"model.draw_boxes={on}", "model.freeze=[]"), batch)[1] for on in (False, True)]
        assert [bool(gradient[name].any()) for gradient in gradients] == [False, True]
