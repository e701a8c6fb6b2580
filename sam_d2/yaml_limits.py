"""YAML from anywhere: what it would become is counted before it is made, because aliases multiply."""

from __future__ import annotations

import yaml

from sam_d2.errors import UserError

MAX_BYTES = 1 << 20
"""Of the text; a config has some ten thousand."""
MAX_VALUES = 100_000
"""Keys and values with each alias written out; a config has some hundred."""


def check_yaml(text: str, source: str) -> None:
    """Refuse a YAML text that is too large, or that would be once its aliases are written out.

    Args:
        text: of the file; what PyYAML cannot parse passes, for its reader says more.
        source: for the message.

    Raises:
        UserError: it has too many values, is nested too deeply, or contains itself.
    """
    try:
        size = len(text.encode())
        values = _values(yaml.compose(text, Loader=yaml.SafeLoader), {}) if size <= MAX_BYTES else 0
    except (yaml.YAMLError, ValueError):
        return
    except RecursionError:
        raise UserError(f"{source}: it is nested too deeply for a config.") from None
    if size > MAX_BYTES or values > MAX_VALUES:
        what = f"{size} bytes" if size > MAX_BYTES else f"more than {MAX_VALUES} values, most of them by aliases"
        raise UserError(f"{source}: it holds {what}, which no config does.")


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Count the values of a node, aliases written out."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # what contains itself would be infinite
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]
