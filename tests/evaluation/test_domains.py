"""AP by domain, effective robustness, and a truth that a model made."""

import math
from pathlib import Path

import numpy as np
import pytest

from sam_d2.errors import UserError
from sam_d2.evaluation import GroundTruth, ImageDetections, InstanceEvaluator, Result, evaluate_baselines
from sam_d2.evaluation.coco_metrics import evaluate_detections
from sam_d2.evaluation.domains import (
    PREFIX,
    InDistribution,
    domain_ap,
    domain_lines,
    domain_metrics,
    effective_robustness,
    mean_ap,
    store_robustness,
)
from sam_d2.evaluation.ground_truth import to_rle
from sam_d2.evaluation.metric_names import metric_names
from sam_d2.evaluation.report_compare import compare_page, print_comparison
from sam_d2.evaluation.report_data import Run
from sam_d2.evaluation.report_page import run_page
from sam_d2.evaluation.table import domains_table, legend, log_results, results_table, scores_table, shortfalls

SIZE = (40, 60)
PROVENANCE = {"model": "sam", "checkpoint_sha256": "0" * 64, "prompt": "box", "score": 0.9, "stability": 0.9}
# Image ids 1 to 5, the last without a domain; in each one square of class 0.
DOMAINS = ["sketch", "weather", "sketch", "weather", None]


def polygon(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def truth_of(domains=DOMAINS, provenance=()):
    dicts = []
    for number, domain in enumerate(domains, 1):
        annotation = {"bbox": [10, 10, 20, 20], "bbox_mode": 1, "category_id": 0, "iscrowd": 0,
                      "segmentation": polygon(10, 10, 30, 30)}  # fmt: skip
        if number in provenance:
            annotation["provenance"] = PROVENANCE
        record = {"image_id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]}
        dicts.append({**record, "annotations": [annotation], **({} if domain is None else {"domain": domain})})
    return GroundTruth.from_dataset_dicts(dicts, ["square", "round"], name="made")


def found(image_id, box, score=0.9):
    x0, y0, x1, y1 = box
    return ImageDetections(
        image_id,
        np.array([score]),
        np.array([0]),
        np.array([[x0, y0, x1, y1]], dtype=np.float64),
        [to_rle(polygon(*box), SIZE)],
    )


RIGHT, WRONG = (10, 10, 30, 30), (40, 5, 50, 15)
# Sketches 1 and 3 are right; of the weather 2 is right with 0.5, behind the wrong one of 4 with 0.9.
FOUND = [found(1, RIGHT), found(2, RIGHT, 0.5), found(3, RIGHT), found(4, WRONG), found(5, WRONG)]


@pytest.mark.parametrize("task", ["segm", "bbox"])
def test_ap_of_each_domain(task):
    metrics = domain_metrics(truth_of(), FOUND, task=task, engine="faster_coco_eval", max_dets=100)
    # weather: of two instances one is found, at precision 1/2: at 51 of the 101 recalls of COCO, 0.00 to 0.50
    assert metrics == {f"{PREFIX}sketch": 100.0, f"{PREFIX}weather": pytest.approx(100 * 51 / 101 * 0.5)}


def test_ap_of_a_domain_is_that_of_its_images_as_a_dataset():
    rng = np.random.default_rng(3)
    truth = truth_of(["a", "b", "c"] * 6)
    detections = []
    for number in range(1, 19):
        x, y = rng.integers(6, 15, 2).tolist()
        detections.append(found(number, (x, y, x + 20, y + 20), float(rng.random())))
    metrics = domain_metrics(truth, detections, task="segm", engine="faster_coco_eval", max_dets=100)
    for index, domain in enumerate("abc"):
        alone = truth_of([domain] * 6)  # ids 1 to 6
        mine = detections[index::3]
        for number, image in enumerate(mine, 1):
            image.image_id = number
        expected = evaluate_detections(alone, mine, engine="pycocotools")["AP"]
        assert 0 < expected < 100 and metrics[PREFIX + domain] == pytest.approx(expected)


def test_numbers_of_the_whole_ground_truth_stay():
    truth = truth_of()
    part = truth.of_domain("weather")
    assert [image.number for image in truth.images] == [1, 2, 3, 4, 5]
    assert [(image.image_id, image.number) for image in part.images] == [(2, 1), (4, 2)]
    assert truth.domains == ["sketch", "weather"] and part.class_names == truth.class_names


def test_digest_has_the_domains_and_not_the_provenance():
    plain = truth_of([None] * 5)
    assert plain.digest == "efdfbde367b5ce56"  # as before there were domains
    assert truth_of().digest != plain.digest
    assert truth_of(provenance=[2]).digest == truth_of().digest


def test_dataset_of_images_of_which_none_has_a_domain():
    assert domain_metrics(truth_of([None] * 5), FOUND, task="segm", engine="faster_coco_eval", max_dets=100) == {}


def evaluated(truth, **keys):
    evaluator = InstanceEvaluator("made", ground_truth=truth, prompt="none", prompt_source="detector", **keys)
    evaluator.reset()
    evaluator.detections = list(FOUND)
    return evaluator, evaluator.evaluate()


def test_evaluator_reports_domains_and_provenance():
    evaluator, scores = evaluated(truth_of(provenance=[2, 3]), score="class_score")
    assert evaluator.ground_truth.pseudo == 2
    for row in evaluator.results:
        assert row.pseudo_ground_truth
        assert domain_ap(row) == {"sketch": 100.0, "weather": pytest.approx(25.2475, abs=1e-4)}
    assert {row.task for row in evaluator.results} == {"segm", "bbox"}
    names = {f"{task}/{name}" for task, metrics in scores.items() for name in metrics}
    assert names == set(metric_names(evaluator)) - {"segm/AP@100", "bbox/AP@100"}
    assert not any(row.pseudo_ground_truth for row in evaluated(truth_of(), score="class_score")[0].results)


def test_baselines_report_them_too():
    for row in evaluate_baselines(truth_of(provenance=[5])):
        assert row.pseudo_ground_truth and list(domain_ap(row)) == ["sketch", "weather"]
    assert evaluate_baselines(truth_of())[0].metrics[f"{PREFIX}sketch"] == 100.0  # squares are their boxes


def row(ap, domains=(), method="model", **keys):
    metrics = {"AP": ap, "AP50": ap, "AP75": ap, "AR": ap, "AP-square": ap, **{PREFIX + d: v for d, v in domains}}
    standard = {
        "split": "outside", "prompt": "none", "prompt_source": "detector", "task": "bbox", "max_dets": 100,
        "score": "class_score", "pseudo_ground_truth": False, "seconds": 1.0, "metrics": metrics,
    }  # fmt: skip
    return Result(method=method, **{**standard, **keys})


COCO_O = [("sketch", 9.8), ("weather", 25.1), ("cartoon", 13.9), ("painting", 23.3), ("tattoo", 10.1),
          ("handmake", 16.3)]  # fmt: skip


def test_effective_robustness_of_the_paper():
    """Faster R-CNN with ResNet-50 and FPN in COCO-O's table: average 16.4, effective robustness -0.41."""
    outside = row(15.0, COCO_O)
    assert mean_ap(outside) == pytest.approx(98.5 / 6)
    assert round(effective_robustness(outside, row(37.4)), 2) == -0.41


def test_mean_of_domains_without_instances():
    assert mean_ap(row(30.0)) == 30.0
    assert mean_ap(row(30.0, [("a", math.nan), ("b", 20.0), ("c", 40.0)])) == 30.0
    assert math.isnan(mean_ap(row(30.0, [("a", math.nan)])))


def test_tables_have_domains_and_robustness():
    rows = [row(15.0, COCO_O), row(10.0, COCO_O[:1], method="base")]
    inside = InDistribution([row(37.4, split="inside"), row(1.0, split="inside", prompt="box")], Path("run"))
    plain = [line.split() for line in domains_table(rows).splitlines()]
    assert ["tattoo", "10.10", "-"] in plain and ["mean", "of", "the", "domains", "16.42", "9.80"] in plain
    assert plain[-1] == ["all", "images", "15.00", "10.00"]
    inside.store(rows)
    lines = [line.split() for line in domains_table(rows).splitlines()]
    assert lines[-2:] == [["in", "distribution:", "inside", "37.40", "-"], ["effective", "robustness", "-0.41", "-"]]
    assert domains_table([row(15.0)]) == "" and "AP by domain" in legend(rows)
    alone = row(20.0)  # without domains its own AP counts: 20 - 0.45 * 40
    store_robustness(alone, row(30.0, split="before"))
    store_robustness(alone, row(40.0, split="inside"))
    assert alone.metrics["effective_robustness"] == 2.0 and alone.metrics["AP@in_distribution=inside"] == 40.0
    assert domain_lines([alone])[1:] == [("in distribution: inside", [40.0]), ("effective robustness", [2.0])]


def test_the_run_in_distribution_must_be_one_and_fit():
    rows = [row(15.0, COCO_O)]
    for results, message in [
        ([row(1.0)], "results on the same data set, and none"),
        ([row(1.0, split="a", task="segm")], "run: has results on a, and none to set beside model bbox, no prompts"),
        ([row(1.0, split="a"), row(1.0, split="b")], r"several data sets \(a, b\)"),
    ]:
        with pytest.raises(UserError, match=message):
            InDistribution(results, Path("run")).store(rows)


def run_of(results, name="one"):
    return Run(Path("/runs") / name, results, [], {}, "")


def test_pages_show_domains(capsys):
    rows = [row(15.0, COCO_O)]
    store_robustness(rows[0], row(37.4, split="inside"))
    page = run_page(run_of(rows))
    assert "<h2>AP by domain</h2>" in page and "handmake" in page and "-0.41" in page
    both = [run_of(rows), run_of([row(15.0, COCO_O)], "two")]
    text = compare_page(both)
    assert text.count("<h2>AP by domain,") == 2 and text.count("-0.41") == 1
    print_comparison(both)
    assert capsys.readouterr().out.count("tattoo") == 2
    assert "AP by domain" not in run_page(run_of([row(15.0)]))


def test_every_line_says_pseudo_ground_truth(caplog):
    keys = {"pseudo_ground_truth": True, "prompt": "box", "task": "segm"}
    rows = [
        row(15.0, COCO_O, **keys),
        row(20.0, method="base", **keys),
        row(3.0, ranks=False, **{**keys, "score": "x"}),
    ]
    for text in (results_table(rows), scores_table(rows), domains_table(rows), *shortfalls(rows), legend(rows)):
        assert "pseudo ground truth" in text
    table = results_table(rows).splitlines()
    assert all("pseudo ground truth" in line for line in table if line.lstrip().startswith(("model", "base")))
    one = run_page(run_of(rows))
    assert one.count("model (pseudo ground truth)") >= 2 and 'class="tag strong">pseudo ground truth' in one
    assert compare_page([run_of(rows), run_of(rows, "two")]).count("(pseudo ground truth)") >= 4
    caplog.set_level("INFO")
    log_results([row(15.0)])
    assert "pseudo" not in caplog.text


def test_the_slope_is_said_to_be_of_boxes_where_masks_are_measured():
    for task, words in (("bbox", "(arXiv 2307.12730)"), ("segm", "(slope of box AP, arXiv 2307.12730)")):
        outside = row(20.0, task=task)
        store_robustness(outside, row(30.0, split="inside", task=task))
        title = domains_table([outside]).splitlines()[0]
        assert f"0.45 * AP in distribution {words} | not checked: that both runs scored the same weights" in title
