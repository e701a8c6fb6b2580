"""The wheel: complete, typed, and with every import declared."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import sam_d2

ROOT = Path(__file__).resolve().parent.parent


def _run(command, **kwargs):
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy because setuptools writes beside its sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "sam_d2", source / "sam_d2", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    _run([*pip, "wheel", *options, "--wheel-dir", str(source / "dist"), "."], cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_installed_wheel_provides_detectron2_from_another_directory(wheel, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--no-deps", "--no-index", "--quiet", "--target", str(site), str(wheel)])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import sam_d2, detectron2.config; print(sam_d2.__file__); print(detectron2.config.__file__)"
    environment = os.environ | {"SAM_D2_DETECTRON2": "embedded", "PYTHONPATH": str(site)}
    package, config = _run([sys.executable, "-c", code], cwd=elsewhere, env=environment).split()
    assert Path(package) == site / "sam_d2/__init__.py"
    assert Path(config) == site / "sam_d2/embedded/detectron2/config/__init__.py"


def test_wheel_holds_all_of_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {file.relative_to(ROOT).as_posix() for file in (ROOT / "sam_d2").rglob("*.py")}
    data = {f"sam_d2/{name}" for name in ("py.typed", "evaluation/report.css", "evaluation/report.js")}
    assert names == sources | data


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(name).decode()
        assert any(file.endswith("LICENSE") for file in archive.namelist())
    assert f"\nVersion: {sam_d2.__version__}\n" in metadata
    assert "\nRequires-Python: >=3.10\n" in metadata
    assert "Apache-2.0" in metadata


def _requirements(wheel):
    """The normalised names of what the wheel requires, without and with extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = re.findall(r"^Requires-Dist: ([\w.-]+)(.*)$", archive.read(name).decode(), re.MULTILINE)
    base = {_normalise(name) for name, rest in lines if "extra ==" not in rest}
    return base, {_normalise(name) for name, _ in lines}


def _normalise(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _imports(tree):
    """The top-level packages that a module imports: those needed to import it, and all."""
    needed, everywhere = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = {node.module.partition(".")[0]}
        else:
            continue
        everywhere |= names
        if node in tree.body:
            needed |= names
    return needed, everywhere


def test_every_import_is_declared(wheel):
    required, offered = _requirements(wheel)
    distributions = packages_distributions()
    own = {"sam_d2", "detectron2", *sys.stdlib_module_names}
    undeclared = set()
    for file in (ROOT / "sam_d2").rglob("*.py"):
        needed, everywhere = _imports(ast.parse(file.read_text(encoding="utf-8")))
        for name in everywhere - own:
            candidates = {_normalise(d) for d in distributions.get(name, [name])}
            if not candidates & (required if name in needed else offered):
                undeclared.add(f"{file.relative_to(ROOT)}: {name}")
    assert not undeclared


def test_opencv_comes_without_libgl(wheel):
    required, _ = _requirements(wheel)
    assert "opencv-python-headless" in required and "opencv-python" not in required
