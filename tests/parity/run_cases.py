"""Run cases in this process, with the Detectron2 that the environment chooses, and write the answers.

Usage: run_cases.py OUT.json [MODULE ...]

``MODULE`` is a file cases_*.py of this folder without its ending; all of them by default. OUT.json gets the
versions in use and, for each case, its answer, or why it could not run, or its traceback.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import traceback
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Import names and, where there is no __version__, names of the distributions.
LIBRARIES = {
    **{name: name for name in ("torch", "torchvision", "numpy", "fvcore", "pycocotools", "scipy", "omegaconf")},
    **{"PIL": "pillow", "cv2": "opencv-python-headless", "shapely": "shapely", "yaml": "PyYAML", "hydra": "hydra-core"},
}


def run_module(name: str) -> dict[str, dict]:
    from answers import Unavailable, encode

    try:
        module = importlib.import_module(name)
    except Exception:
        return {"import": {"error": traceback.format_exc()}}
    results = {}
    for case, function in list(vars(module).items()):  # a warning adds a name to the module
        if not case.startswith("case_"):
            continue
        try:
            results[case] = {"answer": encode(function()), "depends_on": getattr(function, "depends_on", ())}
        except Unavailable as reason:
            results[case] = {"unavailable": str(reason)}
        except Exception:
            results[case] = {"error": traceback.format_exc()}
    return results


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name, distribution in LIBRARIES.items():
        try:
            module = importlib.import_module(name)
            found[name] = str(getattr(module, "__version__", None) or importlib.metadata.version(distribution))
        except ImportError:
            found[name] = "absent"
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(HERE))
    import torch

    import sam_d2  # noqa: F401  before detectron2
    from sam_d2.detectron2_source import describe_detectron2

    torch.set_num_threads(1)
    out, *modules = sys.argv[1:]
    modules = modules or sorted(path.stem for path in HERE.glob("cases_*.py"))
    answers = {
        "detectron2": describe_detectron2(),
        "versions": versions(),
        "modules": {name: run_module(name) for name in modules},
    }
    Path(out).write_text(json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)  # loaders of a case may leave workers and threads behind


if __name__ == "__main__":
    main()
