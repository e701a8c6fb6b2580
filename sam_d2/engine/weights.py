"""Published weights: where they come from and where they are looked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sam_d2.errors import UserError

FOLDER_VARIABLE = "SAM_D2_CHECKPOINTS"


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights that somebody publishes.

    Attributes:
        url: official address.
        licence: SPDX name.
    """

    url: str
    licence: str


PUBLISHED = {
    name: PublishedWeights(f"https://dl.fbaipublicfiles.com/segment_anything/{name}", "Apache-2.0")
    for name in ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth")
}


def checkpoint_folders() -> list[Path]:
    """Return the folders in which a bare file name is looked for, in order."""
    folders = [Path("checkpoints"), Path(__file__).resolve().parents[2] / "checkpoints"]
    if os.environ.get(FOLDER_VARIABLE):
        folders.insert(0, Path(os.environ[FOLDER_VARIABLE]))
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def find_weights(name: str) -> Path:
    """Return the file that ``train.init_checkpoint`` names: a path, or a file name in a checkpoints folder.

    Raises:
        UserError: there is no such file; where it is a published one the message gives its address.
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
            f"{message} Download {published.url} into {checkpoint_folders()[0]}/, or set "
            "train.init_checkpoint='' to begin with random weights."
        )
    raise UserError(f"{message} Set train.init_checkpoint to an existing file, or to '' for random weights.")
