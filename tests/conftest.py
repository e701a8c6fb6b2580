"""Fixtures shared by all tests. sam_d2 is imported first: it decides which Detectron2 the tests see."""

import os
from pathlib import Path

import pytest

import sam_d2  # noqa: F401


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets, or a skip where the environment names none."""
    folder = os.environ.get("SAM_D2_REAL_DATA")
    if not folder:
        pytest.skip("SAM_D2_REAL_DATA is not set: the real data sets are not on this machine")
    if not Path(folder).is_dir():
        pytest.fail(f"SAM_D2_REAL_DATA={folder} is not a folder")
    return Path(folder).resolve()
