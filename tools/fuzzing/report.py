"""The files of a run folder that a report is made of."""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import yaml

from fuzzing import Target
from fuzzing.configs import CONFIG
from fuzzing.mutate import json_bytes, mutated_bytes, mutated_tree

_METRICS = {"AP": 50.0, "AP50": 80.0, "AP75": 40.0, "AR": 60.0, "mIoU": 0.5, "AP-nut": 20.0, "AP-bolt": 80.0}
_ROW = {
    "split": "nuts",
    "prompt": "box",
    "prompt_source": "ground_truth",
    "task": "segm",
    "score": "predicted_iou",
    "max_dets": 100,
    "pseudo_ground_truth": False,
    "seconds": 1.5,
    "images": 2,
    "instances": 4,
    "ground_truth": "ab" * 32,
    "prompts_left_out": {"limit": 2},
    "selected": True,
}
REPORT = {
    "version": 1,
    "results": [
        {**_ROW, "method": "model", "metrics": _METRICS},
        {**_ROW, "method": "base", "metrics": {"AP": 10.0, "mIoU": None}},
        {**_ROW, "method": "ellipse", "score": "constant", "metrics": {"AP": 30.0}},
        {**_ROW, "method": "model", "prompt": "none", "prompt_source": "detector", "task": "bbox", "metrics": _METRICS},
    ],
}
CURVES: list[Any] = [
    {"iteration": 9, "total_loss": 2.0, "lr": 0.1},
    {"iteration": 19, "total_loss": 1.0, "lr": 0.1, "segm/AP": 50.0},
]
INFO = {
    "version": 1,
    "split": "nuts",
    "prompt": "box",
    "prompt_source": "ground_truth",
    "score": "predicted_iou",
    "written": "2026-01-02T03:04:05+00:00",
    "checkpoint": "model_final.pth",
    "device": "cpu",
    "versions": {"torch": "2"},
    "seconds": 1.0,
    "paired": True,
    "image_names": ["1.png", "2.png"],
    "class_names": ["nut", "bolt"],
    "config": "a: 1\n",
    "tiles": [{"label": "worst", "file_name": "1.png", "mean_iou": 0.25, "instances": 2, "predictions": 1}],
    "reliability": [],
}
_LIVE = re.compile(r"<script>alert|<img src=x|[\x00-\x08\x0b-\x1f\x7f\u202e]")


class Report(Target):
    """A run folder with one changed file, which the first byte of an input names."""

    name = "report"
    share = 2
    files: ClassVar[dict[bytes, str]] = {
        b"R": "report.json",
        b"M": "metrics.json",
        b"I": "instances_box.npz",
        b"C": "config.yaml",
    }

    def prepare(self, folder: Path) -> None:
        """Write a whole run folder."""
        from sam_d2.evaluation.report_data import read_run
        from sam_d2.evaluation.report_page import run_page

        self.folder = folder / "run"
        self.folder.mkdir(exist_ok=True)
        self.whole = {
            b"R": json.dumps(REPORT).encode(),
            b"M": _lines(CURVES),
            b"I": _archive(INFO, _columns()),
            b"C": yaml.safe_dump(CONFIG).encode(),
        }
        for key, name in self.files.items():
            (self.folder / name).write_bytes(self.whole[key])
        self.other = read_run(self.folder)
        run_page(self.other)  # what draws is loaded now, and not in the time of an input

    def make(self, random: Random) -> bytes:
        """Change one of the files."""
        kind = random.choices([b"R", b"M", b"I", b"C"], [6, 1, 2, 1])[0]
        if random.random() < 0.2:
            return kind + mutated_bytes(self.whole[kind], random)
        if kind == b"R":
            return kind + json_bytes(mutated_tree(REPORT, random), random)
        if kind == b"M":
            return kind + _lines(mutated_tree(CURVES, random))
        if kind == b"C":
            return kind + json_bytes(mutated_tree(CONFIG, random), random)
        columns = _columns()
        for _ in range(random.randrange(3)):
            columns[random.choice(list(columns))] = random.choice(_ARRAYS)
        return kind + _archive(mutated_tree(INFO, random) if random.random() < 0.6 else INFO, columns)

    def read(self, content: bytes) -> None:
        """Make the tables of the run beside another one, and of one input in four, because it takes long, a page."""
        from sam_d2.evaluation.report_compare import compare_page, compare_text
        from sam_d2.evaluation.report_data import read_run
        from sam_d2.evaluation.report_page import run_page

        path = self.folder / self.files[content[:1]]
        path.write_bytes(content[1:])
        try:
            run = read_run(self.folder)
            compare_text([run, self.other])
            kind = zlib.crc32(content) % 8
            page = run_page(run) if kind == 0 else compare_page([run, self.other]) if kind == 1 else ""
        finally:
            path.write_bytes(self.whole[content[:1]])
        found = _LIVE.search(page)
        assert found is None, f"markup or a control character in the page: {found}"

    def parses(self, content: bytes) -> bool:
        """Whether the changed file is JSON, YAML or a zip archive."""
        kind, content = content[:1], content[1:]
        try:
            if kind == b"R":
                json.loads(content)
            elif kind == b"C":
                yaml.compose(content, Loader=yaml.SafeLoader)
            elif kind == b"I":
                zipfile.ZipFile(io.BytesIO(content)).testzip()
        except Exception:
            return False
        return True


def _columns() -> dict[str, Any]:
    rows = np.arange(4) % 2
    values = np.linspace(0, 1, 4, dtype=np.float32)
    return {
        "image": rows.astype(np.int32),
        "category": rows.astype(np.int32),
        "size": values * 100,
        "iou": values,
        "score": values,
        "baseline_ellipse": values,
        "overlay_0": np.zeros(8, np.uint8),
        "plain_0": np.zeros(8, np.uint8),
    }


_ARRAYS = [
    np.zeros(3),
    np.zeros((4, 1)),
    np.full(4, np.nan),
    np.full(4, np.inf),
    np.array(5),
    np.array(["a"] * 4),
    np.zeros(0),
    np.array([{}] * 4, dtype=object),
    np.array([2**40, -1, 0, 0]),
    np.full(4, -1e38, np.float32),
    np.zeros(4, dtype=[("a", "i4")]),
    np.zeros(4, complex),
    np.array([9, 9, 9, 9], np.int32),
]


def _archive(info: Any, columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    text = json.dumps(info).encode("utf-8", "surrogatepass")
    np.savez(buffer, info=np.frombuffer(text, np.uint8), **columns)
    return buffer.getvalue()


def _lines(records: Any) -> bytes:
    records = records if isinstance(records, list) else [records]
    return "\n".join(json.dumps(record) for record in records).encode("utf-8", "surrogatepass")
