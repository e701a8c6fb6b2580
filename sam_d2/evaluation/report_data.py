"""What a report is made of: the files of a run folder, read back without the model or the dataset."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import yaml

from sam_d2.atomic import write_atomically
from sam_d2.errors import UserError
from sam_d2.evaluation.reliability import Reliability
from sam_d2.evaluation.results import Result, read_report
from sam_d2.run_folders import require_run
from sam_d2.yaml_limits import check_yaml
from sam_d2.zip_limits import check_unpacked

VERSION = 1
_MAX_UNPACKED = 1 << 30
"""Bytes of an evaluation's file once unpacked: that of ten million instances with its images is smaller."""
_LARGEST = 1e30
"""Size of a value that a chart can show: the axis of larger ones has no room between its ticks."""
_FLOATS = ("size", "iou", "score")
_BASELINE = "baseline_"
_OVERLAY, _PLAIN = "overlay_", "plain_"

Floats = npt.NDArray[np.float32]


class Tile(msgspec.Struct, kw_only=True):
    """Caption of one image of the gallery; NaN is null in the file.

    Attributes:
        label: Why it is shown, such as ``worst``; empty where all images are, from worst to best.
        file_name: Of the image.
        mean_iou: 0-1; None where prompts and instances are not paired.
        instances: In the ground truth.
        predictions: Masks that the model gave.
    """

    label: str
    file_name: str
    mean_iou: float | None
    instances: int
    predictions: int


class EvaluationInfo(msgspec.Struct, kw_only=True):
    """How an evaluation was made.

    Attributes:
        version: Of the file's form.
        split: Registered name of the dataset.
        prompt: Kind of prompt.
        prompt_source: ``ground_truth`` (an oracle), ``detector`` or ``file``.
        score: Name of the score that ranks the masks.
        written: Date and time, ISO 8601.
        checkpoint: What was evaluated.
        device: Where the model ran.
        versions: Of python, torch, sam_d2 and Detectron2.
        seconds: Wall-clock time of prediction and evaluation.
        paired: Whether each prediction was prompted with a known instance.
        image_names: File name of each image of the dataset.
        class_names: By contiguous class id.
        config: The config as YAML.
        tiles: Of the gallery, in order.
        prompt_boxes: As in :class:`~sam_d2.evaluation.results.Result`; None also where the file does not say.
        reliability: Each score against the true IoU, the one that ranks first; empty also where the file does not say.
    """

    version: int
    split: str
    prompt: str
    prompt_source: str
    score: str
    written: str
    checkpoint: str
    device: str
    versions: dict[str, str]
    seconds: float
    paired: bool
    image_names: list[str]
    class_names: list[str]
    config: str
    tiles: list[Tile]
    prompt_boxes: str | None = None
    reliability: list[Reliability] = []


@dataclass
class Evaluation:
    """One evaluation, instance by instance; rows are the N non-crowd instances of the dataset.

    Attributes:
        info: How it was made.
        image: (N,) int32 rows of ``info.image_names``.
        category: (N,) int32 rows of ``info.class_names``.
        size: (N,) square root of the true mask's area, pixels of the original frame; 0 where it is empty.
        iou: (N,) true IoU of the instance's prediction, 0-1; 0 without one, NaN where the true mask is empty.
        score: (N,) of that prediction; NaN without one.
        baselines: (N,) IoU of each baseline's mask, by method; empty where there are none.
        pictures: Of each tile the JPEG with and the one without outlines.
    """

    info: EvaluationInfo
    image: npt.NDArray[np.int32]
    category: npt.NDArray[np.int32]
    size: Floats
    iou: Floats
    score: Floats
    baselines: dict[str, Floats] = field(default_factory=dict)
    pictures: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass
class Run:
    """A run folder's content, as far as a report shows it.

    Attributes:
        folder: The run folder.
        results: Rows of report.json.
        evaluations: The last of each kind of prompt; the newest first.
        curves: Metric of metrics.json -> its (iteration, value) points, iterations rising.
        config: YAML of the training, else of the newest evaluation; empty where there is none.
    """

    folder: Path
    results: list[Result]
    evaluations: list[Evaluation]
    curves: dict[str, list[tuple[int, float]]]
    config: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def oracle(self) -> bool:
        """Whether any prompts came from the ground truth."""
        return any(row.prompt_source == "ground_truth" for row in self.results)


def evaluation_path(folder: Path, prompt: str) -> Path:
    """Where a run folder keeps the evaluation with one kind of prompt."""
    return folder / f"instances_{re.sub(r'[^A-Za-z0-9_-]', '_', prompt)}.npz"


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write one evaluation as a compressed NumPy archive, whole or not at all.

    Args:
        path: Of the file; its folder is made where absent.
        evaluation: N instances take about 10 N bytes beside the pictures.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "info": np.frombuffer(msgspec.json.encode(evaluation.info), dtype=np.uint8),
        "image": evaluation.image,
        "category": evaluation.category,
        **{name: getattr(evaluation, name) for name in _FLOATS},
        **{f"{_BASELINE}{name}": ious for name, ious in evaluation.baselines.items()},
    }
    for index, (overlay, plain) in enumerate(evaluation.pictures):
        arrays[f"{_OVERLAY}{index}"] = np.frombuffer(overlay, dtype=np.uint8)
        arrays[f"{_PLAIN}{index}"] = np.frombuffer(plain, dtype=np.uint8)
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def read_evaluation(path: Path) -> Evaluation:
    """Read what :func:`write_evaluation` wrote.

    Raises:
        UserError: The file is damaged, of another version, or something else altogether.
    """
    advice = "delete it, or evaluate again (--eval-only)"
    try:
        check_unpacked(path, _MAX_UNPACKED)
        with np.load(path, allow_pickle=False) as archive:
            info = msgspec.json.decode(archive["info"].tobytes(), type=EvaluationInfo)
            columns = {name: np.asarray(archive[name], dtype=np.float32) for name in _FLOATS}
            found = Evaluation(
                info,
                np.asarray(archive["image"], dtype=np.int32),
                np.asarray(archive["category"], dtype=np.int32),
                **columns,
                baselines={
                    name.removeprefix(_BASELINE): np.asarray(archive[name], dtype=np.float32)
                    for name in archive.files
                    if name.startswith(_BASELINE)
                },
                pictures=[
                    (archive[f"{_OVERLAY}{index}"].tobytes(), archive[f"{_PLAIN}{index}"].tobytes())
                    for index in range(len(info.tiles))
                ],
            )
    except UserError:
        raise
    except Exception as error:  # damage in a compressed archive is found by whoever stumbles over it
        raise UserError(f"{path}: not an evaluation that can be read ({error}); {advice}") from None
    if info.version != VERSION:
        raise UserError(f"{path}: is of version {info.version}, and this sam_d2 reads version {VERSION}; {advice}")
    rows = [found.image, found.category, found.size, found.iou, found.score, *found.baselines.values()]
    if (
        found.iou.ndim != 1
        or any(row.shape != found.iou.shape for row in rows)
        or not (_within(found.image, len(info.image_names)) and _within(found.category, len(info.class_names)))
    ):
        raise UserError(f"{path}: its columns do not fit together; {advice}")
    return found


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    Args:
        folder: With a report.json; metrics.json, config.yaml and instances_*.npz are read where they are.

    Raises:
        UserError: It is no folder, nothing was evaluated in it, or a file in it is damaged.
    """
    folder = Path(folder)
    require_run(folder)
    report = folder / "report.json"
    if not report.is_file():
        raise UserError(f"{folder}: holds no report.json, so nothing was evaluated there; evaluate it (--eval-only)")
    results = read_report(report)
    if not results:
        raise UserError(f"{report}: holds no results; evaluate the run again (--eval-only)")
    evaluations = [read_evaluation(path) for path in sorted(folder.glob("instances_*.npz"))]
    evaluations.sort(key=lambda evaluation: evaluation.info.written, reverse=True)
    saved = folder / "config.yaml"
    if saved.is_file():
        config = saved.read_text(encoding="utf-8", errors="replace")
    else:
        config = evaluations[0].info.config if evaluations else ""
    return Run(folder, results, evaluations, read_curves(folder / "metrics.json"), config)


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the points of a metrics.json, which has one JSON object a line.

    A line that a killed run has left half written is passed over; of an iteration that a resumed run did again
    the later value counts. There are no curves where there is no file.
    """
    if not path.is_file():
        return {}
    points: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            continue
        if abs(record["iteration"]) > _LARGEST:
            continue
        for name, value in record.items():
            if name != "iteration" and isinstance(value, (int, float)) and abs(value) <= _LARGEST:
                points.setdefault(name, {})[record["iteration"]] = float(value)
    return {name: sorted(curve.items()) for name, curve in points.items()}


def flat_config(run: Run) -> dict[str, str]:
    """The config's values by dotted key, as text.

    Raises:
        UserError: It is not YAML.
    """
    check_yaml(run.config, f"{run.folder}: its config")
    try:
        loaded = yaml.safe_load(run.config)
    except Exception as error:  # what a tag does not fit makes PyYAML stumble over anything
        raise UserError(f"{run.folder}: its config is not YAML ({' '.join(str(error).split())})") from None
    flat: dict[str, str] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, value in node.items():
                walk(value, f"{key}.{name}" if key else str(name))
        elif node is not None or key:
            flat[key] = str(node)

    walk(loaded, "")
    return flat


def _within(rows: npt.NDArray[np.int32], count: int) -> bool:
    return rows.size == 0 or bool(rows.min() >= 0 and rows.max() < count)
