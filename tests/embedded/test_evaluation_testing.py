"""Results as flat names, as lines for a spreadsheet, and against expected values."""

import logging
from types import SimpleNamespace

import pytest

import sam_d2  # noqa: F401
from detectron2.evaluation import print_csv_format, verify_results
from detectron2.evaluation.testing import flatten_results_dict

RESULTS = {"bbox": {"AP": 40.0, "AP50": 61.23456, "AP-cat": 33.0}}


@pytest.fixture(autouse=True)
def visible_log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO)


def expecting(*rows):
    return SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=list(rows)))


def test_flatten():
    nested = {"a": {"b": 1, "c": {"d": 2}}, "e": 3, "f": {}}
    assert flatten_results_dict(nested) == {"a/b": 1, "a/c/d": 2, "e": 3}


def test_print_csv_format(caplog):
    print_csv_format({**RESULTS, "seconds": 1.5})
    assert [record.getMessage() for record in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 40.0000,61.2346",
        "copypaste: seconds=1.5",
    ]


def test_print_csv_format_of_nothing(caplog):
    print_csv_format({})
    assert not caplog.records


def test_print_csv_format_refuses_other_things():
    with pytest.raises(AssertionError):
        print_csv_format([1.0])


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [["bbox", "AP", 40.0, 0.0]],
        [["bbox", "AP", 41.0, 1.0], ["bbox", "AP50", 61.0, 0.3]],
    ],
)
def test_verify_results_passes(rows):
    assert verify_results(expecting(*rows), RESULTS) is True


@pytest.mark.parametrize(
    ("rows", "results"),
    [
        ([["bbox", "AP", 41.0, 0.9]], RESULTS),
        ([["bbox", "AR", 40.0, 1.0]], RESULTS),  # a metric that is not there
        ([["bbox", "AP", 40.0, 1.0]], {"bbox": {"AP": float("nan")}}),
        ([["bbox", "AP", 40.0, float("inf")]], {"bbox": {"AP": float("inf")}}),
        ([["bbox", "AP", 40.0, 1.0], ["bbox", "AP50", 0.0, 1.0]], RESULTS),
    ],
)
def test_verify_results_ends_the_process(rows, results, caplog):
    with pytest.raises(SystemExit) as stop:
        verify_results(expecting(*rows), results)
    assert stop.value.code == 1
    assert "verification failed" in caplog.text
