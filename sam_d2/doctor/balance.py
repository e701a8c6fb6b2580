"""Check how many instances there are, of what and where, and name the settings that this calls for."""

from __future__ import annotations

from collections import Counter

from sam_d2.data.records import known
from sam_d2.doctor.ids import most_common_classes
from sam_d2.doctor.parts import Part

IMBALANCE = 100  # times as many instances of one class as of another
MANY = 100  # instances of an image: the default of max_instances and of a detector's boxes per image
_SHOWN = 5


def check_balance(part: Part) -> None:
    """Add findings on the file's counts of instances."""
    if part.form is None:
        return
    if not part.table.annotations:
        found = "there is none"
        part.report_file("warning", "annotations", found, "nothing can be learned from it, or scored on it",
                         "no-annotations")  # fmt: skip
        return
    _check_classes(part)
    _check_crowded(part)


def _check_classes(part: Part) -> None:
    counts = most_common_classes(part)
    if len(counts) < 2:
        return
    names = {known(item.id): known(item.name) for item in part.categories}
    (most, highest), *_ = counts.most_common(1)
    rare = sorted((count, key) for key, count in counts.items() if highest >= IMBALANCE * count)
    if rare:
        shown = ", ".join(f"{names.get(key, f'class {key}')} {count}" for count, key in rare[:_SHOWN])
        found = (
            f"{names.get(most, f'class {most}')} has {highest} instances, {len(rare)} of {len(counts)} classes at most "
            f"a hundredth of that ({shown}{', ...' if len(rare) > _SHOWN else ''})"
        )
        fix = (
            "AP is the mean over classes, so these weigh as much as the others: look at each in the report, add images "
            "of them, or count them as one (tools/merge_datasets.py --map RARE=OTHER). sam_d2 has no resampling"
        )
        part.report_file("warning", "category_id", found, fix, "class-imbalance")


def _check_crowded(part: Part) -> None:
    pairs = zip(part.table.image_ids, part.table.annotations, strict=True)
    counts = Counter(key for key, item in pairs if not known(item.iscrowd))
    for place, image in enumerate(part.images):
        count = counts[known(image.id)]
        if count > MANY:
            fix = (
                f"of more than {MANY}, SAM's training draws {MANY} anew each time (dataloader.train.mapper."
                f"max_instances=N raises it, at the price of memory; train.oom_retry helps), and a detector finds "
                f"{MANY} at most (model.roi_heads.box_predictor.test_topk_per_image=N raises it)"
            )
            part.report_image(place, "warning", "annotations", f"{count} instances", fix, "many-instances")
