"""Find the records of a JSON file of any size without holding it in memory: where each begins and ends."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20
_UTF8_BOM = b"\xef\xbb\xbf"
# Strings, whose content is no structure, and brackets; a string that the block cuts off has no second quote.
_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.)*("?)|[{}\[\]]', re.DOTALL)


class IrregularJsonError(ValueError):
    """The file is no JSON object with lists of objects: reading it whole says what is wrong, and where."""


class JsonRecords:
    """The places of the records of a file: a JSON object whose long lists hold objects, as COCO's, or one such list.

    Iterating reads the file once, in blocks, and gives ``(key, begin, end)`` for each object of the lists asked for:
    the list's key, and the object's first byte and the one after its last. Inside of an object nothing is checked but
    that its brackets match; whoever decodes its bytes finds the rest.

    Args:
        path: of the file, in UTF-8, with or without a byte order mark.
        keys: of the lists whose records are wanted; a file that is a list has the key "".

    Attributes:
        members: after an iteration, the members of the file's object in their order: the value of each number, string,
            bool or null, and ``[begin, end]``, the bytes, of each list and object.

    Raises:
        IrregularJsonError: while iterating, where the file has another form.
    """

    def __init__(self, path: Path, keys: Collection[str]) -> None:
        self.path = path
        self.keys = keys
        self.members: dict[str, Any] = {}

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """Return the iterator that the class describes."""
        begin = member_begin = 0
        closing: list[bytes] = []  # brackets that are awaited
        level = 2  # depth inside of a list of records; in a file that is a list it is 1
        key, wanted, first = "", False, True
        keys: set[str] = set()
        skeleton = bytearray()  # the file's object with the places of its lists and objects in place of their content
        for token, gap, place in _tokens(self.path):
            depth = len(closing)
            if depth < level:
                skeleton += gap
            if token in (b"{", b"["):
                if depth == level and wanted:
                    _require(token == b"{" and gap.strip() == (b"" if first else b","))
                    begin, first = place, False
                elif depth == 0:
                    skeleton += token
                    if token == b"[":
                        level, wanted = 1, "" in self.keys
                elif depth == 1:
                    member_begin, wanted, first = place, token == b"[" and key in self.keys, True
                closing.append(b"}" if token == b"{" else b"]")
            elif token in (b"}", b"]"):
                _require(depth > 0 and token == closing.pop())
                depth -= 1
                if depth == level and wanted:
                    yield key, begin, place + 1
                    continue
                _require(not (depth == level - 1 and wanted and gap.strip()))
                if depth == 0:
                    skeleton += token
                elif depth == 1 and level == 2:
                    skeleton += b"[%d,%d]" % (member_begin, place + 1)
                    wanted = False
            elif depth == 1 and level == 2:
                key = _string(token)
                if gap.strip() != b":":  # that comes before a value
                    if key in keys:
                        raise IrregularJsonError(f"{key!r} is there twice: join both, of which other readers take one")
                    keys.add(key)
                skeleton += token
            else:
                _require(depth > level or (depth == level and not wanted))
        try:
            members = json.loads(bytes(skeleton))
        except ValueError as error:  # not JSON, or not UTF-8
            raise IrregularJsonError(str(error)) from error
        _require(isinstance(members, dict) or wanted)
        self.members = members if isinstance(members, dict) else {}


def first_member(path: Path) -> tuple[str, int, int] | None:
    """Return key, begin and end of the first member of a file's object, where it is a list or an object.

    The file is read up to that end.

    Args:
        path: of a JSON file in UTF-8.

    Raises:
        IrregularJsonError: it ends before.
    """
    key: str | None = None
    begin = depth = 0
    for token, _, place in _tokens(path):
        if token in (b"{", b"["):
            depth += 1
            if depth == 2:
                begin = place
        elif token in (b"}", b"]"):
            depth -= 1
            if depth < 2:
                return (key, begin, place + 1) if depth and key is not None else None
        elif depth < 2:
            if depth == 0 or key is not None:
                return None  # the file is a text, or the first member is no list or object
            key = _string(token)
    return None


def _tokens(path: Path) -> Iterator[tuple[bytes, bytes, int]]:
    """Return each bracket and string, what stands between it and the one before, and its place in the file."""
    with path.open("rb") as file:
        offset = len(_UTF8_BOM) if file.read(len(_UTF8_BOM)) == _UTF8_BOM else 0
        file.seek(offset)
        rest = b""
        while block := file.read(_BLOCK):
            block = rest + block
            last = 0
            for match in _TOKEN.finditer(block):
                if match[1] == b"":
                    break  # the string goes on in the next block
                begin = match.start()
                yield match[0], block[last:begin], offset + begin
                last = match.end()
            rest = block[last:]
            offset += last
    if rest.strip():
        raise IrregularJsonError("the file is cut off, or goes on after its end")


def _string(token: bytes) -> str:
    try:
        return json.loads(token)
    except ValueError as error:
        raise IrregularJsonError(str(error)) from error


def _require(holds: bool) -> None:
    if not holds:
        raise IrregularJsonError("no JSON object whose lists hold objects")
