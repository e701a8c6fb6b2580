"""Published weights: where they come from, how a file is told to be one, and where files are looked for."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from sam_d2.errors import UserError

FOLDER_VARIABLE = "SAM_D2_CHECKPOINTS"
_NOT_STATED = "not stated"
DETECTRON2_FILES = "https://dl.fbaipublicfiles.com/detectron2/"
"""What ``detectron2://`` stands for."""
_COCO_MASKS = "COCO-InstanceSegmentation/mask_rcnn_R"


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights that somebody publishes.

    Attributes:
        name: short, as ``tools/download_checkpoint.py`` takes it.
        url: official address.
        sha256: of the file, 64 hexadecimal digits, or its first 8, which is what torchvision's file names end in; None
            where nobody states it.
        size: bytes; None where nobody states it.
        licence: SPDX name, or what is known of it.
        coco_ap: published AP of boxes and of masks on COCO val2017, 0-100, with the decimals that were published.
    """

    name: str
    url: str
    sha256: str | None
    size: int | None
    licence: str
    coco_ap: tuple[float, float] | None = None


def _segment_anything(name: str, file_name: str, size: int, sha256: str) -> tuple[str, PublishedWeights]:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file_name}"
    return file_name, PublishedWeights(name, url, sha256, size, "Apache-2.0")


def _detectron2(
    name: str, path: str, licence: str = "CC-BY-SA-3.0", coco_ap: tuple[float, float] | None = None
) -> tuple[str, PublishedWeights]:
    url = f"{DETECTRON2_FILES}{path}"
    return path.rpartition("/")[2], PublishedWeights(name, url, None, None, licence, coco_ap)


def _torchvision(name: str, file_name: str, coco_ap: tuple[float, float] | None = None) -> tuple[str, PublishedWeights]:
    url = f"https://download.pytorch.org/models/{file_name}"
    return file_name, PublishedWeights(
        name, url, file_name[-len("bf2d0c1e.pth") : -len(".pth")], None, "BSD-3-Clause", coco_ap
    )


# Meta publishes these files without hashes; checkpoints/README.md says where the hashes are from.
PUBLISHED = dict(
    [
        _segment_anything(
            "sam_vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _segment_anything(
            "sam_vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _segment_anything(
            "sam_vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        _detectron2("R-50", "ImageNetPretrained/MSRA/R-50.pkl"),
        _detectron2("R-101", "ImageNetPretrained/MSRA/R-101.pkl"),
        _detectron2(
            "mask_rcnn_R_50_FPN_1x", f"{_COCO_MASKS}_50_FPN_1x/137260431/model_final_a54504.pkl", coco_ap=(38.6, 35.2)
        ),
        _detectron2(
            "mask_rcnn_R_50_FPN_3x", f"{_COCO_MASKS}_50_FPN_3x/137849600/model_final_f10217.pkl", coco_ap=(41.0, 37.2)
        ),
        _detectron2(
            "mask_rcnn_R_101_FPN_3x",
            f"{_COCO_MASKS}_101_FPN_3x/138205316/model_final_a3ec72.pkl",
            coco_ap=(42.932, 38.634),
        ),
        _detectron2("MViTv2_T_in1k", "ImageNetPretrained/mvitv2/MViTv2_T_in1k.pyth", _NOT_STATED),
        _detectron2(
            "mvitv2_mask_rcnn",
            "MViTv2/mask_rcnn_mvitv2_t_3x/f307611773/model_final_1a1c30.pkl",
            _NOT_STATED,
            (48.3, 43.8),
        ),
        _detectron2(
            "cascade_mask_rcnn_mvitv2_t",
            "MViTv2/cascade_mask_rcnn_mvitv2_t_3x/f308344828/model_final_c6967a.pkl",
            _NOT_STATED,
            (52.2, 45.0),
        ),
        _torchvision("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", (37.9, 34.6)),
        _torchvision("maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", (47.4, 41.8)),
        _torchvision("resnet50", "resnet50-0676ba61.pth"),
    ]
)
"""Published files by file name."""


def checkpoint_folders() -> list[Path]:
    """Return the folders in which a bare file name is looked for, in order."""
    folders = [Path("checkpoints"), Path(__file__).resolve().parents[2] / "checkpoints"]
    if os.environ.get(FOLDER_VARIABLE):
        folders.insert(0, Path(os.environ[FOLDER_VARIABLE]))
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def download_folder() -> Path:
    """Return the folder that downloads go to: what the environment names, else the first that exists."""
    folders = checkpoint_folders()
    if os.environ.get(FOLDER_VARIABLE):
        return folders[0]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def find_weights(name: str) -> Path:
    """Return the file that ``train.init_checkpoint`` names.

    Args:
        name: a path, a file name in a checkpoints folder, or a URL (http, https or detectron2), whose file is looked
            for there; nothing is downloaded.

    Raises:
        UserError: there is no such file; where it is a published one the message says how to get it.
    """
    url = name.replace("detectron2://", DETECTRON2_FILES) if "://" in name else ""
    if url:
        name = PurePosixPath(urlsplit(url).path).name
    candidates = [Path(name), *(folder / name for folder in checkpoint_folders())]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = ", ".join(dict.fromkeys(str(candidate.parent.resolve()) for candidate in candidates))
    message = f"Checkpoint {name} is not found (looked in {looked})."
    published = PUBLISHED.get(Path(name).name)
    if published is not None:
        raise UserError(
            f"{message} Download {published.url} into {download_folder()}/ (python tools/download_checkpoint.py "
            f"{published.name} does), or set train.init_checkpoint='' to begin with random weights."
        )
    if url:
        raise UserError(
            f"{message} Download it: python tools/download_checkpoint.py {url} (or set train.init_checkpoint='' to "
            "begin with random weights)."
        )
    there = [path.name for path in Path(name).parent.glob("*.p*") if path.is_file()]
    if nearest := get_close_matches(Path(name).name, there, 1):
        message += f" Did you mean {nearest[0]!r}, which lies in {Path(name).parent}?"
    raise UserError(f"{message} Set train.init_checkpoint to an existing file, or to '' for random weights.")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, 64 hexadecimal digits; a gigabyte takes a second or a few."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
