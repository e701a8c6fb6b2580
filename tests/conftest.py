"""Fixtures shared by all tests. sam_d2 is imported first: it decides which Detectron2 the tests see."""

import importlib.util
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from PIL import Image, ImageDraw

import sam_d2  # noqa: F401
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

ROOT = Path(__file__).resolve().parents[1]
TrainNet = Callable[..., Path]
TINY = [
    "model.image_encoder.img_size=64",
    "model.image_encoder.depth=1",
    "model.image_encoder.embed_dim=32",
    "model.image_encoder.out_chans=32",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]
"""Overrides of configs/sam_tiny.py for a model that trains a step in some ten milliseconds."""
R_18 = [
    "model.backbone.out_channels=32",
    "model.roi_heads.box_head.fc_dims=[16]",
    "model.roi_heads.box_predictor.input_shape.channels=16",
    "model.roi_heads.mask_head.conv_dims=[32,32]",
    "model.roi_heads.batch_size_per_image=16",
    "model.proposal_generator.post_nms_topk=[40,20]",
    "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.log_period=1",
]
"""Overrides of configs/mask_rcnn_R_18_FPN.py for a step in a fraction of a second."""


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """No file of a test is to survive a power failure, and a busy disk takes seconds for each that is."""
    before, os.fsync = os.fsync, lambda _: None
    yield
    os.fsync = before


@contextmanager
def forgetting_datasets() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


@pytest.fixture
def catalogs() -> Iterator[None]:
    """Take what a test registers out of Detectron2's catalogs again."""
    with forgetting_datasets():
        yield


@pytest.fixture(scope="module", autouse=True)
def files_are_apart() -> Iterator[None]:
    """Take back what a file of tests leaves in its process, in which others follow in an order that is not fixed."""
    environment, hooks = dict(os.environ), (sys.excepthook, threading.excepthook)
    disabled, bytecode = logging.root.manager.disable, sys.dont_write_bytecode
    with forgetting_datasets(), loggers_restored():
        yield
    logging.disable(disabled)
    sys.dont_write_bytecode = bytecode
    os.environ.clear()
    os.environ.update(environment)
    # torch.distributed's, which begins each line with the rank, outlives its group
    sys.excepthook, threading.excepthook = hooks


def _edit(content: Any, change: Any) -> None:
    if callable(change):
        change(content)
    elif isinstance(change, list):
        for one in change:
            _edit(content, one)
    else:
        *path, key, value = change
        for step in path:
            content = content[step]
        if value is ...:
            del content[key]
        else:
            content[key] = value


@pytest.fixture(scope="session")
def edit() -> Callable[[Any, Any], None]:
    """``edit(content, change)``: a parsed file becomes another, as a case of a test says.

    A change is a path with the value that is put there, where `...` deletes; a function of the file; or a list of them.
    """
    return _edit


@pytest.fixture(scope="session")
def with_random_weights() -> Callable[[Callable[[], Any], float], Any]:
    """``with_random_weights(build, scale)``: a SAM whose every parameter has a value, also those that begin with zeros.

    Its logits, times ``scale``, spread over a few units, so that masks have borders; as published ones are.
    """

    def make(build: Callable[[], Any], scale: float) -> Any:
        torch.manual_seed(3)
        sam = build()
        with torch.no_grad():
            for name, parameter in sam.named_parameters():
                if "rel_pos" in name or "pos_embed" in name:
                    torch.nn.init.normal_(parameter, std=0.2)
                elif name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
            for network in sam.mask_decoder.output_hypernetworks_mlps:
                network.layers[-1].weight *= scale
        return sam.eval()

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets, or a skip where the environment names none."""
    folder = os.environ.get("SAM_D2_REAL_DATA")
    if not folder:
        pytest.skip("SAM_D2_REAL_DATA is not set: the real data sets are not on this machine")
    if not Path(folder).is_dir():
        pytest.fail(f"SAM_D2_REAL_DATA={folder} is not a folder")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def tiny_overrides() -> list[str]:
    """``key=value`` arguments that make configs/sam_tiny.py small enough for a test."""
    return list(TINY)


@pytest.fixture(scope="session")
def r_18_overrides() -> list[str]:
    """``key=value`` arguments that make configs/mask_rcnn_R_18_FPN.py small enough for a test."""
    return list(R_18)


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for ``--dataset``: 6 training and 4 test images of coloured shapes, landscape and portrait.

    In each part the last image is empty, and of the shapes of image 1 the first is an uncompressed RLE and a
    further one a crowd.
    """
    folder = tmp_path_factory.mktemp("shapes")
    for part, count in (("train", 6), ("test", 4)):
        write_shapes(folder, part, count)
    return folder


@contextmanager
def loggers_restored() -> Iterator[None]:
    """Take off the handlers that a run puts on the loggers of the packages, and let records through again."""
    packages = ("sam_d2", "detectron2", "fvcore")
    children = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in packages]
    loggers = [logging.getLogger(name) for name in {*packages, *children}]
    before = [(logger, list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


@pytest.fixture
def restore_loggers() -> Iterator[None]:
    """For tests that begin a run themselves."""
    with loggers_restored():
        yield


@pytest.fixture(scope="session")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """``in_two_processes(function, *arguments)``: what it returns in each of two processes that are joined by gloo.

    They are forked, because importing torch again would take longer than most tests, so it may be any function. What
    hangs fails after two minutes.
    """

    def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        folder = tmp_path_factory.mktemp("processes")
        torch.multiprocessing.start_processes(
            _run_in_process, args=(folder, function, arguments), nprocs=2, start_method="fork"
        )
        return [torch.load(folder / f"{rank}.pth", weights_only=False) for rank in range(2)]

    return run


def _run_in_process(rank: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # a forked process cannot use the threads of the first one
    dist = torch.distributed
    patience = timedelta(minutes=2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    comm.create_local_process_group(2)
    torch.save(function(*arguments), folder / f"{rank}.pth")
    dist.barrier()  # else the first to end would take the connection from the other
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def train_net(shapes_folder: Path) -> TrainNet:
    """``train_net(output_dir, *arguments)``: run experiments/train_net.py in this process on the shapes.

    The config is configs/sam_tiny.py made smaller; ``--config-file`` and ``--dataset`` among the arguments replace
    what it runs. Gives the output folder back. ``train_net.module`` is the script.
    """
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "experiments" / "train_net.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from sam_d2.cli import parse_args

    def run(output: Path, *arguments: str, overrides: tuple[str, ...] | list[str] = tuple(TINY)) -> Path:
        line = ["--config-file", str(ROOT / "configs" / "sam_tiny.py"), "--dataset", str(shapes_folder)]
        with loggers_restored():
            assert module.main(parse_args([*line, "--output-dir", str(output), *arguments, *overrides])) == 0
        return output

    run.module = module  # type: ignore[attr-defined]
    return run


@pytest.fixture
def limit_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, Callable[[list[dict]], bool]], None]:
    """``limit_memory(model class, fails)``: training runs out of GPU memory with batches that ``fails`` is true of."""

    def limit(model_class: Any, fails: Callable[[list[dict]], bool]) -> None:
        forward = model_class.forward

        def limited(self: Any, samples: list[dict]) -> Any:
            if self.training and fails(samples):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(self, samples)

        monkeypatch.setattr(model_class, "forward", limited)

    return limit


SHORT = ["train.max_iter=6", "train.checkpointer.period=2", "train.eval_period=3", "train.log_period=2"]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, train_net: TrainNet) -> Path:
    """Folder of a run of 6 steps with box prompts, evaluated after steps 3 and 6; copy it before changing it."""
    return train_net(tmp_path_factory.mktemp("runs") / "finished", *SHORT)


def write_shapes(folder: Path, part: str, count: int) -> None:
    """Write ``dataset_<part>.json`` and ``count`` images: 2 or 3 shapes each, in colours apart from the ground's."""
    rng = np.random.default_rng([count, len(part)])
    images, annotations = [], []
    for number in range(count):
        width, height = ((96, 64), (60, 80))[number % 2]
        image = Image.new("RGB", (width, height), (90, 110, 90))
        draw = ImageDraw.Draw(image)
        shapes = [] if number == count - 1 else _shapes(width, height, 2 + number % 2)
        for order, polygon in enumerate(shapes):
            draw.polygon(polygon, fill=tuple(int(value) for value in rng.integers(150, 256, 3)))
            xs, ys = polygon[0::2], polygon[1::2]
            segmentation: list | dict = [polygon]
            if number == 1 and order == 0:
                segmentation = _uncompressed(polygon, height, width)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 3,
                    "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
                    "area": float(mask_utils.area(mask_utils.merge(mask_utils.frPyObjects([polygon], height, width)))),
                    "iscrowd": 0,
                    "segmentation": segmentation,
                }
            )
        if number == 1:
            crowd = [2, height - 10, 12, height - 10, 12, height - 2, 2, height - 2]
            box = {"bbox": [2, height - 10, 10, 8], "area": 80.0, "iscrowd": 1}
            rle = _uncompressed(crowd, height, width)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 3, "segmentation": rle, **box}
            )
        name = f"{part}_{number}.png"
        image.save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "shape"}]}
    (folder / f"dataset_{part}.json").write_text(json.dumps(content))


def _shapes(width: int, height: int, count: int) -> list[list[int]]:
    """A square, a triangle and a diamond in thirds of the image, apart from one another."""
    third, y0, y1 = width // 3, height // 4, 3 * height // 4
    left, middle, right = 4, third + 4, 2 * third + 4
    side = third - 8
    return [
        [left, y0, left + side, y0, left + side, y1, left, y1],
        [middle, y1, middle + side, y1, middle + side // 2, y0],
        [right + side // 2, y0, right + side, height // 2, right + side // 2, y1, right, height // 2],
    ][:count]


def _uncompressed(polygon: list[int], height: int, width: int) -> dict:
    mask = mask_utils.decode(mask_utils.frPyObjects([polygon], height, width))[:, :, 0].flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    runs = np.diff(np.concatenate([[0], edges, [len(mask)]]))
    return {"size": [height, width], "counts": [int(run) for run in runs]}
