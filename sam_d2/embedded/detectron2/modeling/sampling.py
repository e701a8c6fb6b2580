"""Random choice of the examples that a loss is computed on."""

import torch

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose foreground and background examples at random.

    Args:
        labels: (N,) integer: -1 is ignored, ``bg_label`` background, all else foreground.
        num_samples: how many to choose in all; fewer where there are not enough.
        positive_fraction: share of the foreground, at most; background fills the rest.
        bg_label: label of the background.

    Returns:
        indices of the chosen foreground, and of the chosen background.
    """
    background = labels == bg_label
    positive = (~background & (labels != -1)).nonzero().squeeze(1)
    negative = background.nonzero().squeeze(1)
    num_positive = min(len(positive), int(num_samples * positive_fraction))
    num_negative = min(len(negative), num_samples - num_positive)
    chosen = [
        group[torch.randperm(len(group), device=labels.device)[:number]]
        for group, number in ((positive, num_positive), (negative, num_negative))
    ]
    return chosen[0], chosen[1]
