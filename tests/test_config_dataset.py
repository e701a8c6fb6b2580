"""What a config takes from the dataset: classes, and steps from epochs."""

import pytest
from omegaconf import OmegaConf

from detectron2.data import DatasetCatalog, MetadataCatalog
from sam_d2.config_dataset import class_keys, log_dataset_settings, set_max_iter, set_num_classes
from sam_d2.errors import UserError

CLASSES = ["bolt", "nut", "washer"]


@pytest.fixture
def cfg():
    name = "test_config_dataset_train"
    records = [{"file_name": f"{index}.png", "height": 4, "width": 4, "annotations": []} for index in range(10)]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=CLASSES)
    dataset = {"_target_": "detectron2.data.get_detection_dataset_dicts", "names": name, "filter_empty": False}
    heads = {"num_classes": None, "predictors": [{"num_classes": "${...num_classes}"}, {"num_classes": 3}]}
    yield OmegaConf.create(
        {
            "model": {"roi_heads": heads},
            "dataloader": {"train": {"dataset": dataset, "total_batch_size": 4}},
            "train": {"dataset": "nuts", "max_iter": 5000, "max_epoch": None, "accumulate": 1},
        }
    )
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_classes_that_are_null_follow_the_dataset(cfg):
    assert class_keys(cfg) == ["model.roi_heads.num_classes", "model.roi_heads.predictors.1.num_classes"]
    set_num_classes(cfg, cfg.copy(), CLASSES)
    assert cfg.model.roi_heads.num_classes == 3 and cfg.model.roi_heads.predictors[0].num_classes == 3


def test_another_number_is_an_error(cfg):
    cfg.model.roi_heads.num_classes = 80
    with pytest.raises(UserError, match=r"roi_heads.num_classes=80, but the dataset nuts has 3 .*bolt, nut, washer"):
        set_num_classes(cfg, cfg.copy(), CLASSES)


def test_the_number_of_a_runs_config_gives_way_to_another_dataset(cfg):
    cfg.model.roi_heads.num_classes = 80
    loaded = cfg.copy()
    cfg.train.dataset = "bolts"
    set_num_classes(cfg, loaded, CLASSES)
    assert cfg.model.roi_heads.num_classes == 3


@pytest.mark.parametrize(
    ("epochs", "accumulate", "steps"),
    [(2, 1, 5), (2, 2, 3), (0.1, 1, 1)],  # 2 * 10 / 4 = 5; 20 / 8 = 2.5; 1 / 4
)
def test_epochs_become_steps(cfg, epochs, accumulate, steps):
    cfg.train.max_epoch, cfg.train.accumulate = epochs, accumulate
    set_max_iter(cfg, [])
    assert cfg.train.max_iter == steps


@pytest.mark.parametrize("override", ["train.max_iter=7", "+train.max_iter=7", "train={max_iter: 7}"])
def test_steps_of_the_command_line_win_over_the_configs_epochs(cfg, override):
    set_max_iter(cfg, [])
    assert cfg.train.max_iter == 5000, "null: nothing changes"
    cfg.train.max_epoch, cfg.train.max_iter = 2, 7
    set_max_iter(cfg, [override])
    assert cfg.train.max_iter == 7 and cfg.train.max_epoch is None


@pytest.mark.parametrize("epochs", [0, -1, float("inf"), "many", True])
def test_epochs_that_are_none(cfg, epochs):
    cfg.train.max_epoch = epochs
    with pytest.raises(UserError, match=r"train.max_epoch=.*: expected a positive number"):
        set_max_iter(cfg, [])


@pytest.mark.parametrize(
    "overrides",
    [["train.max_epoch=2", "train.max_iter=7"], ["train={max_epoch: 2, max_iter: 7}"],
     ["train={max_epoch: 2}", "train.max_iter=7"]],
)  # fmt: skip
def test_both_are_an_error(cfg, overrides):
    cfg.train.max_epoch = 2
    with pytest.raises(UserError, match="both given"):
        set_max_iter(cfg, overrides)


def test_the_log_has_both(cfg, caplog):
    set_num_classes(cfg, cfg.copy(), CLASSES)
    with caplog.at_level("INFO"):
        log_dataset_settings(cfg, 10)
    assert "model.roi_heads.num_classes=3: bolt, nut, washer" in caplog.text
    assert "train.max_iter=5000: 2000 epochs of 10 images, 4 images a step" in caplog.text  # 5000 * 4 / 10
