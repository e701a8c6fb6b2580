"""Record golden answers from the real Detectron2.

Usage: SAM_D2_DETECTRON2_PATH=CHECKOUT [SAM_D2_REAL_DATA=FOLDER] record.py [MODULE ...]

``MODULE`` is a file cases_*.py of this folder without its ending; all of them by default. A case that cannot
run here (no real data) keeps the answer recorded before.
"""

import json
import os
import sys
from pathlib import Path

from answers import without_live
from processes import CHECKOUT_VARIABLE, HERE, REFERENCE_COMMIT, answers_of, checkout_commit


def main() -> None:
    checkout = os.environ.get(CHECKOUT_VARIABLE)
    if not checkout:
        sys.exit(f"{CHECKOUT_VARIABLE} must name a checkout of Detectron2 at {REFERENCE_COMMIT}.")
    commit = checkout_commit(checkout)
    if not commit.startswith(REFERENCE_COMMIT):
        sys.exit(f"{checkout} stands at {commit}: the reference is {REFERENCE_COMMIT}.")
    recorded = answers_of("installed", checkout, tuple(sys.argv[1:]))
    for module, cases in recorded["modules"].items():
        path = HERE / "golden" / f"{module}.json"
        old = json.loads(path.read_text())["cases"] if path.exists() else {}
        new = {}
        for case, result in cases.items():
            if "error" in result:
                sys.exit(f"{module}.{case} fails with the real Detectron2:\n{result['error']}")
            if "answer" in result:
                new[case] = without_live(result["answer"])
            elif case in old:
                new[case] = old[case]
        text = dump({"detectron2": REFERENCE_COMMIT, **recorded["versions"]}, new)
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text(text)
        unfinished.replace(path)
        print(f"{path}: {len(new)} cases, {len(text) // 1024} KiB")


def dump(made_with: dict, cases: dict) -> str:
    """Return the file's text: one line for each part of an answer, so that a change shows in a diff."""
    lines = [f' "made_with": {json.dumps(made_with)},', ' "cases": {']
    for case in sorted(cases):
        parts = [f"   {json.dumps(key)}: {json.dumps(part)}" for key, part in cases[case].items()]
        lines += [f"  {json.dumps(case)}: {{", ",\n".join(parts), "  },"]
    if cases:
        lines[-1] = "  }"
    return "\n".join(["{", *lines, " }", "}"]) + "\n"


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent)
    main()
