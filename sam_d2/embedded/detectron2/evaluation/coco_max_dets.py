"""COCO's metrics with another limit of detections per image than 100."""

import numpy as np
from pycocotools.cocoeval import COCOeval


class COCOevalMaxDets(COCOeval):
    """pycocotools' evaluation, with the largest of ``params.maxDets`` instead of 100 in the overall AP."""

    def summarize(self) -> None:
        """Compute and print the twelve numbers of ``stats``, in pycocotools' order and layout.

        Raises:
            Exception: ``accumulate`` has not been run.
        """
        if not self.eval:
            raise Exception("Please run accumulate() first")
        few, some, most = self.params.maxDets[:3]
        rows: list[tuple[str, float | None, str, int]] = [
            ("precision", None, "all", most),
            ("precision", 0.5, "all", most),
            ("precision", 0.75, "all", most),
            *(("precision", None, area, most) for area in ("small", "medium", "large")),
            *(("recall", None, "all", limit) for limit in (few, some, most)),
            *(("recall", None, area, most) for area in ("small", "medium", "large")),
        ]
        self.stats = np.array([self._mean(*row) for row in rows])

    def _mean(self, kind: str, iou: float | None, area: str, limit: int) -> float:
        """Return, and print, the mean of the entries that exist; -1 where none does."""
        params = self.params
        thresholds = np.arange(len(params.iouThrs)) if iou is None else np.where(params.iouThrs == iou)[0]
        # precision is (threshold, recall, category, area, limit), recall lacks the second axis.
        values = self.eval[kind][..., params.areaRngLbl.index(area), params.maxDets.index(limit)][thresholds]
        values = values[values > -1]
        mean = float(np.mean(values)) if values.size else -1.0
        name, short = ("Average Precision", "(AP)") if kind == "precision" else ("Average Recall", "(AR)")
        span = f"{params.iouThrs[0]:0.2f}:{params.iouThrs[-1]:0.2f}" if iou is None else f"{iou:0.2f}"
        print(f" {name:<18} {short} @[ IoU={span:<9} | area={area:>6s} | maxDets={limit:>3d} ] = {mean:0.3f}")
        return mean

    def __str__(self) -> str:
        """Print the numbers and return them."""
        self.summarize()
        return str(self.stats)
