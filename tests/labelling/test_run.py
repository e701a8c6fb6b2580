"""How the images of a dataset are divided among processes, and what the line of a run says."""

import io
import json
import sqlite3

import pytest

from detectron2.utils import comm
from sam_d2.labelling import progress
from sam_d2.labelling.index import DatasetIndex, build_index
from sam_d2.labelling.journal import MADE, FinishedImage, Journal, MadeAnnotation
from sam_d2.labelling.output import read_info
from sam_d2.labelling.progress import LabelProgress
from sam_d2.labelling.run import LabellingRun


@pytest.fixture
def begun(boxes, tmp_path):
    journal = Journal(tmp_path / "journal")
    journal.begin({}, lambda path: build_index(boxes, None, (), path), threads=1)
    return LabellingRun(boxes, tmp_path / "out.json", journal, keep_existing=False, batch_size=2)


def test_every_image_with_boxes_is_of_one_process(begun, boxes, monkeypatch):
    index = DatasetIndex(begun.journal.index, boxes)

    def parts(world):
        monkeypatch.setattr(comm, "get_world_size", lambda: world)
        for rank in range(world):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            yield begun.remaining(index).tolist()

    assert list(parts(1)) == [[0, 1, 3, 4]]  # 2 has no boxes
    assert list(parts(3)) == [[0, 3], [1, 4], []]
    writer = begun.journal.writer(7)
    writer.write([FinishedImage(3, []), FinishedImage(1, [], "broken")])
    assert list(parts(2)) == [[0, 4], [1]]  # what had a problem is tried again
    assert begun.journal.problems() == {1: "broken"}
    begun.journal.writer(0).write([FinishedImage(1, [])])
    assert begun.journal.problems() == {}
    index.close()


def test_a_batch_is_there_whole_or_not_at_all(begun):
    writer = begun.journal.writer(0)
    writer.write([FinishedImage(0, [])])
    twice = MadeAnnotation(5, MADE, b"{}")
    with pytest.raises(sqlite3.IntegrityError):
        writer.write([FinishedImage(1, [twice]), FinishedImage(3, [twice])])
    assert list(begun.journal.made()) == []
    assert begun.journal.finished(5).tolist() == [True, False, False, False, False]


def test_what_made_a_file_is_found_however_long_its_info_is(boxes, tmp_path):
    content = json.loads(boxes.read_text())
    content["info"] = {"description": "x" * (1 << 21), "largest": [], "scale": "1e400"}
    for item in content["annotations"]:
        item["iscrowd"] = 1  # passed on, so that no model is needed
    boxes.write_text(json.dumps(content).replace('"1e400"', "1e400"))  # JSON, and beyond a float
    journal = Journal(tmp_path / "journal")
    journal.begin({}, lambda path: build_index(boxes, None, (), path), threads=1)
    run = LabellingRun(boxes, tmp_path / "out.json", journal, keep_existing=False, batch_size=2)
    counts = run.join(DatasetIndex(journal.index, boxes), {"model": "sam"})
    made = read_info(tmp_path / "out.json")
    assert counts.crowd == 10 and made["model"] == "sam" and made["annotations"]["crowd"] == 10
    assert '"scale":1e400' in (tmp_path / "out.json").read_text()
    assert read_info(boxes) is None


def test_the_line(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    stream = io.StringIO()
    line = LabelProgress(100, stream=stream)
    for _ in range(20):
        now[0] += 2
        line.add(30)
    # one image each 2 s; 80 are left: 160 s
    assert line.text() == "image 20/100  eta 0:02:40  0.5 images/s  15 masks/s"
    assert stream.getvalue() == "image 16/100  eta 0:02:48  0.5 images/s  15 masks/s\n"  # after more than 30 s
    line.close()
    quiet = LabelProgress(3, enabled=False, stream=stream)
    now[0] += 100
    quiet.add(1)
    assert stream.getvalue().count("\n") == 1
