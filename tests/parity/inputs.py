"""Inputs that several case modules share."""

import contextlib
import json
import logging

import numpy as np

HEIGHT, WIDTH = 37, 53
BOXES = np.array([[1.5, 2.25, 20.0, 30.5], [10.0, 0.0, 53.0, 37.0], [40.25, 20.5, 44.75, 22.0]], np.float32)
POLYGON = [3.0, 4.0, 30.5, 6.25, 28.0, 33.0, 5.5, 20.0]


def noise(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def blocks():
    """Label map with 4 rectangles."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:, 30:] = 1
    labels[20:, :30] = 2
    labels[25:, 40:] = 3
    return labels


def text(value):
    """Array of the bytes of a value's JSON, so that it is hashed and compared exactly."""

    def plain(item):
        return item.decode() if isinstance(item, bytes) else item.tolist()

    return np.frombuffer(json.dumps(value, sort_keys=True, default=plain).encode(), np.uint8)


def raised(function):
    """Name of the error that a call raises; messages are each core's own."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return "no error"


@contextlib.contextmanager
def logged(name="detectron2"):
    """Collect what a library logs, as (level, message)."""
    lines = []

    class Collect(logging.Handler):
        def emit(self, record):
            lines.append((record.levelname, record.getMessage()))

    logger, handler = logging.getLogger(name), Collect()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
