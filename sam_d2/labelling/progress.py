"""How far a run is: a line that is rewritten in place on a terminal, and printed now and then elsewhere."""

from __future__ import annotations

import datetime
import sys
import time
from typing import TextIO

_REDRAW_SECONDS = 0.25
_PRINT_SECONDS = 30.0
_SMOOTHING_SECONDS = 60.0


class LabelProgress:
    """Counts images and masks, and says how long the rest will take.

    Args:
        total: images to do in this process.
        enabled: False shows nothing.
        stream: to write to; stderr by default.
    """

    def __init__(self, total: int, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self.total = total
        self.enabled = enabled
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.images = self.masks = 0
        self._drawn_at = time.perf_counter()
        self._marks = [(self._drawn_at, 0, 0)]

    def add(self, masks: int) -> None:
        """Count an image with so many masks, and show the line where it is due."""
        self.images += 1
        self.masks += masks
        now = time.perf_counter()
        # The speed of the last minute, and always of two moments.
        while len(self._marks) > 1 and now - self._marks[1][0] > _SMOOTHING_SECONDS:
            self._marks.pop(0)
        self._marks.append((now, self.images, self.masks))
        if self.enabled and now - self._drawn_at > (_REDRAW_SECONDS if self.live else _PRINT_SECONDS):
            self._drawn_at = now
            self.stream.write(f"\r\x1b[K{self.text()}" if self.live else f"{self.text()}\n")
            self.stream.flush()

    def close(self) -> None:
        """Remove the live line."""
        if self.enabled and self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def text(self) -> str:
        """Return the line."""
        (then, images, masks), (now, images_now, masks_now) = self._marks[0], self._marks[-1]
        seconds = max(now - then, 1e-9)
        left = seconds / max(images_now - images, 1) * (self.total - self.images)
        return (
            f"image {self.images}/{self.total}  eta {datetime.timedelta(seconds=int(left))}  "
            f"{(images_now - images) / seconds:.1f} images/s  {(masks_now - masks) / seconds:.0f} masks/s"
        )
