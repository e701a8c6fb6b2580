"""The pages as a browser takes them in: parsed, with names in the data that try to be more than names."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from sam_d2.evaluation import Result
from sam_d2.evaluation.reliability import reliability
from sam_d2.evaluation.report_charts import (
    MOST_DOTS,
    MOST_POINTS,
    Series,
    Step,
    line_chart,
    reliability_chart,
    score_chart,
    size_chart,
    waterfall_chart,
)
from sam_d2.evaluation.report_compare import compare_page, compare_text, differing_settings, run_names
from sam_d2.evaluation.report_data import (
    VERSION,
    Evaluation,
    EvaluationInfo,
    Run,
    Tile,
    read_evaluation,
    write_evaluation,
)
from sam_d2.evaluation.report_images import encode_within
from sam_d2.evaluation.report_page import run_page
from sam_d2.visible_text import clean

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\x00\x1b[31m\u202e$\\frac$'
VOID = {"meta", "img", "br", "wbr", "link", "path", "use"}


class Page(HTMLParser):
    """Tags with their attributes, text by the tag it stands in, and tags that were left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.wrong = [], {}, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if self.open[-1:] != [tag]:
            self.wrong.append((tag, self.open[-3:]))
        else:
            self.open.pop()

    def handle_data(self, data):
        self.text[self.open[-1] if self.open else ""] = self.text.get(self.open[-1] if self.open else "", "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def evaluation(count=30, **keys):
    rng = np.random.default_rng(0)
    standard = {
        "version": VERSION, "split": "made", "prompt": "box", "prompt_source": "ground_truth",
        "score": "predicted_iou", "written": "2026-01-02T03:04:05+00:00", "checkpoint": "model_final.pth",
        "device": "cpu", "versions": {"torch": "2"}, "seconds": 1.0, "paired": True, "image_names": ["1.png"],
        "class_names": ["disc", "box"], "config": "", "tiles": [],
    }  # fmt: skip
    iou = rng.random(count).astype(np.float32)
    return Evaluation(
        EvaluationInfo(**{**standard, **keys}),
        np.zeros(count, dtype=np.int32),
        (np.arange(count) % 2).astype(np.int32),
        np.geomspace(5, 200, max(count, 1)).astype(np.float32)[:count],
        iou,
        np.clip(iou + 0.1, 0, 1).astype(np.float32),
        {"ellipse": np.full(count, 0.75, dtype=np.float32)},
    )


def row(method="model", **keys):
    metrics = {"AP": 50.0, "AP50": 80.0, "AP75": 40.0, "AR": 60.0, "mIoU": 0.5, "AP-disc": 20.0, "AP-box": 80.0}
    standard = {
        "split": "made", "prompt": "box", "prompt_source": "ground_truth", "method": method, "task": "segm",
        "score": "predicted_iou", "max_dets": 100, "pseudo_ground_truth": False, "seconds": 1.5, "metrics": metrics,
    }  # fmt: skip
    return Result(**{**standard, **keys})


def run(name="run", **keys):
    curves = {"total_loss": [(9, 2.0), (19, 1.0)], "lr": [(9, 0.1)], "segm/AP": [(19, 50.0)]}
    standard = {
        "folder": Path("/runs") / name,
        "results": [row(), row("base", metrics={"AP": 60.0, "mIoU": 0.4}), row("ellipse", score="constant")],
        "evaluations": [evaluation()],
        "curves": curves,
        "config": "optimizer: {lr: 0.1}\n",
    }
    return Run(**{**standard, **keys})


def jpeg():
    return cv2.imencode(".jpg", np.zeros((8, 8, 3), dtype=np.uint8))[1].tobytes()


def with_tiles(name="a.png", size=0):
    tiles = [Tile(label="worst", file_name=name, mean_iou=0.25, instances=2, predictions=1)]
    found = evaluation(tiles=tiles)
    found.pictures = [(jpeg() + b"\0" * size, jpeg())]
    return found


def assert_harmless(text):
    page = Page(text)
    assert page.wrong == [] and page.open == []
    script = files("sam_d2.evaluation").joinpath("report.js").read_text()
    assert page.text["script"] == script and len(page.all("script")) == 1
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"@import|url\((?!#)|https?://", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not set(text) & {*map(chr, range(9)), "\x1b", "\x7f", "\u202e"}
    return page


def test_page_says_what_it_shows():
    text = run_page(run(evaluations=[with_tiles()]))
    page = assert_harmless(text)
    for reference in re.findall(r'(?:href="|url\()#([^")]*)', text):
        assert f'id="{reference}"' in text
    assert "oracle" in page.text["title"] and "oracle" in page.text["h1"]
    headings = page.text["h2"]
    for words in ("Results", "Training", "AP per class", "Instances, box prompts", "Gallery", "Settings"):
        assert words in headings
    assert "WORSE than its base" in text  # 50 < 60
    classes = re.findall(r'<tr><th scope="row">(disc|box)</th><td class="number">(\d+)</td>', text)
    assert classes == [("box", "15"), ("disc", "15")]  # by falling AP, with the 30 instances between them
    titles = [attributes["aria-label"] for attributes in page.all("svg")]
    assert titles == [
        "Loss in training", "Average precision", "Learning rate", "Score against true IoU",
        "Instance size against true IoU",
    ]  # fmt: skip
    assert all(attributes["alt"] for attributes in page.all("img")[:2])
    assert page.all("button")[0]["class"] == "tile sheet"


def test_tiles_without_a_label_have_one_heading():
    found = with_tiles()
    assert "worst to best" not in run_page(run(evaluations=[found]))
    found.info.tiles[0].label = ""
    text = run_page(run(evaluations=[found]))
    assert text.count("worst to best") == 1 and "Gallery, box prompts, worst to best" in text
    assert 'data-caption="a.png · mean IoU 0.250' in text and "<b></b>" not in text


def test_long_names_of_runs_may_go_on_in_the_next_line():
    runs = [run("a_<b>"), run("other", config="optimizer: {lr: 0.2}\n")]
    # in the results, above the column of the classes, and above that of the settings
    assert compare_page(runs).count("a_<wbr>&lt;b&gt;") >= 3
    assert "a_<wbr>&lt;b&gt;: box prompts" in run_page(runs[0])


def test_prompts_of_a_detector_are_no_oracle():
    rows = [row(prompt_source="detector"), row(prompt_source="detector", task="bbox")]
    text = run_page(run(results=rows, evaluations=[evaluation(prompt_source="detector", paired=False)]))
    assert "oracle" not in text.lower()
    assert "overlaps it most" in text


@pytest.mark.parametrize(
    ("ap", "classes", "note"),
    [
        # a quarter of the 20 to 100, and of the 40 from where a negative share has led
        (80.0, 2.0, "The axis begins at 75.0, where the bar of the AP is broken.</p>"),
        (62.0, -2.0, "The axis begins at 50.0, where the bar of the AP is broken. Hollow: a negative share"),
        (0.0, 10.0, "</svg><ul class=\"legend\"></ul></figure>"),
    ],
)  # fmt: skip
def test_chart_of_the_gap_shows_the_range_of_its_shares(ap, classes, note):
    shares = {"gap_classes": classes, "gap_missed": 90 - ap - classes, "gap_masks": 10.0, "gap_oracle": 90.0}
    zeros = dict.fromkeys(("gap_imprecise", "gap_false", "gap_ranking"), 0.0)
    pair = row(prompt="detector", prompt_source="detector", metrics={"AP": ap, "gap": 100 - ap, **shares, **zeros})
    assert note in run_page(run(results=[row(metrics={"AP": 90.0}), pair]))


def test_counts_of_a_class_are_of_the_same_boxes():
    """The instances kept are those of the last evaluation; of other boxes than the table's they say nothing."""
    rows = [row(), row(prompt_boxes="mask")]
    text = run_page(run(results=rows, evaluations=[evaluation(prompt_boxes="mask")]))
    assert re.findall(r'<tr><th scope="row">disc</th><td class="number">([\d-]+)</td>', text) == ["-", "15"]


def test_names_remain_names():
    evil = with_tiles(EVIL)
    names = {"split": EVIL, "score": EVIL, "checkpoint": EVIL, "device": EVIL, "class_names": [EVIL, "box"]}
    evil.info = msgspec.structs.replace(evil.info, **names, versions={EVIL: EVIL}, config=f"a: {EVIL}\n")
    metrics = {"AP": 1.0, "mIoU": 0.1, f"AP-{EVIL}": 1.0}
    rows = [row(split=EVIL, score=EVIL, prompt=EVIL, method=EVIL, metrics=metrics), row(split=EVIL, metrics=metrics)]
    hostile = run(
        EVIL.replace("\x00", ""),
        results=rows,
        evaluations=[evil],
        curves={f"{EVIL}_loss": [(1, 1.0)], "total_loss": [(1, 1.0)]},
        config="b: <i>\n",
    )
    page = assert_harmless(run_page(hostile))
    assert any("<script>alert(1)" in data for data in page.text.values())  # shown as text
    assert_harmless(compare_page([hostile, run()]))


def test_characters_that_cannot_be_seen_are_spelt_out():
    assert clean("a\nb\x00\x7f\x85\u202e\ud800é") == "a␊b␀␡\\u0085\\u202e\\ud800é"
    clean("\ud800").encode("utf-8")


def test_run_without_single_instances_curves_or_config():
    text = run_page(run(results=[row("base", metrics={"AP": 1.0})], evaluations=[], curves={}, config=""))
    page = assert_harmless(text)
    assert "--eval-only" in text and "Training" not in page.text["h2"]


def test_images_stay_within_the_limit_of_the_page():
    # base64 makes 4 bytes of 3: the first takes 4.0 of 5 MB, the second does not fit, the third does
    evaluations = [with_tiles("a.png", 3_000_000), with_tiles("b.png", 3_000_000), with_tiles("c.png", 500_000)]
    text = run_page(run(evaluations=evaluations))
    page = Page(text)
    shown = [attributes["alt"] for attributes in page.all("img") if attributes.get("src")]
    assert [alt[:5] for alt in shown if "itself" in alt] == ["a.png", "c.png"]
    assert len(text) < 5_300_000
    assert "Left out" in text


def test_jpegs_within_a_limit():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    free = encode_within([noise, noise])
    tight = encode_within([noise, noise], sum(map(len, free)) // 4)
    tiny = encode_within([noise], 1)
    assert sum(map(len, tight)) <= sum(map(len, free)) // 4
    assert [cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape for data in free] == [(200, 300, 3)] * 2
    assert cv2.imdecode(np.frombuffer(tiny[0], np.uint8), 1).shape == (1, 1, 3)  # nothing smaller can be had
    red = np.zeros((16, 16, 3), dtype=np.uint8)
    red[:, :, 0] = 255
    assert cv2.imdecode(np.frombuffer(encode_within([red])[0], np.uint8), 1)[8, 8].argmax() == 2  # BGR: red


def test_chart_takes_its_colours_from_the_page():
    chart = line_chart("loss", [Series("a", [(1, 2.0), (2, 1.0)], 0), Series("b", [(0, 1.5)], 9, dashed=True)], "loss")
    assert chart.legend == [("a", 0, "line"), ("b", 1, "dashed")]
    assert "var(--c0)" in chart.svg and "var(--c1)" in chart.svg and "currentColor" in chart.svg
    assert set(re.findall(r"(?:stroke|fill): (#\w+)", chart.svg)) == set()


def marks(svg):
    """x and y of each marker, in the SVG's units."""
    return [
        (float(x), float(y)) for x, y in re.findall(r'<use href="#m\w+" x="([\d.]+)" y="([\d.]+)" style="fill', svg)
    ]


def test_steps_begin_at_0_where_the_base_stands():
    series = [Series("AP", [(100, 20.0), (200, 40.0)], 0), Series("base", [(0, 0.0)], 7)]
    chart = line_chart("AP", series, "AP", from_zero=True)
    assert chart.legend == [("AP", 0, "line"), ("base", 7, "dot")]
    (x1, y1), (x2, y2), (x0, y0) = marks(chart.svg)[-3:]
    # equal steps in x and in y: 0 to 100 to 200, and 0 to 20 to 40
    assert x2 - x1 == pytest.approx(x1 - x0, abs=0.01) and x1 > x0
    assert y1 - y2 == pytest.approx(y0 - y1, abs=0.01) and y0 > y1
    axis = max(float(y) for y in re.findall(r'<path d="M [\d.]+ ([\d.]+) *\nL', chart.svg))
    assert y0 < axis - 3  # 0 lies above the frame's lower edge


def test_the_base_is_the_point_before_training():
    chart = run_page(run(curves={"segm/AP": [(199, 50.0)]}))
    keys = re.findall(r'<span class="key (\w+)"[^>]*></span>(AP[^<]*)<', chart)
    assert keys == [("dot", "AP"), ("dot", "AP of base"), ("dashed", "AP of ellipse in the box")]


def test_long_curve_is_thinned():
    chart = line_chart("loss", [Series("a", [(step, 1.0 + step % 2) for step in range(40_000)], 0)], "loss")
    assert len(chart.svg) < 60 * MOST_POINTS


def test_score_chart_tells_how_far_score_and_iou_lie_apart():
    found = evaluation(4)
    found.score[:] = [0.8, 0.9, np.nan, 0.7]
    found.iou[:] = [0.5, 1.0, 0.3, np.nan]
    chart = score_chart(found)
    assert "0.100 above" in chart.note  # (0.3 - 0.1) / 2; what has no score or no mask does not count
    assert chart.legend[0][0] == "2 instances"


def test_size_chart_tells_small_from_large():
    found = evaluation(9)
    found.size[:] = np.arange(1, 10) * 8
    found.iou[:] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    chart = size_chart(found)
    assert "smallest third 0.200" in chart.note and "largest third 0.800" in chart.note
    assert [label for label, _, _ in chart.legend] == ["9 instances", "median, model", "median, ellipse in the box"]


@pytest.mark.parametrize("count", [0, 1, 2, MOST_DOTS + 500])
def test_charts_of_few_and_many_instances(count):
    charts = [chart(evaluation(count)) for chart in (score_chart, size_chart)]
    if count == 0:
        assert charts == [None, None]
    else:
        assert all(len(chart.svg) < 700_000 for chart in charts)


def test_comparison():
    better = row(metrics={"AP": 70.0, "AP50": 70.0, "mIoU": 0.6, "AP-disc": 30.0})
    runs = [run("one"), run("two", results=[better, row("ellipse")], config="optimizer: {lr: 0.2}\nnew: 1\n")]
    text = compare_page(runs)
    page = assert_harmless(text)
    assert "oracle" in page.text["title"]
    assert "<b>70.00</b>" in text and "<b>80.00</b>" in text and "<b>0.600</b>" in text  # AP of two, AP50 of one
    assert "<b>50.00</b>" not in text
    assert text.count(">ellipse in the box<") == 1  # of both runs the same
    assert differing_settings(runs) == {"optimizer.lr": ["0.1", "0.2"], "new": [None, "1"]}
    assert [attributes["aria-label"] for attributes in page.all("svg")] == [
        "Loss in training", "Average precision of masks",
    ]  # fmt: skip


def test_weights_that_the_split_chose_are_marked():
    chosen = run(results=[row(selected=True), row("ellipse")])
    assert run_page(chosen).count("model (selected on this split)") == 1
    assert compare_page([chosen, run("two")]).count("model (selected on this split)") == 1
    [table] = compare_text([chosen, run("two")])
    assert str(next(iter(table.columns[2].cells))) == "model (selected on this split)"


def test_comparison_tells_whose_boxes_the_prompts_were():
    runs = [run("one", results=[row()]), run("two", results=[row(prompt_boxes="mask")])]
    [table] = compare_text(runs)
    assert [str(cell) for cell in table.columns[1].cells] == ["box (oracle)", "box (oracle, boxes of the masks)"]


def test_runs_on_other_annotations_of_the_same_name_stand_apart():
    facts = {"images": 4, "instances": 7, "ground_truth": "aaaa"}
    old = run("old", results=[row(**facts), row("ellipse", **facts)])
    new = run("new", results=[row(**{**facts, "instances": 8, "ground_truth": "bbbb"})])
    titles = ["made (4 images, 7 instances, ground truth aaaa) | segm",
              "made (4 images, 8 instances, ground truth bbbb) | segm"]  # fmt: skip
    tables = compare_text([old, new])
    assert [str(table.title) for table in tables] == titles
    assert [[str(cell) for cell in table.columns[0].cells] for table in tables] == [["old", "reference"], ["new"]]
    text = compare_page([old, new])
    assert_harmless(text)
    assert all(title in text for title in titles) and "measured on 2 different ground truths" in text
    # of the same one nothing is said, and the name is enough
    again = replace(old, folder=Path("/runs/again"))
    assert [str(table.title) for table in compare_text([old, again])] == ["made | segm"]
    assert "different ground truths" not in compare_page([old, again])
    assert "ground truth not recorded" in compare_page([old, run("before")])


def test_terminal_table_takes_names_as_they_are():
    [table] = compare_text([run("[red]one"), run("two", results=[row()])])
    assert [str(cell) for cell in table.columns[0].cells] == ["[red]one", "[red]one", "two", "reference"]
    assert [str(cell) for cell in table.columns[3].cells] == ["50.00", "60.00", "50.00", "50.00"]
    assert [cell.style for cell in table.columns[3].cells] == ["", "bold", "", ""]


def test_runs_of_the_same_name_are_told_apart():
    one = run()
    runs = [replace(one, folder=Path(f"/{parent}/x/run")) for parent in ("a", "b")]
    assert run_names(runs) == ["a/x/run", "b/x/run"]
    assert len(run_names([one, one])) == 2  # the same folder twice


SCORES = ("predicted_iou", "class_score*stability^0.5", "calibrated(predicted_iou)")


def measured(count=200):
    rng = np.random.default_rng(1)
    return [reliability(name, rng.random(count), rng.random(count)) for name in SCORES]


def test_scores_have_a_section_with_their_ap_and_a_reliability_diagram():
    rows = [
        row(score=score, ranks=score == SCORES[0], metrics={"AP": ap, "AP50": 80.0, "AP75": 40.0, "ECE": 0.125})
        for score, ap in zip(SCORES, (50.0, 60.0, 50.0), strict=True)
    ]
    text = run_page(run(results=rows, evaluations=[evaluation(reliability=measured())]))
    assert_harmless(text)
    assert "<h2>Scores, box prompts</h2>" in text and "ECE<br>0-1" in text
    for score, ap in (("predicted_iou", "50.00"), ("class_score*stability^0.5", "60.00")):
        line = next(line for line in text.splitlines() if f'<th scope="row">{score}</th>' in line)
        assert re.findall(r">([\d.]+)</td>", line) == [ap, "80.00", "40.00", "0.125"]
    assert text.count("Reliability of the scores") >= 1
    captions = re.findall(r'<p class="caption">(.*?)</p>', text)
    assert [caption for caption in captions if "ranked by predicted_iou" in caption] == [captions[0]]
    plain = run_page(run())
    assert "<h2>Scores" not in plain and "Reliability" not in plain


def test_reliability_chart():
    chart = reliability_chart(measured())
    assert [label.partition(", ECE")[0] for label, _, _ in chart.legend] == [*SCORES, "score = IoU"]
    for one, (label, _, _) in zip(measured(), chart.legend, strict=False):
        assert label.endswith(f"ECE {one.ece:.3f}")
    assert not any(score in chart.svg for score in SCORES), "names stand in the legend"
    assert reliability_chart([]) is None
    assert reliability_chart([reliability("s", np.zeros(0), np.zeros(0))]) is None
    single = reliability_chart([reliability("s", np.array([1.3]), np.array([0.5]))])
    assert single is not None and "1.2" in single.svg, "the axis reaches scores above 1"


def test_reliability_is_kept_with_the_evaluation(tmp_path):
    before = evaluation(reliability=measured())
    write_evaluation(tmp_path / "instances_box.npz", before)
    assert read_evaluation(tmp_path / "instances_box.npz").info.reliability == before.info.reliability


def test_the_waterfall_ends_at_100_with_every_value_and_one_break():
    steps = [Step("AP", 0, 71.0, 0, total=True), Step("ranking", 71.0, 70.5, 1), Step("masks", 70.5, 100.0, 2)]
    chart = waterfall_chart("t", steps, "x", limits=(60.0, 100.0))
    texts = re.findall(r">([^<>]+)</text>", chart.svg.replace("\u2212", "-"))
    assert {"71.00", "-0.50", "+29.50", "100", "AP", "ranking", "masks"} <= {
        text.replace("\u2212", "-") for text in texts
    }
    assert chart.legend == [], "the labels say it"
