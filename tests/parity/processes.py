"""Start the process that runs the cases with one Detectron2 or the other."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
REFERENCE_COMMIT = "02b5c4e"
CHECKOUT_VARIABLE = "SAM_D2_DETECTRON2_PATH"


def answers_of(choice: str, checkout: str | None = None, modules: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run cases in a new process and return what it wrote.

    Args:
        choice: "embedded" or "installed".
        checkout: folder with a ``detectron2`` package, put first on the path; None where it is installed.
        modules: names of case modules; all of them by default.

    Raises:
        RuntimeError: the process failed; the message is what it printed.
    """
    path = [*([] if checkout is None else [checkout]), str(PROJECT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "SAM_D2_DETECTRON2": choice,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answers.json"
        process = subprocess.run(
            [sys.executable, str(HERE / "run_cases.py"), str(out), *modules],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if not out.exists():
            raise RuntimeError(f"The cases did not run with detectron2 {choice}:\n{process.stdout}{process.stderr}")
        return json.loads(out.read_text())


def checkout_commit(checkout: str) -> str:
    """Return the commit that a checkout stands at."""
    command = ["git", "-C", checkout, "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
