"""Checkpoints, pickles of a model zoo, and files of the embedding cache."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing import Target
from fuzzing.mutate import mutated_bytes, mutated_tree

_GLOBALS = [
    b"os\nsystem",
    b"builtins\neval",
    b"builtins\nexec",
    b"torch\nload",
    b"torch.storage\n_load_from_bytes",
    b"torch._utils\n_rebuild_tensor_v2",
    b"numpy\nndarray",
    b"numpy\ndtype",
    b"collections\nOrderedDict",
    b"torch\nFloatStorage",
    b"torch\ndevice",
    b"numpy.core.multiarray\n_reconstruct",
    b"pickle\nloads",
]


class CheckpointTarget(Target):
    """A reader of checkpoints; the first byte of an input says what it is."""

    def changed(self, seed: Any, random: Random, *, pkl: bool = False) -> bytes:
        """Change the content and write it well, or write it well and change the pickle in it or any byte."""
        how = random.random()
        if how < 0.6:
            seed = mutated_tree(seed, random)
            if random.random() < 0.5:
                _mutate_tensor(seed, random)
        content = pickle.dumps(seed, random.randrange(2, 6)) if pkl else _saved(seed, random)
        if how >= 0.6:
            if how < 0.8 and not pkl and content[:2] == b"PK":
                content = _with_other_pickle(content, random)
            else:
                content = (_mutated_pickle if how < 0.8 else mutated_bytes)(content, random)
        return content

    def parses(self, content: bytes) -> bool:
        """Whether the zip archive is whole, and the pickle of known operations."""
        content = content[1:]
        try:
            if content[:2] == b"PK":
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                    content = archive.read(name)
            for _ in pickletools.genops(content):
                pass
        except Exception:
            return False
        return True


class Checkpoint(CheckpointTarget):
    """``.pth`` files of torch's two forms and ``.pkl`` of Detectron2's zoo, of which the input's first byte tells."""

    name = "checkpoint"
    share = 17

    def prepare(self, folder: Path) -> None:
        """Make a small model, whole files of it, and the base that a small checkpoint names."""
        import torch
        from torch import nn

        from sam_d2.engine.checkpoint import Checkpointer
        from sam_d2.engine.weights import sha256_of
        from sam_d2.modeling.weights_record import WeightsRecord

        torch.manual_seed(0)
        self.folder = folder
        self.model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Linear(2, 3))
        self.model.weights_record = WeightsRecord(draw_boxes=False)
        self.checkpointer = Checkpointer(self.model, str(folder / "run"), save_to_disk=False)
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        base = folder / "base.pth"
        torch.save(state, base)
        entry = {"file": "base.pth", "sha256": sha256_of(base), "size": base.stat().st_size, "weights": list(state)[1:]}
        calibration = {
            "score": "predicted_iou",
            "dataset": "nuts",
            "predictions": 4,
            "x": torch.tensor([0.1, 0.9]),
            "y": torch.tensor([0.0, 1.0]),
        }
        record = {"world size": 1, "config": "train: {max_iter: 20, early_stop: {patience: 2}}\n"}
        whole = {
            "model": state,
            "iteration": 9,
            "run": record,
            "best": {"value": 1.0},
            "multimask_trained": True,
            "draw_boxes": False,
            "score_calibrations": {"box": calibration},
            "optimizer": {"state": {0: {"step": 1}}, "param_groups": []},
        }
        small = {"model": {name: state[name] for name in list(state)[:1]}, "base": entry}
        self.seeds: list[dict[str, Any]] = [state, whole, small]
        arrays = {name: value.numpy() for name, value in state.items()}
        self.zoo: list[dict[str, Any]] = [{"model": arrays, "__author__": "someone"}, {"blobs": arrays}, arrays]

    def make(self, random: Random) -> bytes:
        """Change a file of weights."""
        pkl = random.random() < 0.3
        seed = random.choice(self.zoo if pkl else self.seeds)
        return (b"P" if pkl else b"T") + self.changed(seed, random, pkl=pkl)

    def read(self, content: bytes) -> None:
        """Load it as the weights that a training begins with, and as those that are scored."""
        from sam_d2.engine.resume import weights_text
        from sam_d2.engine.selection import selected_on

        file = self.folder / ("input.pkl" if content[:1] == b"P" else "input.pth")
        file.write_bytes(content[1:])
        try:
            rest = self.checkpointer.load(str(file))
            weights_text(file, rest)
            selected_on(file, rest)
            self.checkpointer.resume_or_load(str(file), resume=False)
        finally:
            file.unlink()


class Embedding(Target):
    """Files of the embedding cache."""

    name = "embedding"
    share = 2

    def prepare(self, folder: Path) -> None:
        """Make a cache."""
        from sam_d2.modeling.embedding_store import EmbeddingStore

        self.store = EmbeddingStore(folder / "cache", "encoder", max_bytes=1 << 20)

    def make(self, random: Random) -> bytes:
        """Change what the header says, with and without a right checksum, or any byte."""
        values = bytes(random.randrange(256) for _ in range(16))
        header: Any = {"version": 2, "shape": [2, 2], "dtype": "float32"}
        if random.random() < 0.7:
            header["dtype"] = random.choice(
                ["float32", "float32", "bfloat16", "load", "hub", "complex64", "qint8", "", 5]
            )
            if random.random() < 0.5:
                header = mutated_tree(header, random)
        if isinstance(header, dict) and random.random() < 0.9:
            said = json.dumps([header.get("shape"), header.get("dtype")]).encode()
            header["crc32"] = zlib.crc32(values, zlib.crc32(said))
        content = json.dumps(header).encode()[:256].ljust(256) + values
        return mutated_bytes(content, random) if random.random() < 0.2 else content

    def read(self, content: bytes) -> None:
        """Read it as a training does: what cannot be read is encoded again, so None is an answer."""
        from sam_d2.errors import UserError

        path = self.store._path("0123")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        found = self.store.read("0123")
        if found is None:
            raise UserError("damaged: it is removed and encoded again")
        found.float().sum()

    def parses(self, content: bytes) -> bool:
        """Whether the header is JSON."""
        try:
            json.loads(content[:256])
        except (ValueError, RecursionError):
            return False
        return True


def _saved(seed: Any, random: Random) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(seed, buffer, _use_new_zipfile_serialization=random.random() < 0.8)
    return buffer.getvalue()


def _mutate_tensor(tree: Any, random: Random) -> None:
    """Put a tensor or array of another kind in place of a weight."""
    import torch

    node = tree.get("model", tree) if isinstance(tree, dict) else tree
    if not isinstance(node, dict) or not node:
        return
    shape = [random.choice([0, 1, 2, 3, 7]) for _ in range(random.randrange(5))]
    tensor = random.choice(
        [
            lambda: torch.zeros(shape),
            lambda: torch.zeros(shape, dtype=torch.complex64),
            lambda: torch.full(shape, float("nan")),
            lambda: torch.zeros(shape, dtype=torch.bool),
            lambda: torch.zeros(shape, dtype=torch.float64),
            lambda: torch.zeros(shape, dtype=torch.int64),
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: torch.zeros(2, 3).to_sparse(),
            lambda: torch.empty(shape, device="meta"),
            lambda: torch.nn.Parameter(torch.zeros(2)),
            lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
            lambda: torch.zeros(4)[::2],
        ]
    )()
    arrays = any(isinstance(value, np.ndarray) for value in node.values())
    try:  # numpy would write each of the numbers
        node[random.choice(list(node))] = tensor.contiguous().numpy() if arrays and tensor.numel() < 10**6 else tensor
    except (TypeError, RuntimeError):
        node[random.choice(list(node))] = np.array(["text"], dtype=random.choice([object, None]))


def _with_other_pickle(content: bytes, random: Random) -> bytes:
    """Change the pickle in a zip archive, or how its members are packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as other:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("data.pkl"):
                data = _mutated_pickle(data, random)
            elif random.random() < 0.1:
                data = data[: random.randrange(len(data) + 1)]
            kind = zipfile.ZIP_DEFLATED if random.random() < 0.05 else zipfile.ZIP_STORED
            if random.random() < 0.02:
                continue
            other.writestr(zipfile.ZipInfo(name), data, compress_type=kind)
    return buffer.getvalue()


def _mutated_pickle(data: bytes, random: Random) -> bytes:
    """Change a pickle at its operations: other arguments, operations left out, repeated or put in."""
    try:
        places = [place for _, _, place in pickletools.genops(data) if place is not None]
    except Exception:
        return mutated_bytes(data, random)
    pieces = [data[begin:end] for begin, end in zip(places, [*places[1:], len(data)], strict=True)]
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(pieces))
        kind = random.randrange(6)
        if kind == 0:
            pieces[at] = mutated_bytes(pieces[at], random)
        elif kind == 1:
            pieces[at] = b""
        elif kind == 2:
            pieces[at] *= random.choice([2, 100])
        elif kind == 3:
            pieces.insert(
                at, b"c" + random.choice(_GLOBALS) + b"\n" + random.choice([b"", b")R", b"(S'x'\ntR", b")\x81"])
            )
        elif kind == 4:
            pieces.insert(
                at, random.choice([b"K\x01", b"N", b")", b"}", b"]", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"R", b"b"])
            )
        else:
            pieces[at] = random.choice(pieces)
    return b"".join(pieces)
