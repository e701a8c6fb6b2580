"""Check compressed run-length strings before C code reads them, many at a time.

The format is pycocotools': each run is a signed number in groups of 5 bits, lowest first, one character (48 +
6 bits) per group, whose bit 5 says that another group follows and whose bit 4 is the sign in the last one.
From the fourth run on, the number is the difference from the run two places before.
"""

from collections.abc import Sequence

import numpy as np

_MAX_GROUPS = 7  # 35 bits, enough for a run of 32 bits and its sign
_MAX_RUN = 2**32 - 1


def compressed_totals(strings: Sequence[str]) -> np.ndarray:
    """Return the number of pixels that each compressed run-length string covers.

    Args:
        strings: the `counts` of N masks.

    Returns:
        int64 (N,): the sum of the runs; -1 where the string is not of this format (a foreign character, a
        number that does not end, a negative run).
    """
    count = len(strings)
    valid = np.array([text.isascii() for text in strings], dtype=bool)
    encoded = [text.encode("ascii") if ok else b"" for text, ok in zip(strings, valid, strict=True)]
    lengths = np.array([len(text) for text in encoded], dtype=np.int64)
    totals = np.zeros(count, dtype=np.int64)
    groups = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.int64) - 48
    if groups.size:
        owner = np.repeat(np.arange(count), lengths)
        valid[owner[(groups < 0) | (groups > 63)]] = False
        last_of_string = np.zeros(groups.size, dtype=bool)
        last_of_string[np.cumsum(lengths)[lengths > 0] - 1] = True
        valid[owner[last_of_string & (groups & 32 != 0)]] = False
        numbers, first = _read_numbers(groups, last_of_string, owner, valid)
        runs = _undo_differences(numbers, _places(owner[first]))
        valid[owner[first[(runs < 0) | (runs > _MAX_RUN)]]] = False
        np.add.at(totals, owner[first], np.clip(runs, 0, _MAX_RUN))
    return np.where(valid, totals, -1)


def decoded_runs(strings: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of compressed run lengths that pycocotools has made, and the place of each in its mask.

    Args:
        strings: the `counts` of masks.

    Returns:
        int64 (M,) and (M,): those of all masks, one after the other; odd places are the masks' pixels.
    """
    groups = np.frombuffer(b"".join(strings), dtype=np.uint8).astype(np.int64) - 48
    if not groups.size:
        return groups, groups
    ends = groups & 32 == 0
    owner = np.repeat(np.arange(len(strings)), [len(text) for text in strings])
    numbers, first, _ = _numbers(groups, ends)
    places = _places(owner[first])
    return _undo_differences(numbers, places), places


def _places(owner: np.ndarray) -> np.ndarray:
    """Return the place of each run in its mask, from the mask `owner` (M,) of each."""
    starts = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
    return np.arange(owner.size) - np.repeat(starts, np.diff(np.append(starts, owner.size)))


def _read_numbers(
    groups: np.ndarray, last_of_string: np.ndarray, owner: np.ndarray, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the signed numbers (M,) and where each begins (M,); a number that is too long is not valid."""
    ends = (groups & 32 == 0) | last_of_string
    numbers, first, place = _numbers(groups, ends)
    valid[owner[place >= _MAX_GROUPS]] = False
    return numbers, first


def _numbers(groups: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the signed numbers (M,), where each begins (M,), and the place of each group in its number."""
    first = np.flatnonzero(np.concatenate(([True], ends[:-1])))
    last = np.flatnonzero(ends)
    place = np.arange(groups.size) - np.repeat(first, last - first + 1)
    shift = 5 * np.minimum(place, _MAX_GROUPS - 1)
    numbers = np.add.reduceat((groups & 31) << shift, first)
    negative = groups[last] & 16 != 0
    return numbers - np.where(negative, np.int64(1) << (shift[last] + 5), 0), first, place


def _undo_differences(numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the runs (M,) from the stored numbers (M,), whose place in their mask is given (M,)."""
    # Three chains per mask: the first run alone, the odd places, the even places; each is a running sum.
    first = np.flatnonzero(places == 0)
    counts = np.diff(np.append(first, numbers.size))
    runs = numbers.copy()
    for chain in (places % 2 == 1, (places % 2 == 0) & (places > 0)):
        sums = np.cumsum(np.where(chain, numbers, 0))
        runs[chain] = (sums - np.repeat(sums[first], counts))[chain]
    return runs
