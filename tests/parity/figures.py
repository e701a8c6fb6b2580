"""Print how much of the embedded core is compared with Detectron2, and how much differs.

Usage: figures.py CHECKOUT

``CHECKOUT`` is a checkout of Detectron2; set ``SAM_D2_REAL_DATA`` to include the real data sets.
"""

import math
import sys
from typing import Any

from answers import differences
from processes import answers_of


def count(answer: Any) -> tuple[int, int]:
    """Return how many values of an encoded answer are compared exactly, and how many within a tolerance."""
    if isinstance(answer, dict):
        if "approx" in answer:
            return 0, len(answer["approx"])
        if "rle" in answer:
            return 0, len(answer["rle"])
        if "dtype" in answer and "shape" in answer:
            return math.prod(answer["shape"]), 0
        answer = list(answer.values())
    if not isinstance(answer, list):
        return 1, 0
    exact, close = zip(*map(count, answer), strict=True) if answer else ((1,), (0,))
    return sum(exact), sum(close)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    installed, embedded = answers_of("installed", sys.argv[1]), answers_of("embedded")
    print(installed["detectron2"], embedded["detectron2"], installed["versions"], sep="\n")
    print("\n| area | cases | exact values | values within a tolerance | differences |\n|---|---|---|---|---|")
    totals = [0, 0, 0, 0]
    for module, cases in installed["modules"].items():
        row = [0, 0, 0, 0]
        for case, expected in cases.items():
            actual = embedded["modules"][module].get(case, {})
            if "answer" not in expected or "answer" not in actual:
                print(f"{module}.{case}: {expected if 'answer' not in expected else actual}", file=sys.stderr)
                row[3] += "unavailable" not in expected
                continue
            lines = differences(expected["answer"], actual["answer"], case)
            print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
            row = [a + b for a, b in zip(row, (1, *count(expected["answer"]), len(lines)), strict=True)]
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        print(f"| {module.removeprefix('cases_')} | " + " | ".join(f"{number:,}" for number in row) + " |")
    print("| all | " + " | ".join(f"{number:,}" for number in totals) + " |")
    sys.exit(totals[3] > 0)


if __name__ == "__main__":
    main()
