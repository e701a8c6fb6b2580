"""Decide which ``detectron2`` is imported: the installed one or the embedded core."""

import importlib.util
import os
import sys
from pathlib import Path

from sam_d2.errors import UserError

SWITCH = "SAM_D2_DETECTRON2"
EMBEDDED_ROOT = Path(__file__).resolve().parent / "embedded"


def provide_detectron2() -> None:
    """Make ``import detectron2`` work, as the environment variable ``SAM_D2_DETECTRON2`` says.

    ``auto`` (default) takes an installed Detectron2 where there is one and the embedded core elsewhere;
    ``installed`` and ``embedded`` force the choice. ``sys.path`` is changed rather than an import hook
    installed, because spawned loader workers inherit ``sys.path``.

    Raises:
        UserError: the switch has an unknown value, ``installed`` is asked for and there is none, the installed
            one cannot be imported, or another ``detectron2`` was imported before the embedded one was forced.
    """
    choice = os.environ.get(SWITCH) or "auto"
    if choice not in ("auto", "installed", "embedded"):
        raise UserError(f"{SWITCH}={choice!r}: expected auto, installed or embedded.")
    if choice == "embedded":
        _use_embedded(first=True)
    elif _installed_origin() is not None:
        _check_import()
    elif choice == "installed":
        raise UserError(
            f"{SWITCH}=installed, but no detectron2 package is found. Install Detectron2, put a checkout on "
            f"PYTHONPATH, or unset {SWITCH} to use the embedded core."
        )
    else:
        _use_embedded(first=False)


def describe_detectron2() -> str:
    """Return one line for the log: which Detectron2 is in use, its version and its folder."""
    import detectron2

    folder = Path(detectron2.__file__).resolve().parent
    kind = "embedded" if folder.parent == EMBEDDED_ROOT else "installed"
    return f"detectron2 {detectron2.__version__} ({kind}, {folder})"


def _installed_origin() -> str | None:
    """Return the file of a ``detectron2`` outside of the embedded core, or None.

    A folder of that name without ``__init__.py`` (a clone in the working directory) has no origin and does
    not count.
    """
    module = sys.modules.get("detectron2")
    spec = module.__spec__ if module is not None else importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None or EMBEDDED_ROOT in Path(spec.origin).resolve().parents:
        return None
    return spec.origin


def _check_import() -> None:
    try:
        import detectron2.structures  # noqa: F401  the first sub-package that needs the compiled extension's stubs
    except Exception as error:
        raise UserError(
            f"Detectron2 is installed ({_installed_origin()}) but cannot be imported: "
            f"{type(error).__name__}: {error}. Mend it, or set {SWITCH}=embedded to use the embedded core."
        ) from error


def _use_embedded(first: bool) -> None:
    loaded = sys.modules.get("detectron2")
    if loaded is not None and getattr(loaded, "__file__", None) is None:
        del sys.modules["detectron2"]  # a clone's folder imported as an empty namespace would hide the core
    elif loaded is not None and _installed_origin() is not None:
        raise UserError(f"{SWITCH}=embedded, but {loaded.__file__} was imported before sam_d2. Import sam_d2 first.")
    root = str(EMBEDDED_ROOT)
    if first:
        sys.path[:] = [root] + [entry for entry in sys.path if entry != root]
    elif root not in sys.path:
        sys.path.append(root)
    importlib.invalidate_caches()
