"""Inputs that the fuzzer has found to end in another traceback, or to take too much: each in its smallest form."""

import bisect
import copy
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from fuzzing.configs import CONFIG  # noqa: E402
from fuzzing.data import COCO, DICTS, MANIFEST, RESULTS  # noqa: E402
from fuzzing.harness import Harness  # noqa: E402
from fuzzing.report import INFO, REPORT, _archive, _columns  # noqa: E402

HALF = "\ud800"  # of a character, which JSON may spell and UTF-8 may not


def changed(tree, *path_and_value):
    """A copy of a value with another one at a place."""
    tree = copy.deepcopy(tree)
    *path, last, value = path_and_value
    node = tree
    for key in path:
        node = node[key]
    node[last] = value
    return tree


@pytest.fixture
def run(tmp_path):
    """Run one input of a target: (outcome, message)."""
    return lambda target, content: Harness(target, tmp_path).run(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )


DATASETS = {
    "a polygon outside of an image that is not there": (
        changed(
            changed(COCO, "annotations", 0, "image_id", 99), "annotations", 0, "segmentation", [[-9, 0, 9, 0, 9, 9]]
        ),
        "image_id: 99 is not among the file's images",
    ),
    "a polygon a light year outside of it": (
        changed(
            changed(COCO, "annotations", 0, "image_id", 99), "annotations", 0, "segmentation", [[0, 0, 1e18, 0, 9, 9]]
        ),
        "in an image of unknown size",
    ),
}


@pytest.mark.parametrize("name", DATASETS)
def test_dataset(name, run):
    content, words = DATASETS[name]
    outcome, text = run("dataset", content)
    assert outcome == "refused" and words in text


def test_half_a_character_in_an_id_is_an_id(run):
    outcome, text = run("dataset", changed(DICTS, 0, "image_id", HALF))
    assert (outcome, text) in [("accepted", "")] or (outcome == "refused" and "image_id" in text)


def test_half_a_character_in_results(run):
    outcome, text = run("results", changed(RESULTS, 0, "file_name", HALF))
    assert outcome == "refused" and "JSON: " in text  # and not a file without any row


@pytest.mark.parametrize("entry", ["a" * 300 + ".json", "a\0.json", HALF])
@pytest.mark.parametrize("key", ["json", "images"])
def test_manifest_with_what_is_no_path(key, entry, run):
    outcome, text = run("manifest", changed(MANIFEST, "datasets", "plain", "splits", "train", key, entry))
    assert outcome == "refused" and "Manifest" in text


def saved(data):
    import io

    buffer = io.BytesIO()
    torch.save(data, buffer)
    return b"T" + buffer.getvalue()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["base", "weights", 0], ["a"], "does not name a file of weights"),
        (["base", "file"], "a" * 300, "That file is not found"),
        (["base", "file"], "\0", "That file is not found"),
    ],
)
def test_checkpoint_that_names_a_base(path, value, words, tmp_path, run):
    state = {"0.weight": torch.zeros(2, 1, 3, 3)}
    entry = {"file": "base.pth", "sha256": "0" * 64, "size": 3, "weights": ["0.bias"]}
    outcome, text = run("checkpoint", saved(changed({"model": state, "base": entry}, *path, value)))
    assert outcome == "refused" and words in text


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("score_calibrations", [1], "calibrations of scores cannot be read"),
        (
            "score_calibrations",
            {"box": {"score": "s", "dataset": "d", "predictions": float("inf"), "x": [0.1, 0.9], "y": [0.0, 1.0]}},
            "calibration of scores cannot be read",
        ),
        ("iteration", {}, "number of steps cannot be read"),
        ("iteration", "9", "number of steps cannot be read"),
        ("run", [], "config of its run cannot be read"),
        ("run", {"config": "a: &a [*a]"}, "more than 100000 values"),
        ("run", {"config": "- a"}, "it is no group of keys"),
        ("run", {"config": 5}, "config of its run cannot be read"),
        ("run", {"config": {"a": 1}}, "config of its run cannot be read"),
        ("run", {"config": "train: {max_iter: []}"}, "number of steps cannot be read"),
    ],
)
def test_checkpoint_that_says_something_else_of_itself(key, value, words, tmp_path, run):
    run("checkpoint", b"T")  # writes a base file of the model
    state = torch.load(tmp_path / "base.pth")
    assert run("checkpoint", saved({"model": state}))[0] == "accepted"
    outcome, text = run("checkpoint", saved({"model": state, key: value}))
    assert outcome == "refused" and words in text


def test_zoo_pickle_of_something_else(run):
    for content in (5, [], {"model": 5}, {"model": {"a": {}}}, {"model": {5: np.zeros(3)}}):
        outcome, text = run("checkpoint", b"P" + pickle.dumps(content, 4))
        assert outcome == "refused" and "input.pkl" in text


def test_mend_of_what_python_reads_and_may_not_write_again(run):
    """At some depth the stack has room for reading the file and none for its copy."""

    def mended(depth):
        text = json.dumps({**COCO, "info": "DEEP"}).replace('"DEEP"', "[" * depth + "]" * depth)
        outcome, words = run("mend", text.encode())
        assert outcome in ("accepted", "refused", "not parsed"), words
        return outcome == "accepted"

    deepest = bisect.bisect(range(1100), 0, key=lambda depth: not mended(depth)) - 1
    assert deepest > 500 and not any(mended(deepest + more) for more in range(1, 12))


FOREIGN = "../outside/model_0000099.pth"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A harness of runs' folders; its target's ``seed`` is what the newest checkpoint holds."""
    return Harness("resume", tmp_path_factory.mktemp("resume"))


def test_the_run_is_gone_on_with(resumed):
    assert resumed.run(saved(resumed.target.seed)) == ("accepted", "")


@pytest.mark.parametrize("name", [FOREIGN, "{outside}/model_0000099.pth", f"model_0000007.pth/../{FOREIGN}"])
def test_a_checkpoint_elsewhere_is_not_even_opened(name, resumed):
    assert resumed.run(b"L" + name.encode()) == ("accepted", "")


MOMENTS = ["trainer", "optimizer", "state", 0]
AVERAGE = ["trainer", "hooks", "WeightAverage", "weights", "bias"]
OTHER_STATES = {
    "no group": (["trainer"], 5, "trainer is no group"),
    "an iteration of text": (["trainer", "iteration"], "7", "trainer.iteration is no number"),
    "an iteration before the first": (["trainer", "iteration"], -3, "iteration is no number of a step"),
    "hooks of a list": (["trainer", "hooks"], [], "trainer.hooks is no group"),
    "other rates": (["trainer", "hooks", "LRScheduler", "base_lrs"], [], "base_lrs is no list of 1"),
    "a rate of text": (["trainer", "hooks", "LRScheduler", "base_lrs", 0], "0.1", "base_lrs.0 is no number"),
    "an average of lists": (AVERAGE, [1.0], "of bias is no tensor of (3,)"),
    "an average of another shape": (AVERAGE, torch.zeros(4), "of bias is no tensor of (3,)"),
    "no groups of parameters": (["trainer", "optimizer", "param_groups"], [{}], "it has no 'params'"),
    "another order": (["trainer", "optimizer", "param_groups", 0, "params"], [1, 0], "groups of parameters are others"),
    "no rate": (["trainer", "optimizer", "param_groups", 0], {"params": [0, 1]}, "groups of parameters are others"),
    "a moment of another shape": ([*MOMENTS, "exp_avg"], torch.zeros(2, 3), "exp_avg is no tensor of (3, 2)"),
    "a moment of a list": ([*MOMENTS, "exp_avg_sq"], [1.0], "exp_avg_sq is no tensor of (3, 2)"),
    "a moment of truth values": ([*MOMENTS, "exp_avg"], torch.zeros(3, 2) > 0, "exp_avg is no tensor"),
    "half of the moments": (MOMENTS, {"step": 1.0, "exp_avg": torch.zeros(3, 2)}, "lacks exp_avg_sq"),
    "a step before the first": ([*MOMENTS, "step"], torch.tensor(-1.0), "step is no count"),
    "a step of text": ([*MOMENTS, "step"], "1", "step is no count"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_STATES)
def test_resume_from_another_state(name, resumed):
    path, value, words = OTHER_STATES[name]
    outcome, text = resumed.run(saved(changed(resumed.target.seed, *path, value)))
    assert outcome == "refused" and words in text and "model_0000007.pth" in text and "last_checkpoint" in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["run"], []),
        (["run"], {"world size": 1}),
        (["run", "config"], "a: &a [*a]"),
        (["run", "config"], "train: {}"),
        (["run", "config"], "model: 5"),
        (["run", "config"], "model: {a: '${x}'}\ndataloader: {train: {}}\noptimizer: {}\nlr_multiplier: {}\ntrain: {}"),
        (["run", "world size"], torch.zeros(2)),
    ],
)
def test_resume_from_a_run_of_something_else(path, value, resumed):
    outcome, text = resumed.run(saved(changed(resumed.target.seed, *path, value)))
    assert outcome == "refused", text
    assert "of its run cannot be read" in text or "more than 100000 values" in text, text


@pytest.mark.parametrize("column", [np.array(5), np.zeros(0), np.array(["a"] * 4), np.zeros((4, 1))], ids=str)
def test_report_with_another_column(column, run):
    outcome, text = run("report", b"I" + _archive(INFO, {**_columns(), "iou": column}))
    assert outcome == "refused" and "instances_box.npz" in text


def test_report_with_a_reason_of_its_own(run):
    content = changed(REPORT, "results", 0, "prompts_left_out", {"moon": 2})
    assert run("report", b"R" + json.dumps(content).encode())[0] == "accepted"


@pytest.mark.parametrize(
    "text",
    [
        "a: !!timestamp x",
        "a: !!int x",
        "a: 2001-99-99",
        "a: 0x_",
        "dataloader: []",
        "train: {max_iter: '${x}'}",
        "1: {a: 1}",
        "dataloader: {detector: 5}",
        "model: {image_encoder: 5}",
        "model: {prompts: a}",
        "dataloader: {evaluator: {tasks: [[segm]]}}",
        "train: {checkpointer: 3}",
        "dataloader: '${model.a}'",
    ],
)
def test_yaml_with_another_kind_of_value(text, run):
    key = text.partition(":")[0]
    whole = {name: group for name, group in CONFIG.items() if name != key}
    outcome, words = run("yaml", f"{yaml.safe_dump(whole)}\n{text}\n".encode())
    assert outcome in ("accepted", "refused"), words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("é" * 300, "has no '='"),
        ("train.seed=" + "9" * 5000, "cannot be applied"),
        ("train.output_dir=" + "[" * 40 + "]" * 40, "nested 40 deep, at most 20"),
        ("train.output_dir=" + "[" * 400 + "]" * 400, "nested 400 deep, at most 20"),
    ],
)
def test_overrides_too_long_or_too_deep(text, words, run):
    outcome, found = run("overrides", text.encode())
    assert outcome in ("refused", "not parsed") and words in found
