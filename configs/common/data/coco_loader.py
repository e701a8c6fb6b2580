"""Loaders and evaluator for detectors, with the sizes that Detectron2 trains ResNets with."""

from omegaconf import OmegaConf

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from sam_d2.data.detection_mapper import DetectionMapper
from sam_d2.data.loader import TrainLoader
from sam_d2.engine.validation import ValidationLoss
from sam_d2.evaluation import InstanceEvaluator

dataloader = OmegaConf.create()

dataloader.train = L(TrainLoader)(
    # Images without objects are negatives; Detectron2 leaves them out, which filter_empty=True does.
    dataset=L(get_detection_dataset_dicts)(names="", filter_empty=False),  # names: set by --dataset
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length=[640, 672, 704, 736, 768, 800], sample_style="choice", max_size=1333
            ),
            L(T.RandomFlip)(prob=0.5, horizontal=True),
        ],
        image_format="${model.input_format}",
    ),
    total_batch_size=16,
    num_workers=4,
    seed="${train.seed}",
    on_bad_image="error",  # skip: take another image for one that cannot be read, and count
    aspect_ratio_grouping=True,  # landscape and portrait never share a batch, which is padded to its largest
)

_resize = L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="", filter_empty=False),
    mapper=L(DetectionMapper)(is_train=False, augmentations=[_resize], image_format="${model.input_format}"),
    num_workers=4,
)

dataloader.evaluator = L(InstanceEvaluator)(
    dataset_name="${..test.dataset.names}", prompt="none", prompt_source="detector", score="class_score"
)

dataloader.validation = L(ValidationLoss)(  # train.validation_loss
    dataset="${..test.dataset}",
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations="${dataloader.test.mapper.augmentations}",
        image_format="${model.input_format}",
    ),
    num_workers="${..test.num_workers}",
    seed="${train.seed}",
)
