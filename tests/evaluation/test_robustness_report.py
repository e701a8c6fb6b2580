"""What a table and a plot of worse prompts say beside their figures."""

import json
from io import StringIO

from rich.console import Console

from sam_d2.evaluation import robustness_report
from sam_d2.evaluation.robustness_report import Measured, Robustness, robustness_json, robustness_table, write_plot


def made(**scores):
    return Robustness(
        dataset="made",
        images=2,
        instances=3,
        pseudo_ground_truth=True,
        seed=0,
        checkpoints={name: f"{name}.pth" for name in scores},
        scores=scores,
        max_dets=285,
        results=[Measured(name, "shift", 0.1, 50.0, 0.5, 0) for name in scores],
    )


def shown(robustness):
    console = Console(file=StringIO(), width=200)
    console.print(robustness_table(robustness))
    return console.file.getvalue()


def test_score_and_limit_are_said():
    text = shown(made(a="calibrated(predicted_iou)"))
    words = "made (pseudo ground truth): 2 images, 3 instances, ranked by calibrated(predicted_iou), max dets 285"
    assert " ".join(words.split()) in " ".join(text.split())
    both = shown(made(a="stability", b="predicted_iou"))
    assert "a, stability" in both and "b, predicted_iou" in both
    assert json.loads(robustness_json(made(a="stability")))["max_dets"] == 285


def test_the_plot_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(robustness_report, "write_atomically", lambda path, content: written.update({path: content}))
    write_plot(tmp_path / "plot.png", made(a="stability"))
    assert not (tmp_path / "plot.png").exists()
    assert written[tmp_path / "plot.png"].startswith(b"\x89PNG")
