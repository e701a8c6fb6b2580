"""Published weights: where they come from, how a file is told to be one, and where files are looked for."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from sam_d2.errors import UserError

FOLDER_VARIABLE = "SAM_D2_CHECKPOINTS"


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights that somebody publishes.

    Attributes:
        name: short, as ``tools/download_checkpoint.py`` takes it.
        url: official address.
        sha256: of the file, 64 hexadecimal digits.
        size: bytes.
        licence: SPDX name.
    """

    name: str
    url: str
    sha256: str
    size: int
    licence: str


def _segment_anything(name: str, file_name: str, size: int, sha256: str) -> tuple[str, PublishedWeights]:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file_name}"
    return file_name, PublishedWeights(name, url, sha256, size, "Apache-2.0")


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
    """Return the file that ``train.init_checkpoint`` names: a path, or a file name in a checkpoints folder.

    Raises:
        UserError: there is no such file; where it is a published one the message says how to get it.
    """
    candidates = [Path(name), *(folder / name for folder in checkpoint_folders())]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = ", ".join(str(candidate.parent.resolve()) for candidate in candidates)
    message = f"Checkpoint {name} is not found (looked in {looked})."
    published = PUBLISHED.get(Path(name).name)
    if published is not None:
        raise UserError(
            f"{message} Download {published.url} into {download_folder()}/ (python tools/download_checkpoint.py "
            f"{published.name} does), or set train.init_checkpoint='' to begin with random weights."
        )
    raise UserError(f"{message} Set train.init_checkpoint to an existing file, or to '' for random weights.")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, 64 hexadecimal digits; a gigabyte takes a second or a few."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
