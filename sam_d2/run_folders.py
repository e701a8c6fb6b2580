"""What to say where a run's folder is named that is not there; free of torch."""

from __future__ import annotations

import difflib
from pathlib import Path

from sam_d2.errors import UserError

_OUTPUT = Path("experiments") / "output"
_MOST_SHOWN = 10


def require_run(path: str | Path, named: str = "", *, others: str = "") -> None:
    """Refuse a path where nothing is.

    Args:
        path: of a run's folder.
        named: what stands before it in the message, such as ``--detector `` or ``dataloader.detector.config=``.
        others: what else it might have been, such as ``config file``.

    Raises:
        UserError: there is no such folder or file. The message has the runs that there are.
    """
    path = Path(path)
    if path.exists():
        return
    what = f"run folder or {others}" if others else "run folder"
    raise UserError(f"{named}{path}: no such {what}.{_runs_near(path)}")


def require_config(folder: str | Path, named: str = "") -> None:
    """Refuse a folder that is not a run's.

    Args:
        folder: that exists.
        named: as for :func:`require_run`.

    Raises:
        UserError: it has no ``config.yaml``. The message has the runs that there are.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{named}{folder}: config.yaml is missing, so this is not the folder of a run.{_runs_near(folder)}"
        )


def _runs_near(path: Path) -> str:
    """The runs beside a path, or where runs are by default: the likeliest first, for a message."""
    for folder in dict.fromkeys((path.parent, _OUTPUT)):
        names = sorted(file.parent.name for file in folder.glob("*/config.yaml"))
        if names:
            near = difflib.get_close_matches(path.name, names, n=3)
            shown = [*near, *(name for name in names if name not in near)]
            more = ", ..." if len(shown) > _MOST_SHOWN else ""
            return f" Runs in {folder}: {', '.join(shown[:_MOST_SHOWN])}{more}."
    return ""
