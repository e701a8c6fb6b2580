"""RoIAlign as a module."""

import torch
from torch import nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """Resamples regions of a feature map to a fixed size (Mask R-CNN, arXiv:1703.06870, section 3)."""

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ) -> None:
        """Set how regions are resampled.

        Args:
            output_size: (height, width) of the result, or the side of a square one.
            spatial_scale: feature pixels per image pixel, 1 / stride.
            sampling_ratio: samples per side of an output cell; 0 takes as many as there are feature pixels in it.
            aligned: place pixel i at the continuous coordinate i + 0.5, as boxes have it. False shifts the region by
                half a feature pixel, as Caffe2's models were trained.
        """
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Resample.

        Args:
            input: (B, C, H, W) features.
            rois: (N, 5): index into the batch, then the box, XYXY in the (padded) image's frame.

        Returns:
            (N, C, height, width), of the dtype of ``input``.
        """
        assert rois.dim() == 2 and rois.size(1) == 5, f"regions have the shape {tuple(rois.shape)}, not (N, 5)"
        regions = rois.to(dtype=input.dtype)
        return roi_align(input, regions, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)
