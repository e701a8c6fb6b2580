"""Mutations: of values as JSON has them, which stay well-formed, and of bytes, which mostly do not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

NAMES = [
    "",
    " ",
    "a\nb",
    "\x1b[31mred\x1b[0m",
    "\x00",
    "\u202egnp.exe",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "/etc/passwd",
    "\\\\host\\share",
    "C:\\x.png",
    "'\"><img src=x onerror=alert(1)>",
    "é" * 300,
    "\ud800",
    "${a}",
    "a" * 5000,
    "os.system",
    "__import__('os').system('x')",
    "NaN",
    "null",
    "1",
    "%s%n",
    "{0}",
    "con",
    "🧊",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    3.5,
    -0.0,
    1e-320,
    1e308,
    -1e308,
    1e9,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**40,
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    False,
]
_CHANGES_OF_ONE = (1, 1, 1, 2, 4)


def other_value(random: Random) -> Any:
    """Return a value that has nothing to do with the one it replaces."""
    kind = random.randrange(6)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return random.choice(NAMES)
    if kind == 2:
        return None
    if kind == 3:
        return [other_value(random) for _ in range(random.randrange(4))]
    if kind == 4:
        return {random.choice(NAMES): other_value(random) for _ in range(random.randrange(3))}
    return nested(random.choice([2, 20, 90]), as_list=random.random() < 0.5)


def nested(depth: int, *, as_list: bool) -> Any:
    """Return a list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if as_list else {"a": value}
    return value


def mutated_tree(tree: Any, random: Random) -> Any:
    """Return a copy of a value with one to four changes: of leaves most often, of the structure else."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice(_CHANGES_OF_ONE)):
        places = list(_places(tree))
        if not places:
            return other_value(random)
        owner, key = random.choice(places)
        random.choice(_CHANGES)(owner, key, random)
    return tree


def json_bytes(tree: Any, random: Random) -> bytes:
    """Return a value as JSON text, now and then in another spelling or encoding."""
    text = json.dumps(tree, ensure_ascii=random.random() < 0.8, indent=random.choice([None, None, 1]))
    if random.random() < 0.02:  # as deep as Python's own stack, and deeper
        depth = random.choice([900, random.randint(930, 1000), 3000, 100_000])
        places = [place for place, letter in enumerate(text) if letter == "1"] or [0]
        place = random.choice(places)
        text = text[:place] + "[" * depth + "]" * depth + text[place + 1 :]
    content = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.03:
        return b"\xef\xbb\xbf" + content
    if random.random() < 0.01:
        return text.encode("utf-16", "surrogatepass")
    return content


def mutated_bytes(content: bytes, random: Random) -> bytes:
    """Return bytes with one to four changes: other bits, a part cut out, repeated or moved, the end cut off."""
    data = bytearray(content)
    for _ in range(random.choice(_CHANGES_OF_ONE)):
        if not data:
            break
        begin = random.randrange(len(data))
        end = min(len(data), begin + random.choice([1, 2, 4, 8, 64]))
        kind = random.randrange(6)
        if kind == 0:
            data[begin] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[begin:end] = bytes(random.randrange(256) for _ in range(end - begin))
        elif kind == 2:
            del data[begin:end]
        elif kind == 3:
            data[begin:begin] = data[begin:end] * random.choice([1, 2, 50])
        elif kind == 4:
            data[begin:end] = random.choice([b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"9" * 30])
        elif random.random() < 0.3:
            del data[begin:]
    return bytes(data)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            waiting.append(node[key])
    return found


def _replace(owner: Any, key: Any, random: Random) -> None:
    owner[key] = other_value(random)


def _nudge(owner: Any, key: Any, random: Random) -> None:
    """Change a value to one of its kind."""
    value = owner[key]
    if isinstance(value, bool) or value is None:
        owner[key] = not value
    elif isinstance(value, int | float) and random.random() < 0.5:
        owner[key] = random.choice([value + 1, value - 1, value * 2, value / 2, value + 0.25])
    elif isinstance(value, int | float):
        owner[key] = random.choice([*NUMBERS, -value, value * 1000, str(value)])
    elif isinstance(value, str):
        owner[key] = random.choice([*NAMES, value[::-1], value * 2, value[:-1], value + random.choice(NAMES)])
    elif isinstance(value, list):
        owner[key] = random.choice([value[:-1], value[1:], value * 2, value[::-1], [value], []])
    else:
        owner[key] = random.choice([[value], {}, [[value, value]]])


def _drop(owner: Any, key: Any, random: Random) -> None:
    del owner[key]


def _rename(owner: Any, key: Any, random: Random) -> None:
    if isinstance(owner, dict):
        owner[random.choice([str(key).upper(), str(key) + "s", random.choice(NAMES)])] = owner.pop(key)
    else:
        owner.insert(random.randrange(len(owner) + 1), owner.pop(key))


def _repeat(owner: Any, key: Any, random: Random) -> None:
    if isinstance(owner, list):
        owner.insert(key, copy.deepcopy(owner[key]))
    else:
        owner[f"{key}_"] = copy.deepcopy(owner[key])


def _move(owner: Any, key: Any, random: Random) -> None:
    """Put the value of another place of the same parent here."""
    others = list(owner) if isinstance(owner, dict) else range(len(owner))
    owner[key] = copy.deepcopy(owner[random.choice(list(others))])


_CHANGES: list[Callable[[Any, Any, Random], None]] = [_nudge, _nudge, _nudge, _replace, _drop, _rename, _repeat, _move]
