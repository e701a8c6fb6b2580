"""The one place that derives sizes: parts of SAM whose arguments follow from the image encoder's."""

from segment_anything.modeling import PromptEncoder

from sam_d2.errors import UserError
from sam_d2.modeling.prompt_encoder import SelectingPromptEncoder


def square_prompt_encoder(
    *,
    embed_dim: int,
    image_size: int,
    patch_size: int,
    mask_in_chans: int = 16,
    position_scale: float = 1.0,
) -> PromptEncoder:
    """Build SAM's prompt encoder for a square canvas.

    Args:
        embed_dim: width of the prompt tokens, equal to the image encoder's ``out_chans``.
        image_size: S, side of the padded canvas in pixels.
        patch_size: pixels per side of an image token.
        mask_in_chans: hidden channels of the mask prompt's convolutions.
        position_scale: deviation of the random frequencies that encode positions (arXiv 2006.10739), in waves per
            half canvas. SAM has 1; with fewer waves a small model that starts from nothing learns much sooner where
            its prompts are (docs/quickstart-scenes.md). Part of every checkpoint: loaded weights bring their own.

    Raises:
        UserError: the canvas is not a whole number of patches, or the low-res frame is finer than the canvas.
    """
    if image_size % patch_size:
        raise UserError(
            f"model.image_encoder.img_size={image_size} is not a multiple of patch_size={patch_size}. "
            f"Take {image_size // patch_size * patch_size} or {-(-image_size // patch_size) * patch_size}."
        )
    if patch_size % 4:
        raise UserError(
            f"model.image_encoder.patch_size={patch_size}: SAM's decoder gives 4 cells per patch side, so "
            "patch_size must be a multiple of 4."
        )
    tokens = image_size // patch_size
    encoder = SelectingPromptEncoder(
        embed_dim=embed_dim,
        image_embedding_size=(tokens, tokens),
        input_image_size=(image_size, image_size),
        mask_in_chans=mask_in_chans,
    )
    encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(position_scale)
    return encoder
