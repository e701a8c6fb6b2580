import json

import pytest
import torch

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


def test_the_innermost_storage_is_active():
    with pytest.raises(AssertionError):
        get_event_storage()
    with EventStorage() as outer, EventStorage() as inner:
        assert get_event_storage() is inner is not outer and has_event_storage()
    assert not has_event_storage()


def test_scalars_with_names_iterations_and_scopes():
    with EventStorage(start_iter=5) as storage:
        storage.put_scalars(a=1, b=torch.tensor(2.5))
        storage.step()
        storage.put_scalar("a", 3, cur_iter=9)
        with storage.name_scope("eval/"):
            storage.put_scalar("ap", 4, smoothing_hint=False)
        storage.put_scalar("c", 0)
        assert storage.iter == storage.iteration == 6
        assert storage.latest() == {"a": (3, 9), "b": (2.5, 5), "eval/ap": (4, 6), "c": (0, 6)}
        assert storage.history("a").values() == [(1, 5), (3, 9)]
        assert storage.smoothing_hints() == {"a": True, "b": True, "eval/ap": False, "c": True}
        assert set(storage.histories()) == {"a", "b", "eval/ap", "c"}
        storage.iter = 20
        assert storage.iter == 20
        with pytest.raises(KeyError):
            storage.history("nothing")
        with pytest.raises(AssertionError):
            storage.put_scalar("a", 1, smoothing_hint=False)


def test_smoothing_is_a_median_over_iterations_not_over_values():
    with EventStorage() as storage:
        for iteration, value in [(0, 100), (10, 1), (15, 2), (18, 30)]:
            storage.iter = iteration
            storage.put_scalar("loss", value)
            storage.put_scalar("lr", value, smoothing_hint=False)
        # the iterations later than 18 - 10 = 8 have the values 1, 2 and 30
        assert storage.count_samples("loss", window_size=10) == 3
        assert storage.count_samples("loss", window_size=8) == 2  # 10 is not later than 18 - 8
        assert storage.latest_with_smoothing_hint(10) == {"loss": (2, 18), "lr": (30, 18)}
        assert storage.latest_with_smoothing_hint(1)["loss"] == (30, 18)


def test_json_lines_are_written_once_per_iteration(tmp_path):
    file = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(file))
        storage.put_scalars(loss=1.0, lr=0.1)
        writer.write()
        storage.step()
        storage.put_scalar("loss", 3.0)
        writer.write()
        writer.write()
        writer.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"iteration": 0, "loss": 1, "lr": 0.1}, {"iteration": 1, "loss": 2}]  # median of 1 and 3
    with EventStorage(2) as storage:
        storage.put_scalar("loss", 5)
        again = JSONWriter(str(file))
        again.write()
        again.close()
    assert len(file.read_text().splitlines()) == 3


@pytest.fixture
def printed(monkeypatch):
    """Return a function that lets a printer write once, and returns the messages."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    messages = []

    def write(storage, printer):
        monkeypatch.setattr(printer.logger, "info", messages.append)
        messages.clear()
        with storage:
            printer.write()
        return list(messages)

    return write


def test_the_printed_line(printed):
    storage = EventStorage(start_iter=9)
    storage.put_scalars(total_loss=1.23456, time=2.0, data_time=0.5, accuracy=0.5)
    storage.put_scalar("[metric]iou", 0.75)
    storage.put_scalar("lr", 0.00025, smoothing_hint=False)
    # 100 - 9 - 1 = 90 iterations of 2 s are left
    assert printed(storage, CommonMetricPrinter(max_iter=100)) == [
        " eta: 0:03:00  iter: 9  total_loss: 1.235  [metric]iou: 0.75  time: 2.0000  last_time: 2.0000  "
        "data_time: 0.5000  last_data_time: 0.5000   lr: 0.00025  "
    ]
    assert storage.latest()["eta_seconds"] == (180, 9)


def test_the_printed_line_with_nothing_known(printed):
    assert printed(EventStorage(3), CommonMetricPrinter()) == [" iter: 3       lr: N/A  "]
    assert printed(EventStorage(7), CommonMetricPrinter(max_iter=7)) == []


def test_eta_without_a_timer_comes_from_the_second_line_on(printed, monkeypatch):
    now = 10.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    storage, printer = EventStorage(0), CommonMetricPrinter(max_iter=101)
    assert "eta" not in printed(storage, printer)[0]
    storage.iter, now = 50, 35.0
    # 25 s for 50 iterations, and 101 - 50 - 1 = 50 are left
    assert printed(storage, printer)[0].startswith(" eta: 0:00:25  iter: 50  ")


def test_tensorboard_gets_scalars_images_and_histograms(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        writer.close()  # before anything is written there is no file to close
        assert list(tmp_path.iterdir()) == []
        storage.put_scalar("loss", 1.5)
        storage.put_image("image", torch.zeros(3, 4, 4))
        storage.put_histogram("weights", torch.tensor([0.0, 1.0, 1.0, 2.0]), bins=2)
        writer.write()
        writer.write()
        writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 1.5)]
    assert len(events.Images("image")) == 1
    (histogram,) = events.Histograms("weights")
    value = histogram.histogram_value
    assert (value.min, value.max, value.num, value.sum, value.sum_squares) == (0, 2, 4, 4, 6)  # 0+1+1+4
    assert sum(value.bucket) == 4
