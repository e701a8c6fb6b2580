"""AP by domain of the images, and what it says of a detector's robustness to images unlike those it learnt from.

Effective robustness is what AP out of distribution exceeds the AP that detectors of this AP in distribution have
there (COCO-O: A Benchmark for Object Detectors under Natural Distribution Shifts, arXiv 2307.12730): the mean AP of
the domains, less 0.45 times the AP in distribution. Its table has of a Faster R-CNN 9.8, 25.1, 13.9, 23.3, 10.1 and
16.3 in the six domains, 37.4 on COCO, and so 16.42 - 0.45 * 37.4 = -0.41.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam_d2.errors import UserError
from sam_d2.evaluation.coco_metrics import Engine, Task, evaluate_detections
from sam_d2.evaluation.detections import ImageDetections
from sam_d2.evaluation.ground_truth import GroundTruth
from sam_d2.evaluation.results import Result, prompts_text

PREFIX = "AP@domain="
"""Begins the name of a metric: the AP on the images of one domain, all classes."""
SLOPE = 0.45
"""AP on COCO-O by AP on COCO, as fitted to the box AP of published detectors there, not to mask AP."""
MEAN = "mean of the domains"
ALL = "all images"
ROBUSTNESS = "effective robustness"
INSIDE_PREFIX = "AP@in_distribution="
"""Begins the name of a metric: the same model's AP on the dataset in distribution, by that dataset's name."""
ROBUSTNESS_METRIC = "effective_robustness"
"""Metric of a row that has been set beside its counterpart in distribution."""
Lines = list[tuple[str, list[float]]]
"""Of a table of AP by domain: a label, and a value (0-100, NaN where there is none) for each row of results."""


def domain_metrics(
    truth: GroundTruth, detections: Sequence[ImageDetections], *, task: Task, engine: Engine, max_dets: int
) -> dict[str, float]:
    """AP (0-100) on the images of each domain by its metric's name; none where no image has a domain.

    A class that has no instance in a domain does not count there.

    Args:
        truth: Of the whole dataset.
        detections: At most one per image, in any order.
        task: As for :func:`~sam_d2.evaluation.coco_metrics.evaluate_detections`.
        engine: Likewise.
        max_dets: Likewise; that of the whole dataset, so that the domains compare.
    """
    metrics = {}
    for domain in truth.domains:
        mine = [image for image in detections if truth[image.image_id].domain == domain]
        part = truth.of_domain(domain)
        metrics[PREFIX + domain] = evaluate_detections(part, mine, task=task, engine=engine, max_dets=max_dets)["AP"]
    return metrics


def table_words(row: Result, lines: Lines) -> list[str]:
    """What the title of a table of AP by domain says; ``row`` is any of its rows."""
    words = ["AP by domain", row.split, row.task, prompts_text(row.prompt)]
    if lines[-1][0] == ROBUSTNESS:
        slope = "arXiv 2307.12730" if row.task == "bbox" else "slope of box AP, arXiv 2307.12730"
        words.append(f"{ROBUSTNESS}: {MEAN} - {SLOPE} * AP in distribution ({slope})")
        words.append("not checked: that both runs scored the same weights")
    return words


def domain_ap(row: Result) -> dict[str, float]:
    """AP by domain of a row, NaN where a domain has no instance; empty where its images have no domains."""
    return {name.removeprefix(PREFIX): row.metric(name) for name in row.metrics if name.startswith(PREFIX)}


def mean_ap(row: Result) -> float:
    """Mean of the domains' AP, every domain counting alike, of those with instances; AP where there are no domains."""
    by_domain = domain_ap(row)
    if not by_domain:
        return row.metric("AP")
    known = [ap for ap in by_domain.values() if not math.isnan(ap)]
    return sum(known) / len(known) if known else math.nan


def effective_robustness(row: Result, in_distribution: Result, slope: float = SLOPE) -> float:
    """AP that a row has beyond what is expected of its AP in distribution, -45 to 100.

    Args:
        row: Out of distribution.
        in_distribution: Of the same model.
        slope: AP out of distribution that is expected by AP in distribution.
    """
    return mean_ap(row) - slope * in_distribution.metric("AP")


def store_robustness(row: Result, in_distribution: Result) -> None:
    """Keep in a row its effective robustness, and the AP in distribution that it was measured against."""
    for name in [name for name in row.metrics if name.startswith(INSIDE_PREFIX)]:
        del row.metrics[name]
    row.metrics[INSIDE_PREFIX + in_distribution.split] = in_distribution.metric("AP")
    row.metrics[ROBUSTNESS_METRIC] = effective_robustness(row, in_distribution)


@dataclass
class InDistribution:
    """What the same models reach on images like those that they were trained on.

    Attributes:
        results: Rows of their report.
        folder: Of that report, for messages.
    """

    results: Sequence[Result]
    folder: Path

    def store(self, results: Sequence[Result]) -> None:
        """Store the effective robustness in each row that has a counterpart here.

        Args:
            results: Rows out of distribution.

        Raises:
            UserError: As :meth:`partners`.
        """
        [found] = self.partners([results])
        for index, partner in found.items():
            store_robustness(results[index], partner)

    def partners(self, groups: Sequence[Sequence[Result]]) -> list[dict[int, Result]]:
        """Of each row out of distribution its counterpart: same method, task, prompts and score, another dataset.

        Args:
            groups: Rows out of distribution.

        Returns:
            For each group, by the row's position in it; rows without a counterpart are left out.

        Raises:
            UserError: The results are of several datasets, or none of them fits any row.
        """
        rows = [row for group in groups for row in group]
        measured = {(row.split, row.ground_truth) for row in rows}
        others = [row for row in self.results if (row.split, row.ground_truth) not in measured]
        datasets = sorted({(row.split, row.ground_truth or "") for row in others})
        if len(datasets) > 1:
            raise UserError(
                f"--in-distribution {self.folder}: its report.json has results on several data sets "
                f"({', '.join(split for split, _ in datasets)}). Name a run folder with those of one: score the run "
                "again with an --output-dir of its own."
            )
        by_kind = {row.key[1:]: row for row in others}
        found = [
            {index: by_kind[row.key[1:]] for index, row in enumerate(group) if row.key[1:] in by_kind}
            for group in groups
        ]
        if not any(found):
            kinds = "; ".join(sorted({f"{row.method} {row.task}, {prompts_text(row.prompt)}" for row in rows}))
            has = f"results on {datasets[0][0]}" if datasets else "results on the same data set"
            raise UserError(
                f"--in-distribution {self.folder}: has {has}, and none to set beside {kinds}. "
                "Score the same model with the same prompts on images like those that it was trained on."
            )
        return found


def domain_lines(rows: Sequence[Result]) -> Lines:
    """The lines of a table of AP by domain.

    Args:
        rows: Measured on the same images.

    Returns:
        Domains in alphabetical order, their mean, and AP on all images; where :func:`store_robustness` was called, a
        line with the AP in distribution for each dataset and one with the effective robustness. Nothing where there are
        neither domains nor these.
    """
    domains = list(dict.fromkeys(name for row in rows for name in domain_ap(row)))
    inside = list(dict.fromkeys(name for row in rows for name in row.metrics if name.startswith(INSIDE_PREFIX)))
    if not domains and not inside:
        return []
    lines = [(domain, [row.metric(PREFIX + domain) for row in rows]) for domain in domains]
    if domains:
        lines.append((MEAN, [mean_ap(row) for row in rows]))
    lines.append((ALL, [row.metric("AP") for row in rows]))
    for name in inside:
        lines.append((f"in distribution: {name.removeprefix(INSIDE_PREFIX)}", [row.metric(name) for row in rows]))
    if inside:
        lines.append((ROBUSTNESS, [row.metric(ROBUSTNESS_METRIC) for row in rows]))
    return lines
