"""Each case runs in a process of its own, without site-packages, so that what is installed here plays no part."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHOW = "import sam_d2, detectron2; print(detectron2.__version__)"


def run(folder, code=SHOW, choice=None, path=(), library=REPOSITORY):
    """Run code in a folder; ``path`` and the folder of sam_d2 are on PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "SAM_D2_DETECTRON2"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*path, library]))
    if choice is not None:
        environment["SAM_D2_DETECTRON2"] = choice
    return subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )


def version(*args, **kwargs):
    result = run(*args, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def error(*args, **kwargs):
    """Return the last line of the traceback, which is what a user reads."""
    result = run(*args, **kwargs)
    assert result.returncode != 0, result.stdout
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture
def installed(tmp_path):
    """Return a folder that holds a package like an installed Detectron2."""
    package = tmp_path / "site" / "detectron2"
    (package / "structures").mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "9.9"')
    (package / "structures" / "__init__.py").touch()
    return package.parent


@pytest.fixture
def elsewhere(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("choice", [None, "", "auto", "embedded"])
def test_the_core_where_nothing_is_installed(elsewhere, choice):
    assert version(elsewhere, choice=choice) == "0.6+sam_d2"


@pytest.mark.parametrize("choice", [None, "auto", "installed"])
def test_the_installed_one_where_there_is_one(elsewhere, installed, choice):
    assert version(elsewhere, choice=choice, path=[installed]) == "9.9"


def test_the_core_can_be_forced(elsewhere, installed):
    assert version(elsewhere, choice="embedded", path=[installed]) == "0.6+sam_d2"


def test_the_installed_one_can_be_demanded(elsewhere):
    message = error(elsewhere, choice="installed")
    assert "UserError" in message and "SAM_D2_DETECTRON2=installed" in message and "PYTHONPATH" in message


def test_another_value_is_an_error(elsewhere):
    message = error(elsewhere, choice="Embedded")
    assert "'Embedded'" in message and "auto, installed or embedded" in message


@pytest.mark.parametrize("choice", [None, "installed"])
def test_a_broken_installed_one_is_named_with_the_way_out(elsewhere, installed, choice):
    (installed / "detectron2" / "structures" / "__init__.py").write_text("import detectron2._C")
    message = error(elsewhere, choice=choice, path=[installed])
    assert "UserError" in message and str(installed) in message
    assert "detectron2._C" in message and "SAM_D2_DETECTRON2=embedded" in message
    assert version(elsewhere, choice="embedded", path=[installed]) == "0.6+sam_d2"


@pytest.mark.parametrize("code", [SHOW, "import detectron2; " + SHOW], ids=["sam_d2 first", "folder first"])
def test_a_clone_in_the_working_directory_is_no_installation(elsewhere, installed, code):
    shutil.copytree(installed / "detectron2", elsewhere / "detectron2" / "detectron2")
    assert version(elsewhere, code) == "0.6+sam_d2"
    assert "no detectron2 package" in error(elsewhere, choice="installed")


def test_the_core_cannot_be_forced_once_another_is_imported(elsewhere, installed):
    code = "import detectron2; " + SHOW
    message = error(elsewhere, code, choice="embedded", path=[installed])
    assert "UserError" in message and str(installed) in message and "Import sam_d2 first" in message


def test_the_core_in_an_installed_wheel(elsewhere, tmp_path):
    library = tmp_path / "wheel"
    shutil.copytree(REPOSITORY / "sam_d2", library / "sam_d2", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sam_d2, detectron2; print(detectron2.__file__)"
    assert version(elsewhere, code, library=library).startswith(str(library / "sam_d2" / "embedded"))


def test_only_the_search_path_is_changed(elsewhere):
    code = (
        "import sys; finders = list(sys.meta_path); import sam_d2; import sam_d2.detectron2_source as source\n"
        "source.provide_detectron2(); source.provide_detectron2()\n"
        "root = str(source.EMBEDDED_ROOT)\n"
        "print(finders == sys.meta_path, sys.path.count(root), sys.path.index(root) in (0, len(sys.path) - 1))\n"
        "print('detectron2' in sys.modules)"
    )
    for choice in ("auto", "embedded"):
        assert version(elsewhere, code, choice=choice).split() == ["True", "1", "True", "False"]


def test_a_spawned_process_has_the_same_one(elsewhere, installed):
    script = elsewhere / "main.py"
    script.write_text(
        "import multiprocessing\n"
        "def show():\n    import detectron2; print(detectron2.__version__)\n"
        "if __name__ == '__main__':\n"
        "    import sam_d2\n"
        "    child = multiprocessing.get_context('spawn').Process(target=show)\n"
        "    child.start(); child.join(); raise SystemExit(child.exitcode)\n"
    )
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    environment_free = version(elsewhere, code)
    assert environment_free == "0.6+sam_d2"
    assert version(elsewhere, code, choice="embedded", path=[installed]) == "0.6+sam_d2"


@pytest.mark.parametrize(("choice", "kind"), [("embedded", "embedded"), ("installed", "installed")])
def test_the_line_for_the_log(elsewhere, installed, choice, kind):
    code = "import sam_d2; from sam_d2.detectron2_source import describe_detectron2 as d; print(d())"
    line = version(elsewhere, code, choice=choice, path=[installed])
    number = {"embedded": "0.6+sam_d2", "installed": "9.9"}[kind]
    assert line.startswith(f"detectron2 {number} ({kind}, ") and line.endswith("detectron2)")
