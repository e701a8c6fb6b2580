"""Zip archives from anywhere: what they unpack to is looked at before they are unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path

from sam_d2.errors import UserError


def check_unpacked(path: str | Path, most: int) -> None:
    """Refuse a zip archive whose members are larger than they may be, all together.

    Args:
        path: of the archive; of another file nothing is said.
        most: bytes.

    Raises:
        UserError: it would unpack to more.
        zipfile.BadZipFile: it is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > most:
        raise UserError(f"{path}: it would unpack to {size} bytes, more than such a file holds ({most}). Take another.")
