"""torchvision's Mask R-CNN with ResNet-50 and a feature pyramid (arXiv 1703.06870); every number of it."""

from detectron2.config import LazyCall as L
from sam_d2.engine.torchvision_weights import torchvision_mask_rcnn

model = L(torchvision_mask_rcnn)(
    architecture="maskrcnn_resnet50_fpn",  # or maskrcnn_resnet50_fpn_v2
    num_classes=None,  # null: the dataset's
    labels="auto",  # 80 classes keep COCO's 91 labels, so that heads trained on COCO fit; contiguous: never
    weights=None,  # COCO_V1, from a file in checkpoints/; train.init_checkpoint=FILE needs it at the start only
    weights_backbone=None,  # IMAGENET1K_V1 or IMAGENET1K_V2, likewise
    trainable_layers=3,  # stages of the ResNet, from its end
    norm="FrozenBN",  # or BN, which wants many images per GPU, or SyncBN, over all GPUs
    norm_eps=None,  # of FrozenBN; null: 0 with weights=COCO_V1, else 1e-5
    input_format="RGB",
    min_size=[800],  # pixels of the short side that the model resizes to: one of them in training, the last at a test
    max_size=1333,
    image_mean=[0.485, 0.456, 0.406],  # of pixels 0-1
    image_std=[0.229, 0.224, 0.225],
    rpn_pre_nms_top_n_train=2000,
    rpn_pre_nms_top_n_test=1000,
    rpn_post_nms_top_n_train=2000,
    rpn_post_nms_top_n_test=1000,
    rpn_nms_thresh=0.7,
    rpn_fg_iou_thresh=0.7,
    rpn_bg_iou_thresh=0.3,
    rpn_batch_size_per_image=256,
    rpn_positive_fraction=0.5,
    rpn_score_thresh=0.0,
    box_score_thresh=0.05,
    box_nms_thresh=0.5,
    box_detections_per_img=100,
    box_fg_iou_thresh=0.5,
    box_bg_iou_thresh=0.5,
    box_batch_size_per_image=512,
    box_positive_fraction=0.25,
)
