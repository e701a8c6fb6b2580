"""SAM ViT-B in the boxes of a published Mask R-CNN, for data sets of COCO's 80 classes; name your own detector else."""

from .sam import dataloader, lr_multiplier, model, optimizer, train

model.prompt = "detector"
dataloader.detector.update(config="configs/mask_rcnn_R_50_FPN_3x.py", weights="model_final_f10217.pkl")
