"""Which ground truth belongs to which anchor or proposal."""

from collections.abc import Sequence

import torch


class Matcher:
    """Gives each prediction its best ground truth, and a label by how well the two fit.

    The rule of Faster R-CNN, arXiv:1506.01497, section 3.1.2.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
        """Set the levels of quality.

        Args:
            thresholds: rising limits between the levels, the first above 0. [0.3, 0.7] makes three levels: below
                0.3, from 0.3 to below 0.7, and from 0.7.
            labels: label of each level, one more than thresholds: 0 background, 1 foreground, -1 ignored.
            allow_low_quality_matches: label as foreground, too, the predictions that fit a ground truth best,
                however badly; so that each has one.
        """
        assert thresholds[0] > 0, f"the first threshold must be positive: {thresholds}"
        assert list(thresholds) == sorted(thresholds), f"thresholds must rise: {thresholds}"
        assert all(label in (-1, 0, 1) for label in labels), f"labels must be -1, 0 or 1: {labels}"
        assert len(labels) == len(thresholds) + 1, f"{len(thresholds)} thresholds have {len(labels)} labels"
        self.thresholds = [-float("inf"), *thresholds, float("inf")]
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Match.

        Args:
            match_quality_matrix: (M, N), how well each of M ground truths fits each of N predictions, at least 0.

        Returns:
            the index (N,) int64 of each prediction's ground truth, 0 where there is none at all, and its label (N,)
            int8.
        """
        assert match_quality_matrix.dim() == 2
        count = match_quality_matrix.size(1)
        if match_quality_matrix.numel() == 0:
            matches = match_quality_matrix.new_zeros(count, dtype=torch.int64)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        best, matches = match_quality_matrix.max(dim=0)
        assert (match_quality_matrix >= 0).all(), "qualities must not be negative"
        level = torch.bucketize(best, best.new_tensor(self.thresholds[1:-1]), right=True)
        match_labels = torch.tensor(list(self.labels), dtype=torch.int8, device=best.device)[level]
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def set_low_quality_matches_(self, match_labels: torch.Tensor, match_quality_matrix: torch.Tensor) -> None:
        """Label, in place, the predictions with the highest quality for some ground truth as foreground; all of a tie.

        Their match stays the ground truth that is best for the prediction, which may be another one.
        """
        highest = match_quality_matrix.max(dim=1, keepdim=True).values
        match_labels[(match_quality_matrix == highest).any(dim=0)] = 1
