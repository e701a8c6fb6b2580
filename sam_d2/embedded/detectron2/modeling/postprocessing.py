"""From the frame of the model's input to that of the original image."""

from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Instances
from detectron2.utils.memory import retry_if_cuda_oom


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Resize detections to an image size, and drop those that are empty there.

    Args:
        results: detections in the resized frame, ``image_size``; ``pred_boxes`` or ``proposal_boxes``, and perhaps
            ``pred_masks`` (N, 1, S, S) of probabilities in the boxes. Its boxes are changed in place.
        output_height: height to resize to, in pixels.
        output_width: width to resize to.
        mask_threshold: least probability of a mask's foreground.

    Returns:
        the detections in the new frame, ``pred_masks`` being (N, output_height, output_width) bool.
    """
    height, width = results.image_size
    resized = Instances((output_height, output_width), **results.get_fields())
    kinds = [name for name in ("pred_boxes", "proposal_boxes") if resized.has(name)]
    assert kinds, "detections must have boxes"
    boxes = resized.get(kinds[0])
    boxes.scale(output_width / width, output_height / height)
    boxes.clip(resized.image_size)
    resized = resized[boxes.nonempty()]
    if resized.has("pred_masks"):
        paste = retry_if_cuda_oom(paste_masks_in_image)
        masks, size = resized.pred_masks[:, 0], (output_height, output_width)
        resized.pred_masks = paste(masks, resized.pred_boxes.tensor, size, threshold=mask_threshold)
    return resized
