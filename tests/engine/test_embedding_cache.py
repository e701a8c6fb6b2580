"""train.cache_embeddings: what it refuses, and trainings with it against those without."""

import json
import shutil

import pytest
import torch

import detectron2.data.transforms as T
from sam_d2.config import apply_overrides, load_config
from sam_d2.data.mapper import PromptableMapper
from sam_d2.data.unread_image import UnreadImage
from sam_d2.engine.checkpoint_file import load_checkpoint_file
from sam_d2.engine.embedding_cache import use_embedding_cache
from sam_d2.errors import UserError

FROZEN = ["model.freeze=[image_encoder,prompt_encoder]", "train.eval_base=false", "train.eval_period=0"]
FROZEN += ["train.max_iter=20", "train.log_period=1", "dataloader.train.total_batch_size=2"]
FROZEN += ["train.checkpointer.period=10", "train.checkpointer.max_to_keep=null"]
CACHED = "train.cache_embeddings=true"


def curve(folder):
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [row["total_loss"] for row in rows if "total_loss" in row]


def weights(folder):
    return load_checkpoint_file(folder / "model_final.pth")["model"]


@pytest.fixture(scope="module")
def cached_run(train_net, tmp_path_factory, tiny_overrides):
    return train_net(tmp_path_factory.mktemp("cached") / "run", overrides=[*tiny_overrides, *FROZEN, CACHED])


def test_losses_of_a_training_are_those_without_a_cache(train_net, cached_run, tmp_path, tiny_overrides):
    """settled: the first step 1e-6 relative, 20 steps 1e-4."""
    plain = curve(train_net(tmp_path / "plain", overrides=[*tiny_overrides, *FROZEN]))
    cached = curve(cached_run)
    assert len(plain) == len(cached) == 20 and plain[-1] != plain[0]
    assert cached[0] == pytest.approx(plain[0], rel=1e-6)
    assert cached == pytest.approx(plain, rel=1e-4)


def test_each_form_of_an_image_is_encoded_once(cached_run):
    log = (cached_run / "log.txt").read_text()
    # 6 training images, plain and flipped, 3 draws of each or more; and 4 test images
    files = list((cached_run.parent / "embedding_cache").rglob("*.embedding"))
    assert 6 < len(files) <= 12 + 4
    assert f"{len(files)} added" in log


def test_an_image_whose_embedding_is_kept_is_not_read(train_net, cached_run, tmp_path, tiny_overrides, monkeypatch):
    """A run on a whole cache is the same to the bit."""
    run = tmp_path / "run"
    folder = cached_run.parent / "embedding_cache"
    mapped, images = PromptableMapper.__call__, []

    def noted(self, record):
        sample = mapped(self, record)
        if self.is_train:
            images.append(sample["image"])
        return sample

    monkeypatch.setattr(UnreadImage, "read", lambda self: pytest.fail(f"{self.record['file_name']} was read"))
    monkeypatch.setattr(PromptableMapper, "__call__", noted)
    train_net(run, overrides=[*tiny_overrides, *FROZEN, CACHED, f"train.embedding_cache.folder={folder}"])
    assert len(images) == 40 and all(isinstance(image, UnreadImage) for image in images)
    assert curve(run) == curve(cached_run)
    found, expected = weights(run), weights(cached_run)
    assert found and all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_damaged_entry_has_the_image_read_after_all(train_net, cached_run, tmp_path, tiny_overrides):
    folder = shutil.copytree(cached_run.parent / "embedding_cache", tmp_path / "damaged")
    for file in folder.rglob("*.embedding"):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run = tmp_path / "run"
    train_net(run, overrides=[*tiny_overrides, *FROZEN, CACHED, f"train.embedding_cache.folder={folder}"])
    assert "found damaged and computed again" in (run / "log.txt").read_text()
    assert curve(run) == curve(cached_run)


def test_a_resume_is_exact_on_a_full_and_on_an_empty_cache(train_net, cached_run, tmp_path, tiny_overrides):
    overrides = [*tiny_overrides, *FROZEN, CACHED]
    for folder in (tmp_path / "empty", cached_run.parent / "embedding_cache"):
        run = shutil.copytree(cached_run, tmp_path / folder.name / "run")
        (run / "model_final.pth").unlink()
        (run / "last_checkpoint").write_text("model_0000009.pth")
        train_net(run, "--resume", f"train.embedding_cache.folder={folder}", overrides=overrides)
        found, expected = weights(run), weights(cached_run)
        assert found and all(torch.equal(value, expected[name]) for name, value in found.items())


def test_an_evaluation_by_itself_uses_it_and_its_figures_stay(train_net, cached_run, tmp_path, tiny_overrides):
    folder = cached_run.parent / "embedding_cache"
    checkpoint = f"train.init_checkpoint={cached_run / 'model_final.pth'}"
    overrides = [*tiny_overrides, *FROZEN, checkpoint, f"train.embedding_cache.folder={folder}"]
    reports = []
    for number, options in enumerate(([], [CACHED])):
        run = train_net(tmp_path / str(number), "--eval-only", overrides=[*overrides, *options])
        reports.append([row["metrics"] for row in json.loads((run / "report.json").read_text())["results"]])
    assert "4 read, 0 added" in (run / "log.txt").read_text(), "the training's last evaluation has added them"
    assert reports[0] == reports[1]


class Mapper:
    def __init__(self, *augmentations):
        self.augmentations = T.AugmentationList(augmentations)


@pytest.fixture
def cfg(root, tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, CACHED, f"train.output_dir={tmp_path / 'runs' / 'one'}"]
    return apply_overrides(load_config(root / "configs" / "sam_tiny.py"), overrides)


class Frozen(torch.nn.Module):
    def __init__(self, *frozen):
        super().__init__()
        self.image_encoder = torch.nn.Linear(1, 1)
        self.frozen = frozen


def test_the_folder_is_beside_the_run_and_the_forms_are_counted(cfg, tmp_path):
    for augmentations, forms in (((), 1), ((T.RandomFlip(),), 2)):
        model = Frozen("image_encoder")
        cache = use_embedding_cache(cfg, model, Mapper(*augmentations), images=5)
        assert model.embedding_cache is cache and cache.expected == 5 * forms
        assert cache.folder == tmp_path / "runs" / "embedding_cache"
    cfg.train.cache_embeddings = False
    assert use_embedding_cache(cfg, Frozen(), Mapper(), images=5) is None
    del cfg.train.cache_embeddings  # of a run of before
    assert use_embedding_cache(cfg, Frozen(), Mapper(), images=5) is None


@pytest.mark.parametrize(
    "augmentation", [T.RandomFlip(horizontal=False, vertical=True), T.RandomBrightness(0.5, 1.5), T.RandomRotation([9])]
)
def test_another_augmentation_is_named(cfg, augmentation):
    with pytest.raises(UserError, match=f"the augmentation {type(augmentation).__name__} of dataloader"):
        use_embedding_cache(cfg, Frozen("image_encoder"), Mapper(T.RandomFlip(), augmentation), images=5)


def test_a_trained_encoder_is_refused(cfg):
    with pytest.raises(UserError, match=r"the image encoder is trained.*Freeze it with model\.freeze"):
        use_embedding_cache(cfg, Frozen("prompt_encoder"), Mapper(), images=5)
    with pytest.raises(UserError, match="only SAM has"):
        use_embedding_cache(cfg, torch.nn.Linear(1, 1), Mapper(), images=5)


def test_lora_is_refused(train_net, tmp_path, tiny_overrides, root):
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    config = ["--config-file", str(root / "configs" / "sam_tiny_lora.py")]
    with pytest.raises(UserError, match="LoRA trains the image encoder"):
        train_net(tmp_path / "run", *config, overrides=[*tiny_overrides, CACHED])


def test_an_augmentation_of_the_config_is_refused(train_net, tmp_path, tiny_overrides, root):
    with pytest.raises(UserError, match="the augmentation RandomRotation"):
        train_net(
            tmp_path / "run",
            *("--config-file", str(root / "configs" / "sam_tiny_256.py")),
            overrides=[*tiny_overrides, *FROZEN, CACHED],
        )
