"""Print how much of the embedded core is compared with Detectron2, how much differs, and the same by architecture.

Usage: figures.py CHECKOUT

``CHECKOUT`` is a checkout of Detectron2; set ``SAM_D2_REAL_DATA`` to include the real data sets, and
``SAM_D2_PARITY_FULL=1`` for detectors on photographs. Any difference is printed to stderr and makes the exit status 1.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from answers import differences, mask_iou
from processes import answers_of

HEADER = "| area | cases | exact values | values within a tolerance | tolerance | largest difference | differences |"

DETECTORS = {
    "Mask R-CNN R_50_FPN": ("mask_rcnn_r50", "photographs_r50"),
    "Mask R-CNN R_101_FPN": ("mask_rcnn_r101", "photographs_r101"),
    "Mask R-CNN R_18_FPN, GN": ("mask_rcnn_r18_gn", "photographs_r18_gn"),
    "Mask R-CNN MViTv2-T": ("mask_rcnn_mvitv2", "photographs_mvitv2"),
    "Cascade Mask R-CNN MViTv2-T": ("cascade_mvitv2", "photographs_cascade"),
}
DETECTORS_HEADER = (
    "| architecture | images | fewest detections | fewest classes | boxes, px | scores | of another class "
    "| least mask IoU | losses | gradients |"
)


@dataclass
class Figures:
    """What an area compares, and how far its two sides are apart at most."""

    cases: int = 0
    exact: int = 0
    close: int = 0
    different: int = 0
    largest: float = 0.0
    tolerances: set[tuple[float, float]] = field(default_factory=set)

    def add(self, other: "Figures") -> None:
        self.cases += other.cases
        self.exact += other.exact
        self.close += other.close
        self.different += other.different
        self.largest = max(self.largest, other.largest)
        self.tolerances |= other.tolerances

    def row(self, area: str) -> str:
        tolerance = "exact"
        if self.tolerances:
            relative, absolute = (max(values) for values in zip(*self.tolerances, strict=True))
            tolerance = f"{relative:g} of the value + {absolute:g}"
        numbers = (f"{self.cases}", f"{self.exact:,}", f"{self.close:,}", tolerance, f"{self.largest:g}")
        return "| " + " | ".join((area, *numbers, f"{self.different}")) + " |"


def compared(expected: Any, actual: Any) -> Iterator[tuple[int, int, float, set[tuple[float, float]]]]:
    """Yield for each part of two encoded answers: exact and close values, largest difference, tolerances.

    The difference of large arrays, of which only hashes are there, is 0 or infinite; so is that of texts.
    """
    if isinstance(expected, dict) and "approx" in expected:
        pairs = zip(expected["approx"], actual["approx"], strict=True)
        largest = max((distance(a, b) for a, b in pairs), default=0.0)
        yield 0, len(expected["approx"]), largest, {(expected["rtol"], expected["atol"])}
    elif isinstance(expected, dict) and "least_iou" in expected:
        pairs = zip(expected["rle"], actual["rle"], strict=True)
        largest = max((1 - mask_iou(a, b) for a, b in pairs), default=0.0)
        yield 0, len(expected["rle"]), largest, {(0.0, 1 - expected["least_iou"])}
    elif isinstance(expected, dict) and {"dtype", "shape"} <= expected.keys():
        keys = [key for key in ("values", "sha256") if key in expected]
        inner = [(expected[key], actual.get(key)) for key in keys]
        largest = 0.0 if all(a == b for a, b in inner) else math.inf
        if "values" in keys and expected["shape"] == actual["shape"]:
            largest = max((distance(a, b) for a, b in zip(*inner[0], strict=True)), default=0.0)
        yield math.prod(expected["shape"]), 0, largest, set()
    elif isinstance(expected, (dict, list)) and expected:
        keys = expected if isinstance(expected, dict) else range(len(expected))
        for key in keys:
            yield from compared(expected[key], actual[key])
    else:
        yield 1, 0, distance(expected, actual), set()


def distance(a: Any, b: Any) -> float:
    """Absolute difference of two numbers; 0 or infinite for what has none."""
    if a == b or (a != a and b != b):
        return 0.0
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return abs(a - b) if numbers and math.isfinite(a) and math.isfinite(b) else math.inf


def figures_of(case: str, expected: Any, actual: Any) -> Figures:
    """Compare the two answers to a case, and print where they differ by more than they may."""
    lines = differences(expected, actual, case)
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
    found = Figures(cases=1, different=len(lines))
    try:
        for exact, close, largest, tolerances in compared(expected, actual):
            found.add(Figures(0, exact, close, 0, largest, tolerances))
    except (KeyError, IndexError, TypeError, ValueError):  # answers of another form
        found.largest = math.inf
    return found


def detector_row(name: str, expected: dict[str, Any], actual: dict[str, Any]) -> str:
    """Return the row of an architecture for its answers of ``cases_detectors.py``: largest differences of each part."""
    images = "4 photographs" if "found" in expected else "4 made"
    expected, actual = (one["found"]["live"] if "found" in one else one for one in (expected, actual))

    def largest(key: str, one: Any, other: Any) -> float:
        if isinstance(one, list):
            return max(largest(key, a, b) for a, b in zip(one, other, strict=True))
        return max(difference for _, _, difference, _ in compared(one[key], other[key]))

    outputs = expected["outputs"], actual["outputs"]
    theirs, ours = ([one["classes"]["values"] for one in side] for side in outputs)
    different = sum(a != b for one, other in zip(theirs, ours, strict=True) for a, b in zip(one, other, strict=True))
    cells = [name, images, f"{min(map(len, theirs))}", f"{min(len(set(one)) for one in theirs)}"]
    cells += [f"{largest('boxes', *outputs):g}", f"{largest('scores', *outputs):g}", f"{different}"]
    cells += [f"{1 - largest('masks', *outputs):g}"]
    cells += [f"{largest(key, expected, actual):g}" for key in ("losses", "gradients")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    installed, embedded = answers_of("installed", sys.argv[1]), answers_of("embedded")
    print(installed["detectron2"], embedded["detectron2"], installed["versions"], sep="\n")
    print(f"\n{HEADER}\n{'|---' * (HEADER.count('|') - 1)}|")
    total = Figures()
    for module, cases in installed["modules"].items():
        area = Figures()
        for case, expected in cases.items():
            actual = embedded["modules"][module].get(case, {})
            if "answer" in expected and "answer" in actual:
                area.add(figures_of(case, expected["answer"], actual["answer"]))
            else:
                print(f"{module}.{case}: {expected if 'answer' not in expected else actual}", file=sys.stderr)
                area.different += "unavailable" not in expected
        print(area.row(module.removeprefix("cases_")))
        total.add(area)
    print(total.row("all"))
    print(f"\n{DETECTORS_HEADER}\n{'|---' * (DETECTORS_HEADER.count('|') - 1)}|")
    ours, theirs = (results["modules"]["cases_detectors"] for results in (embedded, installed))
    for name, cases in DETECTORS.items():
        for case in cases:
            if "answer" in theirs[f"case_{case}"]:
                print(detector_row(name, theirs[f"case_{case}"]["answer"], ours[f"case_{case}"]["answer"]))
    sys.exit(total.different > 0)


if __name__ == "__main__":
    main()
