"""Results of an evaluation: printed, compared with what is expected, flattened."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

_logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of each task as lines to be copied into a spreadsheet.

    Metrics with a ``-`` in their name (those of a single category) are left out.

    Args:
        results: task -> metric -> number; a task with a single value is allowed.
    """
    assert isinstance(results, Mapping) or not len(results), results
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            _logger.info(f"copypaste: {task}={metrics}")
            continue
        names = [name for name in metrics if "-" not in name]
        _logger.info(f"copypaste: Task: {task}")
        _logger.info("copypaste: " + ",".join(names))
        _logger.info("copypaste: " + ",".join(f"{metrics[name]:.4f}" for name in names))


def verify_results(cfg: Any, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with ``cfg.TEST.EXPECTED_RESULTS``, rows of (task, metric, value, tolerance).

    Args:
        cfg: config with that key; an empty list expects nothing.
        results: task -> metric -> number.

    Returns:
        True; otherwise the process ends.

    Raises:
        SystemExit: with code 1, where a metric is missing, not finite, or off by more than its tolerance.
    """
    rows = cfg.TEST.EXPECTED_RESULTS
    if not len(rows):
        return True
    # "not <=" rather than ">": NaN is a failure. An infinite tolerance does not excuse an infinite value.
    failed = [
        (task, metric)
        for task, metric, expected, tolerance in rows
        if not math.isfinite(results[task].get(metric, math.nan))
        or not abs(results[task][metric] - expected) <= tolerance
    ]
    if failed:
        _logger.error(f"Result verification failed for {failed}!")
        _logger.error(f"Expected: {rows}")
        _logger.error("Found: " + pprint.pformat(results))
        sys.exit(1)
    _logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts as one, names joined by ``/``: ``{"a": {"b": 1}}`` gives ``{"a/b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": leaf for inner, leaf in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
