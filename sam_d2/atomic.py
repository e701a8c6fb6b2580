"""Write a file whole or not at all; free of torch."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: Of the file; its folder is made where absent. A link stays, and what it leads to is written.
        content: All of it.
        replace: Whether a file that is there gives way.

    Raises:
        FileExistsError: there is one, and it does not.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
