import logging
import os
import pickle
import random
import re

import numpy as np
import pytest
import torch

from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import TORCH_VERSION, seed_all_rng
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper


@pytest.fixture
def own_logger(request):
    """Return the name of a logger that no other test has, and remove its handlers afterwards."""
    name = f"pkg_{request.node.name}"
    yield name
    logging.getLogger(name).handlers.clear()


class TestLogger:
    def test_terminal_and_file(self, own_logger, tmp_path, capsys):
        logger = setup_logger(str(tmp_path / "run"), name=own_logger, abbrev_name="p")
        assert setup_logger(str(tmp_path / "run"), name=own_logger, abbrev_name="p") is logger
        assert len(logger.handlers) == 2 and logger.level == logging.DEBUG and not logger.propagate
        logging.getLogger(own_logger + ".part").warning("careful")
        terminal = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert re.fullmatch(r"WARNING \[\d\d/\d\d \d\d:\d\d:\d\d p\.part\]: careful\n", terminal)
        line = (tmp_path / "run" / "log.txt").read_text()
        assert re.fullmatch(r"\[\d\d/\d\d \d\d:\d\d:\d\d\] p\.part WARNING: careful\n", line)

    def test_other_ranks_write_files_only(self, own_logger, tmp_path, capsys):
        setup_logger(str(tmp_path / "a.log"), distributed_rank=2, name=own_logger).info("hello")
        assert capsys.readouterr().out == ""
        assert (tmp_path / "a.log.rank2").read_text().endswith(f"{own_logger} INFO: hello\n")

    def test_plain_terminal(self, own_logger, capsys):
        setup_logger(name=own_logger, color=False).error("hello")
        assert capsys.readouterr().out.endswith(f"] {own_logger} ERROR: hello\n")


class TestRareLogging:
    def test_first_n_per_line_or_message(self, caplog):
        for index in range(4):
            log_first_n(logging.WARNING, f"line {index}", 2)
        for index in (0, 0, 1):
            log_first_n(logging.WARNING, f"message {index}", key="message")
        log_first_n(logging.WARNING, "message 1", key="message")
        log_first_n(logging.WARNING, "message 1", key=("caller", "message"), name="named")
        assert [record.message for record in caplog.records] == [
            "line 0",
            "line 1",
            "message 0",
            "message 1",
            "message 1",
        ]
        assert {record.name for record in caplog.records} == {__name__, "named"}

    def test_every_n(self, caplog):
        for index in range(7):
            log_every_n(logging.WARNING, str(index), 3)
        assert [record.message for record in caplog.records] == ["0", "3", "6"]

    def test_every_n_seconds(self, caplog, monkeypatch):
        now = 100.0
        monkeypatch.setattr("time.time", lambda: now)
        for step in (0.0, 4.0, 2.0, 4.0):
            now += step
            log_every_n_seconds(logging.WARNING, str(now), 5)
        assert [record.message for record in caplog.records] == ["100.0", "106.0"]


def test_small_table():
    header, rule, row = create_small_table({"AP": 12.34567, "name": "x"}).splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["AP", "name"]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["12.346", "x"]
    assert set(rule) <= set("|:-")


def test_locate_and_registry():
    assert locate("torch.optim.SGD") is locate("torch.optim.sgd.SGD") is torch.optim.SGD
    assert locate("os.path.join") is os.path.join
    with pytest.raises(ImportError):
        locate("torch.nothing_of_that_name")
    registry = Registry("THINGS")
    registry.register(dict)
    assert registry.get("dict") is dict


def test_a_closure_is_pickled_once_wrapped():
    base = 3
    wrapped = PicklableWrapper(PicklableWrapper(lambda value: value + base))
    assert pickle.loads(pickle.dumps(wrapped))(4) == 7
    assert not isinstance(wrapped._obj, PicklableWrapper)
    assert PicklableWrapper("text").upper() == "TEXT"
    with pytest.raises(AttributeError):
        _ = wrapped.nothing


def test_seeding_makes_all_generators_repeat(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")

    def draw(seed):
        seed_all_rng(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(7) == draw(7) != draw(8)
    assert all(left != right for left, right in zip(draw(7), draw(8), strict=True))
    assert os.environ["PYTHONHASHSEED"] == "8"
    assert draw(None) != draw(None)


def test_versions():
    assert tuple(map(str, TORCH_VERSION)) == tuple(torch.__version__.split(".")[:2])
    info = collect_env_info()
    assert torch.__version__ in info and "GPU available" in info


def test_local_files_and_the_model_store(tmp_path):
    with PathManager.open(str(tmp_path / "a.txt"), "w") as file:
        file.write("text")
    assert PathManager.get_local_path(str(tmp_path / "a.txt")) == str(tmp_path / "a.txt")
    asked = []
    handler = PathManager._PathManager__get_path_handler("https://host/x")
    original = handler._get_local_path
    handler._get_local_path = lambda path, **kwargs: asked.append(path) or "local"
    try:
        assert PathManager.get_local_path("detectron2://folder/model.pkl") == "local"
    finally:
        handler._get_local_path = original
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/folder/model.pkl"]


class Tensor:
    """What looks like a tensor on a GPU."""

    device = torch.device("cuda")

    def to(self, device):
        return f"on {device}"


class TestOutOfMemory:
    def test_third_try_on_the_cpu(self):
        seen = []

        @retry_if_cuda_oom
        def function(first, second, *, third):
            seen.append((first, second, third))
            if len(seen) < 3:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return "done"

        gpu = Tensor()
        assert function(gpu, 1, third=gpu) == "done"
        assert seen == [(gpu, 1, gpu)] * 2 + [("on cpu", 1, "on cpu")]

    def test_other_errors_pass(self):
        @retry_if_cuda_oom
        def function():
            raise RuntimeError("something else")

        with pytest.raises(RuntimeError, match="something else"):
            function()
