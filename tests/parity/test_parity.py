"""The embedded core gives the answers of the real Detectron2: recorded ones, and live ones where it is there.

To add cases, write ``cases_<area>.py`` beside this file with functions ``case_<name>()`` that take nothing,
import public detectron2 names, and return a dict of arrays, tensors and plain values (``answers.Approx`` where
the last digits may vary). Then record the golden answers with ``record.py cases_<area>``.
"""

import ast
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent


def load(name):
    # By path: the test runner imports this folder as no package, so that names never clash.
    spec = importlib.util.spec_from_file_location(f"parity_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


answers, processes = load("answers"), load("processes")


def all_cases():
    for path in sorted(HERE.glob("cases_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("case_"):
                yield path.stem, node.name


CASES = list(all_cases())


@pytest.fixture(scope="session")
def embedded():
    return processes.answers_of("embedded")


@pytest.fixture(scope="session")
def installed():
    checkout = os.environ.get(processes.CHECKOUT_VARIABLE)
    if not checkout:
        pytest.skip(f"{processes.CHECKOUT_VARIABLE} names no checkout of Detectron2: only golden answers are compared")
    return processes.answers_of("installed", checkout)


def answer(results, module, case):
    cases = results["modules"][module]
    result = cases.get("import") or cases[case]
    if "unavailable" in result:
        pytest.skip(result["unavailable"])
    if "error" in result:
        pytest.fail(f"{module}.{case} with {results['detectron2']}:\n{result['error']}")
    return result["answer"]


def assert_same(expected, actual, place):
    lines = answers.differences(expected, actual, place)
    assert not lines, "\n".join(lines[:20])


@pytest.mark.parametrize(("module", "case"), CASES)
def test_embedded_equals_golden(embedded, module, case):
    path = HERE / "golden" / f"{module}.json"
    assert path.exists(), f"{path} is missing: record it with tests/parity/record.py {module}"
    golden = json.loads(path.read_text())
    actual = answer(embedded, module, case)
    assert case in golden["cases"], f"{case} has no golden answer: record it with tests/parity/record.py {module}"
    lines = answers.differences(golden["cases"][case], answers.without_live(actual), case)
    others = other_versions(golden["made_with"], embedded["versions"], embedded["modules"][module][case]["depends_on"])
    if lines and others:
        pytest.skip(f"recorded with {others}; compare live with {processes.CHECKOUT_VARIABLE}")
    assert not lines, "\n".join(lines[:20])


def other_versions(recorded, here, libraries):
    """What differs among the libraries that decide an answer, as text; empty where nothing does."""
    differing = [name for name in libraries if recorded[name] != here[name]]
    return ", ".join(f"{name} {recorded[name]}, here {here[name]}" for name in differing)


def test_only_a_library_that_decides_excuses_a_difference():
    recorded, here = {"PIL": "13.0.0", "numpy": "2.4.6"}, {"PIL": "10.0.1", "numpy": "2.4.6"}
    assert other_versions(recorded, here, ["PIL", "numpy"]) == "PIL 13.0.0, here 10.0.1"
    assert other_versions(recorded, here, ["numpy"]) == other_versions(recorded, here, []) == ""


@pytest.mark.parametrize(("module", "case"), CASES)
def test_embedded_equals_installed(embedded, installed, module, case):
    assert_same(answer(installed, module, case), answer(embedded, module, case), case)


def test_the_right_cores_ran(embedded):
    assert "(embedded," in embedded["detectron2"]


def disc(radius):
    ys, xs = np.mgrid[:100, :100] - 50
    return (xs**2 + ys**2 < radius**2)[None]


def test_masks_may_differ_a_little():
    other = disc(40)
    other[0, 50, 50] = False  # one of about 5,000 pixels: an overlap of 0.9998
    assert answers.differences(*map(answers.encode, (answers.Masks(disc(40)), answers.Masks(other)))) == []
    other[0, 50, 40:60] = False  # 20 of them: 0.996
    lines = answers.differences(*map(answers.encode, (answers.Masks(disc(40)), answers.Masks(other))), "here")
    assert len(lines) == 1 and lines[0].startswith("here[0]: the masks overlap by 0.996")


def test_differences_finds_each_kind():
    large = np.arange(300.0)
    other = large.copy()
    other[299] += 1e-12
    pairs = {
        "number": (1, 2),
        "dtype": (np.zeros(3, np.float32), np.zeros(3, np.float64)),
        "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
        "hash": (large, other + 1),
        "key": ({"a": 1}, {"b": 1}),
        "length": ([1], [1, 1]),
        "approx": (answers.Approx(large), answers.Approx(large + 1e-3)),
        "masks": (answers.Masks(disc(20)), answers.Masks(disc(22))),
        "number of masks": (answers.Masks(disc(20)), answers.Masks(disc(20)[:0])),
        "size of masks": (answers.Masks(disc(20)), answers.Masks(disc(20)[:, 1:])),
        "approx shape": (answers.Approx(large), answers.Approx(large[None])),
    }
    for name, (a, b) in pairs.items():
        assert answers.differences(answers.encode(a), answers.encode(a)) == [], name
        assert answers.differences(answers.encode(a), answers.encode(b)) != [], name
    assert answers.differences(answers.encode(answers.Approx(large)), answers.encode(answers.Approx(other))) == []
    assert answers.differences(float("nan"), float("nan")) == []


def test_live_values_are_compared_but_not_recorded():
    one, other = (answers.encode({"a": [answers.Live({"x": number})], "b": 3}) for number in (1, 2))
    assert answers.differences(one, other) == [".a[0].live.x: 1 against 2"]
    recorded = answers.without_live(one)
    assert recorded == {"a": [{"live": None}], "b": 3}
    assert answers.differences(recorded, answers.without_live(other)) == []
    assert answers.differences(recorded, answers.without_live(answers.encode({"a": [answers.Live(1)], "b": 4}))) != []
