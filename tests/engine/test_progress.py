"""The progress line: its text, on a terminal and elsewhere."""

import io
import logging
import re

import pytest

from detectron2.engine import HookBase, TrainerBase
from detectron2.utils.events import get_event_storage
from sam_d2.engine.progress import ProgressLine

LINE = re.compile(
    r"step (\d+)/10  eta (\d:\d\d:\d\d)  total_loss ([\d.]+)  loss_focal ([\d.]+)  lr 1\.00e-04  "
    r"([\d.]+) images/s  memory (\d+) MiB"
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass with each step alone: 2."""
    time = [100.0]
    monkeypatch.setattr("sam_d2.engine.progress.time.perf_counter", lambda: time[0])
    return time


class Trainer(TrainerBase):
    """A step takes two seconds for eight images, and stores the loss 1 / (iteration + 1)."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def run_step(self):
        self.clock[0] += 2
        loss = 1 / (self.iter + 1)
        get_event_storage().put_scalars(total_loss=loss, loss_focal=loss, data_time=0.5, val=3)
        get_event_storage().put_scalar("lr", 1e-4, smoothing_hint=False)
        get_event_storage().put_scalar("images", 8, smoothing_hint=False)


class Speaks(HookBase):
    def after_step(self):
        if self.trainer.iter == 4:
            logging.getLogger("sam_d2.test").info("something happens")


def run(clock, hooks, steps=(0, 10)):
    trainer = Trainer(clock)
    trainer.register_hooks(hooks)
    trainer.train(*steps)


@pytest.fixture(autouse=True)
def info(caplog):
    caplog.set_level(logging.INFO, "sam_d2")


def lines(caplog):
    texts = [record.getMessage() for record in caplog.records if record.name == "sam_d2.engine.progress"]
    return [LINE.fullmatch(text) for text in texts]


def test_elsewhere_it_is_logged_each_period_and_at_the_end(clock, caplog):
    stream = io.StringIO()
    run(clock, [ProgressLine(4, stream)])
    assert stream.getvalue() == ""
    found = lines(caplog)
    assert [match[1] for match in found] == ["4", "8", "10"]
    # 6, 2 and 0 steps of 2 s are left; 8 images in 2 s
    assert [match[2] for match in found] == ["0:00:12", "0:00:04", "0:00:00"]
    assert [match[5] for match in found] == ["4.0"] * 3
    # the median of 1, 1/2, 1/3, 1/4 as the storage smooths it: the mean of the middle two, 5/12
    assert float(found[0][3]) == pytest.approx(5 / 12, abs=1e-4)
    assert all(20 < float(match[6]) < 100_000 for match in found)  # MiB of this process


def test_a_resumed_run_counts_its_own_steps_only(clock, caplog):
    run(clock, [ProgressLine(5, io.StringIO())], (6, 10))
    assert [(match[1], match[2], match[5]) for match in lines(caplog)] == [("10", "0:00:00", "4.0")]


def test_on_a_terminal_it_is_redrawn_in_place_and_removed(clock):
    stream = Terminal()
    run(clock, [ProgressLine(100, stream)])
    *drawn, last = stream.getvalue().split("\r\x1b[K")[1:]
    assert [LINE.fullmatch(text)[1] for text in drawn] == [str(step) for step in range(1, 11)]
    assert last == ""
    assert "\n" not in stream.getvalue()


def test_it_is_not_redrawn_more_often_than_an_eye_sees(clock, monkeypatch):
    stream = Terminal()
    line = ProgressLine(100, stream)

    class Fast(Trainer):
        def run_step(self):
            super().run_step()
            self.clock[0] -= 1.9  # a tenth of a second in all

    trainer = Fast(clock)
    trainer.register_hooks([line])
    trainer.train(0, 10)
    # drawn after 0.1 s (the first), then once more than 0.25 s have passed: after 0.4, 0.7 and 1.0 s
    steps = [match[1] for match in LINE.finditer(stream.getvalue())]
    assert steps == ["1", "4", "7", "10"]


def test_log_records_are_written_on_a_clean_line(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("sam_d2.test")
    log.addHandler(handler)
    try:
        run(clock, [ProgressLine(100, stream), Speaks()])
        log.info("after the training")
    finally:
        log.removeHandler(handler)
    # the drawn line of step 5 is erased before the record
    assert re.search(r"step 5/10[^\r\n]*\r\x1b\[Ksomething happens\n", stream.getvalue())
    assert stream.getvalue().endswith("\r\x1b[Kafter the training\n")
    assert handler.filters == []
