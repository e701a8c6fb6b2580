"""The core's reader of pickled arrays, beside an installed Detectron2 too, whose own would run what a file names."""

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import IO, Any

import sam_d2

# By its path: the core can be imported only where it stands in for Detectron2. This file needs nothing else of it.
_FILE = Path(sam_d2.__file__).parent / "embedded" / "detectron2" / "checkpoint" / "array_pickle.py"
_spec = spec_from_file_location("sam_d2.engine._array_pickle", _FILE)
assert _spec is not None and _spec.loader is not None
_module = module_from_spec(_spec)
_spec.loader.exec_module(_module)

load_array_pickle: Callable[[IO[bytes], str], Any] = _module.load_array_pickle
