"""What a checkpoint says of its weights: whether three masks were trained, whether boxes are drawn; who is refused."""

import logging

import pytest
import torch

import sam_d2  # noqa: F401
from sam_d2.engine.base_weights import ENTRY
from sam_d2.engine.checkpoint import FINAL, Checkpointer, load_checkpoint_file
from sam_d2.engine.trainer import Trainer
from sam_d2.engine.weights import FOLDER_VARIABLE
from sam_d2.errors import UserError
from sam_d2.modeling.prompts import Prompts
from sam_d2.modeling.weights_record import note_step

REFUSED = r"model_final\.pth: the three masks .* never trained"


@pytest.fixture
def build(build_model):
    """``build(multimask, prompt="point")``: a model of random weights."""
    return lambda multimask, prompt="point", *more: build_model(
        f"model.multimask={multimask}", f"model.prompt={prompt}", *more
    )


@pytest.fixture
def save(tmp_path):
    """``save(model)``: its model_final.pth."""

    def save(model):
        Checkpointer(model, str(tmp_path), save_to_disk=True).save(FINAL)
        return str(tmp_path / f"{FINAL}.pth")

    return save


def train(model, batch):
    sum(model.train()(batch).values()).backward()
    note_step(model)
    return model


def load(model, file):
    Checkpointer(model).load(file)
    return model.eval()


@pytest.fixture
def published(build_model, tmp_path):
    """A file of weights as SAM's authors publish them, with nothing beside the weights."""
    torch.save(build_model("model.multimask=False").state_dict(), tmp_path / "official.pth")
    return str(tmp_path / "official.pth")


def test_random_weights_trained_with_one_mask(build, batch, save):
    file = save(train(build(False), batch))
    assert load_checkpoint_file(file)["multimask_trained"] is False
    assert len(load(build(False), file)(batch)) == 2
    with pytest.raises(UserError, match=REFUSED) as caught:
        load(build(True), file)(batch)
    assert "model.multimask=true" in str(caught.value) and "\n" not in str(caught.value)


def test_random_weights_trained_with_three(build, batch, save):
    model = build(True)
    model.eval()(batch)  # the evaluation before a training that begins with nothing
    file = save(train(model, batch))
    assert load_checkpoint_file(file)["multimask_trained"] is True
    assert len(load(build(True), file)(batch)) == 2


def test_published_weights_are_trained_whatever_fine_tunes_them(build, batch, published, save):
    assert len(load(build(True), published)(batch)) == 2
    file = save(train(load(build(False), published), batch))
    assert len(load(build(True), file)(batch)) == 2


def test_a_prompt_that_is_never_ambiguous_trains_one_mask(build, batch, save):
    file = save(train(build(True, "box"), batch))
    assert len(load(build(True, "box"), file)(batch)) == 2  # nor is it ever answered with three
    with pytest.raises(UserError, match=REFUSED):
        load(build(True), file)(batch)


def test_a_frozen_decoder_trains_none(build, batch, save):
    file = save(train(build(True, "point", "model.freeze=[mask_decoder]"), batch))
    with pytest.raises(UserError, match=REFUSED):
        load(build(True), file)(batch)


def test_a_validation_loss_trains_none(build, batch, save):
    model = build(True).train()
    with torch.no_grad():
        model(batch)
    with pytest.raises(UserError, match=REFUSED):
        load(build(True), save(model))(batch)


def test_a_forward_without_a_step_trains_none(build, batch, save):
    model = build(True)
    sum(model.train()(batch).values()).backward()
    assert not model.weights_record.multimask_trained
    with pytest.raises(UserError, match=REFUSED):
        load(build(True), save(model))(batch)
    note_step(torch.nn.ModuleDict({"module": model}))  # as DDP holds it
    assert model.weights_record.multimask_trained


def test_the_trainers_step_trains_them(build, batch):
    model = build(True)
    Trainer(model, [batch], torch.optim.SGD(model.parameters(), lr=0.1)).train(0, 1)
    assert model.weights_record.multimask_trained


def test_later_training_with_three_makes_up_for_it(build, batch, save):
    file = save(train(build(False), batch))
    model = train(load(build(True), file), batch)
    assert len(model.eval()(batch)) == 2
    assert len(load(build(True), save(model))(batch)) == 2


def test_a_resumed_run_keeps_what_it_knew(build, batch, tmp_path):
    Checkpointer(train(build(True), batch), str(tmp_path), save_to_disk=True).save("model_0000001", iteration=1)
    model = build(True)
    extra = Checkpointer(model, str(tmp_path), save_to_disk=True).resume_or_load("", resume=True)
    assert extra == {"iteration": 1}
    assert len(model.eval()(batch)) == 2


def test_a_small_checkpoint_says_it_for_itself(build, batch, save, tmp_path, monkeypatch):
    """Its base may be untrained."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    base = tmp_path / "base.pth"
    torch.save({"model": build(False).state_dict(), "multimask_trained": False}, base)
    run = tmp_path / "run"
    run.mkdir()
    model = build(True)
    checkpointer = Checkpointer(model, str(run), save_to_disk=True)
    checkpointer.resume_or_load(str(base), resume=False)
    checkpointer.save("before")
    train(model, batch)
    checkpointer.save("after")
    assert ENTRY in load_checkpoint_file(run / "before.pth")
    with pytest.raises(UserError, match=r"before\.pth"):
        load(build(True), str(run / "before.pth"))(batch)
    assert len(load(build(True), str(run / "after.pth"))(batch)) == 2


def test_no_prompts_are_refused_too(build, save):
    model = load(build(False), save(build(False)))
    with pytest.raises(UserError, match=REFUSED):
        model.decode(torch.zeros(32, 8, 8), Prompts(boxes=torch.zeros(0, 4)), multimask=True)


def test_loading_nothing_says_nothing(build, batch):
    model = build(True)
    assert Checkpointer(model).load("") == {}
    assert len(model.eval()(batch)) == 2


class TestDrawnBoxes:
    @pytest.fixture
    def build(self, build_model):
        """``build(draw_boxes)``: a model of random weights with box prompts."""
        return lambda drawn: build_model(f"model.draw_boxes={drawn}")

    @pytest.fixture
    def said(self, monkeypatch, caplog):
        """``said(level)``: what the record logged."""
        monkeypatch.setattr(logging.getLogger("sam_d2"), "propagate", True)
        caplog.set_level(logging.INFO)
        return lambda level: [record.getMessage() for record in caplog.records if record.levelno == level]

    @staticmethod
    def begin(model, file, folder):
        Checkpointer(model, str(folder), save_to_disk=True).resume_or_load(file, resume=False)

    @pytest.mark.parametrize("drawn", [False, True])
    def test_the_same_config_loads_without_a_word(self, build, save, said, drawn):
        file = save(build(drawn))
        assert load_checkpoint_file(file)["draw_boxes"] is drawn
        assert Checkpointer(build(drawn)).load(file) == {}
        assert said(logging.WARNING) == []

    def test_weights_that_need_them_are_refused_without(self, build, save, tmp_path):
        file = save(build(True))
        for attempt in (Checkpointer(build(False)).load, lambda file: self.begin(build(False), file, tmp_path / "new")):
            with pytest.raises(UserError, match=r"model_final\.pth: .*trained with model\.draw_boxes=true") as caught:
                attempt(file)
            assert "Set model.draw_boxes=true" in str(caught.value)

    def test_weights_without_are_refused_with_unless_a_training_teaches_them(self, build, save, said, tmp_path):
        file = save(build(False))
        with pytest.raises(UserError, match=r"model_final\.pth: .*trained without model\.draw_boxes"):
            Checkpointer(build(True)).load(file)
        model = build(True)
        self.begin(model, file, tmp_path / "new")
        assert any("this training teaches them" in line for line in said(logging.INFO))
        assert load_checkpoint_file(save(model))["draw_boxes"] is True

    def test_published_weights_do_not_say(self, build, published, said, tmp_path):
        self.begin(build(True), published, tmp_path / "new")
        assert said(logging.WARNING) == []
        Checkpointer(build(False)).load(published)
        assert said(logging.WARNING) == []
        Checkpointer(build(True)).load(published)
        assert ["does not say whether" in line for line in said(logging.WARNING)] == [True]

    def test_a_refused_begin_leaves_a_checkpointer_that_is_strict(self, build, save, tmp_path):
        file = save(build(False))
        model = build(True)
        checkpointer = Checkpointer(model, str(tmp_path / "new"), save_to_disk=True)
        torch.save({"model": {}}, tmp_path / "empty.pth")
        with pytest.raises(UserError, match="does not fit the model"):
            checkpointer.resume_or_load(str(tmp_path / "empty.pth"), resume=False)
        checkpointer._parsed_url_during_load = None  # Detectron2's own does not load again after a file that failed
        with pytest.raises(UserError, match="trained without"):
            checkpointer.load(file)
