"""Loaders and evaluator for SAM: no crop, whole images on the canvas, annotations kept at a test."""

from omegaconf import OmegaConf

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from sam_d2.data.loader import TrainLoader
from sam_d2.data.mapper import PromptableMapper
from sam_d2.engine.validation import ValidationLoss
from sam_d2.evaluation import InstanceEvaluator

dataloader = OmegaConf.create()

dataloader.train = L(TrainLoader)(
    dataset=L(get_detection_dataset_dicts)(names="", filter_empty=False),  # names: set by --dataset
    mapper=L(PromptableMapper)(
        is_train=True,
        image_size="${model.image_encoder.img_size}",
        augmentations=[L(T.RandomFlip)(prob=0.5, horizontal=True)],
        image_format="${model.input_format}",
        max_instances=100,
        recompute_boxes=False,  # True: the tight boxes of the masks for the file's, at a test too
    ),
    total_batch_size=4,
    num_workers=2,
    seed="${train.seed}",
    on_bad_image="error",  # skip: take another image for one that cannot be read, and count
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="", filter_empty=False),
    mapper=L(PromptableMapper)(
        is_train=False,
        image_size="${model.image_encoder.img_size}",
        image_format="${model.input_format}",
        recompute_boxes="${dataloader.train.mapper.recompute_boxes}",
    ),
    num_workers=2,
)

dataloader.evaluator = L(InstanceEvaluator)(
    dataset_name="${..test.dataset.names}",
    prompt="${model.prompt}",
    recompute_boxes="${..test.mapper.recompute_boxes}",
    score="${model.score}",
)

dataloader.detector = dict(  # whose boxes prompt SAM at a test of --prompt detector
    config="",  # a config file or a run's folder
    weights="",  # empty: the run's model_final.pth, or what the config begins with
    file="",  # instead: a COCO results list of any other system, --prompt-boxes
    match_classes=True,  # refuse a detector whose classes have other names than the dataset's; False: by their order
    min_score=0.05,  # least score of a box
    max_boxes=None,  # of an image, the surest; null: of each class as many as count in the evaluation (max_dets)
)

dataloader.validation = L(ValidationLoss)(  # train.validation_loss
    dataset="${..test.dataset}",
    mapper=L(PromptableMapper)(
        is_train=True,
        image_size="${model.image_encoder.img_size}",
        image_format="${model.input_format}",
        max_instances=None,
        recompute_boxes="${dataloader.train.mapper.recompute_boxes}",
    ),
    num_workers="${..test.num_workers}",
    seed="${train.seed}",
)
