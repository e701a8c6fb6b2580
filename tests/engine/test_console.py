"""The terminal's filter, on records as Detectron2's own lines are and as sam_d2's are."""

import io
import logging

import pytest

from sam_d2.engine.console import ConsoleFilter, quiet_console

HIDDEN = [
    "Serializing the dataset using: <class 'detectron2.data.common._TorchSerializedList'>",
    "Serializing 400 elements to byte tensors and concatenating them all ...",
    "Serialized dataset takes 3.88 MiB",
    "Distribution of instances among all 2 categories:\n|  category  | #instances   |",
    "[DetectionCheckpointer] Loading from  ...",
    "No checkpoint found. Initializing model from scratch",
    "[Checkpointer] Loading from checkpoints/sam_vit_b_01ec64.pth ...",
    "Total inference time: 0:00:02.532286 (0.046042 s / iter per device, on 1 devices)",
    "Total inference pure compute time: 0:00:01 (0.035138 s / iter per device, on 1 devices)",
    "Overall training speed: 3 iterations in 0:00:01 (0.3633 s / it)",
]
SHOWN = [
    "[DetectionCheckpointer] Loading from checkpoints/sam_vit_b_01ec64.pth ...",
    "Inference done 11/60. Dataloading: 0.0062 s/iter.",
    "Total training time: 0:00:01 (0:00:00 on hooks)",
    "results: Distribution of instances among all",
]


def record(text, name="detectron2.data.common", level=logging.INFO):
    return logging.LogRecord(name, level, __file__, 1, "%s", (text,), None)


@pytest.mark.parametrize(("text", "shown"), [*((text, False) for text in HIDDEN), *((text, True) for text in SHOWN)])
def test_lines_of_the_machinery(text, shown):
    console = ConsoleFilter()
    assert [console.filter(record(text)) for _ in range(2)] == [shown, shown]
    assert console.filter(record(text, level=logging.WARNING))


def test_facts_of_the_data_are_said_once():
    console = ConsoleFilter()
    said = [
        console.filter(record(text, "sam_d2.data.register")) for text in ("a: 3 images", "b: 1 images", "a: 3 images")
    ]
    assert said == [True, True, False]
    assert all(console.filter(record("a: 3 images", "sam_d2.data.register", logging.WARNING)) for _ in range(2))
    assert all(console.filter(record("results", "sam_d2.evaluation.table")) for _ in range(2))


def test_warnings_that_each_evaluation_repeats_are_shown_once():
    console = ConsoleFilter()
    name = "sam_d2.evaluation.coco_metrics"
    said = [console.filter(record(f"{count} empty", name, logging.WARNING)) for count in (3, 3, 4)]
    assert said == [True, False, True]


def test_the_terminal_is_filtered_and_the_file_is_whole(monkeypatch, tmp_path):
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    log = logging.getLogger("sam_d2.data.made")
    monkeypatch.setattr(log, "handlers", [logging.StreamHandler(terminal), logging.FileHandler(tmp_path / "log.txt")])
    monkeypatch.setattr(log, "propagate", False)
    log.setLevel(logging.INFO)
    for _ in range(2):  # a second run of the same process says it again
        quiet_console()
        log.info("a: 3 images")
        log.info("a: 3 images")
    log.handlers[1].close()
    assert terminal.getvalue() == "a: 3 images\n" * 2
    assert (tmp_path / "log.txt").read_text() == "a: 3 images\n" * 4
    assert [len(handler.filters) for handler in log.handlers] == [2, 1]


def test_names_of_the_data_move_no_cursor_and_detectron2_keeps_its_colours(monkeypatch, tmp_path):
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    handlers = [logging.FileHandler(tmp_path / "log.txt"), logging.StreamHandler(terminal)]
    for name in ("sam_d2.data.made", "detectron2.made"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", handlers)
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
    quiet_console()
    logging.getLogger("sam_d2.data.made").warning("class %r, %s\nline 2", "\x1b", "\x1b[2Ja\r\u202eb")
    logging.getLogger("detectron2.made").warning("\x1b[36m%d\x1b[0m", 5)
    handlers[0].close()
    text = "class '\\x1b', ␛[2Ja␍\\u202eb\nline 2\n\x1b[36m5\x1b[0m\n"
    assert terminal.getvalue() == (tmp_path / "log.txt").read_text() == text
