"""Runs of tools/masks_from_boxes.py that were ended before, in this process."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from detectron2.utils import comm
from sam_d2.errors import UserError
from sam_d2.labelling.journal import Journal
from sam_d2.labelling.labeller import BoxLabeller


def test_the_same_command_again_changes_nothing(tool, boxes, whole, capsys):
    content = whole.read_bytes()
    assert tool(boxes, whole) == 0
    assert "is complete: it was made by this command" in capsys.readouterr().out
    assert whole.read_bytes() == content
    assert tool(boxes, whole, "--min-score", 0.5) == 2
    assert f"--output {whole}: exists, and is of another command" in capsys.readouterr().err
    boxes.write_text(boxes.read_text() + " ")
    assert tool(boxes, whole) == 2
    assert whole.read_bytes() == content


@pytest.mark.parametrize("stops", [(1,), (0, 1, 2)])
def test_interrupted_and_begun_again(tool, boxes, whole, tmp_path, monkeypatch, capsys, stops):
    """Ends the run before an image, once or three times; what a batch has finished is not done again."""
    label, labelled = BoxLabeller.__call__, []
    output = tmp_path / "masks.json"
    for stop in stops:

        def interrupted(self, image, stop=stop):
            if len(labelled) == stop:
                raise KeyboardInterrupt
            labelled.append(image.row)
            return label(self, image)

        monkeypatch.setattr(BoxLabeller, "__call__", interrupted)
        assert tool(boxes, output, "--batch-size", 1) == 130
        assert not output.exists() and output.with_name("masks.json.journal").is_dir()
    monkeypatch.setattr(BoxLabeller, "__call__", lambda self, image: labelled.append(image.row) or label(self, image))
    assert tool(boxes, output, "--batch-size", 1) == 0
    assert sorted(labelled) == [0, 1, 3, 4]
    assert output.read_bytes() == whole.read_bytes()
    assert not output.with_name("masks.json.journal").exists()
    assert f"Going on from {output}.journal" in capsys.readouterr().out


def test_at_most_a_batch_is_lost(tool, boxes, whole, tmp_path, monkeypatch):
    label, labelled = BoxLabeller.__call__, []

    def interrupted(self, image):
        labelled.append(image.row)
        if len(labelled) == 4:
            raise KeyboardInterrupt
        return label(self, image)

    monkeypatch.setattr(BoxLabeller, "__call__", interrupted)
    output = tmp_path / "masks.json"
    assert tool(boxes, output, "--batch-size", 2) == 130
    assert tool(boxes, output, "--batch-size", 3) == 0
    # of the batches (0, 1) and (3, 4) the first was written
    assert labelled == [0, 1, 3, 4, 3, 4]
    assert output.read_bytes() == whole.read_bytes()


class Killed(BaseException):
    """Ends the program where it stands, as a signal does that cannot be caught."""


@pytest.mark.parametrize("step", ["rename", "first file", "last file"])
def test_killed_while_the_journal_goes_away(tool, boxes, whole, tmp_path, monkeypatch, capsys, step):
    """The output is whole by then; the same command says so, or writes it once more without asking the model."""
    output, folder = tmp_path / "masks.json", tmp_path / "masks.json.journal"

    def kill(*_):
        raise Killed

    def half(path, ignore_errors=False):
        if Path(path).exists():
            for file in sorted(Path(path).iterdir())[: -1 if step == "last file" else 1]:
                file.unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        if step == "rename":
            patch.setattr(Journal, "remove", kill)
        with pytest.raises(Killed):
            tool(boxes, output)
    assert output.read_bytes() == whole.read_bytes()
    assert folder.exists() == (step == "rename")
    monkeypatch.setattr(BoxLabeller, "__call__", kill)
    capsys.readouterr()
    assert tool(boxes, output) == 0
    assert ("is complete: it was made by this command" in capsys.readouterr().out) == (step != "rename")
    assert output.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*journal*")) and not list(tmp_path.glob(".*journal*"))


@pytest.mark.parametrize(
    ("before", "after"), [(2, 2), *(pytest.param(*two, marks=pytest.mark.slow) for two in ((3, 1), (1, 3)))]
)
def test_processes_share_the_images_and_any_number_goes_on(tool, boxes, whole, tmp_path, monkeypatch, before, after):
    """Plays the processes one after the other: the first joins what is there, so it comes last."""
    label, labelled = BoxLabeller.__call__, []
    output = tmp_path / "masks.json"
    monkeypatch.setattr("sam_d2.labelling.run.Processes.__init__", lambda self: setattr(self, "_group", None))

    def interrupted(self, image):
        raise KeyboardInterrupt

    def play(world, rank):
        monkeypatch.setattr(comm, "get_world_size", lambda: world)
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        return tool(boxes, output, "--batch-size", 1)

    monkeypatch.setattr(BoxLabeller, "__call__", interrupted)
    assert play(1, 0) == 130  # prepares the journal
    monkeypatch.setattr(BoxLabeller, "__call__", lambda self, image: labelled.append(image.row) or label(self, image))
    if before > 1:
        assert play(before, 1) == 0
        assert labelled == [row for row in (0, 1, 3, 4) if row % before == 1]
    for rank in range(after - 1, -1, -1):
        assert play(after, rank) == 0
    assert sorted(labelled) == [0, 1, 3, 4]
    assert output.read_bytes() == whole.read_bytes()


def test_a_journal_of_other_settings_is_refused(tool, boxes, tmp_path, monkeypatch, capsys):
    label = BoxLabeller.__call__
    monkeypatch.setattr(BoxLabeller, "__call__", lambda self, image: (_ for _ in ()).throw(KeyboardInterrupt))
    output = tmp_path / "masks.json"
    assert tool(boxes, output) == 130
    monkeypatch.setattr(BoxLabeller, "__call__", label)
    assert tool(boxes, output, "--min-area", 5) == 2
    error = capsys.readouterr().err
    assert "masks.json.journal is of a run with other settings:\n  filters: {}, now {'min_area': 5.0}\n" in error
    assert "delete the folder or name another --output" in error
    boxes.write_text(boxes.read_text() + "\n")
    assert tool(boxes, output) == 2
    assert "source_sha256: " in capsys.readouterr().err
    shutil.rmtree(f"{output}.journal")
    assert tool(boxes, output) == 0


def test_what_is_no_journal_a_damaged_one_and_one_at_work(tool, boxes, tmp_path, capsys):
    output = tmp_path / "masks.json"
    folder = tmp_path / "masks.json.journal"
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert tool(boxes, output) == 2
    assert "is no journal. Move it away" in capsys.readouterr().err
    (folder / "notes.txt").unlink()
    (folder / "settings.json").write_text("{")
    assert tool(boxes, output) == 2
    assert "settings.json: damaged" in capsys.readouterr().err
    (folder / "settings.json").unlink()
    other = Journal(folder)
    other.begin({}, lambda path: path.touch(), threads=1)
    with pytest.raises(UserError, match="another process is at work on it"):
        Journal(folder).begin({}, lambda path: path.touch(), threads=1)


def test_a_run_goes_on_with_the_threads_it_was_begun_with(tool, boxes, tmp_path, monkeypatch):
    label, threads = BoxLabeller.__call__, []

    def interrupted(self, image):
        raise KeyboardInterrupt

    output = tmp_path / "masks.json"
    monkeypatch.setattr(BoxLabeller, "__call__", interrupted)
    assert tool(boxes, output) == 130
    settings = tmp_path / "masks.json.journal" / "settings.json"
    begun = json.loads(settings.read_text())
    assert begun["threads"] == torch.get_num_threads()
    settings.write_text(json.dumps({**begun, "threads": begun["threads"] + 1}))
    count = lambda self, image: threads.append(torch.get_num_threads()) or label(self, image)  # noqa: E731
    monkeypatch.setattr(BoxLabeller, "__call__", count)
    assert tool(boxes, output) == 0
    assert threads == [begun["threads"] + 1] * 4
