import logging
import math

from sam_d2.evaluation import Result, legend, log_results, results_table, shortfalls
from sam_d2.evaluation.table import by_score, grouped, scores_table


def row(method, ap, miou=None, **keys):
    metrics = {"AP": ap, "AP50": 90.0, "AP75": 50.0, "AR": 60.0, **({} if miou is None else {"mIoU": miou})}
    standard = {
        "split": "iwp_test", "prompt": "box", "prompt_source": "ground_truth", "task": "segm",
        "max_dets": 100,
        "score": "predicted_iou" if method in ("model", "base") else "constant", "pseudo_ground_truth": False,
        "seconds": 12.34, "metrics": metrics,
    }  # fmt: skip
    return Result(method=method, **{**standard, **keys})


def test_oracle_is_said_and_rows_are_ordered():
    text = results_table([row("ellipse", 49.5, 0.771), row("box_as_mask", 35.3, 0.698), row("model", 88.1, math.nan)])
    lines = text.splitlines()
    assert "oracle: ground-truth prompts" in lines[0]
    assert "iwp_test" in lines[0]
    assert "score predicted_iou" in lines[0]
    assert [line.split()[0] for line in lines[-3:]] == ["model", "box_as_mask", "ellipse"]
    assert lines[-3].split() == ["model", "88.10", "90.00", "50.00", "60.00", "-", "100", "12.3"]
    assert lines[-1].split()[5] == "0.771"
    assert "AP@100" not in text


def test_prompt_sources():
    # a recipe of any name may be of boxes, of points or of both: its name says which
    for prompt in ("point", "loose_box"):
        first = results_table([row("model", 1.0, prompt=prompt)]).splitlines()[0]
        assert f"prompt {prompt} | oracle: ground-truth prompts |" in first
    detector = results_table([row("model", 1.0, prompt_source="detector")])
    assert "oracle" not in detector
    assert "mIoU" not in detector
    assert "a detector's boxes" in detector
    assert results_table([row("model", 1.0, pseudo_ground_truth=True)]).count("pseudo ground truth") == 2


def test_boxes_of_the_masks_are_said_and_have_a_table_of_their_own():
    rows = [row("model", 40.0), row("model", 50.0, prompt_boxes="mask"), row("base", 45.0, prompt_boxes="mask")]
    titles = [line for line in results_table(rows).splitlines() if "iwp_test" in line]
    assert ["oracle: ground-truth prompts, the masks' own boxes |" in title for title in titles] == [False, True]
    assert not shortfalls(rows)  # 40 of the file's boxes is no comparison with 45


def test_what_was_measured_on_is_counted_and_other_annotations_are_no_comparison():
    rows = [
        row("model", 40.0, images=5, instances=30, ground_truth="a"),
        row("base", 45.0, images=5, instances=31, ground_truth="b"),
    ]
    assert "| 5 images, 30 instances" in results_table(rows).splitlines()[0]
    assert results_table(rows).count("iwp_test") == 2
    assert not shortfalls(rows)


def test_scores_that_chose_the_weights_say_so():
    text = results_table([row("model", 40.0, selected=True), row("ellipse", 30.0)])
    assert [line.strip().split("  ")[0] for line in text.splitlines()[-2:]] == [
        "model (selected on this split)", "ellipse",
    ]  # fmt: skip
    assert "selected on this split: " in legend([row("model", 40.0, selected=True)])
    assert "selected" not in legend([row("model", 40.0)])


def test_ap_at_100_stands_beside():
    crowded = row("model", 50.0, max_dets=285)
    crowded.metrics["AP@100"] = 40.0
    header, _, line = results_table([crowded]).splitlines()[-3:]
    assert header.split()[:3] == ["method", "AP", "AP@100"]
    assert line.split()[1:3] == ["50.00", "40.00"]


def test_one_table_per_prompt():
    text = results_table([row("model", 1.0), row("model", 2.0, prompt="point"), row("base", 3.0)])
    assert text.count("method") == 2
    assert text.index("base") < text.index("prompt point")


def test_shortfalls(caplog):
    rows = [
        row("model", 40.0, 0.75),
        row("base", 41.0, 0.70),
        row("box_as_mask", 35.0, 0.698),
        row("ellipse", 39.0, 0.771),
    ]
    assert shortfalls(rows) == [
        "WORSE than its base (AP 40.00 < 41.00) and the inscribed ellipse (mIoU 0.750 < 0.771): "
        "iwp_test, prompt box, segm"
    ]
    of_points = [row("model", 1.0, prompt="point"), *(row(m, 2.0, prompt="point") for m in ("base", "box_as_mask"))]
    of_points.append(row("ellipse", 2.0, 0.1, prompt="point"))
    _, point = shortfalls([*rows, *of_points])  # a line for each kind of prompt
    assert point == (
        "WORSE than its base (AP 1.00 < 2.00), the box as mask (AP 1.00 < 2.00) and the inscribed ellipse "
        "(AP 1.00 < 2.00): iwp_test, prompt point, segm"
    )
    caplog.set_level(logging.INFO)
    log_results(rows)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    # equal is not worse, undefined is not worse, and a base with another score or prompt is not compared
    assert not shortfalls([row("model", 40.0), row("base", 40.0), row("ellipse", math.nan)])
    assert not shortfalls([row("model", 40.0), row("base", 41.0, score="stability"), row("base", 41.0, prompt="point")])


def test_masks_come_before_boxes():
    text = results_table([row("detector", 1.0, task="bbox"), row("detector", 2.0)])
    assert text.index("| segm |") < text.index("| bbox |")


def test_the_legend_has_the_words_that_are_used():
    crowded = row("model", 50.0, 0.5)
    crowded.metrics["AP@100"] = 40.0
    words = legend([crowded, row("ellipse", 40.0)])
    for term in ("AP, AR: ", "AP@100: ", "mIoU: ", "ellipse: ", "docs/report.md"):
        assert term in " ".join(words.split())
    assert "base: " not in words and "box_as_mask: " not in words
    assert max(map(len, words.splitlines())) <= 120


def test_the_legend_stands_under_the_table(caplog):
    caplog.set_level(logging.INFO)
    log_results([row("base", 1.0)])
    assert caplog.messages[0].endswith(legend([row("base", 1.0)]))


def test_a_model_without_prompts_is_no_oracle():
    detector = {"prompt": "none", "prompt_source": "detector", "score": "class_score"}
    title = results_table([row("model", 1.0, **detector)]).splitlines()[0]
    assert title == "iwp_test | segm | no prompts | score class_score"


def other(score, ap, method="model", **keys):
    """A row of the same masks ranked by another score."""
    return row(method, ap, score=score, ranks=False, **keys)


def test_scores_have_a_table_of_their_own_and_the_models_stays_as_it_was():
    main = row("model", 50.0, 0.9)
    main.metrics["ECE"] = 0.0123
    rows = [other("stability", 60.0), main, row("base", 10.0), other("stability", 20.0, "base"), row("ellipse", 40.0)]
    assert results_table(rows) == results_table([main, rows[2], rows[4]])
    assert [one.score for one in grouped(rows)[0]] == ["predicted_iou", "predicted_iou", "constant"]
    lines = scores_table(rows).splitlines()
    assert lines[0] == "AP by score | iwp_test | segm | box prompts | the model's masks"
    assert [line.split() for line in lines[-2:]] == [
        ["predicted_iou", "50.00", "90.00", "50.00", "0.012"],
        ["stability", "60.00", "90.00", "50.00", "-"],
    ]
    assert "ECE: expected calibration error" in legend(rows) and "ECE" not in legend([main, rows[4]])
    assert shortfalls(rows) == [] and scores_table([main, rows[2], rows[4]]) == ""


def test_before_a_training_the_scores_are_the_bases():
    rows = [row("base", 10.0), other("stability", 20.0, "base")]
    assert "the base's masks" in scores_table(rows)
    assert [one.score for one in by_score(rows)[0]] == ["predicted_iou", "stability"]


def test_a_base_ranked_as_the_model_is_compared_with_it():
    bases = [other("stability", 60.0, "base"), other("predicted_iou", 70.0, "base")]
    rows = [row("model", 50.0, score="stability"), *bases]
    assert "stability" in results_table(rows)
    assert shortfalls(rows) == ["WORSE than its base (AP 50.00 < 60.00): iwp_test, prompt box, segm"]
